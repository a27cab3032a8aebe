"""Confidence intervals for what Monte Carlo measures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv, stdtrit

from crashsim.arrays import Floats
from crashsim.results.estimate import Interval

ENOUGH = 20  # degrees of freedom from which an interval is trusted: about ten values that matter
_MANY = 256  # probabilities, of which there may be few different ones
_A_FACTOR = 900  # Student's quantiles in a table, for each factor e of their degrees of freedom


@dataclass(frozen=True)
class Spread:
    """How n independent values of one sample each are spread, as far as an average needs it.

    Attributes:
        variance: (...) of one value, unbiased.
        kurtosis: (...) fourth central moment over the squared variance; 3 where it says nothing.
        largest: (...) the largest distance from the average that is to be expected of a value that
            has not been seen.
    """

    variance: Floats
    kurtosis: Floats
    largest: Floats

    @classmethod
    def of(cls, values: Floats) -> Spread:
        """Of values (n, ...)."""
        squares = (values - values.mean(0)) ** 2
        largest = np.sqrt(squares.max(0))
        return cls.of_sums(len(values), squares.sum(0), (squares**2).sum(0), largest)

    @classmethod
    def of_sums(cls, n: int, second: Floats, fourth: Floats, largest: Floats) -> Spread:
        """From sums over n values of powers of their distance from the average."""
        kurtosis = np.full(np.shape(second), 3.0)
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers beyond 1e38
            square = second**2
            np.divide(n * fourth, square, out=kurtosis, where=square > 0)
        # It is n where a single value is all there is, which is the most that it can be.
        kurtosis = np.where(np.isfinite(square) & np.isfinite(fourth), kurtosis, float(n))
        return cls(second / max(n - 1, 1), kurtosis, largest)


def degrees_of_freedom(spread: Spread, n: int, fitted: int = 0) -> Floats:
    """With which the variance of n independent values is known.

    At most n - 1, and fewer where few values make up most of it: about twice their number,
    2 n / (kurtosis - 1) (Satterthwaite, Biometrics Bulletin 2, 1946). None where all are alike.
    """
    most = float(max(n - 1 - fitted, 1))
    found = np.clip(2 * n / np.maximum(spread.kurtosis - 1, 1e-9), min(2.0, most), most)
    return np.where(spread.variance > 0, found, 0.0)


def half_width(spread: Spread, n: int, alpha: float, fitted: int = 0) -> Floats:
    """Half the width of the interval of an average of n independent values.

    Student's t with the degrees of freedom that the values' variance is known with. What happens
    with a probability below log(1 / alpha) / n may not have been seen at all (at 95%, the rule of
    three); it adds to that as an independent error.

    Args:
        spread: of the values, (...).
        n: number of values.
        alpha: 1 - confidence.
        fitted: coefficients that were fitted to the values beside their average.
    """
    known = np.maximum(degrees_of_freedom(spread, n, fitted), 1.0)
    seen = _student(known, 1 - alpha / 2) * np.sqrt(np.maximum(spread.variance, 0.0) / n)
    unseen = min(-np.log(alpha) / n, 1.0) * spread.largest
    return np.asarray(np.hypot(seen, unseen))


def _student(freedom: Floats, level: float) -> Floats:
    """Student's quantile for each degree of freedom, from 1 on; of very many from a table.

    The table's straight lines are above the quantile, by less than 1e-4 of it, whatever the level.
    """
    last = max(float(np.max(freedom)), 2.0)
    size = int(_A_FACTOR * np.log(last)) + 2
    if np.size(freedom) <= size:
        return np.asarray(stdtrit(freedom, level))
    known = stdtrit(np.geomspace(1.0, last, size), level)
    place = np.log(freedom) * ((size - 1) / np.log(last))  # evenly spread: no search
    start = np.clip(place.astype(np.int64), 0, size - 2)
    found: Floats = known[start] + (place - start) * np.diff(known)[start]
    return found


def scalar_interval(value: Any, low: Any, high: Any) -> Interval:
    """The interval of a single number, ()."""
    value, low, high = (np.asarray(end, dtype=np.float64) for end in (value, low, high))
    return Interval(value, low, high)


def mean_interval(mean: Floats, half: Floats) -> Interval:
    """Interval of a mean of this half-width."""
    return Interval(mean, mean - half, mean + half)


def variance_interval(variance: Floats, half: Floats) -> Interval:
    """Interval of a variance, on the scale of its logarithm (asymptotic).

    The logarithm keeps the interval positive and follows the skewness of the estimate. Where the
    samples show no variance at all, nothing is known of the upper end: it is infinite.

    Args:
        variance: estimates.
        half: half-widths of their intervals, were these symmetric.
    """
    positive = variance > 0
    ratio = np.divide(half, variance, out=np.zeros_like(variance), where=positive)
    # From a factor of e^2 on, where little is known, it grows with the square of the half-width.
    factor = np.where(ratio < 2, np.exp(np.minimum(ratio, 2.0)), math.e**2 * (ratio / 2) ** 2)
    low = np.where(positive, variance / factor, 0.0)
    high = np.where(positive, variance * factor, np.inf)
    return Interval(variance, low, high)


def proportion_interval(hits: Floats, n: Floats | int, alpha: float) -> Interval:
    """Clopper-Pearson interval of a probability: exact, never below its confidence.

    Args:
        hits: number of successes (may be fractional, for an effective sample size).
        n: number of trials.
        alpha: 1 - confidence.
    """
    hits, n = np.asarray(hits, dtype=float), np.asarray(n, dtype=float)
    if n.ndim == 0 and hits.size > _MANY:  # whole numbers to n, of which few are different
        different, where = np.unique(hits, return_inverse=True)
        found = proportion_interval(different.reshape(-1, 1), n.reshape(1), alpha)
        at = where.reshape(hits.shape), 0
        return Interval(found.value[at], found.low[at], found.high[at])
    with np.errstate(invalid="ignore"):
        low = betaincinv(np.maximum(hits, 1e-300), n - hits + 1, alpha / 2)
        high = betaincinv(hits + 1, np.maximum(n - hits, 1e-300), 1 - alpha / 2)
    return Interval(hits / n, np.where(hits <= 0, 0.0, low), np.where(hits >= n, 1.0, high))
