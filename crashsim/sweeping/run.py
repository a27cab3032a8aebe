"""A curve under way: what chips show and theory predicts at its rates."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import ndtri

from crashsim.arrays import Floats
from crashsim.campaign.store import Store
from crashsim.campaign.tasks import fold
from crashsim.errors import NotApplicableError
from crashsim.metrics import AskedMetrics, bounds_of
from crashsim.model.labelled import Labelled
from crashsim.results.curve.curve_record import PilotFacts
from crashsim.results.estimate import Interval
from crashsim.sampling.chips.facts import is_lower_better
from crashsim.sampling.chips.found import FoundChips
from crashsim.sampling.intervals import scalar_interval
from crashsim.space import FaultSpace
from crashsim.sweeping.adaptive import Outline
from crashsim.sweeping.checked import Check, check_prediction
from crashsim.sweeping.nested import NestedChips
from crashsim.sweeping.points import accepted_level, measured_point, predicted_point
from crashsim.sweeping.predicted import Prediction, right_classes
from crashsim.sweeping.predicted import predict as predict_curve
from crashsim.sweeping.task import ChipsByRate, CurveSums

MOST_CHIPS = 0.95  # share of them that is to reach the target
_OPEN = 0.1  # error of a pilot's intervals, which say where a target may be missed

Progress = Callable[[str, int, int], None]


@dataclass
class CurveRun:
    """A curve under way: its chips so far."""

    source: NestedChips
    examples: Labelled
    asked: AskedMetrics
    sums: CurveSums = field(default_factory=CurveSums)
    prediction: Prediction | None = None
    doubts: list[str] = field(default_factory=list)
    checked: Check | None = None

    def predict(
        self, space: FaultSpace, memory: int, progress: Progress, *, is_alone: bool
    ) -> None:
        """Asks theory. Raises NotApplicableError where it cannot tell and is asked alone."""
        rates, metric = self.source.rates, self.asked.metrics[0].name
        try:
            self.prediction = predict_curve(
                space, rates, self.examples, metric, self.source.seed, memory, progress
            )
        except NotApplicableError as error:
            if is_alone:
                raise
            self.doubts.append(f"no prediction: {error}")

    def check(self, chips: int, memory: int, alpha: float) -> None:
        """Lets some chips say how far the prediction may be off, where its surrogate judges them.

        Args:
            chips: their number, which share no random number with those of a measured curve.
            memory: bytes that gains may take.
            alpha: 1 - confidence.
        """
        given, metric = self.source, self.asked.metrics[0].name
        if self.prediction is None or not self.prediction.is_served or chips == 0:
            return
        pilots = replace(given, chips=chips, per_block=chips, are_pilots=True)
        self.checked = check_prediction(
            pilots,
            self.examples,
            lambda part, targets: right_classes(metric, part, targets),
            memory,
            alpha,
        )
        off = np.abs(self.checked.off) > self.checked.shared
        if off.any():
            where = ", ".join(f"{r:.3g}" for r, o in zip(given.rates, off, strict=True) if o)
            self.doubts.append(
                f"the chips that check the prediction show that it is off at rates {where}: single "
                "faults are no small changes there; its interval holds what they show"
            )

    @property
    def _found(self) -> list[FoundChips]:
        """What follows from the chips at each rate."""
        return [
            FoundChips(sums, self.asked, none)
            for sums, none in zip(self.sums.by_rate, self.source.without_fault, strict=True)
        ]

    def outline(self, accept: float | None) -> Outline:
        """What is seen so far, as what adaptive rates are chosen by."""
        metric, rates = self.asked.metrics[0].name, self.source.rates
        sign = -1.0 if is_lower_better(metric) else 1.0
        if not self.sums.by_rate:
            assert self.prediction is not None
            lost = sign * (self.prediction.clean - self.prediction.values)
            return Outline(rates, lost, None, [])
        laws = [one.law(0) for one in self._found]
        clean = float(self._found[0].clean[0])
        means = [law.mean(_OPEN) for law in laws]
        lost = np.array([sign * (clean - float(mean.value)) for mean in means])
        level = accepted_level(metric, clean, accept)
        if level is None:
            return Outline(rates, lost, None, [])
        shares = [law.at_least(level, _OPEN) if sign > 0 else law.at_most(level, _OPEN)
                  for law in laws]  # fmt: skip
        failing = np.array([1 - float(share.value) for share in shares])
        of_mean = _beyond(means, level, sign)
        return Outline(rates, lost, failing, [of_mean, _beyond(shares, MOST_CHIPS, 1.0)])

    def draw(self, executor: Executor | None, store: Store | None, progress: Progress) -> None:
        """Judges all chips."""
        task, told, most = ChipsByRate(self.source, self.examples, self.asked), 0, self.source.chips
        for at in fold(task, range(self.source.blocks), executor, store=store):
            self.sums = at.sums
            done = min(round(self.sums.done), most)
            if done > told:
                told = done
                progress("pilot" if self.source.are_pilots else "chips", done, most)

    def facts(self, alpha: float, accept: float | None) -> dict[str, Any]:
        """What was measured, as fields of a curve."""
        if not self.sums.by_rate:
            return self._predicted()
        metric = self.asked.metrics[0]
        found = self._found
        clean, lower = float(found[0].clean[0]), is_lower_better(metric.name)
        accept = accepted_level(metric.name, clean, accept)
        least, most = (end if np.isfinite(end) else None for end in bounds_of(metric))
        return {
            "metric": metric.name,
            "lower_is_better": lower,
            "least": least,
            "most": most,
            "clean": clean,
            "chips": self.sums.by_rate[0].chips,
            "rows": self.sums.rows,
            "points": [
                {**measured_point(rate, one, alpha, alpha / len(found), accept), "predicted": value}
                for rate, one, value in zip(
                    self.source.rates, found, self._predicted_values(), strict=True
                )
            ],
            "prediction": "" if self.prediction is None else self.prediction.told,
        }

    @property
    def _told_of_check(self) -> str:
        if self.checked is None:
            return "; no chip checked it"
        return (
            f"; checked by {self.checked.chips} chips on {self.checked.examples} examples "
            f"({self.checked.rows:,} passes): intervals reach from it to what these leave open"
        )

    def _ends(self, least: float, most: float) -> list[tuple[Interval, Interval]]:
        """At each rate, what the check leaves open of a prediction: alone, and at all rates."""
        assert self.prediction is not None
        values = self.prediction.values
        if self.checked is None:
            none = np.full(2, np.nan)
            return [(scalar_interval(v, *none), scalar_interval(v, *none)) for v in values]
        sign = 1.0 if is_lower_better(self.asked.metrics[0].name) else -1.0
        mended = values + sign * self.checked.off
        found = []
        for checked, alpha in (
            (self.checked.half, self.checked.alpha),
            (self.checked.shared, self.checked.alpha / len(values)),
        ):
            half = np.hypot(checked, ndtri(1 - alpha / 2) * self.prediction.error)
            low = np.clip(np.minimum(values, mended - half), least, most)
            high = np.clip(np.maximum(values, mended + half), least, most)
            found.append([scalar_interval(*each) for each in zip(values, low, high, strict=True)])
        return list(zip(*found, strict=True))

    def of_pilot(self) -> PilotFacts:
        """Of a pilot: what it looked at."""
        chips = self.sums.by_rate[0].chips if self.sums.by_rate else 0
        return {"chips": chips, "rates": list(self.source.rates), "rows": self.sums.rows}

    def _predicted_values(self) -> list[float | None]:
        if self.prediction is None:
            return [None] * len(self.source.rates)
        return [float(value) for value in self.prediction.values]

    def _predicted(self) -> dict[str, Any]:
        """What was predicted alone, as fields of a curve."""
        assert self.prediction is not None
        metric = self.asked.metrics[0]
        least, most = bounds_of(metric)
        return {
            "metric": metric.name,
            "lower_is_better": is_lower_better(metric.name),
            "least": least,
            "most": most,
            "clean": self.prediction.clean,
            "chips": 0,
            "rows": 0 if self.checked is None else self.checked.rows,
            "points": [
                predicted_point(rate, float(value), none, *ends)
                for rate, value, none, ends in zip(
                    self.source.rates,
                    self.prediction.values,
                    self.source.without_fault,
                    self._ends(least, most),
                    strict=True,
                )
            ],
            "prediction": self.prediction.told + self._told_of_check,
        }


def _beyond(found: list[Interval], limit: float, sign: float) -> tuple[Floats, Floats]:
    """How far the better and the worse ends of intervals are beyond a limit."""
    ends = np.array([[float(one.low), float(one.high)] for one in found]) - limit
    with np.errstate(invalid="ignore"):
        better, worse = (sign * ends).max(1), (sign * ends).min(1)
    return np.nan_to_num(better), np.nan_to_num(worse)
