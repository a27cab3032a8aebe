"""Runs faults on a chip that was read from a NIR graph and has no network to be compared with.

Its neurons leak, reset to zero or are wired in loops: no chain of layers has their rates, and the
chip's own Monte Carlo is the whole answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any

import crashsim_hardware as chips
import numpy as np
from crashsim_hardware import Chip, ChipFaults, HardwareError
from crashsim_hardware.engines.readouts import Readout
from crashsim_hardware.engines.running import Engine
from crashsim_hardware.noticing import collecting
from crashsim_hardware.streams import Stream, generator

from crashsim.arguments import MOST_STEPS, callback, check_seed, fraction, one_of, whole
from crashsim.arrays import Floats
from crashsim.chip.chip_estimates import chip_estimates
from crashsim.chip.chip_facts import activity_facts, device_facts, raster_facts
from crashsim.chip.chip_faults import Breaks
from crashsim.chip.laws import NeuronOutputs, changed_weights, line_of
from crashsim.chip.plan import MOST_OPERATIONS, plan_run
from crashsim.chip.spiking import ChipRun, Told, check_width, silent_layers, telling_mask
from crashsim.errors import ArgumentError
from crashsim.faults import check_drawable, check_fault
from crashsim.results.schema import ChipFacts

__all__ = ["graph_faults", "run_graph"]


def run_graph(
    chip: Chip,
    inputs: Floats,
    faults: Mapping[str, Any],
    *,
    masks: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    engine: Engine = "numpy",
    device: chips.Device | None = None,
    breaks: Breaks | None = None,
    readout: Readout = "count",
    rel_width: float | None = None,
    budget: float = MOST_OPERATIONS,
    progress: Told | None = None,
) -> ChipRun:
    """Breaks the chip and measures how far its outputs move, mask by mask.

    Args:
        chip: as ``read_graph`` returns it.
        inputs: (B, *chip.input_shape), constant currents; or (B, T, *chip.input_shape), trains of
            as many steps as the chip runs.
        faults: by site: ``hidden`` (all layers of neurons but one that is the output), ``input``,
            ``weights``, or a glob over the names of the graph's nodes. A death of neurons may have
            a ``window`` of steps.
        readout: ``count`` (spikes a step), ``first-spike`` (1 - t / T, 0 without a spike) or
            ``membrane`` (in thresholds, after the last step) of the neurons that the graph reads.
        masks, seed, confidence, engine, device, breaks, rel_width, budget, progress: as in
            ``run_chip``.

    Raises:
        ArgumentError: faults the chip cannot have, inputs that do not fit, or counts out of range.
    """
    masks = None if masks is None else whole("masks", masks, 2, MOST_STEPS)
    rel_width = check_width(rel_width)
    callback("progress", progress)
    seed, confidence = check_seed(seed), fraction("confidence", confidence)
    one_of("engine", engine, ("brian2", "brian2-synapses", "numpy"))
    inputs = _fitted(chip, inputs)
    planned = plan_run(chip, len(inputs), masks, budget=budget)
    masks, inputs = planned.masks, inputs[: planned.inputs]

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress("chip", done, total)

    with collecting() as noticed:
        try:
            if device is not None:
                broken = device.sample(chip, masks, seed)
            elif breaks is not None:
                broken = breaks(chip, masks, seed)
            else:
                broken = graph_faults(chip, faults, masks, seed)
            clean = chips.run(chip, inputs, engine=engine, record=True)
            found = chips.crash_statistics(
                chip, inputs, broken, seed=seed, confidence=confidence, engine=engine,
                readout=readout, rel_width=rel_width, progress=told,
            )  # fmt: skip
            drawn = chips.raster(chip, inputs[0], broken, mask=telling_mask(broken), engine=engine)
            activity = activity_facts(chip, inputs, broken, clean, engine)
        except HardwareError as error:
            raise ArgumentError(f"hardware: {error}") from error
    facts: ChipFacts = {
        "engine": engine,
        "steps": chip.steps,
        "masks": found.masks,
        "copy_runs": (1 if chip.start == "zero" else 2) * found.masks * len(inputs),
        "device": None if device is None else device_facts(device),
        "slope": None,
        "variance_ratio": None,
        "correlation": None,
        "variance_correlation": None,
        "mask_correlation": None,
        "network_mean": [],
        "network_variance": [],
        "clean_error": math.nan,
        "clean_agreement": math.nan,
        "rates": [],
        "raster": raster_facts(drawn),
        "convention": chip.convention,
        "inputs": len(inputs),
        "readout": readout,
        "activity": activity,
    }
    estimates = chip_estimates(found.clean, found, broken.random)
    assert clean.counts is not None
    note = planned.note()
    silent = silent_layers(chip, clean.counts)
    return ChipRun(estimates, facts, [*silent, *([note] if note else []), *noticed])


def _fitted(chip: Chip, inputs: Floats) -> Floats:
    """Inputs in the chip's shape, which may lack an axis of 1 that the data has."""
    wanted = chip.input_shape
    # a train has an axis more, of time, behind that of the batch
    for time in ((), (chip.total_steps,)):
        given, size = inputs.shape[1 + len(time) :], len(inputs)
        if inputs.shape[1 : 1 + len(time)] != time or 0 in inputs.shape:
            continue
        if [n for n in given if n != 1] == [n for n in wanted if n != 1]:
            return inputs.reshape(size, *time, *wanted)
    raise ArgumentError(
        f"inputs of shape {inputs.shape[1:]} each: the graph takes {wanted}, or trains of "
        f"{(chip.total_steps, *wanted)}; give an array (B, ...) of such"
    )


def graph_faults(chip: Chip, faults: Mapping[str, Any], masks: int, seed: int) -> ChipFaults:
    """Faults of neurons and weights by site, and cut input lines, as the chip's own masks.

    Outputs of neurons are spikes per step; weights are those of the graph.

    Raises:
        ArgumentError: a fault that the chip cannot have, or a site that the graph does not have.
    """
    arrays: dict[str, Any] = {"window": _window(faults)}
    outputs = NeuronOutputs(chip, masks)
    crashed: set[int] = set()
    for number, (site, fault) in enumerate(faults.items()):
        _check(site, fault)
        rate = _plain_rate(fault)
        if fault.strikes == "weights" or site == "weights":
            if site != "weights":
                raise ArgumentError(
                    f"faults: {site!r} is not a site of a graph's weights; give 'weights'"
                )
            if rate is not None:
                drawn = chips.sample_dead_synapses(chip, rate, masks, seed)
                arrays["dead_synapses"] = drawn.dead_synapses
            else:
                arrays["weights"] = _weights(chip, fault, masks, seed, number)
        elif site == "input":
            if rate is None:
                raise ArgumentError(_cannot(site, fault))
            arrays["dead_inputs"] = chips.sample_dead_inputs(chip, rate, masks, seed).dead_inputs
        else:
            for layer in _layers(chip, site):
                if rate is not None and layer not in crashed:
                    e = _deaths(chip, rate, layer, masks, seed)
                    crashed.add(layer)
                else:  # two faults of a layer are drawn apart
                    e = _coordinates(chip, fault, layer, masks, seed, number)
                outputs.strike(layer, fault, e, site)
    found = outputs.fields()
    if arrays["window"] is not None and {"gains", "offsets"} & found.keys():
        raise ArgumentError(
            "faults: for some steps, neurons of a chip are dead or stuck at a rate that they can "
            "fire at (0 to 1 spike per step); leave the window out, or give another value"
        )
    return ChipFaults(masks=masks, **arrays, **found)


def _deaths(chip: Chip, rate: float, layer: int, masks: int, seed: int) -> Floats:
    """Coordinates of deaths of the neurons of one layer, (M, n_l), as the chip draws its own."""
    dead = chips.sample_dead(chip, rate, masks, seed, [layer]).dead
    assert dead is not None
    return np.asarray(dead[layer], dtype=np.float64)


def _coordinates(chip: Chip, fault: Any, layer: int, masks: int, seed: int, number: int) -> Floats:
    """The coordinates of a fault of the neurons of one layer, (M, n_l)."""
    shape = chip.hidden[layer].projection.output_shape
    placed = fault.at(SimpleNamespace(name=chip.hidden[layer].name, shape=shape), shape)
    rng = generator(seed, Stream.OWN_FAULT, number, layer)
    e = placed.draw(rng, (masks, placed.coordinate_count(shape)))
    units: Floats = placed.by_unit(np.asarray(e, dtype=np.float64), shape)
    return units


def _weights(chip: Chip, fault: Any, masks: int, seed: int, number: int) -> list[Floats | None]:
    """What each mask reads from every array of weights that a fault strikes."""
    read: list[Floats | None] = []
    for index, projection in enumerate(chip.projections):
        weight = projection.weight
        if weight is None:
            read.append(None)
            continue
        placed = fault.at(
            SimpleNamespace(name=f"weights {index}", shape=weight.shape), weight.shape
        )
        rng = generator(seed, Stream.OWN_FAULT, number, index)
        e = placed.draw(rng, (masks, placed.coordinate_count(weight.shape)))
        read.append(changed_weights(placed, weight, np.asarray(e, dtype=np.float64)))
    return read


def _window(faults: Mapping[str, Any]) -> tuple[int, int] | None:
    """The steps in which neurons are dead; None for all."""
    windows = {fault.window for fault in faults.values() if fault.strikes != "weights"}
    if len(windows) > 1:
        raise ArgumentError(
            f"faults: the neurons of a chip fail in one window of steps, not in {len(windows)} "
            "different ones"
        )
    window: tuple[int, int] | None = next(iter(windows), None)
    if window is not None and "input" in faults:
        raise ArgumentError("faults: input lines are cut for the whole run; leave the window out")
    if window is not None and not all(_stops(fault) for fault in faults.values()):
        raise ArgumentError(
            "faults: of neurons that fail for some steps, the chip has dead and stuck ones "
            "(neuron-crash, stuck-at); leave the window out for others"
        )
    return window


def _stops(fault: Any) -> bool:
    """Whether nothing is left of a neuron's own output where the fault strikes."""
    line = line_of(fault)
    return fault.strikes == "weights" or (fault.is_binary and line is not None and line[1] == -1.0)


def _plain_rate(fault: Any) -> float | None:
    """The rate of deaths of single units, all at the same rate; None for all other faults."""
    rate = getattr(fault, "p", None)
    dies = fault.zeroes and fault.is_binary and getattr(fault, "group", "unit") == "unit"
    return float(rate) if isinstance(rate, float | int) and dies else None


def _check(site: str, fault: Any) -> None:
    check_fault(fault)
    if getattr(fault, "count", None) is not None or fault.duration != "permanent":
        raise ArgumentError(_cannot(site, fault))
    check_drawable([fault], "a run of the chip")


def _cannot(site: str, fault: Any) -> str:
    return (
        f"faults: a graph's chip cannot have {fault} at {site!r}; it has permanent faults of "
        "neurons and weights with probabilities (no count=), and cut input lines; or name a device "
        "or a fault of the chip's own (--device, --chip-fault)"
    )


def _names(chip: Chip) -> list[str]:
    """The nodes' names; where there are none, those that the network of the chip has."""
    network = chip.network
    return [
        layer.name
        or f"{'relu' if network is None else network.layers[index].activation}{index + 1}"
        for index, layer in enumerate(chip.hidden)
    ]


def _layers(chip: Chip, site: str) -> list[int]:
    names = _names(chip)
    if site == "hidden":
        last = len(names) - 1
        return list(range(last)) if last and chip.reads_neurons else list(range(last + 1))
    found = [index for index, name in enumerate(names) if fnmatchcase(name, site)]
    if not found:
        raise ArgumentError(
            f"faults: no layer of neurons is called {site!r}; there are hidden, input, weights, "
            f"{', '.join(names)}"
        )
    return found
