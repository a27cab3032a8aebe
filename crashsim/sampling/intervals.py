"""Confidence intervals for what Monte Carlo measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from crashsim.arrays import Floats
from crashsim.results.estimate import Interval

ENOUGH = 20  # degrees of freedom from which an interval is trusted: about ten values that matter


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
    seen = stats.t.ppf(1 - alpha / 2, known) * np.sqrt(np.maximum(spread.variance, 0.0) / n)
    unseen = min(-np.log(alpha) / n, 1.0) * spread.largest
    return np.asarray(np.hypot(seen, unseen))


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
    factor = np.where(ratio < 2, np.exp(np.minimum(ratio, 2.0)), np.e**2 * (ratio / 2) ** 2)
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
    with np.errstate(invalid="ignore"):
        low = stats.beta.ppf(alpha / 2, hits, n - hits + 1)
        high = stats.beta.ppf(1 - alpha / 2, hits + 1, n - hits)
    return Interval(hits / n, np.where(hits <= 0, 0.0, low), np.where(hits >= n, 1.0, high))


def clustered_proportion_interval(
    mean: Floats, variance: Floats, n: int, inputs: int, alpha: float
) -> Interval:
    """Interval of a probability averaged over inputs that share each mask.

    Inputs under the same mask are not independent. Clopper-Pearson with the effective sample size
    ``mean (1 - mean) / (variance / n)``, at most n times the number of inputs (Korn and Graubard,
    Survey Methodology 24, 1998). Without a single hit, or without a miss, the masks count.

    Args:
        mean: average over masks of the share of inputs that fail.
        variance: sample variance over masks of that share.
        n: number of masks.
        inputs: under each mask.
        alpha: 1 - confidence.
    """
    effective = np.full(np.shape(mean), float(n))
    spread = variance > 1e-12 * mean * (1 - mean)  # less is rounding: all masks are alike
    np.divide(mean * (1 - mean) * n, variance, out=effective, where=spread)
    # Korn and Graubard's correction for estimating the variance with n - 1 degrees of freedom.
    shrink = (stats.norm.ppf(alpha / 2) / stats.t.ppf(alpha / 2, n - 1)) ** 2 if n > 1 else 1.0
    effective = np.where(spread, np.minimum(effective * shrink, n * inputs), effective)
    interval = proportion_interval(mean * effective, effective, alpha)
    return Interval(np.asarray(mean), interval.low, interval.high)


def quantile_interval(sorted_values: Floats, level: float, alpha: float) -> Interval:
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
    return Interval(value, low, high)


def pooled_quantile(size: Floats, level: float, alpha: float) -> Interval:
    """Quantile over samples and inputs together, with Woodruff's interval, (K,).

    The interval of the share below the quantile, which allows for inputs that share a mask, is read
    back through the empirical quantiles (Woodruff, JASA 47, 1952).

    Args:
        size: (n, B, K).
    """
    n, b, k = size.shape
    value = np.quantile(size, level, axis=(0, 1), method="inverted_cdf")
    # How much wider than for independent inputs; the larger side, where many share the quantile.
    design = np.maximum(_design_effect(size <= value), _design_effect(size < value))
    shares = clustered_proportion_interval(
        np.full(k, level), design * level * (1 - level), n, b, alpha
    )
    low = [np.quantile(size[:, :, j], shares.low[j], method="inverted_cdf") for j in range(k)]
    high = [
        np.quantile(size[:, :, j], shares.high[j], method="inverted_cdf")
        if shares.high[j] < 1
        else np.inf
        for j in range(k)
    ]
    return Interval(value, np.minimum(low, value), np.maximum(high, value))


def _design_effect(hits: NDArray[np.bool_]) -> Floats:
    """Variance over masks of the share of inputs that are hit, over that of a single one, (K,)."""
    share = hits.mean(1)
    alone = share.mean(0) * (1 - share.mean(0))
    effect: Floats = np.ones_like(alone)
    np.divide(share.var(0, ddof=1), alone, out=effect, where=alone > 0)
    return effect


def stratified_quantiles(
    size: Floats,
    outcomes: Floats,
    weights: Floats,
    rest: float,
    levels: Sequence[float],
    alpha: float,
) -> list[Interval]:
    """Quantiles of laws of which one part is known and the other sampled, (J,) for each level.

    The law's distribution function at the quantile, and just below it, may be off by what their
    intervals allow, which is read back through it (Woodruff, JASA 47, 1952).

    Args:
        size: (n, B, J) samples: of J laws, each averaged over B inputs under one mask.
        outcomes: (A, B, J) of the known part.
        weights: (A,) their probabilities.
        rest: probability of the sampled part.
        levels: probabilities of the quantiles.
        alpha: 1 - confidence.
    """
    n, b, columns = size.shape
    masses = np.concatenate([np.repeat(weights, b) / b, np.full(n * b, rest / (n * b))])
    laws = []
    for j in range(columns):
        values = np.concatenate([outcomes[:, :, j].ravel(), size[:, :, j].ravel()])
        order = np.argsort(values, kind="stable")
        laws.append((values[order], np.cumsum(masses[order])))

    def read(probabilities: Floats) -> Floats:
        found = np.full(columns, np.inf)
        for j, (values, law) in enumerate(laws):
            where = int(np.searchsorted(law, probabilities[j] * (1 - 1e-12)))
            if where < len(values):
                found[j] = values[where]
        return found

    quantiles = []
    for level in levels:
        value = read(np.full(columns, level))
        below, within = (
            clustered_proportion_interval(share.mean(0), share.var(0, ddof=1), n, b, alpha)
            for share in ((size < value).mean(1), (size <= value).mean(1))
        )
        low = read(level - rest * (below.high - below.value))
        high = read(level + rest * (within.value - within.low))
        quantiles.append(Interval(value, np.minimum(low, value), np.maximum(high, value)))
    return quantiles
