"""The search for a plan: candidates, judged by virtual chips with the schemes in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from crashsim.arrays import Floats
from crashsim.protection.adviser.choosing import Choice, Options, Walk
from crashsim.protection.adviser.virtual_plans import VirtualChips
from crashsim.protection.protected import Residual
from crashsim.protection.schemes import Scheme

_LEVELS = 9  # budgets of which the integer programme is solved, at equal ratios
_HALVINGS = 3  # of the gap between the plans around a target
_STEPS = 24  # plans of the walk that are judged


@dataclass(frozen=True)
class Wanted:
    """What a plan is to reach, by the share of right examples.

    Attributes:
        target: the share; None: as large as the budget allows.
        share: of chips that are to reach the target; None: their mean is to.
        budget: the most overhead.
    """

    target: float | None
    share: float | None
    budget: float

    def worth(self, accuracies: Floats) -> float:
        """What a plan's chips (chips,) are worth: to be as large as can be."""
        if self.share is None or self.target is None:
            return float(accuracies.mean())
        return float((accuracies >= self.target).mean())

    @property
    def goal(self) -> float | None:
        """What that is to reach."""
        return self.target if self.share is None else self.share


@dataclass(frozen=True, eq=False)
class Found:
    """A plan that was judged.

    Attributes:
        choice: the scheme of each group.
        overhead: what it costs.
        accuracies: (chips,) of virtual chips.
        worth: of these.
    """

    choice: Choice
    overhead: float
    accuracies: Floats
    worth: float


@dataclass
class Search:
    """A search under way.

    Attributes:
        measures: what may be done, with what it gains by each measure of harm.
        chips: virtual ones that judge.
        whole: schemes that every plan has.
        wanted: of the plan.
        progress: called with the number of plans that were judged.
    """

    measures: list[Options]
    chips: VirtualChips
    whole: tuple[Scheme, ...]
    wanted: Wanted
    progress: Callable[[int], None] = lambda done: None

    def __post_init__(self) -> None:
        self.options = self.measures[0]
        self._judged: dict[bytes, Found] = {}
        self._walk = Walk.of(self.chips, self.options, self.wanted.worth)
        self._fixed = sum(
            self.options.groups.overhead(cost)
            for scheme in self.whole
            for cost in self.options.groups.cost_of_whole(scheme)
        )

    def judged(self, choice: Choice) -> Found:
        """A choice with what it costs and is worth."""
        key = choice.tobytes()
        if key not in self._judged:
            residual = Residual((*self.whole, *self.options.made(choice)))
            accuracies = self.chips.accuracies(residual)
            overhead = self.options.overhead(choice) + self._fixed
            worth = self.wanted.worth(accuracies)
            self._judged[key] = Found(choice, overhead, accuracies, worth)
            self.progress(len(self._judged))
        return self._judged[key]

    def front(self) -> list[Found]:
        """Plans that no other beats, the cheapest first: nothing protected is the first."""
        found = [self.judged(choice) for choice in self._candidates()]
        goal = self.wanted.goal
        if goal is not None:
            found += self._around(found, goal)
        if self.wanted.budget < np.inf and self._walk is not None:
            best = max(
                (f for f in found if f.overhead <= self.wanted.budget),
                key=lambda f: f.worth,
                default=None,
            )
            if best is not None:
                room = self.wanted.budget - self._fixed
                found.append(self.judged(self._walk.improved(best.choice, room)))
        return _undominated(found)

    def best(self, front: Iterable[Found]) -> Found:
        """The cheapest plan that reaches the goal; else, or without one, the best in the budget."""
        affordable = [f for f in front if f.overhead <= self.wanted.budget + 1e-12]
        goal = self.wanted.goal
        if goal is not None and (reaching := [f for f in affordable if f.worth >= goal]):
            return min(reaching, key=lambda f: f.overhead)
        return max(affordable, key=lambda f: (f.worth, -f.overhead))

    def _candidates(self) -> Iterable[Choice]:
        groups, options = len(self.options.groups), self.options
        yield np.full(groups, -1, dtype=np.int64)
        possible = np.where(np.isfinite(options.costs), options.costs, 0.0)
        every = float(possible.max(0).sum())
        if every == 0:
            return
        most = min(every, max(self.wanted.budget - self._fixed, 0.0))
        levels = np.geomspace(max(possible[possible > 0].min(), every / 2000), every, _LEVELS)
        budgets = sorted({*(b for b in levels.tolist() if b < most), most})
        for some in self._each():
            for budget in budgets:
                yield some.best_for(budget)
        if self._walk is None:
            return
        for path in self._paths(self._walk):
            within = [c for c in path if options.overhead(c) <= most + 1e-12]
            step = max(1, -(-len(within) // _STEPS))
            yield from within[::step]
            yield from within[-1:]

    def _paths(self, walk: Walk) -> Iterable[list[Choice]]:
        """The walk of each scheme; of those that cost in proportion, it is the same."""
        walked: list[tuple[Floats, list[Choice]]] = []
        for scheme, costs in enumerate(self.options.costs):
            there = np.isfinite(costs)
            relative = costs / max(costs[there].sum(), 1e-300)
            path = next((p for r, p in walked if np.allclose(r, relative, rtol=0.02)), None)
            if path is None:
                path = list(walk.path(scheme))
                walked.append((relative, path))
            yield [np.where(choice >= 0, scheme, -1) for choice in path]

    def _each(self) -> list[Options]:
        """The options by each measure, with all schemes and with each alone."""
        count = len(self.options.schemes)
        alone = range(count) if count > 1 else ()
        return [
            some
            for options in self.measures
            for some in (options, *(options.alone(scheme) for scheme in alone))
        ]

    def _around(self, found: list[Found], goal: float) -> list[Found]:
        """More plans where the goal is just reached, and what can be left out of them."""
        more: list[Found] = []
        for options in self._each():
            for _ in range(_HALVINGS):
                every = [*found, *more]
                reaching = [f.overhead for f in every if f.worth >= goal]
                if not reaching:
                    return more
                top = min(reaching)
                low = max((f.overhead for f in every if f.overhead < top), default=0.0)
                budget = (low + top) / 2 - self._fixed
                more.append(self.judged(options.best_for(max(budget, 0.0))))
        if self._walk is not None:
            best = min((f for f in [*found, *more] if f.worth >= goal), key=lambda f: f.overhead)
            more.append(self.judged(self._walk.trimmed(best.choice, goal)))
        return more


def _undominated(found: list[Found]) -> list[Found]:
    """In order of their overhead, each worth more than all that are cheaper."""
    front: list[Found] = []
    for one in sorted(found, key=lambda f: (f.overhead, -f.worth)):
        if not front or one.worth > front[-1].worth:
            front.append(one)
    return front
