"""Runs faults on a chip that was read from a NIR graph and has no network to be compared with.

Its neurons leak, reset to zero or are wired in loops: no chain of layers has their rates, and the
chip's own Monte Carlo is the whole answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import crashsim_hardware as chips
from crashsim_hardware import Chip, ChipFaults, HardwareError
from crashsim_hardware.engines.running import Engine
from crashsim_hardware.noticing import collecting

from crashsim.arguments import MOST_STEPS, check_seed, fraction, one_of, whole
from crashsim.arrays import Floats
from crashsim.chip.chip_faults import Breaks
from crashsim.chip.spiking import (
    MASKS,
    ChipRun,
    chip_estimates,
    device_facts,
    raster_facts,
    silent_layers,
    telling_mask,
)
from crashsim.errors import ArgumentError
from crashsim.results.schema import ChipFacts

__all__ = ["graph_faults", "run_graph"]


def run_graph(
    chip: Chip,
    inputs: Floats,
    faults: Mapping[str, Any],
    *,
    masks: int = MASKS,
    seed: int = 0,
    confidence: float = 0.95,
    engine: Engine = "brian2",
    device: chips.Device | None = None,
    breaks: Breaks | None = None,
) -> ChipRun:
    """Breaks the chip and measures how far its outputs move, mask by mask.

    Args:
        chip: as ``read_graph`` returns it.
        inputs: (B, *chip.input_shape), constant currents.
        faults: by site: ``hidden`` (all layers of neurons but the one that is read), ``input``,
            ``weights``, or a glob over the names of the graph's nodes.
        masks, seed, confidence, engine, device, breaks: as in ``run_chip``.

    Raises:
        ArgumentError: faults the chip cannot have, inputs that do not fit, or counts out of range.
    """
    masks = whole("masks", masks, 2, MOST_STEPS)
    seed, confidence = check_seed(seed), fraction("confidence", confidence)
    one_of("engine", engine, ("brian2", "brian2-synapses", "numpy"))
    inputs = _fitted(chip, inputs)
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
                chip, inputs, broken, seed=seed, confidence=confidence, engine=engine
            )
            drawn = chips.raster(chip, inputs[0], broken, mask=telling_mask(broken), engine=engine)
        except HardwareError as error:
            raise ArgumentError(f"hardware: {error}") from error
    facts: ChipFacts = {
        "engine": engine,
        "steps": chip.steps,
        "masks": masks,
        "copy_runs": (1 if chip.start == "zero" else 2) * masks * len(inputs),
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
    }
    estimates = chip_estimates(found.clean, found, confidence, broken.random)
    assert clean.counts is not None
    return ChipRun(estimates, facts, [*silent_layers(chip, clean.counts), *noticed])


def _fitted(chip: Chip, inputs: Floats) -> Floats:
    """Inputs in the chip's shape, which may lack an axis of 1 that the data has."""
    if inputs.shape[1:] != chip.input_shape and math.prod(inputs.shape[1:]) == math.prod(
        chip.input_shape
    ):
        without = tuple(n for n in inputs.shape[1:] if n != 1)
        if without == tuple(n for n in chip.input_shape if n != 1):
            return inputs.reshape(len(inputs), *chip.input_shape)
    if inputs.shape[1:] != chip.input_shape:
        raise ArgumentError(
            f"inputs of shape {inputs.shape[1:]} each: the graph takes {chip.input_shape}; give "
            "an array (B, ...) of such"
        )
    return inputs


def graph_faults(chip: Chip, faults: Mapping[str, Any], masks: int, seed: int) -> ChipFaults:
    """Deaths of neurons, weights and input lines by site, as the chip's own masks.

    Raises:
        ArgumentError: another fault, or a site that the graph does not have.
    """
    arrays: dict[str, Any] = {}
    for site, fault in faults.items():
        rate = _rate(site, fault)
        if fault.strikes == "weights":
            if site != "weights":
                raise ArgumentError(
                    f"faults: {site!r} is not a site of a graph's weights; give 'weights'"
                )
            drawn = chips.sample_dead_synapses(chip, rate, masks, seed)
            arrays["dead_synapses"] = drawn.dead_synapses
        elif site == "input":
            arrays["dead_inputs"] = chips.sample_dead_inputs(chip, rate, masks, seed).dead_inputs
        else:
            layers = _layers(chip, site)
            drawn = chips.sample_dead(chip, rate, masks, seed, layers)
            before = arrays.get("dead", [None] * len(chip.sizes))
            assert drawn.dead is not None
            arrays["dead"] = [
                new if old is None else old if new is None else old | new
                for old, new in zip(before, drawn.dead, strict=True)
            ]
    return ChipFaults(masks=masks, **arrays)


def _rate(site: str, fault: Any) -> float:
    rate = getattr(fault, "p", None)
    dies = (
        isinstance(rate, float | int)
        and fault.zeroes
        and fault.is_binary
        and getattr(fault, "group", "unit") == "unit"
    )
    for_good = fault.duration == "permanent" and fault.window is None
    if rate is None or not (dies and for_good):
        raise ArgumentError(
            f"faults: a graph's chip cannot have {fault} at {site!r}; it has neuron-crash and "
            "weight-crash, permanent, with one p and group=unit; or name a device or a fault of "
            "the chip's own (--device, --chip-fault)"
        )
    return float(rate)


def _layers(chip: Chip, site: str) -> list[int]:
    names = [layer.name for layer in chip.hidden]
    if site == "hidden":
        last = len(names) - 1
        return list(range(last)) if last else [0]
    found = [index for index, name in enumerate(names) if fnmatchcase(name, site)]
    if not found:
        raise ArgumentError(
            f"faults: no layer of neurons is called {site!r}; there are hidden, input, weights, "
            f"{', '.join(names)}"
        )
    return found
