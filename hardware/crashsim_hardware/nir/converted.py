"""Graphs that `write_nir` wrote: chains of the chip's own neurons, read back to the same chip.

Their metadata say the step, the reset and the grid of the weights, and their neurons are
`PointNeuron`: a delivered charge leaks once before the threshold, a synapse starts settled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Chip, Physics, Projection, Spiking, round_to_grid
from crashsim_hardware.conversion import fold
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.point_neuron import PointNeuron
from crashsim_hardware.transforms import Shape, Transform, chain, output_shape

from .file import check_room
from .transforms import append, transform_of, windowed

__all__ = ["read_converted"]

Floats = NDArray[Any]


def read_converted(nir: Any, graph: Any, metadata: dict[str, Any], steps: int, most: int) -> Chip:
    """The chip of a graph with the metadata that `write_nir` gives it."""
    bits = metadata.get("fraction_bits")
    if bits is not None and not 0 <= (bits := int(bits)) <= _MOST_BITS:
        raise HardwareError(f"fraction_bits of {bits}; weights have 0 to {_MOST_BITS}")
    nodes = _chain(nir, graph)
    shape = tuple(int(n) for n in np.atleast_1d(nodes[0][1].input_type["input"]))
    building = _Building(nir, float(metadata["dt"]), metadata["reset"], bits, shape, most)
    for name, node in nodes[1:-1]:
        building.add(name, node)
    return building.finish(steps)


_MOST_BITS = 60  # of weights on a grid


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
            transform = transform_of(nir, name, node)
            try:
                after = output_shape(transform, self.shape)
            except HardwareError as error:
                raise HardwareError(f"node {name!r}: {error}") from None
            self._check_layer(f"node {name!r}", after)
            numbers = windowed(transform, self.shape, after)
            check_room(f"node {name!r}, with its windows,", numbers, self.most_bytes)
            self.shape = after
            append(self.pending, transform, name)

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
        reset: Literal["subtract", "zero"] = "subtract" if self.reset == "subtract" else "zero"
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
        self.hidden.append(Spiking(projection, neuron, np.ones(rows.size), offset, name=name))
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
