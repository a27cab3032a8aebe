"""Weights as pairs of cells, and what happens to their conductances: programming, levels, drift.

A weight w of an array is the difference of two cells, w = w_max (g+ - g-), with conductances
relative to the largest that is programmed: g+ = max(w, 0) / w_max, g- = max(-w, 0) / w_max and
w_max = max|w|, so that one of the two is off. An effect turns the conductances of all masks into
others; effects act in the order in which they are given, and what the cells then hold is read:

    faults = sample_cells(chip, [Levels(16), Variation(0.05), Drift(3600.0, 0.05)], masks, seed)

gives the `weights` of `ChipFaults`. Lines are those of the unrolled weight: a row for each input
(each place of a kernel), a column for each output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.arguments import is_number, probability, whole
from crashsim_hardware.chip import Chip
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.streams import Stream, generator

from .chip_faults import ChipFaults, check_draw

__all__ = [
    "CellEffect",
    "Drift",
    "IrDrop",
    "Levels",
    "StuckCells",
    "Variation",
    "cells_of",
    "check_number",
    "sample_cells",
    "weights_of",
]

Floats = NDArray[Any]


@runtime_checkable
class CellEffect(Protocol):
    """Something that changes conductances; any callable with these arguments."""

    def __call__(self, cells: Floats, target: Floats, rng: np.random.Generator) -> Floats:
        """The changed conductances.

        cells: (m, 2, outputs, inputs) relative to the largest, those of g+ before those of g-; not
            to be written to.
        target: (1, 2, outputs, inputs), what was to be programmed.
        rng: random numbers of this effect on this array alone.
        """


def cells_of(weight: Floats) -> tuple[Floats, float]:
    """The pair of conductances (2, outputs, inputs) of an array of weights, and w_max."""
    flat = np.asarray(weight, dtype=np.float64).reshape(len(weight), -1)
    largest = float(np.abs(flat).max(initial=0.0))
    return np.maximum(np.stack([flat, -flat]) / (largest or 1.0), 0.0), largest


def weights_of(cells: Floats, largest: float, shape: tuple[int, ...]) -> Floats:
    """The weights (m, *shape) that pairs of conductances (m, 2, outputs, inputs) are read as."""
    return (largest * (cells[:, 0] - cells[:, 1])).reshape(len(cells), *shape)


def sample_cells(
    chip: Chip, effects: Sequence[CellEffect] | CellEffect, masks: int, seed: int
) -> ChipFaults:
    """What every mask reads from the chip's cells after `effects`, in their order.

    Raises HardwareError for an effect that is none, or that returns other than finite conductances.
    """
    check_draw(chip, masks)
    several = list(effects) if isinstance(effects, Sequence) else [effects]
    for effect in several:
        if not callable(effect):
            raise HardwareError(f"effects must be callables of conductances, got {effect!r:.80}")
    read: list[Floats | None] = []
    for index, projection in enumerate(chip.projections):
        if projection.weight is None:
            read.append(None)
            continue
        target, largest = cells_of(projection.weight)
        cells = np.broadcast_to(target, (masks, *target.shape))
        for place, effect in enumerate(several):
            rng = generator(seed, Stream.CELL, index, place)
            cells = _checked(effect, effect(cells, target[None], rng), cells.shape)
        read.append(weights_of(cells, largest, projection.weight.shape))
    return ChipFaults(weights=read, masks=masks)


def _checked(effect: CellEffect, cells: Any, shape: tuple[int, ...]) -> Floats:
    found = np.asarray(cells, dtype=np.float64)
    if found.shape != shape or not np.isfinite(found).all():
        raise HardwareError(
            f"{effect!r:.80} must return finite conductances of shape {shape}, got {found.shape}"
        )
    return found


def check_number(name: str, value: Any, least: float = 0.0, most: float = math.inf) -> None:
    """Raises HardwareError unless a value is a finite number from `least` to `most`."""
    if not is_number(value) or not (least <= value <= most and math.isfinite(value)):
        end = "" if most == math.inf else f" and at most {most:g}"
        raise HardwareError(f"{name} must be a finite number >= {least:g}{end}, got {value!r}")


@dataclass(frozen=True)
class Levels:
    """Conductances at the nearest of `count` equidistant levels, from 0 to the largest."""

    count: int

    def __post_init__(self) -> None:
        whole("Levels: count", self.count, 2, 2**32)

    def __call__(self, cells: Floats, target: Floats, rng: np.random.Generator) -> Floats:
        steps = self.count - 1
        levels: Floats = np.round(np.clip(cells, 0.0, 1.0) * steps) / steps
        return levels


@dataclass(frozen=True)
class Variation:
    """Conductance variation from cell to cell: g (1 + std N(0, 1)), and no less than 0.

    std: relative to the cell's own conductance, or with absolute=True to the largest (off cells
        then vary too).
    """

    std: float
    absolute: bool = False

    def __post_init__(self) -> None:
        check_number("Variation: std", self.std)

    def __call__(self, cells: Floats, target: Floats, rng: np.random.Generator) -> Floats:
        change = self.std * rng.standard_normal(cells.shape)
        varied: Floats = np.maximum(cells + (change if self.absolute else cells * change), 0.0)
        return varied


@dataclass(frozen=True)
class StuckCells:
    """Cells stuck at low resistance (the largest conductance), or at high resistance (0).

    low, high: the probabilities of each, together at most 1.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if probability("low", self.low) + probability("high", self.high) > 1.0:
            raise HardwareError(
                f"a cell cannot be stuck twice: low + high = {self.low + self.high} > 1"
            )

    def __call__(self, cells: Floats, target: Floats, rng: np.random.Generator) -> Floats:
        drawn = rng.random(cells.shape)
        stuck = np.where(drawn < self.low + self.high, 0.0, cells)
        return np.asarray(np.where(drawn < self.low, 1.0, stuck))


@dataclass(frozen=True)
class Drift:
    """Conductance drift g(t) = g(t_0) (t / t_0)^-nu, with nu = |exponent + spread N(0, 1)| a cell.

    time: t, seconds since programming; before t_0 nothing has drifted.
    exponent, spread: mean and standard deviation of nu over the cells.
    start: t_0, when the conductances were read for the first time.
    compensated: the outputs of each array are scaled so that the mean size of its weights is what
        it was at t_0 (global drift compensation, as in Joshi et al., Nature Communications 11:2473,
        2020).
    """

    time: float
    exponent: float
    spread: float = 0.0
    start: float = 1.0
    compensated: bool = False

    def __post_init__(self) -> None:
        for name in ("time", "exponent", "spread"):
            check_number(f"Drift: {name}", getattr(self, name))
        if not is_number(self.start) or not 0.0 < self.start < math.inf:
            raise HardwareError(f"Drift: start must be a positive time, got {self.start!r}")

    def __call__(self, cells: Floats, target: Floats, rng: np.random.Generator) -> Floats:
        nu = np.abs(self.exponent + self.spread * rng.standard_normal(cells.shape))
        drifted: Floats = cells * max(self.time / self.start, 1.0) ** -nu
        return compensate(drifted, cells) if self.compensated else drifted


def compensate(cells: Floats, before: Floats) -> Floats:
    """`cells` times what gives their weights the mean size that they had `before`, by mask."""

    def size(pairs: Floats) -> Floats:
        found: Floats = np.abs(pairs[:, 0] - pairs[:, 1]).sum(axis=(1, 2))
        return found

    was, now = size(before), size(cells)
    factor = np.where(now > 0.0, was / np.where(now > 0.0, now, 1.0), 1.0)
    scaled: Floats = cells * factor[:, None, None, None]
    return scaled


@dataclass(frozen=True)
class IrDrop:
    """Voltage lost along the lines of a crossbar, to first order in the resistance of a segment.

    With rows driven from the side of column 0 and columns read below the last row, a cell of row l
    and column j is read as

        g_lj (1 - a sum_{k<=j} sum_{m>=k} g_lm - a sum_{k>=l} sum_{i<=k} g_ij):

    the drop along its row, where the cells further on draw current through each segment, and along
    its column, where those of the rows above do. This is the exact linear term of the nodal
    equations; the error is of order a^2.

    resistance: a, resistance of a line's segment times the largest conductance.
    rows, columns: of one crossbar; larger arrays are cut into several, whose sums add up. The g+
        and the g- of an array are on crossbars of their own.

    Raises HardwareError, when applied, where a cell loses more than half of its voltage: no linear
    term describes that.
    """

    resistance: float
    rows: int = 256
    columns: int = 256

    def __post_init__(self) -> None:
        check_number("IrDrop: resistance", self.resistance)
        for name in ("rows", "columns"):
            whole(f"IrDrop: {name}", getattr(self, name), 1, 2**31)

    def __call__(self, cells: Floats, target: Floats, rng: np.random.Generator) -> Floats:
        read = np.empty(cells.shape)
        outputs, inputs = cells.shape[-2:]
        for first in range(0, outputs, self.columns):
            for top in range(0, inputs, self.rows):
                tile = ..., slice(first, first + self.columns), slice(top, top + self.rows)
                read[tile] = self._tile(cells[tile])
        return read

    def _tile(self, g: Floats) -> Floats:
        """One crossbar, (..., columns, rows): its columns are outputs."""
        beyond = np.flip(np.cumsum(np.flip(g, -2), axis=-2), -2)  # of the row, from a column on
        along_row = np.cumsum(beyond, axis=-2)
        above = np.cumsum(g, axis=-1)  # of the column, down to a row
        along_column = np.flip(np.cumsum(np.flip(above, -1), axis=-1), -1)
        lost = self.resistance * (along_row + along_column)
        worst = float(np.where(g > 0.0, lost, 0.0).max(initial=0.0))
        if worst > 0.5:
            raise HardwareError(
                f"IrDrop: a cell loses {worst:.0%} of its voltage, which no first-order model "
                "describes; give a smaller resistance or smaller crossbars"
            )
        read: Floats = g * (1.0 - lost)
        return read
