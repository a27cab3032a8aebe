"""Reading a chip from a NIR graph (Pedersen et al., Nature Communications 15:8122, 2024).

NIR says its dynamics in continuous time. Here, as in the libraries that write it, a spike is a
current of amplitude 1 for one step dt, so that per step, in units of the threshold,

    IF        v <- v + (r dt / v_th) W s
    LIF       v <- (1 - dt/tau) v + (dt/tau) (v_leak + r W s) / v_th
    CubaLIF   u <- u + (dt/tau_syn) (w_in W s - u)
              v <- (1 - dt/tau_mem) v + (dt/tau_mem) (v_leak + r u) / v_th
    LI        read in its steady state: output = v_leak + r W <s>

and analog inputs x take the place of s at the first layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .chip import Chip, Physics, Projection, Spiking, round_to_grid
from .conversion import fold
from .errors import HardwareError
from .neurons import PointNeuron
from .nir_file import MOST_BYTES, check_nir_file, check_room
from .rate_network import rate_network
from .transforms import (
    AvgPool2d,
    Conv2d,
    Flatten,
    Linear,
    Scale,
    Shape,
    SumPool2d,
    Transform,
    chain,
    output_shape,
)

__all__ = ["load_nir", "read_nir"]

Floats = NDArray[Any]
Reset = Literal["subtract", "zero"]

_MOST_BITS = 60  # of weights on a grid

DT = 1e-4
"""The step that snnTorch and nirtorch assume when they turn decay factors into time constants."""


def load_nir() -> Any:
    """The nir package, or an error that says how to get it."""
    try:
        import nir
    except ImportError as error:
        raise HardwareError("reading and writing NIR needs `pip install crashsim[nir]`") from error
    return nir


def read_nir(
    source: str | Path | Any,
    *,
    steps: int = 100,
    dt: float | None = None,
    reset: Reset | None = None,
    most_bytes: int = MOST_BYTES,
) -> Chip:
    """The chip of a NIR file or graph.

    Parameters
    ----------
    source: a path, or a `nir.NIRGraph`: a chain Input -> ... -> Output of Affine, Linear, Scale,
        Conv2d, SumPool2d, AvgPool2d, Flatten, IF, LIF, CubaLIF and LI nodes.
    steps: T, the length of the readout window.
    dt: time step in seconds; default the graph's metadata, else 1e-4.
    reset: what a spike leaves behind. NIR can only say "zero"; graphs from libraries that
        subtract the threshold look the same, so this must be given where the metadata does not.
    most_bytes: what the numbers of the chip may take in memory.

    A file is data: links are not followed, nor is anything read from another file, and one that
    declares more than `most_bytes`, or more numbers than it holds, is refused.

    The chip's `network` is its rate network where that is exact (no leak, reset by subtraction),
    else None. Raises HardwareError, naming the node, for anything that cannot be read.
    """
    nir = load_nir()
    graph = _read_file(nir, source, most_bytes) if isinstance(source, str | Path) else source
    if not isinstance(graph, nir.NIRGraph):
        raise HardwareError(f"source must be a path or a nir.NIRGraph, got {source!r:.80}")
    # shapes are checked below: nir 1.0.8 infers wrong ones for grouped convolutions
    metadata = {key: _plain(value) for key, value in dict(graph.metadata or {}).items()}
    step = float(metadata.get("dt", DT)) if dt is None else dt
    kept = reset or metadata.get("reset")
    bits = metadata.get("fraction_bits")
    if bits is not None and not 0 <= (bits := int(bits)) <= _MOST_BITS:
        raise HardwareError(f"fraction_bits of {bits}; weights have 0 to {_MOST_BITS}")
    nodes = _chain(nir, graph)
    shape = tuple(int(n) for n in np.atleast_1d(nodes[0][1].input_type["input"]))
    building = _Building(nir, step, kept, bits, shape, most_bytes)
    for name, node in nodes[1:-1]:
        building.add(name, node)
    chip = building.finish(steps)
    exact = all(s.neuron.leak == 0.0 and s.neuron.reset == "subtract" for s in chip.hidden)
    return replace(chip, network=rate_network(chip)) if exact else chip


def _read_file(nir: Any, path: str | Path, most_bytes: int) -> Any:
    check_nir_file(path, most_bytes)
    try:
        return nir.read(path, type_check=False)
    except Exception as error:  # nir asserts, and takes what it finds for what it expects
        raise HardwareError(f"is no NIR graph ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    return value.decode() if isinstance(value, bytes) else value


def _chain(nir: Any, graph: Any) -> list[tuple[str, Any]]:
    """The nodes in order; raises HardwareError unless they form one chain."""
    following: dict[str, str] = {}
    reached: set[str] = set()
    for source, target in graph.edges:
        if source in following or target in reached:
            raise HardwareError(
                f"the graph branches or merges at the edge {source} -> {target}; only chains of "
                "layers can be read (no recurrence, no skip connection)"
            )
        following[source] = target
        reached.add(target)
    starts = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(starts) != 1:
        raise HardwareError(f"a graph needs exactly one Input node, got {len(starts)}")
    order = [starts[0]]
    while order[-1] in following and len(order) <= len(graph.nodes):
        order.append(following[order[-1]])
    missing = [name for name in order if name not in graph.nodes]
    if missing:
        raise HardwareError(f"an edge leads to {missing[0]!r}, which is no node")
    if not isinstance(graph.nodes[order[-1]], nir.Output):
        raise HardwareError(f"the chain from the Input ends at {order[-1]!r}, not at an Output")
    return [(name, graph.nodes[name]) for name in order]


@dataclass
class _Building:
    """A chip half read: the layers so far, and the transforms since the last neurons."""

    nir: Any
    dt: float
    reset: str | None
    bits: int | None
    shape: Shape
    most_bytes: int
    hidden: list[Spiking] = field(default_factory=list)
    pending: list[Transform] = field(default_factory=list)
    source: Shape = ()
    leaky_readout: Projection | None = None

    def __post_init__(self) -> None:
        self.source = self.shape
        self._check_layer("the Input", self.shape)

    def _check_layer(self, what: str, shape: Shape) -> None:
        if not shape or min(shape) < 1:
            raise HardwareError(f"{what} has shape {shape}; give at least one of each")
        check_room(f"{what} of shape {shape}", math.prod(shape), self.most_bytes)

    def add(self, name: str, node: Any) -> None:
        nir = self.nir
        if self.leaky_readout is not None:
            raise HardwareError(f"node {name!r} follows an LI readout; only the Output may")
        if isinstance(node, nir.IF | nir.LIF | nir.CubaLIF):
            self._spiking(name, node)
        elif isinstance(node, nir.LI):
            self.leaky_readout = self._project(
                np.ones(1), _flat(node.r, self.shape), _flat(node.v_leak, self.shape), None
            )
        else:
            transform = _transform(nir, name, node)
            try:
                after = output_shape(transform, self.shape)
            except HardwareError as error:
                raise HardwareError(f"node {name!r}: {error}") from None
            self._check_layer(f"node {name!r}", after)
            numbers = _windowed(transform, self.shape, after)
            check_room(f"node {name!r}, with its windows,", numbers, self.most_bytes)
            self.shape = after
            _append(self.pending, transform, name)

    def _spiking(self, name: str, node: Any) -> None:
        nir = self.nir
        if self.reset not in ("subtract", "zero"):
            raise HardwareError(
                f"node {name!r}: the graph does not say whether a spike resets the membrane to "
                'zero or subtracts the threshold; pass reset="zero" (what NIR prescribes) or '
                'reset="subtract" (what converted networks and snnTorch\'s default mean)'
            )
        if node.v_reset is not None and np.any(np.asarray(node.v_reset) != 0.0):
            raise HardwareError(f"node {name!r} resets to {node.v_reset}; only 0 is supported")
        threshold = _flat(node.v_threshold, self.shape)
        if not (threshold > 0.0).all():
            raise HardwareError(f"node {name!r} has a threshold that is not positive")
        reset: Reset = "subtract" if self.reset == "subtract" else "zero"
        extra = np.zeros(1)
        if isinstance(node, nir.IF):
            neuron = PointNeuron(reset=reset)
            rows = _flat(node.r, self.shape) * self.dt / threshold
        else:
            lif = isinstance(node, nir.LIF)
            leak = self.dt / _one(node.tau if lif else node.tau_mem, name, "time constants")
            rows = leak * _flat(node.r, self.shape) / threshold
            extra = leak * _flat(node.v_leak, self.shape) / threshold
            if lif:
                neuron = PointNeuron(leak=leak, reset=reset)
            else:
                synapse = self.dt / _one(node.tau_syn, name, "synaptic time constants")
                neuron = PointNeuron(leak=leak, synapse=synapse, reset=reset)
                rows = rows * _flat(node.w_in, self.shape)
        # PointNeuron lets a delivered charge leak once before the threshold, a NIR spike does not
        waits = neuron.leak if self.hidden and neuron.synapse is None else 0.0
        bits = self.bits if neuron.on_grid else None
        projection = self._project(np.full(1, 1.0 / (1.0 - waits)), rows, extra, bits)
        offset = self.hidden[-1].offset + neuron.settling if self.hidden else 0
        self.hidden.append(Spiking(projection, neuron, np.ones(rows.size), offset))
        self.pending, self.source = [], self.shape

    def _project(
        self, arriving: Floats, rows: Floats, extra: Floats, bits: int | None
    ) -> Projection:
        """Pending transforms times `rows`; `arriving` scales the charges but not the bias."""
        transforms = tuple(self.pending)
        zero = np.zeros(math.prod(self.source))
        bias = chain(transforms, zero, self.source) * rows + extra
        stored, _ = fold(
            transforms, self.source, np.ones(zero.size), rows * np.ones(bias.size) * arriving, bits
        )
        return Projection(stored, round_to_grid(bias, bits), self.source, bits, arriving)

    def finish(self, steps: int) -> Chip:
        if not self.hidden:
            raise HardwareError("the graph has no spiking neurons (IF, LIF or CubaLIF)")
        readout = self.leaky_readout or self._project(
            np.ones(1), np.ones(math.prod(self.shape)), np.zeros(1), None
        )
        physics = Physics(dt=self.dt)
        first = self.hidden[0].projection
        return Chip(tuple(self.hidden), readout, steps, first.shape, physics)


def _windowed(transform: Transform, before: Shape, after: Shape) -> int:
    """Numbers in the padded input of a convolution or pooling, and in all of its windows."""
    if isinstance(transform, Conv2d):
        kernel, channels = transform.weight.shape[2:], transform.weight.shape[1]
    elif isinstance(transform, SumPool2d):
        kernel, channels = _pair(transform.kernel), before[0]
    else:
        return 0
    padding = _pair(transform.padding)
    padded = before[0] * math.prod(n + 2 * p for n, p in zip(before[1:], padding, strict=True))
    return max(padded, int(channels) * math.prod(kernel) * math.prod(after[1:]))


def _flat(values: Any, shape: Shape) -> Floats:
    """One value per neuron, (n,), from a scalar or an array of the layer's shape."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 1:
        return np.full(math.prod(shape), float(array.reshape(-1)[0]))
    if array.size != math.prod(shape):
        raise HardwareError(f"neuron parameters of shape {array.shape} do not fit {shape}")
    return array.reshape(-1)


def _one(values: Any, name: str, what: str) -> float:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if np.ptp(array) > 1e-9 * np.abs(array).max():
        raise HardwareError(f"node {name!r} has different {what}; one per layer is supported")
    return float(array[0])


def _transform(nir: Any, name: str, node: Any) -> Transform:
    if isinstance(node, nir.Affine):
        return Linear(node.weight, np.asarray(node.bias).reshape(-1))
    if isinstance(node, nir.Linear):
        return Linear(node.weight)
    if isinstance(node, nir.Scale):
        return Scale(node.scale)
    if isinstance(node, nir.Flatten):
        return Flatten()
    if isinstance(node, nir.Conv2d):
        return Conv2d(
            node.weight,
            np.broadcast_to(np.asarray(node.bias, dtype=np.float64), node.weight.shape[:1]),
            stride=_pair(node.stride),
            padding=_padding(node, name),
            dilation=_pair(node.dilation),
            groups=int(node.groups),
        )
    if isinstance(node, nir.SumPool2d | nir.AvgPool2d):
        kind = SumPool2d if isinstance(node, nir.SumPool2d) else AvgPool2d
        return kind(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
    raise HardwareError(
        f"node {name!r} is a {type(node).__name__}, which cannot be read; supported are Affine, "
        "Linear, Scale, Conv2d, SumPool2d, AvgPool2d, Flatten, IF, LIF, CubaLIF and LI"
    )


def _pair(value: Any) -> tuple[int, int]:
    both = np.broadcast_to(np.asarray(value, dtype=int).reshape(-1), (2,))
    return int(both[0]), int(both[1])


def _padding(node: Any, name: str) -> tuple[int, int]:
    padding = _plain(node.padding)
    if not isinstance(padding, str):
        return _pair(padding)
    if padding == "valid":
        return 0, 0
    span = [d * (k - 1) for d, k in zip(_pair(node.dilation), node.weight.shape[2:], strict=True)]
    if any(s % 2 for s in span) or _pair(node.stride) != (1, 1):
        raise HardwareError(f'node {name!r}: padding "same" needs an odd kernel and stride 1')
    return span[0] // 2, span[1] // 2


def _append(pending: list[Transform], transform: Transform, name: str) -> None:
    """Add a transform, multiplied into the weighted one before it: one synapse, one weight."""
    before = next((t for t in pending if isinstance(t, Linear | Conv2d | Scale)), None)
    if before is None or not isinstance(transform, Linear | Conv2d | Scale):
        pending.append(transform)
        return
    place = next(i for i, t in enumerate(pending) if t is before)
    merged = _merge(before, transform) if place == len(pending) - 1 else None
    if merged is None:
        raise HardwareError(
            f"node {name!r}: {type(before).__name__} and {type(transform).__name__} follow each "
            "other without neurons in between and cannot be multiplied into one set of weights"
        )
    pending[place] = merged


def _merge(first: Transform, second: Transform) -> Transform | None:
    if isinstance(first, Scale) and isinstance(second, Scale):
        return Scale(first.scale * second.scale)
    if isinstance(first, Scale) and isinstance(second, Linear) and first.scale.ndim <= 1:
        return replace(second, weight=second.weight * first.scale)
    if isinstance(first, Linear) and isinstance(second, Scale) and second.scale.ndim <= 1:
        rows = np.broadcast_to(second.scale, first.weight.shape[:1])
        bias = None if first.bias is None else first.bias * rows
        return Linear(first.weight * rows[:, None], bias)
    if isinstance(first, Linear) and isinstance(second, Linear):
        weight = second.weight @ first.weight
        moved = 0.0 if first.bias is None else second.weight @ first.bias
        own = 0.0 if second.bias is None else second.bias
        return Linear(weight, np.broadcast_to(moved + own, weight.shape[:1]))
    if isinstance(first, Conv2d) and isinstance(second, Scale) and second.scale.size == 1:
        gain = float(second.scale.reshape(-1)[0])
        return replace(
            first,
            weight=first.weight * gain,
            bias=None if first.bias is None else first.bias * gain,
        )
    if isinstance(first, Scale) and isinstance(second, Conv2d) and first.scale.size == 1:
        return replace(second, weight=second.weight * float(first.scale.reshape(-1)[0]))
    return None
