"""A survey of single faults: rows sampled in rounds, each until it is known as well as asked for.

A pilot of a few dozen pairs in each row says where to look. What follows is drawn anew, so that an
estimate does not depend on why it was planned so; the pilot's own pairs are known and left out of
what is drawn. The error that an interval may make is shared among its looks, so that it holds
whenever sampling stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.results.estimate import Interval
from crashsim.sampling.intervals import proportion_interval, scalar_interval
from crashsim.sampling.single_faults.means import MeanStrata, plan_means
from crashsim.sampling.single_faults.pairs import Pairs, Population, Whole, joined
from crashsim.sampling.single_faults.prediction import COUNT, NO_EFFECT, chains, expected, weaker
from crashsim.sampling.single_faults.strata import Strata, plan

PILOT = 48  # pairs of a row, or one of each stratum
_FIRST = 0.8  # share of the error that the first look may make
_LOOKS = 12
_TRIED = 5  # times the pilot's pairs are tried out of a long plan, at most
_CLOSER = 0.93  # than asked for is planned
_SECOND = 10  # times the pilot's pairs, from which a plan is tried out with a tenth of them first
_EVENLY = 0.1  # share of the draws that go everywhere alike, whatever is predicted
_PRIOR = 0.5  # draws that a prediction counts as
_DOUBT = 1e-3  # error of what contradicts the prediction

Judge = Callable[[Pairs], Floats]


@dataclass
class Row:
    """A row under way.

    Attributes:
        strata: which of the population's are its.
        codes, signs, sizes: (H,) of these.
        pilot, drawn: (2, H) pairs drawn: how many, and the sum of what they showed.
        squares: (2, H) the same of squares, where numbers are asked for: in the pilot, and after.
        looks: intervals made so far.
        interval: the last one, without the base.
        is_settled: whether it is as narrow as asked for.
    """

    strata: Whole
    codes: Whole
    signs: Whole
    sizes: Whole
    pilot: Floats
    drawn: Floats
    squares: Floats
    looks: int = 0
    interval: Interval | None = None
    is_settled: bool = False
    is_stopped: bool = False

    @property
    def pairs(self) -> int:
        """All of them."""
        return int(self.sizes.sum())

    @property
    def evaluations(self) -> int:
        """Pairs that were judged."""
        return int(self.pilot[0].sum() + self.drawn[0].sum())

    @property
    def is_exhausted(self) -> bool:
        """Whether every pair that may matter was judged."""
        return bool((self.left == self.drawn[0]).all())

    @property
    def hits(self) -> int:
        """What the pairs showed, where they are hits."""
        return int(self.pilot[1].sum() + self.drawn[1].sum())

    @cached_property
    def matters(self) -> NDArray[np.bool_]:
        """(H,) of which strata anything has to be drawn."""
        return np.asarray(self.codes != NO_EFFECT)

    @property
    def left(self) -> Whole:
        """(H,) pairs beside the pilot's."""
        found: Whole = np.where(self.matters, self.sizes - self.pilot[0].astype(np.int64), 0)
        return found


@dataclass
class Survey:
    """Rows of single faults.

    Attributes:
        population: all pairs.
        judge: returns what pairs show: 1 for hits, or numbers.
        seed: of the draws.
        alpha: 1 - confidence, of each row.
        rel_width: half-width over value at which a row is settled.
        most: pairs of a row that are judged.
        is_relative_to_all: also settle a row whose half-width is that part of the mean over all
            faults: what it adds to the whole is known as well as asked for.
        is_chained: whether what is asked for goes with the predicted effects, which then make
            chains of strata.
        base: what is added to every row's value, without faults.
        reach: how far a number may be from 0; None where hits are asked for.
    """

    population: Population
    judge: Judge
    seed: int
    alpha: float
    rel_width: float
    most: int
    is_relative_to_all: bool = False
    is_chained: bool = True
    base: float = 0.0
    reach: float | None = None
    rows: list[Row] = field(default_factory=list)
    found: list[tuple[Pairs, Floats]] = field(default_factory=list)
    broken: frozenset[int] = frozenset()  # codes whose place in a chain is not trusted

    def __post_init__(self) -> None:
        sizes = self.population.sizes
        for number in range(len(self.population.parts)):
            at, codes, signs = self.population.of_row(number)
            own, zero = sizes[at], np.zeros((2, at.stop - at.start))
            strata = np.arange(at.start, at.stop)
            self.rows.append(Row(strata, codes, signs, own, zero, zero.copy(), zero.copy()))

    def run(self) -> Iterator[tuple[int, int]]:
        """Draws, round after round; yields rows that are finished, and their number."""
        self._judge([(row, self._pilot(row)) for row in self.rows], is_pilot=True)
        self._doubt()
        self._judge(list(self._second_pilots()), is_pilot=True)
        while True:
            self._doubt()
            wanted = []
            for row in self.rows:
                if row.is_settled or row.is_stopped:
                    continue
                target = self._plan(row)
                if row.is_exhausted:
                    self._look(row, is_last=True)
                elif (target <= row.drawn[0]).all():
                    row.is_stopped = True
                else:
                    wanted.append((row, target))
            done = sum(row.is_settled or row.is_stopped for row in self.rows)
            yield done, len(self.rows)
            if not wanted:
                return
            self._judge(wanted, is_pilot=False)
            for row, _ in wanted:
                room = self.most - row.evaluations  # less than a draw of each stratum is none
                is_last = room <= len(row.codes) or row.looks + 1 >= _LOOKS
                self._look(row, is_last=is_last)

    def _judge(self, wanted: Sequence[tuple[Row, Whole]], *, is_pilot: bool) -> None:
        """Draws and judges up to so many pairs of each stratum, beside the pilot's."""
        requests: list[tuple[Row, int, int, int]] = []
        for row, target in wanted:
            begun = row.pilot[0].astype(np.int64)
            low = begun if is_pilot else begun + row.drawn[0].astype(np.int64)
            high = target if is_pilot else begun + target
            for h in np.flatnonzero(high > low).tolist():
                requests.append((row, h, int(low[h]), int(high[h])))
        if not requests:
            return
        pairs, values = self._values(requests)
        self.found.append((pairs, values))
        at = 0
        for row, h, start, stop in requests:
            own = values[at : at + stop - start]
            at += stop - start
            into = row.pilot if is_pilot else row.drawn
            into[:, h] += len(own), own.sum()
            row.squares[int(not is_pilot), h] += float((own**2).sum())

    def _values(self, requests: Sequence[tuple[Row, int, int, int]]) -> tuple[Pairs, Floats]:
        """The pairs of some draws, in order, and what they show."""
        strata, entries, numbers = [], [], []
        for row, h, start, stop in requests:
            stratum = int(row.strata[h])
            entry, number = self.population.draw(self.seed, stratum, start, stop)
            strata.append(np.full(len(entry), stratum))
            entries.append(entry)
            numbers.append(number)
        pairs = self.population.find(
            np.concatenate(strata), np.concatenate(entries), np.concatenate(numbers)
        )
        return pairs, self.judge(pairs)

    # What to draw.

    def _pilot(self, row: Row) -> Whole:
        """(H,) a few where hits are expected, and one of every stratum."""
        found = np.minimum(row.sizes, 1) * row.matters
        if row.pairs <= 4 * PILOT:
            return np.asarray(np.where(row.matters, row.sizes, 0))
        chance = np.maximum(expected(row.codes), 1e-3)
        weight = row.sizes * np.sqrt(chance * (1 - chance)) * row.matters
        left = max(PILOT - int(found.sum()), 0)
        more = np.floor(left * weight / max(weight.sum(), 1e-300)).astype(np.int64)
        return np.asarray(np.minimum(found + more, row.sizes))

    def _second_pilots(self) -> Iterator[tuple[Row, Whole]]:
        """Rows whose plan is many times what it rests on, and what to try out of it."""
        for row in self.rows:
            begun = row.pilot[0].astype(np.int64)
            if self.reach is not None or begun.sum() < 1 or not row.left.any():
                continue
            planned = self._plan(row)
            if planned.sum() > _SECOND * begun.sum() and (planned < row.left).any():
                some = min(1.0 / _SECOND, _TRIED * PILOT / planned.sum())
                yield row, begun + np.floor(some * planned).astype(np.int64)

    def _plan(self, row: Row) -> Whole:
        """(H,) pairs to have drawn after this round, beside the pilot's."""
        left, before = row.left, row.drawn[0].astype(np.int64)
        budget = self.most - int(row.pilot[0].sum())
        there = left > 0
        if not there.any():
            return np.asarray(before)
        alpha = self._alpha(row, is_last=False)
        if self.reach is None:
            target = self._plan_hits(row, there, alpha, budget)
        else:
            target = self._plan_numbers(row, there, alpha, budget)
        found = before.copy()
        found[there] = np.maximum(target, before[there])
        total, old = int(found.sum()), int(before.sum())
        even = np.ceil(_EVENLY * total * left / left.sum()).astype(np.int64)
        found = np.minimum(np.maximum(found, even), left)
        if old and found.sum() < 1.25 * old:
            found = np.minimum(np.ceil(1.25 * found).astype(np.int64) + 1, left)
        if found.sum() > budget:
            found = self._within(found, before, left, budget)
        if 2 * found.sum() >= left.sum() and left.sum() <= budget:
            return np.asarray(left)
        return np.asarray(found)

    def _within(self, wanted: Whole, before: Whole, left: Whole, budget: int) -> Whole:
        """As much of what is wanted as the budget allows, and one of every stratum."""
        more = wanted - before
        room = max(budget - int(before.sum()), 0)
        part = np.floor(more * (room / max(int(more.sum()), 1))).astype(np.int64)
        found: Whole = before + part
        return np.asarray(np.minimum(np.maximum(found, np.minimum(left, 1)), left))

    def _plan_hits(self, row: Row, there: NDArray[np.bool_], alpha: float, budget: int) -> Whole:
        n, k = (row.pilot + row.drawn)[:, there]
        prior = expected(row.codes[there])
        p = (k + _PRIOR * prior) / (n + _PRIOR)
        rest = self._strata(row, there)
        known = float((row.signs * row.pilot[1]).sum())
        share = rest.sizes.sum() / row.pairs
        value = self.base + known / row.pairs + share * float(rest.shares * rest.sign @ p)
        least = abs(self._mean) if self.is_relative_to_all else 0.0
        wanted = self.rel_width * max(abs(value), least, 1e-12) / max(share, 1e-12)
        return np.asarray(plan(rest, p, _CLOSER * wanted, alpha, max(budget, 1)))

    def _plan_numbers(self, row: Row, there: NDArray[np.bool_], alpha: float, budget: int) -> Whole:
        assert self.reach is not None
        n, sums = (row.pilot + row.drawn)[:, there]
        squares = row.squares.sum(0)[there]
        known = MeanStrata(row.left[there], n.astype(np.int64), sums, squares, self._reach(row))
        share = known.sizes.sum() / row.pairs
        value = self.base + float(row.pilot[1].sum()) / row.pairs + share * known.value
        least = abs(self._mean) if self.is_relative_to_all else 0.0
        wanted = self.rel_width * max(abs(value), least, 1e-300) / max(share, 1e-12)
        return plan_means(known, _CLOSER * wanted, alpha, max(budget, 1))

    def _reach(self, row: Row) -> float:
        """How far a number may be from 0: by the bounds, or as far as any was seen."""
        assert self.reach is not None
        if np.isfinite(self.reach):
            return self.reach
        seen = [np.abs(values).max() for _, values in self.found if len(values)]
        return float(max(seen, default=0.0))

    # What is known.

    def _strata(self, row: Row, there: NDArray[np.bool_]) -> Strata:
        """What was drawn after the pilot, of strata of which anything was left."""
        codes, signs = row.codes[there], row.signs[there]
        broken = self.broken if self.is_chained else range(COUNT)
        stronger, falls = chains(codes, signs, broken)
        n, k = row.drawn[:, there].astype(np.int64)
        return Strata(row.left[there], n, k, stronger, falls, signs.astype(np.float64))

    def _alpha(self, row: Row, *, is_last: bool) -> float:
        """The error that the row's next look may make."""
        spent = 1.0 - 0.5 ** (row.looks - 1) * (1 - _FIRST) if row.looks else 0.0
        if is_last:
            return self.alpha * (1 - spent)
        return self.alpha * (_FIRST if not row.looks else (1 - spent) / 2)

    def _look(self, row: Row, *, is_last: bool) -> None:
        """The row's interval, and whether it will do."""
        found = self.interval_of(row, self._alpha(row, is_last=is_last))
        row.interval = found
        row.looks += 1
        value = self.base + float(found.value)
        half = max(float(found.high - found.value), float(found.value - found.low))
        enough = max(abs(value), abs(self._mean) if self.is_relative_to_all else 0.0)
        row.is_settled = row.is_exhausted or half <= self.rel_width * enough
        row.is_stopped = is_last and not row.is_settled

    @property
    def _mean(self) -> float:
        """The mean over all faults, as far as it is known."""
        total = sum(row.pairs for row in self.rows)
        return sum(row.pairs * self._value(row) for row in self.rows) / total

    def _value(self, row: Row) -> float:
        """A row's value, as far as it is known."""
        if row.interval is not None:
            return self.base + float(row.interval.value)
        n, k = row.pilot
        each = np.divide(k, n, out=np.zeros(len(n)), where=n > 0)
        return self.base + float((row.signs * each) @ row.sizes) / row.pairs

    def interval_of(self, row: Row, alpha: float) -> Interval:
        """What is asked of a row, without the base, at confidence 1 - alpha."""
        there = row.left > 0
        known = float((row.signs * row.pilot[1]).sum()) / row.pairs
        if not there.any():
            return scalar_interval(known, known, known)
        if self.reach is None:
            rest = self._strata(row, there).interval(alpha)
        else:
            n, sums = row.drawn[:, there]
            rest = MeanStrata(
                row.left[there], n.astype(np.int64), sums, row.squares[1, there], self._reach(row)
            ).interval(alpha)
        share = row.left.sum() / row.pairs
        value, low, high = (known + share * float(end) for end in (rest.value, rest.low, rest.high))
        return scalar_interval(value, low, high)

    def finish(self) -> None:
        """Makes an interval of every row that has none: of what was drawn before an interrupt."""
        for row in self.rows:
            if row.interval is None:
                if not row.drawn[0].any():  # the pilot's draws were planned before any was seen
                    row.drawn, row.pilot = row.pilot, np.zeros_like(row.pilot)
                    row.squares = row.squares[::-1].copy()
                row.interval = self.interval_of(row, self.alpha)
                row.is_settled = row.is_exhausted

    def _doubt(self) -> None:
        """Stops trusting the chain below where all rows together contradict it."""
        if self.reach is not None or not self.is_chained:
            return
        codes = np.concatenate([row.codes for row in self.rows])
        n, k = np.concatenate([row.pilot + row.drawn for row in self.rows], axis=1)
        lost = set(self.broken)
        there = np.unique(codes)
        stronger, falls = chains(there, np.ones_like(there), ())
        for code, next_one, fall in zip(there.tolist(), stronger.tolist(), falls, strict=True):
            if next_one < 0:
                continue
            here, above = codes == code, codes == there[next_one]
            if not n[here].sum() or not n[above].sum():
                continue
            low = float(proportion_interval(k[here].sum(), n[here].sum(), _DOUBT).low)
            high = float(proportion_interval(k[above].sum(), n[above].sum(), _DOUBT).high)
            if low > fall * high and high < 1:
                lost |= weaker(code)
        self.broken = frozenset(lost)


def pairs_of(columns: Sequence[tuple[int, int]], examples: int) -> Pairs:
    """Some faults, each a placement and a coordinate in it, with every example."""
    if not columns:
        none = np.empty(0, dtype=np.int64)
        return Pairs(none, none, none)
    every = np.arange(examples)
    return joined([Pairs(np.full(examples, p), np.full(examples, c), every) for p, c in columns])
