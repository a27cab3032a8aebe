"""Draws faults of stored weights: dead, saturated, stuck, perturbed, with flipped bits; and of the
rows and columns of the crossbars that hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.arguments import is_number, probability, whole
from crashsim_hardware.chip import Chip, Projection
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.streams import Stream, generator

from .chip_faults import Bools, ChipFaults, check_draw
from .neuron_faults import struck

__all__ = [
    "sample_bit_errors",
    "sample_column_deaths",
    "sample_dead_synapses",
    "sample_perturbed_synapses",
    "sample_row_deaths",
    "sample_stuck_synapses",
]

Floats = NDArray[Any]


def sample_dead_synapses(chip: Chip, p: float, masks: int, seed: int) -> ChipFaults:
    """Every stored weight, the readout's included, reads as 0 with probability p."""
    return ChipFaults(
        dead_synapses=_by_projection(
            chip,
            masks,
            lambda w, _, index: struck(p, (masks, *w.shape), seed, Stream.DEAD_SYNAPSE, index),
        ),
        masks=masks,
    )


def sample_stuck_synapses(
    chip: Chip, p: float, masks: int, seed: int, value: float = 1.0
) -> ChipFaults:
    """Every stored weight is stuck with probability p: it reads `value` times its array's largest.

    1 is a saturated synapse, -1 one that is saturated and inhibits, 0 a dead one.
    """
    if not is_number(value) or not -1.0 <= value <= 1.0:
        raise HardwareError(f"value must be a share of the largest weight, -1 to 1, got {value!r}")

    def read(weight: Floats, _: Projection, index: int) -> Floats:
        fails = struck(p, (masks, *weight.shape), seed, Stream.STUCK_SYNAPSE, index)
        return np.where(fails, value * np.abs(weight).max(initial=0.0), weight)

    return ChipFaults(weights=_by_projection(chip, masks, read), masks=masks)


def sample_perturbed_synapses(
    chip: Chip, std: float, masks: int, seed: int, p: float = 1.0
) -> ChipFaults:
    """Every stored weight is multiplied by 1 + std N(0, 1) with probability p (default all)."""
    if not is_number(std) or not 0.0 <= std < np.inf:
        raise HardwareError(f"std must be a finite standard deviation >= 0, got {std!r}")
    probability("p", p)

    def read(weight: Floats, _: Projection, index: int) -> Floats:
        rng = generator(seed, Stream.PERTURBED_SYNAPSE, index)
        shape = (masks, *weight.shape)
        change = std * rng.standard_normal(shape)
        perturbed: Floats = weight * (1.0 + np.where(rng.random(shape) < p, change, 0.0))
        return perturbed

    return ChipFaults(weights=_by_projection(chip, masks, read), masks=masks)


def sample_bit_errors(
    chip: Chip, rate: float, masks: int, seed: int, bits: int = 8, only_ones: bool = False
) -> ChipFaults:
    """Every stored bit flips with probability `rate`; weights in two's complement of `bits` bits.

    The integer is round(w / s) with s = max|w| / (2**(bits - 1) - 1) per array, so quantisation is
    part of the fault. A flip of bit k changes the weight by +-s 2**k, of the sign bit by
    -+s 2**(bits - 1). With only_ones, bits that store 1 read 0, and those that store 0 are right.
    """
    probability("rate", rate)
    bits = whole("bits", bits, 2, 32)

    def read(stored: Floats, _: Projection, index: int) -> Floats:
        step = np.abs(stored).max(initial=0.0) / (2 ** (bits - 1) - 1) or 1.0
        word = np.round(stored / step).astype(np.int64) & ((1 << bits) - 1)
        words = np.broadcast_to(word, (masks, *stored.shape)).copy()
        stream = generator(seed, Stream.BIT_ERROR, index)
        for bit in range(bits):
            flipped: Floats = np.less(stream.random(words.shape), rate)
            change = flipped.astype(np.int64) << bit
            words ^= words & change if only_ones else change
        signed: Floats = words - ((words >> (bits - 1)) << bits)
        return step * signed

    return ChipFaults(weights=_by_projection(chip, masks, read), masks=masks)


def sample_row_deaths(
    chip: Chip, p: float, masks: int, seed: int, rows: int = 256, columns: int = 256
) -> ChipFaults:
    """Rows of crossbars break, each with probability p: no cell on them is read.

    A row carries one input of a layer to its cells; a weight array of more than `rows` inputs or
    `columns` outputs is cut into several crossbars, each with rows of its own. The two cells of a
    weight share their lines. A convolution's row is a place in its kernel.
    """
    return _line_deaths(chip, p, masks, seed, rows, columns, Stream.ROW)


def sample_column_deaths(
    chip: Chip, p: float, masks: int, seed: int, rows: int = 256, columns: int = 256
) -> ChipFaults:
    """Columns of crossbars break, each with probability p: nothing of them is summed.

    A column sums the cells of one output; crossbars as in `sample_row_deaths`.
    """
    return _line_deaths(chip, p, masks, seed, rows, columns, Stream.COLUMN)


def _line_deaths(
    chip: Chip, p: float, masks: int, seed: int, rows: int, columns: int, stream: Stream
) -> ChipFaults:
    rows, columns = whole("rows", rows, 1, 2**31), whole("columns", columns, 1, 2**31)

    def dead(weight: Floats, _: Projection, index: int) -> Bools:
        outputs, inputs = len(weight), weight.size // len(weight)
        if stream is Stream.ROW:
            tiles = -(-outputs // columns)
            lines = struck(p, (masks, tiles, inputs), seed, stream, index)
            found = np.repeat(lines, columns, axis=1)[:, :outputs]
        else:
            tiles = -(-inputs // rows)
            lines = struck(p, (masks, outputs, tiles), seed, stream, index)
            found = np.repeat(lines, rows, axis=2)[:, :, :inputs]
        return found.reshape(masks, *weight.shape)

    return ChipFaults(dead_synapses=_by_projection(chip, masks, dead), masks=masks)


def _by_projection(
    chip: Chip, masks: int, read: Callable[[Floats, Projection, int], Any]
) -> list[Any]:
    """`read` of the weight of each projection that has one, itself and its index."""
    check_draw(chip, masks)
    return [
        None if projection.weight is None else read(projection.weight, projection, index)
        for index, projection in enumerate(chip.projections)
    ]
