"""Chips by number: the same samples that Monte Carlo draws, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.campaign.identity import digest
from crashsim.coordinates.drawing import (
    MAX_BLOCK,
    draw_points,
    sample_block,
    samples_per_block,
)
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Points, Written, join
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import ArgumentError
from crashsim.sampling.exact_strata import StrikeLaw, few_strike, strike_law, usual_state
from crashsim.space import FaultSpace

_ROWS = 2**20  # forward rows of a block, about
_FEWEST, _MOST = 64, 1024  # chips in a block: the clean pass of each block is to cost little
_FEW = 0.5  # probability of two or more faults below which they alone are drawn
_SINGLES = 4096  # single faults, at most, of which each is judged


class ChipSource(Protocol):
    """Where chips come from: a space, and its points by block; data that pickles."""

    @property
    def space(self) -> FaultSpace: ...

    def identity(self) -> Mapping[str, str]:
        """Which chips they are, in words, but for the model and its faults."""

    def is_whole(self, block: int) -> bool:
        """Whether a block has the same chips where there are more of them."""

    def points(self, block: int) -> Points:
        """The chips of a block, from base 0."""

    def weights(self, block: int) -> Floats | None:
        """Of the chips of a block that are struck, in sums over chips; None: each counts once."""


@dataclass(frozen=True)
class DrawnChips:
    """The chips of a seed: chip j is sample j of Monte Carlo; of the same strata, if there are any.

    Attributes:
        space: the faults and what they strike.
        seed: the chips depend on it alone.
        chips: their number.
        per_block: how many of them make a block.
        strikes: where chips are to have two faults or more, of this law; None: any chips.
        are_virtual: other chips, which share no random number with those of Monte Carlo.
    """

    space: FaultSpace
    seed: int
    chips: int
    per_block: int
    strikes: StrikeLaw | None = None
    are_virtual: bool = False

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.chips // self.per_block)

    def identity(self) -> Mapping[str, str]:
        given = "any faults" if self.strikes is None else f"two or more {digest(self.strikes)}"
        return {
            "seed": f"{self.seed}{', virtual' if self.are_virtual else ''}",
            "given": given,
            "chips in a block": str(self.per_block),
        }

    def is_whole(self, block: int) -> bool:
        return (block + 1) * self.per_block <= self.chips

    def points(self, block: int) -> Points:
        start = block * self.per_block
        stop = min(start + self.per_block, self.chips)
        size = MAX_BLOCK if self.strikes else samples_per_block(self.space.placements)
        parts = []
        for number in range(start // size, -(-stop // size)):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            drawn = self._sample_block(number)
            parts.append(drawn.part(first - number * size, last - number * size))
        return join(parts)

    def weights(self, block: int) -> None:
        return None

    def _sample_block(self, number: int) -> Points:
        stream = Stream.VIRTUAL if self.are_virtual else None
        if self.strikes is not None:
            return self.strikes.sample_block(self.seed, number, stream)
        if stream is not None:
            placements = self.space.placements
            rng = generator(self.seed, stream, number)
            return draw_points(rng, placements, samples_per_block(placements))
        return sample_block(self.space.placements, self.seed, number)


@dataclass(frozen=True)
class SingleChips:
    """The chips with one fault alone, one for each coordinate.

    Attributes:
        space: the faults and what they strike.
        strikes: their law.
        per_block: how many of them make a block.
    """

    space: FaultSpace
    strikes: StrikeLaw
    per_block: int

    @property
    def chips(self) -> int:
        """Their number."""
        return len(self.strikes.weights) - 1

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.chips // self.per_block)

    def identity(self) -> Mapping[str, str]:
        return {
            "seed": "none",
            "given": f"one fault {digest(self.strikes)}",
            "chips in a block": str(self.per_block),
        }

    def is_whole(self, block: int) -> bool:
        return True

    def points(self, block: int) -> Points:
        return self.strikes.points.part(*self._within(block))

    def weights(self, block: int) -> Floats:
        return self.strikes.weights[slice(*self._within(block))]

    def _within(self, block: int) -> tuple[int, int]:
        start = 1 + block * self.per_block  # behind no fault
        return start, min(start + self.per_block, 1 + self.chips)


def rare_strikes(space: FaultSpace, most: int, is_asked: bool = False) -> StrikeLaw | None:
    """The law of the faults, where few chips of ``most`` would hold more than one.

    None where more often do, or where there are too many single ones to judge each of them; unless
    it is asked for, which is an ArgumentError where no such law exists.
    """
    usual = usual_state(space)
    if is_asked:
        if usual is not None and usual[0].any():
            raise ArgumentError("one_exact=True: needs faults that are rarer than one in two")
        return strike_law(space)
    if min(_SINGLES, most // 2) < space.N or usual is None:
        return None
    if usual[0].any():
        return None
    return strike_law(space) if few_strike(space, _FEW) else None


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
    return float(np.exp(_log_of_none(placements)))


def probability_of_any(placements: list[Placement]) -> float:
    """P(some coordinate is other than 0), however small."""
    return float(-np.expm1(_log_of_none(placements)))


def _log_of_none(placements: list[Placement]) -> float:
    log = 0.0
    for p in placements:
        if p.count is not None:
            if p.count.struck > 0:
                return -np.inf
            continue
        chances = np.minimum(np.asarray(p.fault.change_probabilities, dtype=np.float64), 1.0)
        with np.errstate(divide="ignore"):
            none = np.log1p(-chances)
        log += float(none * p.size if none.ndim == 0 else none.sum())
    return log
