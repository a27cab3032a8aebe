"""What is told of a plan: what it protects, what was measured of it, and whether that suffices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crashsim.faults import WordFault
from crashsim.protection.adviser.asked import Asked, as_metric, lower_is_better
from crashsim.protection.adviser.choosing import Options
from crashsim.protection.adviser.groups import Groups
from crashsim.protection.adviser.measured import Measured
from crashsim.protection.adviser.search import Found
from crashsim.protection.schemes import Cost, Scheme
from crashsim.results.estimate import Interval
from crashsim.results.plan.plan_record import ChosenFacts, FrontFacts
from crashsim.results.schema import LevelFacts, RangeFacts


@dataclass(frozen=True)
class Chosen:
    """The plan that was chosen, with those that no other beats, and what was measured of it."""

    front: list[Found]
    best: Found
    schemes: tuple[Scheme, ...]
    whole: tuple[Scheme, ...]
    real: Measured
    rounds: int
    goal: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether what was measured of a plan agrees with what was predicted, and reaches the target.

    Attributes:
        asked: what was asked for.
        metric: its name.
        chosen: the plan.
        predicted: its metric, by virtual chips.
    """

    asked: Asked
    metric: str
    chosen: Chosen
    predicted: float

    @property
    def agrees(self) -> bool:
        mean = self.chosen.real.mean
        return bool(mean.low <= self.predicted <= mean.high)

    @property
    def reached(self) -> bool | None:
        """Whether the interval says that the target is reached; None where it leaves that open."""
        target, share, real = self.asked.target, self.asked.share, self.chosen.real
        if target is None:
            return None
        if share is not None:
            assert real.accepted is not None
            low, high, target = real.accepted.low, real.accepted.high, share
        elif lower_is_better(self.metric):
            low, high, target = -real.mean.high, -real.mean.low, -target
        else:
            low, high = real.mean.low, real.mean.high
        if float(low) >= target:
            return True
        return False if float(high) < target else None

    def notes(self) -> list[str]:
        asked, mean, found = self.asked, self.chosen.real.mean, []
        own, value, low, high = _distinct(
            self.predicted, *map(float, (mean.value, mean.low, mean.high))
        )
        measured = f"{value} [{low}, {high}]"
        if not self.agrees:
            found.append(
                f"virtual chips predict {own}, and {measured} is measured: faults or schemes act "
                "together, beyond first order"
            )
        if asked.target is not None and self.chosen.best.worth < (self.chosen.goal or 0.0):
            most = "this budget" if asked.budget is not None else "these schemes"
            found.append(
                f"the target is out of reach of {most}: the best plan has {self.metric} {measured}"
            )
        elif self.reached is None and asked.target is not None:
            found.append("the interval leaves open whether the target is reached; give more chips")
        elif self.reached is False:
            found.append("the target is not reached, as measured")
        if self.chosen.rounds > 1:
            found.append(
                f"chosen {self.chosen.rounds} times: what was measured fell short of what was "
                "predicted"
            )
        return found


def _distinct(*values: float) -> list[str]:
    """Numbers with as many digits, four or more, as tell those apart that differ."""
    for digits in range(4, 18):
        written = [f"{value:.{digits}g}" for value in values]
        if len(set(written)) == len(set(values)):
            break
    return written


def accepted(real: Measured) -> LevelFacts | None:
    """The share of chips that reach the level, with the level."""
    if real.accepted is None:
        return None
    return {"level": real.level, **as_range(real.accepted)}


def front_rows(chosen: Chosen, options: Options, asked: Asked, metric: str) -> list[FrontFacts]:
    """Plans that no other beats, in order of their overhead."""
    rows: list[FrontFacts] = []
    for found in chosen.front:
        reach = None
        if asked.target is not None:
            reach = float((found.accuracies >= as_metric(metric, asked.target)).mean())
        used = {options.schemes[i].name for i in np.unique(found.choice) if i >= 0}
        rows.append(
            {
                "overhead": found.overhead,
                "protected": options.groups.share(found.choice >= 0),
                "predicted": as_metric(metric, float(found.accuracies.mean())),
                "accepted": reach,
                "schemes": sorted(used),
                "chosen": found is chosen.best,
            }
        )
    return rows


def rows_of(chosen: Chosen, options: Options) -> list[ChosenFacts]:
    """What is protected, a row for each scheme and site."""
    groups, rows = options.groups, []
    for scheme in chosen.whole:
        for cost in groups.cost_of_whole(scheme):
            rows.append(_row(scheme, "*", [], 0, 0, cost, groups))
    for i, scheme in enumerate(options.schemes):
        at = groups.coordinates(chosen.best.choice == i)
        for site, cost in groups.cost(scheme, at).items():
            p = next(p for p in groups.space.placements if p.site.name == site)
            bits: list[int] = []
            if isinstance(p.fault, WordFault):
                which = np.unique(at[site] % len(p.fault.masks))
                bits = [p.fault.masks[w].bit_length() - 1 for w in which]
            rows.append(_row(scheme, site, bits, len(at[site]), p.size, cost, groups))
    return rows


def _row(
    scheme: Scheme, site: str, bits: list[int], count: int, of: int, cost: Cost, groups: Groups
) -> ChosenFacts:
    return {
        "scheme": scheme.name,
        "site": site,
        "bits": bits,
        "coordinates": count,
        "of": of,
        "cost": cost.to_dict(),
        "overhead": groups.overhead(cost),
    }


def total_cost(rows: list[ChosenFacts]) -> dict[str, float]:
    total = Cost()
    for row in rows:
        total = total + Cost(**row["cost"])
    return total.to_dict()


def as_range(interval: Interval) -> RangeFacts:
    return {
        "value": float(interval.value),
        "low": float(interval.low),
        "high": float(interval.high),
    }
