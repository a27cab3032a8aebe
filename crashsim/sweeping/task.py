"""Chips at several rates as a task: each block of chips meets all examples at every rate.

A chip that has the same faults at two rates runs once for both, so at rates at which few chips have
any, and at neighbouring rates, most of the work falls away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import ClassVar

import numpy as np
from crashsim_theory import NORMAL
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.campaign.identity import digest
from crashsim.campaign.tasks import Task
from crashsim.coordinates.points import Listed, Points
from crashsim.errors import ModelError
from crashsim.metrics import AskedMetrics
from crashsim.model.labelled import Labelled
from crashsim.sampling.chips.drawn import chosen
from crashsim.sampling.chips.sums import ChipSums
from crashsim.sampling.chips.task import outputs_of, pieces_of
from crashsim.sampling.identity import identity_of, identity_of_examples
from crashsim.sweeping.nested import NestedChips

_ROWS = 2**20  # forward rows of a block, about
_FEWEST, _MOST = 16, 1024  # chips in a block: an interrupt loses the one that is under way


@dataclass(frozen=True)
class CurveSums:
    """What is kept of chips at each rate.

    Attributes:
        by_rate: sums, the least rate first; none before a block is complete.
        done: chips, with the part of a block that is under way.
        rows: forward passes of one example so far.
    """

    by_rate: tuple[ChipSums, ...] = ()
    done: float = 0.0
    rows: int = 0

    def __add__(self, other: CurveSums) -> CurveSums:
        """Raises ModelError where the chip without faults is another: data that change."""
        by_rate = self.by_rate or other.by_rate
        if self.by_rate and other.by_rate:
            by_rate = tuple(map(add, self.by_rate, other.by_rate))
        return CurveSums(by_rate, self.done + other.done, self.rows + other.rows)


@dataclass(frozen=True)
class ChipsByRate(Task[CurveSums]):
    """The metrics of chips at each rate, block by block.

    Attributes:
        source: of the chips.
        examples: what they are judged on.
        asked: the metrics.
    """

    source: NestedChips
    examples: Labelled
    asked: AskedMetrics

    made_of: ClassVar = (CurveSums, ChipSums)

    def identity(self) -> Mapping[str, str]:
        return {
            "work": "a curve of chips over rates",
            **identity_of(self.source.space),
            "examples": identity_of_examples(self.examples),
            "metrics": digest(self.asked),
            "rates": ", ".join(f"{rate:g}" for rate in self.source.rates)
            + f" {digest(self.source.rates)}",
            "seed": f"{self.source.seed}{', pilot' if self.source.are_pilots else ''}",
            "chips in a block": str(self.source.per_block),
        }

    def is_whole(self, block: int) -> bool:
        return (block + 1) * self.source.per_block <= self.source.chips

    def run(self, block: int) -> CurveSums:
        return reduce(add, self.parts(block))

    def parts(self, block: int) -> Iterator[CurveSums]:
        """Rows as they are done, and at the end the sums, which are those of whole chips alone."""
        by_rate = self.source.points(block)
        runs = Runs.of(by_rate, self._is_noisy)
        chips, examples = by_rate[0].count, self.examples.count
        width, told = sum(self.asked.widths), 0.0
        of_runs = np.zeros((runs.count, width))
        per_example: list[Floats] = []
        clean = []
        for inputs, targets in self.examples.pieces(pieces_of(self.source.space)):
            space = self.source.space.at_examples(inputs)
            asked = self.asked.at(targets)
            clean.append(asked.columns(space.clean()[None], space.clean())[0])
            sums = np.zeros((len(by_rate), len(inputs), width))
            for first, points in runs.each:
                for start, stop, outputs in outputs_of(space, points):
                    found = asked.columns(outputs, space.clean())
                    here = slice(first + start, first + stop)
                    of_runs[here] += found.sum(1)
                    for into, serves in zip(sums, runs.serves[:, here], strict=True):
                        if serves.any():  # chosen, not weighted: infinite ones stay at their rates
                            into += found[serves].sum(0)
                    rows = (stop - start) * len(inputs)
                    part = 0.9 * chips * rows / (runs.count * examples)
                    told += part
                    yield CurveSums(done=part, rows=rows)
            per_example.append(sums)
        if not clean:
            raise ModelError("inputs: the data set gave no examples when it was read again")
        unfaulted = np.concatenate(clean)
        of_examples = np.concatenate(per_example, axis=1)
        found_sums = [
            ChipSums(chips, (of_runs[which[which >= 0]],), of_rate, unfaulted)
            for which, of_rate in zip(runs.which, of_examples, strict=True)
        ]
        yield CurveSums(tuple(found_sums), done=chips - told)

    @property
    def _is_noisy(self) -> bool:
        return any(p.fault.law == NORMAL for p in self.source.space.placements)


@dataclass(frozen=True)
class Runs:
    """The different chips of a block: those that are run.

    Attributes:
        each: for each rate, the number of its first run, and the chips that run at it.
        which: (R, S) the run that a chip at a rate is; -1 without faults.
        count: of runs.
    """

    each: list[tuple[int, Points]]
    which: NDArray[np.int64]
    count: int

    @classmethod
    def of(cls, by_rate: list[Points], is_noisy: bool) -> Runs:
        """Chips that have other faults than at the rate below run.

        Args:
            by_rate: nested: as many faults are the same faults.
            is_noisy: there is noise, which is another at every rate.
        """
        before = np.zeros(by_rate[0].count, dtype=np.int64)
        which = np.full((len(by_rate), by_rate[0].count), -1)
        each, count = [], 0
        for k, points in enumerate(by_rate):
            faults = _faults(points)
            fresh = np.flatnonzero((faults > 0) if is_noisy else (faults != before))
            if k:
                which[k] = which[k - 1]
            which[k, fresh] = count + np.arange(len(fresh))
            if len(fresh):
                each.append((count, chosen(points, fresh)))
            count, before = count + len(fresh), faults
        return cls(each, which, count)

    @cached_property
    def serves(self) -> NDArray[np.bool_]:
        """(R, runs) whether each run is that of a chip at each rate."""
        found = np.zeros((len(self.which), self.count), dtype=np.bool_)
        for row, which in zip(found, self.which, strict=True):
            row[which[which >= 0]] = True
        return found


def _faults(points: Points) -> NDArray[np.int64]:
    """(S,) the number of coordinates other than 0 of each point, of base 0."""
    total = np.zeros(points.count, dtype=np.int64)
    for change in points.changes:
        if isinstance(change, Listed):
            total += np.diff(change.edges)
        else:
            total += (change.e != 0).sum(1)
    return total


def chips_per_block(examples: int, rates: int) -> int:
    """How many chips make a block, for so many examples and rates: a power of two."""
    wanted = int(np.clip(_ROWS // max(examples * rates, 1), _FEWEST, _MOST))
    return 1 << (wanted.bit_length() - 1)
