"""Draws faults of neurons: dead, saturated, stuck at a rate, varied; and of cores of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.arguments import is_number, probability, whole
from crashsim_hardware.chip import Chip
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.streams import Stream, generator

from .chip_faults import Bools, ChipFaults, check_draw

__all__ = [
    "sample_core_deaths",
    "sample_dead",
    "sample_dead_inputs",
    "sample_held",
    "sample_leak_variation",
    "sample_mismatch",
    "sample_refractory_variation",
    "sample_stuck",
    "struck",
]

Floats = NDArray[Any]

LEAST = 0.1  # of a varied threshold: what a Gaussian that goes lower is cut off at


def struck(p: float, shape: tuple[int, ...], seed: int, stream: Stream, index: int) -> Bools:
    """True with probability p, independently."""
    probability("p", p)
    return generator(seed, stream, index).random(shape) < p


def sample_dead(
    chip: Chip, p: float, masks: int, seed: int, layers: Sequence[int] | None = None
) -> ChipFaults:
    """Neurons of the hidden `layers` (default all) die independently with probability p."""
    return ChipFaults(dead=_neurons(chip, p, masks, seed, layers, stream=Stream.DEAD), masks=masks)


def sample_stuck(
    chip: Chip, p: float, masks: int, seed: int, layers: Sequence[int] | None = None
) -> ChipFaults:
    """Saturated neurons: of the hidden `layers` (default all) each fires without pause with
    probability p."""
    return ChipFaults(
        stuck=_neurons(chip, p, masks, seed, layers, stream=Stream.STUCK), masks=masks
    )


def sample_held(
    chip: Chip,
    p: float,
    masks: int,
    seed: int,
    rate: float = 0.5,
    layers: Sequence[int] | None = None,
) -> ChipFaults:
    """Stuck neurons: with probability p each fires at `rate` spikes per step, whatever it receives.

    Raises HardwareError for a rate that the neurons of a layer cannot fire at.
    """
    if not is_number(rate) or not np.isfinite(rate):
        raise HardwareError(f"rate must be a finite number of spikes per step, got {rate!r}")
    drawn = _neurons(chip, p, masks, seed, layers, stream=Stream.HELD)
    held = [None if a is None else np.where(a, float(rate), np.nan) for a in drawn]
    faults = ChipFaults(held=held, masks=masks)
    faults.check(chip)
    return faults


def _neurons(
    chip: Chip, p: float, masks: int, seed: int, layers: Sequence[int] | None, stream: Stream
) -> list[Bools | None]:
    check_draw(chip, masks)
    chosen = range(len(chip.sizes)) if layers is None else layers
    return [
        struck(p, (masks, size), seed, stream, index) if index in chosen else None
        for index, size in enumerate(chip.sizes)
    ]


def sample_dead_inputs(chip: Chip, p: float, masks: int, seed: int) -> ChipFaults:
    """Input lines are cut independently with probability p."""
    check_draw(chip, masks)
    lines = (masks, int(np.prod(chip.input_shape)))
    return ChipFaults(dead_inputs=struck(p, lines, seed, Stream.DEAD_INPUT, 0), masks=masks)


def sample_mismatch(chip: Chip, std: float, masks: int, seed: int) -> ChipFaults:
    """Thresholds v_th (1 + std N(0, 1)), cut off at a tenth of v_th."""
    normals = _normals(chip, "mismatch", std, masks, seed, Stream.MISMATCH)
    return ChipFaults(thresholds=[np.maximum(1.0 + std * n, LEAST) for n in normals], masks=masks)


def sample_leak_variation(chip: Chip, std: float, masks: int, seed: int) -> ChipFaults:
    """Leaks times 1 + std N(0, 1), cut off at 0; a leak of all of the membrane is the most.

    Raises HardwareError for a chip without leaky neurons.
    """
    normals = _normals(chip, "leak variation", std, masks, seed, Stream.LEAK)
    if not any(np.any(layer.neuron.leak) for layer in chip.hidden):
        raise HardwareError("no neuron of this chip is leaky, so that no leak can vary")
    return ChipFaults(leaks=[np.maximum(1.0 + std * n, 0.0) for n in normals], masks=masks)


def sample_refractory_variation(chip: Chip, std: float, masks: int, seed: int) -> ChipFaults:
    """Refractory periods of max(0, round(steps + std N(0, 1))) steps, `steps` those as built."""
    normals = _normals(chip, "refractory variation", std, masks, seed, Stream.REFRACTORY)
    periods = [
        np.maximum(np.round(layer.neuron.refractory + std * n), 0.0)
        for layer, n in zip(chip.hidden, normals, strict=True)
    ]
    return ChipFaults(refractory=periods, masks=masks)


def _normals(
    chip: Chip, what: str, std: float, masks: int, seed: int, stream: Stream
) -> list[Floats]:
    check_draw(chip, masks)
    if not is_number(std) or not 0.0 <= std < np.inf:
        raise HardwareError(f"{what}: the standard deviation must be finite and >= 0, got {std!r}")
    return [
        generator(seed, stream, index).standard_normal((masks, size))
        for index, size in enumerate(chip.sizes)
    ]


def sample_core_deaths(
    chip: Chip, p: float, masks: int, seed: int, core_size: int = 256
) -> ChipFaults:
    """Whole cores of `core_size` neurons die together, each with probability p.

    Neurons are placed core by core in layer order, C order within a layer, and no core is shared
    by two layers. Var Delta is then p (1 - p) times the sum over *cores* of the squared summed
    effects, not over neurons.
    """
    check_draw(chip, masks)
    core_size = whole("core_size", core_size, 1, 2**31)
    dead: list[Bools] = []
    for index, size in enumerate(chip.sizes):
        cores = -(-size // core_size)
        fallen = struck(p, (masks, cores), seed, Stream.CORE, index)
        dead.append(np.repeat(fallen, core_size, axis=1)[:, :size])
    return ChipFaults(dead=dead, masks=masks)
