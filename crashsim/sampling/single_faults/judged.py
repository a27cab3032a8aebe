"""What single faults do to single examples: a metric's change, of many pairs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add
from typing import ClassVar

import numpy as np

from crashsim.arrays import Floats
from crashsim.campaign.identity import digest
from crashsim.campaign.tasks import Task
from crashsim.coordinates.points import Points
from crashsim.metrics import AskedMetrics
from crashsim.sampling.identity import identity_of
from crashsim.sampling.single_faults.pairs import Pairs, Whole
from crashsim.space import FaultSpace

_BLOCK = 1024  # pairs: an interrupt loses the block that is under way
_GRID = 2  # pairs computed for each that was asked for, at most, where that saves calls
_VALUES = 2**22  # outputs held at once


@dataclass(frozen=True)
class Judged:
    """The metric of pairs, some blocks after the other.

    Attributes:
        values: (n,) of the pairs so far, in the order of the task.
        passes: forward passes of one example.
    """

    values: tuple[Floats, ...] = ()
    passes: int = 0

    def __add__(self, other: Judged) -> Judged:
        return Judged(self.values + other.values, self.passes + other.passes)


@dataclass(frozen=True, eq=False)
class Judging(Task[Judged]):
    """The metric of some pairs, block by block.

    Attributes:
        spaces: of each placement alone, its coordinates from 0.
        space: of all, whose examples they are.
        asked: the one metric, with the targets of all examples.
        pairs: sorted by placement and example.
    """

    spaces: tuple[FaultSpace, ...]
    space: FaultSpace
    asked: AskedMetrics
    pairs: Pairs

    made_of: ClassVar = (Judged,)

    def identity(self) -> Mapping[str, str]:
        pairs = self.pairs.placement, self.pairs.column, self.pairs.example
        return {
            "work": "single faults",
            **identity_of(self.space),
            "metrics": digest(self.asked),
            "pairs": f"{len(self.pairs):,} {digest(pairs)}",
        }

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self._edges) - 1

    @property
    def _edges(self) -> list[int]:
        """Where blocks begin: each is of one placement."""
        places = self.pairs.placement
        starts = np.flatnonzero(np.diff(places, prepend=-1)).tolist()
        found = []
        for low, high in pairwise([*starts, len(places)]):
            found += list(range(low, high, _BLOCK))
        return [*found, len(places)]

    def run(self, block: int) -> Judged:
        return reduce(add, self.parts(block))

    def parts(self, block: int) -> Iterator[Judged]:
        low, high = self._edges[block : block + 2]
        space = self.spaces[int(self.pairs.placement[low])]
        columns, examples = self.pairs.column[low:high], self.pairs.example[low:high]
        values = np.empty(high - low)
        distinct, at = np.unique(columns, return_inverse=True)
        used = np.unique(examples)
        if len(distinct) * len(used) <= _GRID * (high - low):
            grid = self._of(space, distinct, used)
            values[:] = grid[at, np.searchsorted(used, examples)]
            passes = grid.size
        else:
            for example in used.tolist():
                mine = np.flatnonzero(examples == example)
                values[mine] = self._of(space, columns[mine], np.array([example]))[:, 0]
            passes = high - low
        yield Judged((values,), passes)

    def _of(self, space: FaultSpace, columns: Whole, used: Whole) -> Floats:
        """(S, E) the metric under each fault, of some examples in a row or one."""
        found = np.empty((len(columns), len(used)))
        for first, last in _runs(used):
            here = slice(int(used[first]), int(used[last - 1]) + 1)
            there = space.at_examples(self.space.examples.part(here.start, here.stop))
            targets = self.asked.targets
            asked = self.asked.at(None if targets is None else targets[here])
            step = max(1, _VALUES // (there.B * there.K))
            for low in range(0, len(columns), step):
                part = slice(low, low + step)
                struck = columns[part]
                points = Points.one_at_a_time(np.zeros(there.N), struck, np.ones(len(struck)))
                outputs = there.outcomes(points)
                found[part, first:last] = asked.values(asked.metrics[0], outputs, there.clean())
        return found


def _runs(used: Whole) -> Iterator[tuple[int, int]]:
    """Where consecutive numbers begin and end."""
    starts = np.flatnonzero(np.diff(used, prepend=-2) != 1).tolist()
    yield from pairwise([*starts, len(used)])
