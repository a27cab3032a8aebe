"""Intervals for the mean of independent values between known bounds, for a fixed number of them.

The bound of Learned-Miller and Thomas (A new confidence interval for the mean of a bounded random
variable, arXiv 1905.06208, 2019): the values' probabilities are not known, but laid side by side
they cut (0, 1) as uniform order statistics do; so the mean is, at worst, that of the values and one
more at the bound, weighted by the gaps between n uniform numbers. Its quantiles are the ends. What
was never seen is thus allowed for, however alike the values are. Coverage is proved in special
cases only; no law is known of which it falls short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from crashsim.arrays import Floats
from crashsim.results.estimate import Interval
from crashsim.sampling.intervals import (
    Spread,
    half_width,
    proportion_interval,
    scalar_interval,
)

_NODES = 160  # of the integral
_REACH = 14.0  # of its variable: tails beyond e^14 widths
_MOST_VALUES = 250  # different ones, up to which the integral is computed
_FARTHER = 1 / 3  # share of the error on the side of the farther bound
_FEW_MASKS = 200  # that fail any input, up to which those that were not seen count
_FEW = 8  # different values that are summed one by one
_LEAST = 1e-12  # distance of a quantile from the ends
_SURE = 1e-300, 1 - 1e-16  # probabilities that have normal quantiles
_STEPS = 200  # to a saddle point, at most
_NEAR = 0.5  # standard deviations from the mean within which the path keeps off the pole


def bounded_mean_interval(values: Floats, low: float, high: float, alpha: float) -> Interval:
    """The mean of the law of independent values, with its interval, each ().

    Args:
        values: (n,) between the bounds. Infinite ones make the mean infinite.
        low, high: what no value can be beyond. Without a bound on a side, the interval there is
            Student's, with an allowance for what was not seen (``intervals.half_width``).
        alpha: 1 - confidence. A third of it goes to the side of the farther bound, whose allowance
            for what was not seen is the larger one, and hardly ever needed in full.
    """
    n = len(values)
    if n == 0:
        middle = (low + high) / 2 if np.isfinite(low) and np.isfinite(high) else np.nan
        return scalar_interval(middle, low, high)
    if np.isnan(values).any():
        return scalar_interval(np.nan, low, high)
    if not np.isfinite(values).all():
        mean = float(values.mean())  # infinite, as the law's own is where one value can be
        surely = np.isneginf(low) and mean == np.inf
        return scalar_interval(mean, mean if surely else low, high)
    mean = float(values.mean())
    half = None
    if not (np.isfinite(low) and np.isfinite(high)):
        half = float(half_width(Spread.of(values), n, alpha)) if n > 1 else np.inf
    below = alpha * (_FARTHER if mean - low > high - mean else 1 - _FARTHER)
    least = mean_end(values, low, below) if half is None else max(mean - half, low)
    most = mean_end(values, high, 1 - alpha + below) if half is None else min(mean + half, high)
    return scalar_interval(mean, min(least, mean), max(most, mean))


def clustered_proportion_interval(
    mean: Floats, variance: Floats, n: int, inputs: int, alpha: float
) -> Interval:
    """Interval of a probability averaged over inputs that share each mask.

    Inputs under the same mask are not independent. Clopper-Pearson with the effective sample size
    ``mean (1 - mean) / (variance / n)``, at most n times the number of inputs (Korn and Graubard,
    Survey Methodology 24, 1998). Without a single hit, or without a miss, the masks count. Where
    few masks fail any input, the next one that fails may fail all of them, however few of them
    those did: the end then is that of Learned-Miller and Thomas, of masks that fail alike with the
    mean and variance that were seen.

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
    shrink = (ndtri(alpha / 2) / stdtrit(n - 1, alpha / 2)) ** 2 if n > 1 else 1.0
    effective = np.where(spread, np.minimum(effective * shrink, n * inputs), effective)
    interval = proportion_interval(mean * effective, effective, alpha)
    high = _with_masks_unseen(mean, variance, n, inputs, alpha, interval.high)
    low = 1 - _with_masks_unseen(1 - mean, variance, n, inputs, alpha, 1 - interval.low)
    return Interval(np.asarray(mean), low, high)


def _with_masks_unseen(
    mean: Floats, variance: Floats, n: int, inputs: int, alpha: float, high: Floats
) -> Floats:
    """The upper ends of shares, no lower than a next mask that fails every input allows."""
    ends = np.array(high, dtype=np.float64)
    if inputs == 1:
        return ends
    means = np.broadcast_to(mean, ends.shape).ravel()
    squares = np.broadcast_to(variance, ends.shape).ravel() * (n - 1) / n + means**2
    flat = ends.ravel()
    few = (means > 0) & (means < 0.5) & (n * means**2 <= _FEW_MASKS * squares)
    places = np.flatnonzero(few)
    # Of very many outputs most failed as often as another one: in whole numbers, up to rounding.
    sums = n * inputs * np.stack([means[places], inputs * squares[places]])
    _, first, alike = np.unique(np.round(sums, 6), axis=1, return_index=True, return_inverse=True)
    least = np.zeros(len(first))
    for i, at in enumerate(places[first]):
        share = float(min(squares[at] / means[at], 1.0))  # that the failing masks fail, if alike
        failing = n * float(means[at]) / share
        values = np.array([0.0, share, 1.0])
        counts = np.array([max(n - failing, 1e-3), failing, 1.0])
        if share > 1 - 1e-9:
            values, counts = values[[0, 2]], np.array([counts[0], failing + 1.0])
        if not _reaches(float(flat[at]), values, counts, 1 - alpha / 2):
            least[i] = _end(values, counts, 1 - alpha / 2)
    flat[places] = np.maximum(flat[places], least[alike.reshape(-1)])
    return flat.reshape(ends.shape)


def mean_end(values: Floats, bound: float, level: float) -> float:
    """The quantile of the mean of the values and the bound, weighted by gaps of uniform numbers.

    Args:
        values: (n,), finite.
        bound: the smallest or largest possible value.
        level: probability of the quantile.
    """
    distinct, counts = np.unique(np.append(values, bound), return_counts=True)
    if len(distinct) == 1:
        return float(bound)
    scale = distinct[-1] - distinct[0]
    end = _end((distinct - distinct[0]) / scale, counts.astype(np.float64), level)
    return float(distinct[0] + scale * end)


def _reaches(t: float, z: Floats, counts: Floats, level: float) -> bool:
    """Whether a number is not below the quantile, which takes longer to find."""
    if not _LEAST < t < 1 - _LEAST:
        return t > 0.5
    return _probability(_Weighted(z - t, counts)) >= level


def _end(z: Floats, counts: Floats, level: float) -> float:
    """The quantile, of values from 0 to 1 that occur so often."""

    wanted = float(ndtri(level))
    known: dict[float, float] = {}

    def off(t: float) -> float:
        """Of normal quantiles, in which the probability is nearly linear: few steps do."""
        if t not in known:
            found = np.clip(_probability(_Weighted(z - t, counts)), *_SURE)
            known[t] = float(ndtri(found)) - wanted
        return known[t]

    mean = float(z @ counts / counts.sum())
    deviation = float(np.sqrt(((z - mean) ** 2) @ counts) / (counts.sum()))
    least, most = _LEAST, 1 - _LEAST
    for reach in (1, 8):  # standard deviations about where a normal law has it
        low, high = (mean + (wanted + side * reach) * deviation for side in (-1, 1))
        least = low if least < low < most and off(low) < 0 else least
        most = high if least < high < most and off(high) > 0 else most
        if least >= low and most <= high:
            break
    if least == _LEAST and off(least) >= 0:
        return 0.0
    if most == 1 - _LEAST and off(most) <= 0:
        return 1.0
    return _crossing(off, least, most)


def _crossing(off: Callable[[float], float], low: float, high: float) -> float:
    """Where a function crosses 0 between two points of opposite signs, to 1e-7 of itself.

    By the Illinois form of false position (Dowell and Jarratt, BIT 11, 1971); importing
    scipy.optimize for one root takes longer than the interval itself.
    """
    at_low, at_high = off(low), off(high)
    before, side = high, 0
    for _ in range(_STEPS):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        if not low < middle < high or abs(middle - before) <= 1e-12 + 1e-7 * middle:
            break
        found = off(middle)
        if (found < 0) == (at_low < 0):
            at_high = at_high / 2 if side == -1 else at_high
            low, at_low, side = middle, found, -1
        else:
            at_low = at_low / 2 if side == 1 else at_low
            high, at_high, side = middle, found, 1
        before = middle
    return middle


@dataclass(frozen=True)
class _Weighted:
    """The sum of c_i times independent Gamma(m_i) numbers; some c are negative, some positive."""

    c: Floats
    m: Floats

    def cumulant(self, s: complex | Floats) -> Floats:
        """log E exp(s times the sum)."""
        found: Floats = -(np.log(1 - np.multiply.outer(np.asarray(s), self.c)) @ self.m)
        return found

    def curvature(self, s: float) -> float:
        return float(((self.c / (1 - self.c * s)) ** 2) @ self.m)

    @property
    def saddle(self) -> float:
        """Where the cumulant function is flat: by Newton's steps, kept between its poles."""
        inset = 1 - 1e-13
        low, high = inset / float(self.c.min()), inset / float(self.c.max())
        s = self._saddle_of_three(low, high)
        for _ in range(_STEPS):
            slope, curvature = self._bend(s)
            low, high = (s, high) if slope < 0 else (low, s)
            step = slope / curvature
            if abs(step) <= 1e-9 * abs(s):
                break
            s = s - step if low < s - step < high else (low + high) / 2
        return s

    def _saddle_of_three(self, low: float, high: float) -> float:
        """The saddle point between two poles of two or three terms, by a quadratic; else 0."""
        if len(self.c) not in (2, 3):
            return 0.0
        (c, d, *e), (a, b, *f) = self.c.tolist(), (self.c * self.m).tolist()
        third, its = (e[0], f[0]) if e else (0.0, 0.0)
        # a (1 - d s) (1 - third s) and so on, added up: square s^2 + slope s + level = 0
        square = a * d * third + b * c * third + its * c * d
        slope = -(a * (d + third) + b * (c + third) + its * (c + d))
        level = a + b + its
        q = -(slope + math.copysign(math.sqrt(max(slope**2 - 4 * square * level, 0.0)), slope)) / 2
        roots = [x / y for x, y in ((level, q), (q, square)) if y != 0]
        return next((root for root in roots if low < root < high), 0.0)

    def _bend(self, s: float) -> tuple[float, float]:
        """The first two derivatives of the cumulant function."""
        if len(self.c) > _FEW:
            terms = self.c / (1 - self.c * s)
            return float(terms @ self.m), float((terms * terms) @ self.m)
        # Of so few terms, array operations would take most of the time.
        few = [c / (1 - c * s) for c in self.c.tolist()]
        pairs = list(zip(few, self.m.tolist(), strict=True))
        return sum(m * term for term, m in pairs), sum(m * term * term for term, m in pairs)


def _probability(sum_: _Weighted) -> float:
    """P(the sum <= 0): by the integral along a path through the saddle point, or its leading terms.

    The leading terms are those of Lugannani and Rice (Advances in Applied Probability 12, 1980).
    """
    saddle = sum_.saddle
    width = 1 / np.sqrt(sum_.curvature(saddle))
    if len(sum_.c) <= _MOST_VALUES:
        return _integral(sum_, saddle, width)
    if abs(saddle) < 1e-3 * width:
        return 0.5
    w = np.sign(saddle) * np.sqrt(max(-2 * float(np.real(sum_.cumulant(saddle))), 0.0))
    above = ndtr(-w) + np.exp(-w * w / 2) / np.sqrt(2 * np.pi) * (width / saddle - 1 / w)
    return float(1 - above)


def _integral(sum_: _Weighted, saddle: float, width: float) -> float:
    edges = (1 / sum_.c.min(), 1 / sum_.c.max())
    start = saddle
    if abs(start) < _NEAR * width:  # off the pole at 0
        start = min(_NEAR * width, edges[1] / 2)
    u = (np.arange(_NODES) + 0.5) * (_REACH / _NODES)
    y, step = width * np.sinh(u), width * np.cosh(u) * (_REACH / _NODES)
    s = start + 1j * y
    terms = np.exp(sum_.cumulant(s)) / s
    area = float((np.real(terms) * step).sum() / np.pi)
    return 1 - area if start > 0 else -area
