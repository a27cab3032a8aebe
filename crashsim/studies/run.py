"""Runs a study: chips go to the cases whose intervals are widest, until all are narrow enough.

Look j of a case spends ``alpha / (j (j + 1))`` of ``alpha = 1 - confidence``, so that its interval
holds at whichever look it ends. Which cases get chips depends on what was found alone, so the
result is the same for any number of workers, interrupted or not.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crashsim.arguments import callback, instance
from crashsim.campaign.store import Store, store_of
from crashsim.campaign.tasks import fold_each
from crashsim.errors import ArgumentError, Interrupted
from crashsim.results.estimate import Interval
from crashsim.results.numbers import CORE, words_of_time
from crashsim.results.studies.case_record import CaseRecord
from crashsim.results.studies.planned import PlannedCases
from crashsim.sampling.chips.facts import is_lower_better
from crashsim.sampling.chips.found import FoundChips
from crashsim.sampling.chips.sums import ChipSums
from crashsim.scoring.planning.costs import read_budget
from crashsim.studies.allocation import Standing, next_round
from crashsim.studies.cases import cases_of, shared
from crashsim.studies.description import Study
from crashsim.studies.ranking import Measured, ranked
from crashsim.studies.spaces import PER_BLOCK, SharedChips, Sources, shared_chips


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        cases: what was found of those that have chips already.
        count: the number of cases.
        done: operations that were run, or read from the store.
        planned: operations of what is under way and done, so far as it is decided.
    """

    cases: list[CaseRecord]
    count: int
    done: float
    planned: float


Watch = Callable[[Progress], None]


def run_study(
    study: Study,
    sources: Sources,
    *,
    executor: Executor | None = None,
    store: str | Path | Store | None = None,
    watch: Watch | None = None,
) -> list[CaseRecord]:
    """The cases of a study, in the order of its file.

    Args:
        study: as ``read_study`` has it.
        sources: of models, examples and faults.
        executor: that runs blocks of chips; the result is the same without one.
        store: a folder that keeps finished blocks: the same call goes on where it was.
        watch: called now and then, with what is known.

    Raises:
        CrashsimError: a case that cannot be; the budget does not pay for the first chips.
        Interrupted: Ctrl-C; its ``partial`` has the cases that were reached.
    """
    instance("study", study, Study, "a Study, as read_study has it")
    callback("watch", watch)
    run = _Run.of(study, sources, watch)
    with _kept(store, study.is_adaptive) as kept:
        try:
            run.all_rounds(executor, kept)
        except KeyboardInterrupt as stop:
            partial = run.records(is_partial=True)
            if not partial:
                raise
            message = f"interrupted after {len(partial)} of {run.count} cases had chips"
            raise Interrupted(message, partial) from stop
    return run.records()


def planned(study: Study, sources: Sources) -> list[PlannedCases]:
    """What a study would run, and what that costs; none of it is run.

    Raises:
        As ``run_study``.
    """
    run = _Run.of(study, sources, None)
    found = []
    for state in run.states:
        chips, names = state.chips, [case.name for case in state.chips.cases]
        first = chips.at_look(1, study.is_adaptive)
        price, most = chips.operations(first), chips.operations(chips.most)
        found.append(PlannedCases(names, first, price, chips.most, most))
    return found


@contextmanager
def _kept(store: str | Path | Store | None, is_adaptive: bool) -> Iterator[Store | None]:
    """The store; one for the time of the run, where chips are added to those of before."""
    if store is not None or not is_adaptive:
        yield store_of(store)
        return
    with tempfile.TemporaryDirectory(prefix="crashsim-") as folder:
        yield Store(folder)


@dataclass
class _State:
    """How far the chips of a draw are."""

    chips: SharedChips
    look: int = 0
    sums: ChipSums = field(default_factory=ChipSums)
    singles: ChipSums | None = None
    measured: list[tuple[Measured, CaseRecord]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.sums.chips + (0 if self.singles is None else self.singles.chips)

    @property
    def found(self) -> FoundChips:
        return self.chips.found(self.sums, self.singles)


@dataclass
class _Run:
    """A study under way."""

    study: Study
    states: list[_State]
    watch: Watch | None
    budget: float
    done: float = 0.0
    planned: float = 0.0

    @classmethod
    def of(cls, study: Study, sources: Sources, watch: Watch | None) -> _Run:
        states = [_State(each) for each in shared_chips(study, shared(cases_of(study)), sources)]
        budget = read_budget(study.study.budget) or math.inf
        run = cls(study, states, watch, budget)
        first = sum(run.price(state) for state in states)
        if first > budget:
            raise ArgumentError(
                f"budget={study.study.budget!r}: the first chips of every case take "
                f"{words_of_time(first / CORE)} already; give more, or fewer cases"
            )
        return run

    @property
    def count(self) -> int:
        """The number of cases."""
        return sum(len(state.chips.cases) for state in self.states)

    @property
    def alpha(self) -> float:
        return 1 - self.study.study.confidence

    def price(self, state: _State) -> float:
        """Of the next look; infinite where there is none."""
        wanted = state.chips.at_look(state.look + 1, self.study.is_adaptive)
        if state.look and wanted <= state.count:
            return math.inf
        return state.chips.operations(wanted - state.count)

    def all_rounds(self, executor: Executor | None, store: Store | None) -> None:
        """Gives chips by rounds, until no case is to have more."""
        numbers = list(range(len(self.states)))
        while numbers:
            self.planned += sum(self.price(self.states[number]) for number in numbers)
            self._round([self.states[number] for number in numbers], executor, store)
            if not self.study.is_adaptive:
                return
            standings = [Standing(self._ratio(s), self.price(s)) for s in self.states]
            numbers = next_round(standings, self.budget - self.planned)

    def _round(
        self, states: Sequence[_State], executor: Executor | None, store: Store | None
    ) -> None:
        """The next look of some draws, all of them under way together."""
        works, whose = [], []
        for state in states:
            if state.look == 0 and state.chips.singles is not None:
                works.append((state.chips.singles, range(-(-state.chips.before // PER_BLOCK))))
                whose.append((state, True))
            wanted = state.chips.at_look(state.look + 1, self.study.is_adaptive)
            drawn = wanted - state.chips.before
            works.append((state.chips.chips(wanted), range(-(-drawn // PER_BLOCK))))
            whose.append((state, False))
        before, last = -1, ChipSums()
        for number, at in fold_each(works, executor, store=store):
            if number != before and before >= 0:
                self._finish(*whose[before], last)
            before, last = number, at.sums
        self._finish(*whose[before], last)

    def _finish(self, state: _State, is_singles: bool, sums: ChipSums) -> None:
        """The chips of a draw have been judged."""
        had = state.count
        if is_singles:
            state.singles = sums
        else:
            state.sums, state.look = sums, state.look + 1
            state.measured = [(each, self._record(each)) for each in self._measured(state)]
        self.done += state.chips.operations(state.count - had)
        if self.watch is not None:
            self.watch(Progress(self._unranked(), self.count, self.done, self.planned))

    def _ratio(self, state: _State) -> float:
        """The widest interval of a draw's cases, relative to the width that it is to have."""
        return max(self._ratio_of(record) for _, record in state.measured)

    def _ratio_of(self, record: CaseRecord) -> float:
        half, asked, table = record.half_width, record.asked_width, self.study.study
        if half == 0:
            return 0.0
        if asked is not None:
            return half / asked if asked > 0 else math.inf
        if table.width is None and table.rel_width is None:
            return 2 + half  # a budget alone: it is spent, on the widest
        return 0.0

    def _measured(self, state: _State) -> Iterator[Measured]:
        found, table = state.found, self.study.study
        error = (
            self.alpha / (state.look * (state.look + 1)) if self.study.is_adaptive else (self.alpha)
        )
        for number, case in enumerate(state.chips.cases):
            yield Measured(case, state.chips, found, number, state.look, error, table.confidence)

    def _record(self, measured: Measured) -> CaseRecord:
        draw, metric = measured.case.draw, measured.case.metric
        mean, wide = measured.interval(), measured.interval(0.5)
        value = float(mean.value)
        asked = self.study.asked_width(metric, value)
        low, high = _ends(mean)
        return CaseRecord(
            case=measured.case.name,
            study=self.study.study.name,
            model=draw.model,
            data=draw.data,
            fault=draw.fault,
            sites=draw.sites,
            rate=draw.rate,
            metric=metric,
            seed=draw.seed,
            value=value,
            low=low,
            high=high,
            confidence=measured.confidence,
            wide_low=_ends(wide)[0],
            wide_high=_ends(wide)[1],
            clean=float(measured.found.clean[measured.number]),
            lower_is_better=is_lower_better(metric),
            chips=measured.chips_judged,
            asked_width=asked,
            is_narrow=asked is None or (high - low) / 2 <= asked,
            operations=measured.chips.operations(measured.chips_judged),
        )

    def _unranked(self) -> list[CaseRecord]:
        return [record for state in self.states for _, record in state.measured]

    def records(self, *, is_partial: bool = False) -> list[CaseRecord]:
        """What was found, with the models' ranks, in the order of the study's cases."""
        measured = [each for state in self.states for each in state.measured]
        found = ranked(measured, is_partial=is_partial)
        order = {case.name: number for number, case in enumerate(cases_of(self.study))}
        return sorted(found, key=lambda record: order[record.case])


def _ends(interval: Interval) -> tuple[float, float]:
    return float(interval.low), float(interval.high)
