"""Which groups to protect, and how: an integer programme on first-order sums, and a walk that looks
at virtual chips after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from crashsim.arrays import Floats
from crashsim.faults import WordFault
from crashsim.protection.adviser.groups import Groups, Harm
from crashsim.protection.adviser.virtual_plans import VirtualChips
from crashsim.protection.schemes import Cost, Scheme

_TABLE = 2**22  # numbers of a table of what each group does to each margin of each chip
_SMALL = 1e-3  # of a budget, in the integer programme,
_ROOM = 2e-3  # and which share of it is left, so that no tolerance goes beyond it
_LOST = 1e20  # of a margin, in place of what is infinite
_BLOCK = 2**19  # of the chips of a walk, beyond those that judge plans
_FEWEST = 50  # chips that such a table is of, at least
_NEGLIGIBLE = 1e-6  # of the largest gain
_STEPS = 20  # exchanges, at most
_EXACT = 4096  # options up to which the integer programme is solved as such, not by ratios

Choice = NDArray[np.int64]  # (groups,) the scheme of each, -1 for none


@dataclass(frozen=True, eq=False)
class Options:
    """What may be done with each group.

    Attributes:
        groups: what can be protected alone.
        schemes: how.
        gains: (schemes, groups) what each takes away of the harm, to first order.
        costs: (schemes, groups) overhead; infinite where it does not apply.
    """

    groups: Groups
    schemes: tuple[Scheme, ...]
    gains: Floats
    costs: Floats

    @classmethod
    def by_measure(
        cls, groups: Groups, schemes: Sequence[Scheme], measures: Sequence[Harm]
    ) -> list[Options]:
        """Of schemes that protect some coordinates and not others, by each measure of harm."""
        p, bits = groups.typical
        costs = np.array([groups.costs(scheme) for scheme in schemes])
        found = []
        for harm in measures:
            all_of, zeroed = harm.by_group(groups), harm.by_group(groups, zeroed=True)
            gains = []
            for scheme in schemes:
                left = scheme.left(p, bits)
                gains.append(all_of * (1 - left.silent) - zeroed * left.zeroed)
            found.append(cls(groups, tuple(schemes), np.array(gains), costs))
        return found

    def best_for(self, budget: float) -> Choice:
        """The integer programme: the most harm that a budget takes away, one scheme for a group."""
        costs = np.where(np.isfinite(self.costs), self.costs, np.inf)
        helps = self.gains > _NEGLIGIBLE * max(float(self.gains.max(initial=0.0)), 1e-300)
        s, g = np.nonzero(helps & (costs <= budget))
        choice = np.full(len(self.groups), -1, dtype=np.int64)
        if not len(s):
            return choice
        if len(s) > _EXACT:
            return self._by_ratio(s, g, budget, choice)
        of_group = (g, np.arange(len(g)))
        once = sparse.csr_array((np.ones(len(g)), of_group), (len(self.groups), len(g)))
        gains = self.gains[s, g]
        best = np.where(helps & (costs <= budget), self.gains, -1.0).argmax(0)
        if costs[best, np.arange(len(best))][np.unique(g)].sum() <= budget:
            choice[np.unique(g)] = best[np.unique(g)]  # there is room for all
            return choice
        found = milp(
            -gains / gains.max(),
            constraints=[
                # The solver's tolerances are absolute: small numbers keep clear of them.
                LinearConstraint(_SMALL * costs[s, g][None] / budget, ub=_SMALL * (1 - _ROOM)),
                LinearConstraint(once[np.unique(g)], ub=1),
            ],
            integrality=np.ones(len(g)),
            bounds=Bounds(0, 1),
            options={"time_limit": 10.0, "mip_rel_gap": 1e-3, "presolve": False},
        )
        if found.x is None:
            return self._by_ratio(s, g, budget, choice)
        taken = found.x > 0.5
        choice[g[taken]] = s[taken]
        return choice

    def _by_ratio(self, s: Choice, g: Choice, budget: float, choice: Choice) -> Choice:
        """The same by gains for their costs, the largest first: off by one group at most."""
        gains, costs = self.gains[s, g], np.maximum(self.costs[s, g], 1e-30)
        order = np.argsort(-gains / costs, kind="stable")
        order = order[np.unique(g[order], return_index=True)[1]]  # the best scheme of each group
        order = order[np.argsort(-(gains / costs)[order], kind="stable")]
        fits = np.cumsum(costs[order]) <= budget
        choice[g[order[fits]]] = s[order[fits]]
        return choice

    def prices(self, choice: Choice, scheme: int) -> Floats:
        """(groups,) the overhead of each group by its scheme, or by this one if it has none."""
        which = np.where(choice >= 0, choice, scheme)
        found: Floats = self.costs[which, np.arange(len(which))]
        return found

    def alone(self, scheme: int) -> Options:
        """The same with one of the schemes alone, under its number."""
        costs = np.full_like(self.costs, np.inf)
        costs[scheme] = self.costs[scheme]
        return replace(self, costs=costs)

    def overhead(self, choice: Choice) -> float:
        """What a choice costs, block by block."""
        return sum(self.groups.overhead(c) for _, _, c in self.parts(choice))

    def parts(self, choice: Choice) -> Iterator[tuple[Scheme, str, Cost]]:
        """Scheme, site and cost of each part of a choice."""
        for number, scheme in enumerate(self.schemes):
            at = self.groups.coordinates(choice == number)
            for site, cost in self.groups.cost(scheme, at).items():
                yield scheme, site, cost

    def made(self, choice: Choice) -> tuple[Scheme, ...]:
        """The schemes of a choice, each for what it protects."""
        found = []
        for number, scheme in enumerate(self.schemes):
            at = self.groups.coordinates(choice == number)
            if at:
                found.append(scheme.at(at))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Walk:
    """What each group's faults do to each margin of virtual chips, so that steps cost little.

    A group that is protected has no faults here: what its scheme leaves of them is looked at where
    whole plans are judged.

    Attributes:
        chips: virtual ones.
        options: for each group.
        table: (chips, groups, margins) what they move.
        worth: what a plan's chips (chips,) are worth, by the share of examples that are right.
    """

    chips: VirtualChips
    options: Options
    table: NDArray[np.float32]
    worth: Callable[[Floats], float]

    @classmethod
    def of(
        cls, chips: VirtualChips, options: Options, worth: Callable[[Floats], float]
    ) -> Walk | None:
        """None where the table would be too large."""
        columns, groups = chips.margins.clean.size, options.groups
        count = min(chips.chips, _TABLE // max(len(groups) * columns, 1))
        if groups.parts is None or count < _FEWEST:
            return None
        space = chips.margins.space
        points = chips.drawn(space.placements, _BLOCK, count)
        table = np.zeros((count * len(groups), columns), dtype=np.float32)
        for number, (p, change) in enumerate(zip(space.placements, points.changes, strict=True)):
            rows, at, values = change.listed()
            local = np.asarray((at - p.start)[values != 0], dtype=np.int64)
            row = rows[values != 0] * len(groups) + groups.of_placement(number)[local]
            units, moves = local, np.ones(len(local))
            if isinstance(p.fault, WordFault):
                each = len(p.fault.masks)
                by = chips.margins.moves(number)
                units, moves = local // each, by[local // each, local % each]
            slopes = chips.margins.slopes[number]
            with np.errstate(over="ignore", invalid="ignore"):
                shape = (count * len(groups), len(slopes))
                table += sparse.csr_array((moves.astype(np.float32), (row, units)), shape) @ slopes
        table = np.nan_to_num(table, nan=-_LOST, posinf=_LOST, neginf=-_LOST)
        return cls(chips, options, table.reshape(count, len(groups), columns), worth)

    def _value(self, protected: NDArray[np.bool_]) -> float:
        with np.errstate(invalid="ignore"):
            moved = self.table[:, ~protected].sum(1, dtype=np.float64)
        return self.worth(self.chips.right(moved))

    def path(self, scheme: int) -> Iterator[Choice]:
        """Choices of one group more at each step, which helps most for what a scheme costs."""
        cost = self.options.costs[scheme]
        left = np.flatnonzero(np.isfinite(cost)).tolist()
        first = self.options.gains[scheme]
        small = 1e-9 * first / max(float(first.max()), 1e-300)  # among equals
        protected = np.zeros(len(cost), dtype=np.bool_)
        moved = self.table.sum(1, dtype=np.float64)
        while left:
            now = self.worth(self.chips.right(moved))
            ratio = [
                (self.worth(self.chips.right(moved - self.table[:, g])) - now + small[g])
                / max(float(cost[g]), 1e-12)
                for g in left
            ]
            g = left.pop(int(np.argmax(ratio)))
            moved, protected = moved - self.table[:, g], _with(protected, g)
            yield np.where(protected, scheme, -1)

    def improved(self, choice: Choice, budget: float) -> Choice:
        """A choice with groups added, or exchanged, while that helps and the budget allows it."""
        used = choice[choice >= 0]
        scheme = (
            int(np.bincount(used).argmax())
            if len(used)
            else int(self.options.costs.sum(1).argmin())
        )
        cost = self.options.costs[scheme]
        protected, price = choice >= 0, self.options.prices(choice, scheme)
        value = self._value(protected)
        for _ in range(_STEPS):
            outs = [None, *np.flatnonzero(protected).tolist()]
            trials = [
                (self._value(trial), trial)
                for out in outs
                for into in np.flatnonzero(~protected & np.isfinite(cost)).tolist()
                if price[trial := _with(protected, into, out)].sum() <= budget
            ]
            best = max(trials, key=lambda each: each[0], default=(value, protected))
            if best[0] <= value:
                break
            value, protected = best
        return np.where(protected, np.where(choice >= 0, choice, scheme), -1)

    def trimmed(self, choice: Choice, goal: float) -> Choice:
        """A choice without the groups that the goal does not need, the dearest first."""
        cost = self.options.prices(choice, 0)
        protected = choice >= 0
        for g in sorted(np.flatnonzero(protected).tolist(), key=lambda g: -float(cost[g])):
            trial = _with(protected, None, g)
            if self._value(trial) >= goal:
                protected = trial
        return np.where(protected, choice, -1)


def _with(
    protected: NDArray[np.bool_], into: int | None, out: int | None = None
) -> NDArray[np.bool_]:
    found = protected.copy()
    if into is not None:
        found[into] = True
    if out is not None:
        found[out] = False
    return found
