"""Reading a chip from a NIR graph (Pedersen et al., Nature Communications 15:8122, 2024).

NIR says its dynamics in continuous time. Here, as in the libraries that write it, a spike is a
current of amplitude 1 for one step dt, so that per step

    IF        v <- v + r dt W s
    LIF       v <- (1 - dt/tau) v + (dt/tau) (v_leak + r W s)
    CubaLIF   u <- (1 - dt/tau_syn) u + (dt/tau_syn) w_in W s
              v <- (1 - dt/tau_mem) v + (dt/tau_mem) (v_leak + r u)
    Threshold a spike where W s is above it
    LI, I     read out: v_leak + r W <s>, the steady state; r dt W <s>, the growth a step

and analog inputs x take the place of s at the first layer. Spikes cross from layer to layer within
a step; where they run in a loop they arrive in the next one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import INPUT, Chip, Physics, Projection, Spiking, Wire
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.rate_network import rate_network
from crashsim_hardware.transforms import Shape

from .conventions import DT, Convention, Reset, convention_of, rockpool_step
from .converted import read_converted
from .file import MOST_BYTES, check_nir_file
from .flat_graph import FlatGraph, flat_graph
from .layers import Path, Paths, layer_order
from .neurons import is_spiking, neuron_of, time_constants
from .rules import RULES, rules_of
from .transforms import plain

__all__ = ["load_nir", "read_nir"]

Floats = NDArray[Any]
Start = Literal["half", "zero"]

_PER_SECOND = 100.0  # an r of an IF from here on is per second, below it per step


def load_nir() -> Any:
    """The nir package, or an error that says how to get it."""
    try:
        import nir
    except ImportError as error:
        raise HardwareError("reading and writing NIR needs `pip install crashsim[nir]`") from error
    return nir


def read_nir(
    source: str | FilePath | Any,
    *,
    steps: int = 100,
    dt: float | None = None,
    reset: Reset | None = None,
    exporter: str | None = None,
    start: Start | None = None,
    most_bytes: int = MOST_BYTES,
) -> Chip:
    """The chip of a NIR file or graph: feed-forward, with branches, or recurrent.

    Parameters
    ----------
    source: a path, or a `nir.NIRGraph` of Affine, Linear, Scale, Conv1d, Conv2d, SumPool2d,
        AvgPool2d, Flatten, Delay, Threshold, IF, LIF, CubaLIF and subgraphs of them, with LI or I
        before the Output, if anywhere.
    steps: T, the length of the readout window.
    dt: time step, in the unit of the time constants; default the graph's metadata, else the
        exporter's, else 1e-4 where some node has a time constant. Without any, r says it: per
        step (dt = 1) where every r is below 100, else per second, with dt = 1 / r.
    reset: what a spike leaves behind: "zero" (NIR's v_reset) or "subtract" (the membrane less the
        threshold), at once, or a step late ("late-zero", "late-subtract"). NIR does not say it,
        so this must be given where neither the metadata nor the exporter does.
    exporter: the library whose recursion is run, a name of `CONVENTIONS`: "snntorch",
        "spikingjelly", "sinabs", "sinabs-bounded", "norse" or "rockpool"; default NIR's own
        equations as above.
    start: membranes before the first step: at "zero", as the libraries have them and as is the
        default, or at "half" of the threshold.
    most_bytes: what the numbers of the chip may take in memory.

    A file is data: links are not followed, nor is anything read from another file, and one that
    declares more than `most_bytes`, or more numbers than it holds, is refused.

    A graph that `write_nir` wrote becomes the chip that it was: of chips that it read from others,
    the rules of each node are in its metadata, unless `exporter` or `reset` is given. The chip's
    `network` is its rate network where that is exact (no leak, reset by subtraction), else None;
    `convention` says in words what was assumed. Raises HardwareError, naming the node, for anything
    that cannot be run.
    """
    nir = load_nir()
    convention = convention_of(exporter, reset)
    if start not in (None, "half", "zero"):
        raise HardwareError(f'start must be "half" or "zero", got {start!r:.80}')
    if dt is not None and not (isinstance(dt, int | float) and 0.0 < dt < math.inf):
        raise HardwareError(f"dt must be a positive time, got {dt!r:.80}")
    graph = _read_file(nir, source, most_bytes) if isinstance(source, str | FilePath) else source
    if not isinstance(graph, nir.NIRGraph):
        raise HardwareError(f"source must be a path or a nir.NIRGraph, got {source!r:.80}")
    # shapes are checked below: nir 1.0.8 infers wrong ones for grouped convolutions
    metadata = {key: plain(value) for key, value in dict(graph.metadata or {}).items()}
    own = {"dt", "reset"} <= metadata.keys() and exporter is None and dt is None
    if own and reset in (None, metadata["reset"]):
        chip = read_converted(nir, graph, metadata, steps, most_bytes)
        chip = replace(chip, start=start or "half")
        exact = all(s.neuron.leak == 0.0 and s.neuron.reset == "subtract" for s in chip.hidden)
        return replace(chip, network=rate_network(chip)) if exact else chip
    wanted = reset or metadata.get("reset") or convention.reset
    written = RULES in metadata and exporter is None and reset is None
    if written and start is None and metadata.get("start") == "half":
        start = "half"
    return _chip(
        nir, flat_graph(nir, graph, most_bytes), steps, dt or metadata.get("dt"), wanted,
        convention, exporter, start or "zero", written,
    )  # fmt: skip


def _read_file(nir: Any, path: str | FilePath, most_bytes: int) -> Any:
    check_nir_file(path, most_bytes)
    try:
        return nir.read(path, type_check=False)
    except Exception as error:  # nir asserts, and takes what it finds for what it expects
        raise HardwareError(f"is no NIR graph ({type(error).__name__}: {error})") from error


def _chip(
    nir: Any,
    graph: FlatGraph,
    steps: int,
    dt: float | None,
    reset: str | None,
    convention: Convention,
    exporter: str | None,
    start: Start,
    written: bool,
) -> Chip:
    spiking = [name for name, node in graph.nodes.items() if is_spiking(nir, node)]
    if not spiking:
        raise HardwareError("the graph has no spiking neurons (IF, LIF, CubaLIF or Threshold)")
    told = {name: rules_of(graph.nodes[name], convention) if written else None for name in spiking}
    open_nodes = [n for n in spiking if not (told[n] or isinstance(graph.nodes[n], nir.Threshold))]
    if reset is None and open_nodes:
        raise HardwareError(
            f"node {open_nodes[0]!r}: the graph does not say whether a spike resets the membrane "
            'to zero or subtracts the threshold; pass reset="zero" (what NIR prescribes) or '
            'reset="subtract" (what converted networks and snnTorch\'s default mean)'
        )
    kind: Reset = "zero" if reset is None else reset  # type: ignore[assignment]
    step, why = _time_step(nir, graph, dt, convention, exporter)
    paths = Paths(nir, graph, step)
    into = {name: paths.into(name) for name in spiking}
    sources = {name: [path.source for path in into[name]] for name in spiking}
    read = _only_path(graph, paths.into(graph.output))
    order = layer_order(graph.input, sources, read.source)
    rank = {graph.input: INPUT} | {name: index for index, name in enumerate(order)}
    hidden: list[Spiking] = []
    wires: list[Wire] = []
    for index, name in enumerate(order):
        rules, own_kind = told[name] or (convention, kind)
        neuron = neuron_of(
            nir, name, graph.nodes[name], graph.shapes[name], step, rules, own_kind,
            looped=name in sources[name],
        )  # fmt: skip
        first, *others = _main_first(into[name], rank, index)
        bias = _full(paths.drive_into(name), graph.shapes[name])
        hidden.append(
            Spiking(
                Projection(first.transforms, bias, graph.shapes[first.source]),
                neuron,
                np.ones(bias.size),
                source=None if rank[first.source] == index - 1 else rank[first.source],
                delay=_steps(first, rank, index),
                name=name,
            )
        )
        wires += [
            Wire(
                rank[path.source],
                index,
                Projection(path.transforms, np.zeros(bias.size), graph.shapes[path.source]),
                _steps(path, rank, index),
            )
            for path in others
        ]
    shape = graph.shapes[graph.output]
    readout = Projection(
        read.transforms, _full(paths.drive_into(graph.output), shape), graph.shapes[read.source]
    )
    resets = "the rules of each node" if written else f"reset {kind}"
    chip = Chip(
        tuple(hidden), readout, steps, graph.shapes[graph.input], Physics(dt=step),
        start=start, wires=tuple(wires),
        convention=f"dt = {step:g} ({why}); {resets}; membranes start at {start}; "
        f"{convention.about}",
    )  # fmt: skip
    return _with_network(chip)


def _with_network(chip: Chip) -> Chip:
    neurons = [layer.neuron for layer in chip.hidden]
    chained = not chip.wires and all(s.source is None and s.delay == 0 for s in chip.hidden)
    if not chained or not all(getattr(neuron, "is_integrator", False) for neuron in neurons):
        return chip
    try:
        return replace(chip, network=rate_network(chip))
    except HardwareError:  # drives or gains that no layer of a network can say
        return chip


def _time_step(
    nir: Any, graph: FlatGraph, dt: float | None, convention: Convention, exporter: str | None
) -> tuple[float, str]:
    """The time step, and where it comes from."""
    if dt is not None:
        return float(dt), "given"
    constants = [tau for node in graph.nodes.values() for tau in time_constants(nir, node)]
    if exporter == "norse" and constants and min(tau.min() for tau in constants) < 1e-3:
        return 1e-6, "norse's own: it writes time constants in units of its step of 1e-3"
    if convention.whole and constants:
        return _step_of_rockpool(nir, graph), "rockpool's own, as r says it"
    if convention.dt is not None and (constants or convention.many):
        return convention.dt, f"{exporter}'s own"
    if constants:
        return DT, "in seconds; the file does not say"
    rates = [
        np.asarray(node.r, dtype=np.float64).reshape(-1)
        for node in graph.nodes.values()
        if isinstance(node, nir.IF)
    ]
    every = np.concatenate([*rates, np.ones(0)])
    if not every.size or every.max() < _PER_SECOND:
        return 1.0, "a step: no node has a time constant"
    if np.ptp(every) > 1e-6 * every.max():
        raise HardwareError(
            f"r of the IF neurons is from {every.min():g} to {every.max():g}, and no node has a "
            "time constant, so nothing says how long a step is; give dt"
        )
    return 1.0 / float(every[0]), "1 / r: no node has a time constant"


def _step_of_rockpool(nir: Any, graph: FlatGraph) -> float:
    found = [
        rockpool_step(time_constants(nir, node)[0], np.asarray(node.r, dtype=np.float64))
        for node in graph.nodes.values()
        if isinstance(node, nir.LIF | nir.CubaLIF)
    ]
    every = np.concatenate([np.reshape(values, -1) for values in found])
    if not every.size or not np.ptp(every) <= 1e-3 * every.max():
        raise HardwareError(
            "tau and r of the neurons do not say one time step, as rockpool writes it; give dt"
        )
    return float(f"{np.median(every):.4g}")  # tau and r went through float32


def _only_path(graph: FlatGraph, found: list[Path]) -> Path:
    if len(found) != 1 or found[0].source == graph.input or found[0].delay:
        names = ", ".join(sorted({repr(path.source) for path in found}))
        raise HardwareError(
            f"the Output {graph.output!r} must read one layer of spiking neurons, at once; "
            f"{len(found)} ways lead to it, from {names}"
        )
    return found[0]


def _main_first(found: list[Path], rank: dict[str, int], index: int) -> list[Path]:
    """The paths into a layer, that from the layer before in front."""
    near = [p for p in found if rank[p.source] == index - 1 and _steps(p, rank, index) == 0]
    main = near[0] if near else found[0]
    return [main, *(path for path in found if path is not main)]


def _steps(path: Path, rank: dict[str, int], index: int) -> int:
    """Steps on the way: spikes that go back arrive in the next step at the earliest."""
    return path.delay + (1 if rank[path.source] >= index else 0)


def _full(drive: Floats, shape: Shape) -> Floats:
    return np.broadcast_to(drive, shape).reshape(-1).astype(np.float64)
