"""Where a sum of independent contributions lies, and which contributions decide a tail alone.

Only how fine a lattice may be hangs on what is found here, never whether a bound holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crashsim_theory.arrays import Array
from crashsim_theory.sums.profile import Profile

_PER_OCTAVE = 4  # classes of gains
_LEAST_OF_CLASS = 2 ** (-1 / _PER_OCTAVE)  # of its mean: no contribution is smaller
_TILTS_PER_OCTAVE = 2

_LEAST_SPAN = 1e-6  # of a window, relative to where it lies


@dataclass(frozen=True)
class Window:
    """Ends between which the sum (without the surrogate's shift) lies but for a negligible part.

    Attributes:
        low, high: the ends.
        limit: contributions above it in magnitude are left out: each of them decides the tail
            alone, whatever the others do.
    """

    low: float
    high: float
    limit: float


def window_of(profile: Profile, thresholds: tuple[float, float], exponent: float) -> Window:
    """Ends that the sum exceeds with a probability of about e^-exponent by Chernoff's bound.

    Args:
        profile: of the sum; its shift does not count.
        thresholds: the least and largest c for which P(sum >= c) will be asked; without any,
            (-inf, inf), nothing is left out.
        exponent: of the probability that may lie outside.
    """
    size, rate = _classes(profile)
    normal = float(np.sqrt(2 * exponent * profile.normal_variance))
    extra = [_reach_of(o.values, o.chances, o.count) for o in profile.outcomes]
    below, above = -normal + sum(e[0] for e in extra), normal + sum(e[1] for e in extra)
    if not len(size):
        return Window(below, above, np.inf)
    # Rows of cuts: all classes up to this size, smallest first.
    order = np.argsort(np.abs(size), kind="stable")
    size, rate = size[order], rate[order]
    low = -_chernoff_quantiles(-size, rate, exponent) + below
    high = _chernoff_quantiles(size, rate, exponent) + above
    least, most = thresholds
    reach = np.maximum(most - low[:-1], high[:-1] - least)
    decides = np.flatnonzero(np.abs(size[1:]) * _LEAST_OF_CLASS >= reach)
    # Of the cuts after which every contribution decides, the lowest leaves the least window.
    cut = int(decides[0]) if decides.size else len(size) - 1
    limit = float(reach[cut]) if decides.size else np.inf
    ends = profile.range()
    start, stop = max(float(low[cut]), ends[0]), min(float(high[cut]), ends[1])
    # A sum that hardly varies has ends within rounding of each other, in either order.
    short = max(_LEAST_SPAN * max(abs(start), abs(stop)) - (stop - start), 0.0)
    return Window(start - short, stop + short, limit)


def _classes(profile: Profile) -> tuple[Array, Array]:
    """Mean size of the contributions in classes, and the expected number of each."""
    some = (profile.gains != 0) & (profile.p > 0)
    if not some.any():
        return np.zeros(0), np.zeros(0)
    g, expected = profile.gains[some], (profile.counts * profile.p)[some]
    octave = np.ceil(np.log2(np.abs(g)) * _PER_OCTAVE).astype(np.int64)
    base = int(octave.min())
    key = 2 * (octave - base) + (g > 0)
    number: Array = np.bincount(key, expected).astype(np.float64)
    share = expected / expected.max()  # of the smallest numbers that there are, products vanish
    weight: Array = np.bincount(key, share).astype(np.float64)
    total: Array = np.bincount(key, share * g).astype(np.float64)
    there = total != 0
    return total[there] / weight[there], number[there]


def _chernoff_quantiles(size: Array, rate: Array, exponent: float) -> Array:
    """For each cut j, x with P(sum of the first j + 1 classes >= x) <= e^-exponent, about.

    Compound Poisson: log(1 + p (e^y - 1)) <= p (e^y - 1).
    """
    largest, smallest = np.abs(size[[-1, 0]])
    first = min(-np.log2(largest) - 20, 900.0)
    last = min(-np.log2(smallest) + 10, 950.0)
    t = 2.0 ** np.arange(first, last, 1 / _TILTS_PER_OCTAVE)
    with np.errstate(over="ignore", invalid="ignore"):
        terms = rate[:, np.newaxis] * np.expm1(np.minimum(np.multiply.outer(size, t), 700.0))
        x = (np.cumsum(terms, axis=0) + exponent) / t
    found: Array = np.min(x, axis=1)
    return found


def _reach_of(values: Array, chances: Array, count: float) -> tuple[float, float]:
    """The least and largest that coordinates with several outcomes can add together."""
    likely = values[chances > 0]
    return count * min(float(likely.min()), 0.0), count * max(float(likely.max()), 0.0)


def decided(profile: Profile, window: Window) -> npt.NDArray[np.bool_]:
    """The entries that decide a tail alone."""
    return np.abs(profile.gains) > window.limit
