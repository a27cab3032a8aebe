"""A curve under way: what chips show and theory predicts at its rates."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
from crashsim.space import FaultSpace
from crashsim.sweeping.adaptive import Outline
from crashsim.sweeping.nested import NestedChips
from crashsim.sweeping.points import accepted_level, measured_point, predicted_point
from crashsim.sweeping.predicted import Prediction
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
            "rows": 0,
            "points": [
                predicted_point(rate, float(value), none)
                for rate, value, none in zip(
                    self.source.rates,
                    self.prediction.values,
                    self.source.without_fault,
                    strict=True,
                )
            ],
            "prediction": self.prediction.told,
        }


def _beyond(found: list[Interval], limit: float, sign: float) -> tuple[Floats, Floats]:
    """How far the better and the worse ends of intervals are beyond a limit."""
    ends = np.array([[float(one.low), float(one.high)] for one in found]) - limit
    with np.errstate(invalid="ignore"):
        better, worse = (sign * ends).max(1), (sign * ends).min(1)
    return np.nan_to_num(better), np.nan_to_num(worse)
