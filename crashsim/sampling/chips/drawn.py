"""Chips by number: the same samples that Monte Carlo draws, a few at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crashsim.coordinates.drawing import sample_block, samples_per_block
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Points, Written, join
from crashsim.space import FaultSpace

_ROWS = 2**20  # forward rows of a block, about
_FEWEST, _MOST = 64, 1024  # chips in a block: the clean pass of each block is to cost little


class ChipSource(Protocol):
    """Where chips come from: a space, and its points by block; data that pickles."""

    @property
    def space(self) -> FaultSpace: ...

    def points(self, block: int) -> Points:
        """The chips of a block, from base 0."""


@dataclass(frozen=True)
class DrawnChips:
    """The chips of a seed: chip j is sample j of Monte Carlo.

    Attributes:
        space: the faults and what they strike.
        seed: the chips depend on it alone.
        chips: their number.
        per_block: how many of them make a block.
    """

    space: FaultSpace
    seed: int
    chips: int
    per_block: int

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.chips // self.per_block)

    def points(self, block: int) -> Points:
        start = block * self.per_block
        stop = min(start + self.per_block, self.chips)
        size = samples_per_block(self.space.placements)
        parts = []
        for number in range(start // size, -(-stop // size)):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            drawn = sample_block(self.space.placements, self.seed, number)
            parts.append(drawn.part(first - number * size, last - number * size))
        return join(parts)


def chips_per_block(examples: int) -> int:
    """How many chips make a block, for so many examples: a power of two."""
    wanted = int(np.clip(_ROWS // max(examples, 1), _FEWEST, _MOST))
    return 1 << (wanted.bit_length() - 1)


def struck(points: Points) -> NDArray[np.int64]:
    """The numbers of the points with any coordinate other than 0, of base 0."""
    any_change = np.zeros(points.count, dtype=np.bool_)
    for change in points.changes:
        if isinstance(change, Written):
            any_change |= (change.e != 0).any(1)
        else:
            any_change |= np.diff(change.edges) > 0
    return np.flatnonzero(any_change)


def chosen(points: Points, numbers: NDArray[np.int64]) -> Points:
    """The points of these numbers."""
    return Points.of(len(numbers), points.base, [c.among(numbers) for c in points.changes])


def probability_of_none(placements: list[Placement]) -> float:
    """P(no coordinate is other than 0): how often a chip is as good as new."""
    log = 0.0
    for p in placements:
        if p.count is not None:
            if p.count.struck > 0:
                return 0.0
            continue
        chances = np.minimum(np.asarray(p.fault.change_probabilities, dtype=np.float64), 1.0)
        with np.errstate(divide="ignore"):
            none = np.log1p(-chances)
        log += float(none * p.size if none.ndim == 0 else none.sum())
    return float(np.exp(log))
