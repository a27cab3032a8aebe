"""Confidence intervals for what Monte Carlo measures."""

from __future__ import annotations

import numpy as np
from scipy import stats

from crashsim.estimate import Values
from crashsim.points import Floats


def mean_interval(mean: Floats, variance: Floats, n: int, alpha: float) -> Values:
    """Student's t interval of a mean, from the sample variance of n independent samples."""
    half = stats.t.ppf(1 - alpha / 2, n - 1) * np.sqrt(variance / n)
    return Values(mean, mean - half, mean + half)


def variance_interval(variance: Floats, its_variance: Floats, n: int, alpha: float) -> Values:
    """Interval of a variance, by the delta method on its logarithm (asymptotic).

    The logarithm keeps the interval positive and follows the skewness of the estimate. Where the
    sample shows no variance at all, nothing is known of the upper end: it is infinite.

    Args:
        variance: estimates.
        its_variance: variance of one sample's contribution (m4 - sigma^4 for a plain variance).
        n: number of independent samples.
        alpha: 1 - confidence.
    """
    positive = variance > 0
    safe = np.where(positive, variance, 1.0)
    factor = np.exp(
        stats.t.ppf(1 - alpha / 2, n - 1) * np.sqrt(np.maximum(its_variance, 0) / n) / safe
    )
    low = np.where(positive, variance / factor, 0.0)
    high = np.where(positive, variance * factor, np.inf)
    return Values(variance, low, high)


def proportion_interval(hits: Floats, n: Floats | int, alpha: float) -> Values:
    """Clopper-Pearson interval of a probability: exact, never below its confidence.

    Args:
        hits: number of successes (may be fractional, for an effective sample size).
        n: number of trials.
        alpha: 1 - confidence.
    """
    hits, n = np.asarray(hits, dtype=float), np.asarray(n, dtype=float)
    with np.errstate(invalid="ignore"):
        low = stats.beta.ppf(alpha / 2, hits, n - hits + 1)
        high = stats.beta.ppf(1 - alpha / 2, hits + 1, n - hits)
    return Values(hits / n, np.where(hits <= 0, 0.0, low), np.where(hits >= n, 1.0, high))


def clustered_proportion_interval(mean: Floats, variance: Floats, n: int, alpha: float) -> Values:
    """Interval of a probability averaged over inputs that share each mask.

    Inputs under the same mask are not independent. Clopper-Pearson with the effective sample size
    ``mean (1 - mean) / (variance / n)``, at most n times the number of inputs (Korn and Graubard,
    Survey Methodology 24, 1998). Without a single hit, or without a miss, the masks count.

    Args:
        mean: average over masks of the share of inputs that fail.
        variance: sample variance over masks of that share.
        n: number of masks.
        alpha: 1 - confidence.
    """
    effective = np.full(np.shape(mean), float(n))
    spread = variance > 0
    np.divide(mean * (1 - mean) * n, variance, out=effective, where=spread)
    # Korn and Graubard's correction for estimating the variance with n - 1 degrees of freedom.
    shrink = (stats.norm.ppf(alpha / 2) / stats.t.ppf(alpha / 2, n - 1)) ** 2 if n > 1 else 1.0
    effective = np.where(spread, effective * shrink, effective)
    interval = proportion_interval(mean * effective, effective, alpha)
    return Values(np.asarray(mean), interval.low, interval.high)


def quantile_interval(sorted_values: Floats, level: float, alpha: float) -> Values:
    """Distribution-free interval of a quantile from order statistics (exact, conservative).

    Args:
        sorted_values: (n, ...) sorted along the first axis.
        level: probability of the quantile.
        alpha: 1 - confidence.
    """
    n = len(sorted_values)
    value = sorted_values[min(n - 1, int(np.ceil(level * n)) - 1)]
    low_rank = int(stats.binom.ppf(alpha / 2, n, level))
    high_rank = int(stats.binom.ppf(1 - alpha / 2, n, level)) + 1
    low = sorted_values[low_rank - 1] if low_rank >= 1 else np.zeros_like(value)
    high = sorted_values[high_rank - 1] if high_rank <= n else np.full_like(value, np.inf)
    return Values(value, low, high)
