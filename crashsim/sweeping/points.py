"""A rate's numbers on a curve: what chips show there, or what theory alone predicts."""

from __future__ import annotations

import numpy as np

from crashsim.results.curve.curve_record import PointFacts
from crashsim.results.estimate import Interval
from crashsim.results.schema import RangeFacts
from crashsim.sampling.chips.facts import PERCENTILES, is_lower_better
from crashsim.sampling.chips.found import FoundChips

_LOSS = 0.01  # of accuracy that a chip may show and still be accepted, unless said


def accepted_level(metric: str, clean: float, asked: float | None) -> float | None:
    """The worst value of a metric that is accepted: what was asked, or what is usual, if any."""
    if asked is None and metric.startswith(("accuracy", "top-")):
        return max(clean - _LOSS, 0.0)
    return asked


def measured_point(
    rate: float, found: FoundChips, alpha: float, shared: float, accept: float | None
) -> PointFacts:
    """A rate's numbers; ``shared`` is the error that the band may make there (Bonferroni)."""
    lower = is_lower_better(found.asked.metrics[0].name)
    law, clean = found.law(0), float(found.clean[0])
    mean, band = law.mean(alpha), law.mean(shared)
    values, counts = np.unique(law.sampled, return_counts=True)
    population = found.over_examples(0, alpha, mean)
    accepted = None
    if accept is not None:
        share = law.at_most(accept, alpha) if lower else law.at_least(accept, alpha)
        accepted = {"level": accept, **_range(share)}
    return {
        "rate": rate,
        "kind": "statistical",
        **_range(mean),
        "band_low": float(band.low),
        "band_high": float(band.high),
        "predicted": None,
        "change": _range(mean, clean),
        "population": None if population is None else _range(population),
        "percentiles": [
            {"level": level, **_range(law.quantile(level, alpha))} for level in PERCENTILES
        ],
        "accepted": accepted,  # type: ignore[typeddict-item]
        "struck": len(law.sampled),
        "without_fault": found.none,
        "not_finite": int((~np.isfinite(law.sampled)).sum()),
        "values": values.tolist(),
        "counts": counts.tolist(),
    }


def _range(interval: Interval, less: float = 0.0) -> RangeFacts:
    value, low, high = (float(end) - less for end in (interval.value, interval.low, interval.high))
    return RangeFacts(value=value, low=low, high=high)


def predicted_point(
    rate: float, value: float, without_fault: float, alone: Interval, shared: Interval
) -> PointFacts:
    """A point of a curve that was predicted alone: an estimate, and what chips leave open of it."""
    return {
        "rate": rate,
        "kind": "estimate",
        "value": value,
        "low": float(alone.low),
        "high": float(alone.high),
        "band_low": float(shared.low),
        "band_high": float(shared.high),
        "predicted": value,
        "change": None,
        "population": None,
        "percentiles": [],
        "accepted": None,
        "struck": 0,
        "without_fault": without_fault,
        "not_finite": 0,
        "values": [],
        "counts": [],
    }
