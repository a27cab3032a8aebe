"""Chips whose faults are nested over rates: what is struck at one rate is struck at every larger.

Chip j at the largest rate is sample j of Monte Carlo with the same seed. Each of its faults has a
mark, uniform between 0 and 1, from a stream of its own; at a smaller rate the chip keeps those with
marks below the ratio of the rates, so that each coordinate is struck with the smaller probability,
independently of all others. Differences between rates are then those of the same chips. Noise is
nested by its size: the same draws, times the ratio.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from crashsim_theory import NORMAL
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.coordinates.drawing import LISTED, draw_points, sample_block, samples_per_block
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Listed, Points, Written, join
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import ArgumentError
from crashsim.faults import Fault, check_drawable
from crashsim.sampling.chips.drawn import probability_of_none
from crashsim.space import FaultSpace
from crashsim.sweeping.rates import at_rate

_Change = Listed | Written


@dataclass(frozen=True)
class NestedChips:
    """The chips of a seed at several rates.

    Attributes:
        space: with the faults at the largest rate.
        rates: the least first.
        seed: the chips depend on it, and on the largest rate.
        chips: their number.
        per_block: how many of them make a block.
        are_pilots: other chips, which share no random number with those of Monte Carlo.
    """

    space: FaultSpace
    rates: tuple[float, ...]
    seed: int
    chips: int
    per_block: int
    are_pilots: bool = False

    @classmethod
    def of(
        cls,
        given: FaultSpace,
        rates: tuple[float, ...],
        seed: int,
        chips: int,
        per_block: int,
        are_pilots: bool = False,
    ) -> NestedChips:
        """The chips of a space with faults of any rate.

        Raises:
            ArgumentError: a rate that a fault does not take, or a law that cannot be nested.
        """
        found = cls(at_rate(given, rates[-1]), rates, seed, chips, per_block, are_pilots)
        for rate in rates[:-1]:
            smaller = at_rate(given, rate)
            for most, less in zip(found.space.placements, smaller.placements, strict=True):
                _check_nested(most.fault, less.fault, rate / rates[-1])
        return found

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.chips // self.per_block)

    @cached_property
    def without_fault(self) -> tuple[float, ...]:
        """The probability that a chip has no fault, by rate."""
        return tuple(probability_of_none(at_rate(self.space, r).placements) for r in self.rates)

    def points(self, block: int) -> list[Points]:
        """The chips of a block at each rate, from base 0."""
        start = block * self.per_block
        stop = min(start + self.per_block, self.chips)
        size = samples_per_block(self.space.placements)
        parts: list[list[Points]] = [[] for _ in self.rates]
        for number in range(start // size, -(-stop // size)):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            drawn, rng = self._drawn(number)
            here = first - number * size, last - number * size
            # Of all samples of the block, so that none depends on how many are wanted.
            marks = [self._marks(rng, p.fault, c, here) for p, c in self._each(drawn)]
            wanted = drawn.part(*here)
            for part, rate in zip(parts, self.rates, strict=True):
                part.append(self._at(wanted, marks, rate))
        return [join(part) for part in parts]

    def _drawn(self, number: int) -> tuple[Points, np.random.Generator]:
        """A block of samples at the largest rate, and where their marks come from."""
        placements = self.space.placements
        if not self.are_pilots:
            marks = generator(self.seed, Stream.MARKS, number)
            return sample_block(placements, self.seed, number), marks
        check_drawable((p.fault for p in placements), "sampling")
        rng = generator(self.seed, Stream.CURVE_PILOT, number)
        return draw_points(rng, placements, samples_per_block(placements)), rng

    def _each(self, drawn: Points) -> Iterator[tuple[Placement, _Change]]:
        return zip(self.space.placements, drawn.changes, strict=True)

    @staticmethod
    def _marks(
        rng: np.random.Generator, fault: Fault, change: _Change, here: tuple[int, int]
    ) -> Floats:
        """The marks of the changes of some samples of a block; noise has none."""
        if fault.law == NORMAL:
            return np.empty(0)
        edges = _edges(change)
        return rng.random(int(edges[-1]))[edges[here[0]] : edges[here[1]]]

    def _at(self, drawn: Points, marks: list[Floats], rate: float) -> Points:
        share = rate / self.rates[-1]
        if share == 1:
            return drawn
        changes: list[_Change] = []
        for (p, change), mark in zip(self._each(drawn), marks, strict=True):
            if p.fault.law == NORMAL:
                changes.append(_scaled(change, share))
            else:
                seldom = p.fault.change_probability * share <= LISTED
                changes.append(_kept(change, mark < share, seldom))
        return Points.of(drawn.count, drawn.base, changes)


def _check_nested(most: Fault, less: Fault, share: float) -> None:
    """Raises ArgumentError where faults at a smaller rate are not some of those at a larger one."""
    if most.law == NORMAL:
        return
    if most.changes is not None and less.changes is not None:
        (values, chances), (fewer, smaller) = most.changes, less.changes
        if np.array_equal(values, fewer) and np.allclose(smaller, share * chances, rtol=1e-9):
            return
    raise ArgumentError(
        f"faults: {type(most).__name__}: its law {most.law.name!r} does not strike in proportion "
        "to its rate, so chips of several rates cannot share their faults; score each rate"
    )


def _edges(change: _Change) -> NDArray[np.int64]:
    """(S + 1,) where the changes of each point begin among all."""
    if isinstance(change, Listed):
        return change.edges
    return np.concatenate([[0], np.cumsum((change.e != 0).sum(1))])


def _scaled(change: _Change, share: float) -> _Change:
    if isinstance(change, Written):
        return Written(change.start, change.stop, change.e * share)
    return Listed(change.start, change.stop, change.edges, change.columns, change.values * share)


def _kept(change: _Change, kept: NDArray[np.bool_], seldom: bool) -> _Change:
    """Some of the changes, written as suits how many they are."""
    edges = _edges(change)
    sums = np.concatenate([[0], np.cumsum(kept)])
    new_edges = sums[edges]
    if isinstance(change, Listed):
        values = change.values if isinstance(change.values, float) else change.values[kept]
        return Listed(change.start, change.stop, new_edges, change.columns[kept], values)
    rows, columns = np.nonzero(change.e)
    rows, columns = rows[kept], columns[kept]
    if seldom:
        found = change.e[rows, columns]
        values = 1.0 if change.e.dtype == np.uint8 else found.astype(np.float64)
        return Listed(change.start, change.stop, new_edges, columns, values)
    e = np.zeros_like(change.e)
    e[rows, columns] = change.e[rows, columns]
    return Written(change.start, change.stop, e)
