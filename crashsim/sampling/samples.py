"""Monte Carlo as a task: block j of a seed's samples, evaluated and counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import pairwise
from operator import add
from typing import Any, ClassVar, cast

from crashsim.arrays import Floats
from crashsim.campaign.identity import digest
from crashsim.campaign.tasks import Task
from crashsim.coordinates.drawing import MAX_BLOCK, sample_block, samples_per_block
from crashsim.coordinates.points import Points
from crashsim.sampling.dense import DenseSums, DenseTally
from crashsim.sampling.exact_strata import FewFaults
from crashsim.sampling.identity import identity_of
from crashsim.sampling.sums.joint_sums import JointSums
from crashsim.sampling.sums.metric_sums import EventSums, MeanSums
from crashsim.sampling.tally import Sums, Tally
from crashsim.space import FaultSpace

_STEP_VALUES = 2**20  # Deltas computed at once
_STEP_WORK = 2**26  # values at the struck sites, of samples and inputs, between two tellings
_BLOCK_WORK = 2**28  # values at the struck sites of a block, about: a unit to resume, or hand over,
_FEWEST = 4  # and its samples, at least
_FINEST = 20  # samples of the first parts; later ones are up to a tenth of all so far
_PILOT = 128  # samples of the first block, at most, that fix the centre,
_PILOT_VALUES = 2**23  # and Deltas of theirs


@dataclass(frozen=True)
class Draws:
    """The samples of a run: blocks of a seed, the last of them cut.

    Attributes:
        space: the faults and what they strike.
        few: samples are given two or more faults, where it is not None.
        seed: the samples depend on it alone.
        samples: their number.
        last: what was drawn last, by its number.
    """

    space: FaultSpace
    few: FewFaults | None
    seed: int
    samples: int
    last: dict[int, Points] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def per_drawing(self) -> int:
        """The number of samples that are drawn together."""
        return MAX_BLOCK if self.few else samples_per_block(self.space.placements)

    @cached_property
    def per_look(self) -> int:
        """In how many blocks they are computed: so many that one takes about a second at most."""
        work = self.space.B * self.space.scalars
        fewest = min(_FEWEST, self.per_drawing)
        return max(1, self.per_drawing // max(fewest, _BLOCK_WORK // work))

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        whole, rest = divmod(self.samples, self.per_drawing)
        edges = [self.first_of(part) for part in range(self.per_look)]
        return whole * self.per_look + sum(edge < rest for edge in edges)

    def first_of(self, block: int) -> int:
        """The number of samples before a block."""
        number, part = divmod(block, self.per_look)
        return number * self.per_drawing + self.per_drawing * part // self.per_look

    @property
    def pilot(self) -> int:
        """The number of samples that fix the centre; of the space alone but for small runs."""
        values = self.space.B * self.space.K
        return min(max(2, min(_PILOT, _PILOT_VALUES // values)), self.samples, self.first_of(1))

    def parts(self, block: int) -> list[Points]:
        """A block's samples a few at a time, so that outputs stay small and progress is told.

        How many does not depend on the number of samples: sums of a longer run begin the same.
        """
        number, part = divmod(block, self.per_look)
        start = self.first_of(part)
        stop = min(self.first_of(part + 1), self.samples - number * self.per_drawing)
        points = self._drawn(number).part(start, stop)
        most = max(1, _STEP_VALUES // (self.space.B * self.space.K))
        most = max(1, min(most, _STEP_WORK // (self.space.B * self.space.scalars)))
        most = min(most, max(_FINEST, self.first_of(block) // 9))
        edges = [0]
        for end in sorted({points.count if block else self.pilot, points.count}):
            begin, count = edges[-1], -(-(end - edges[-1]) // most)
            edges += [begin + (end - begin) * i // count for i in range(1, count + 1)]
        return [points.part(start, stop) for start, stop in pairwise(edges)]

    def _drawn(self, number: int) -> Points:
        if number not in self.last:
            self.last.clear()
            few = self.few.sample_block(self.seed, number) if self.few else None
            self.last[number] = few or sample_block(self.space.placements, self.seed, number)
        return self.last[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "last": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class First:
    """The first block's samples, of which the first ones are evaluated to fix the centre.

    Args:
        draws: of which it is the first block.

    Attributes:
        outputs: (n, B, K) of the first parts, as far as they have been evaluated.
    """

    def __init__(self, draws: Draws) -> None:
        self.outputs: list[Floats] = []
        self._draws = draws

    @cached_property
    def parts(self) -> list[Points]:
        """All of the block, a few samples at a time."""
        return self._draws.parts(0)

    def evaluate(self) -> Iterator[int]:
        """Evaluates the samples that fix the centre; yields how many are done, after each part."""
        done = 0
        while done < self._draws.pilot:
            self.outputs.append(self._draws.space.outcomes(self.parts[len(self.outputs)]))
            done += len(self.outputs[-1])
            yield done

    @property
    def evaluated(self) -> list[tuple[Points, Floats]]:
        """Points, and the outputs there."""
        return list(zip(self.parts, self.outputs, strict=False))

    @property
    def n(self) -> int:
        """The number of samples that have been evaluated."""
        return sum(len(outputs) for outputs in self.outputs)


@dataclass(frozen=True)
class Samples(Task[Sums | DenseSums]):
    """Monte Carlo: the sums of a run's samples, block by block.

    Attributes:
        draws: the samples.
        tally: what is counted of them; its centre is fixed.
        kept: number of samples that are kept for quantiles and pictures.
        first: what has been evaluated already. It is not sent along to other processes, which
            evaluate it again.
    """

    draws: Draws
    tally: Tally | DenseTally
    kept: int
    first: First | None = None

    made_of: ClassVar = (Sums, DenseSums, JointSums, EventSums, MeanSums)

    def identity(self) -> Mapping[str, str]:
        return {
            "work": "Monte Carlo",
            **identity_of(self.draws.space),
            "seed": str(self.draws.seed),
            "given": "two faults or more" if self.draws.few else "any faults",
            "counted": digest((self.tally, self.kept, self.draws.pilot)),
        }

    def is_whole(self, block: int) -> bool:
        return self.draws.first_of(block + 1) <= self.draws.samples

    @classmethod
    def aimed(cls, draws: Draws, tally: Tally | DenseTally, kept: int, first: First) -> Samples:
        """With the centre that the first samples suggest."""
        return cls(draws, tally.aimed(first.evaluated), kept, first)

    def run(self, block: int) -> Sums | DenseSums:
        parts: Iterator[Any] = self.parts(block)
        return cast(Sums | DenseSums, reduce(add, parts))

    def parts(self, block: int) -> Iterator[Sums | DenseSums]:
        start = self.draws.first_of(block)
        if self.first is None or block > 0:
            known, parts = [], self.draws.parts(block)
        else:
            known, parts = self.first.outputs, self.first.parts
        for i, points in enumerate(parts):
            outputs = known[i] if i < len(known) else self.draws.space.outcomes(points)
            yield self.tally.count(points, outputs, self.kept - start)
            start += points.count

    def of_first(self) -> Sums | DenseSums:
        """The sums of the samples alone that have been evaluated for the centre."""
        start = 0
        total: Any = self.tally.none()
        for points, outputs in self.first.evaluated if self.first else ():
            total = total + self.tally.count(points, outputs, self.kept - start)
            start += points.count
        return cast(Sums | DenseSums, total)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "first": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
