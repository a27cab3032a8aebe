"""The largest rate at which a metric still reaches a target, with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crashsim.results.curve.curve_record import TolerableFacts
from crashsim.results.estimate import Interval

# An interval of a mean may leave two thirds of its error to one of its sides.
_SHARE = 0.75


@dataclass(frozen=True)
class TolerableRate:
    """The rate up to which a target is met, between the rates of a curve.

    The interval holds the rate at which the target is first missed, if the metric falls (rises,
    where less is better) from one of the curve's rates to the next. Rates are tested one after the
    other, from both ends of the curve, up to the first that decides nothing; so all of them
    together err as seldom as one (fixed-sequence testing), and more rates cost no width.

    Attributes:
        target: of the metric.
        share: of chips that reach it, which is asked for; None: the mean over chips is to reach it.
        rate: where the estimate crosses the target, between rates by their logarithms. 0: not even
            without faults; that of the last point, where all points meet the target.
        low: the target is met at every rate of the curve up to here; 0: at none for certain.
        high: it is missed from here on; infinite where no rate of the curve misses it for certain.
        confidence: of the interval.
    """

    target: float
    share: float | None
    rate: float
    low: float
    high: float
    confidence: float

    def facts(self) -> TolerableFacts:
        """Plain data."""
        return {
            "target": self.target,
            "share": self.share,
            "rate": self.rate,
            "low": self.low,
            "high": None if self.high == math.inf else self.high,
            "confidence": self.confidence,
        }


def tolerable(
    rates: Sequence[float],
    interval: Callable[[int, float], Interval],
    clean: float,
    wanted: float,
    *,
    falls: bool,
    target: float,
    share: float | None,
    confidence: float,
) -> TolerableRate:
    """Where a curve first misses what is wanted.

    Args:
        rates: of the curve, the least first.
        interval: of the curve's value at a rate, by its number and alpha.
        clean: the value at rate 0.
        wanted: what the value is compared with.
        falls: whether the value is to be at least so large; else at most.
        target, share, confidence: as of the result.
    """
    sign = 1.0 if falls else -1.0
    alpha = _SHARE * (1 - confidence)
    found = [interval(i, alpha) for i in range(len(rates))]
    values = [sign * float(one.value) for one in found]
    worst = [sign * float(one.low if falls else one.high) for one in found]
    best = [sign * float(one.high if falls else one.low) for one in found]
    limit, start = sign * wanted, sign * clean
    if not start >= limit:
        return TolerableRate(target, share, 0.0, 0.0, 0.0, confidence)
    low, high = 0.0, math.inf
    for rate, at_worst in zip(rates, worst, strict=True):
        if not at_worst >= limit:
            break
        low = rate
    for rate, at_best in zip(reversed(rates), reversed(best), strict=True):
        if not at_best < limit:
            break
        high = rate
    return TolerableRate(
        target, share, _crossing(rates, values, start, limit), low, high, confidence
    )


def _crossing(rates: Sequence[float], values: Sequence[float], start: float, limit: float) -> float:
    """The rate at which values first fall below the limit; the last where none does."""
    before, above = 0.0, start
    for rate, value in zip(rates, values, strict=True):
        if not value >= limit:
            if not math.isfinite(value):
                return before
            part = (above - limit) / (above - value)
            if before == 0:
                return rate * part
            return float(math.exp(math.log(before) + part * math.log(rate / before)))
        before, above = rate, value
    return before
