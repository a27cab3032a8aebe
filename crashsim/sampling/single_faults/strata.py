"""What sampling in strata knows of a probability: its interval, and how many draws it still takes.

Each stratum h holds a share W_h of all pairs (a fault and an example), of which n_h were drawn
without replacement and k_h were hits. The estimate is sum W_h k_h / n_h. In place of each unknown
share stands Beta(k_h, n_h - k_h), and in the stratum where it costs most Beta(k_h + 1, n_h - k_h):
what was never seen is allowed for. A single stratum gives the interval of Clopper and Pearson; the
sum's quantiles are those of the Beta law of the same mean and variance (as Fay and Feuer do with
Gamma laws for weighted Poisson counts, Statistics in Medicine 16, 1997).

Strata may form *chains*, in which the predicted effect of a fault falls from one to the next. Of a
chain one thing is assumed: half the effect is a quarter as likely, at most, to be a hit, as long
as no draw shows one. So a stratum without hits adds no more to the upper end than that part of what
the next stronger one may. Without it, what is predicted to do nothing would have to be drawn as
often as if nothing were predicted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from crashsim.arrays import Floats
from crashsim.results.estimate import Interval
from crashsim.sampling.intervals import scalar_interval

FALL = 0.25  # of the chance of a hit, where the predicted effect is halved
_GROWTH = 1.35  # of a stratum's draws, from one step of a plan to the next
_UNSEEN = 0.35  # share of the half-width that a plan leaves to what was not seen
_STEPS = 2000


@dataclass(frozen=True)
class Strata:
    """The strata of one row.

    Attributes:
        sizes: (H,) pairs in each, all above 0.
        drawn: (H,) pairs drawn.
        hits: (H,) of them.
        stronger: (H,) the next stronger stratum of a chain; -1 without.
        falls: (H,) of chains: what part of the stronger one's chance of a hit, or of 1 without, is
            the most that can be; 1 of strata without a chain.
        sign: (H,) 1, or -1 where a hit lowers the sum.
    """

    sizes: NDArray[np.int64]
    drawn: NDArray[np.int64]
    hits: NDArray[np.int64]
    stronger: NDArray[np.int64]
    falls: Floats
    sign: Floats

    @property
    def shares(self) -> Floats:
        """(H,) W."""
        found: Floats = self.sizes / self.sizes.sum()
        return found

    @property
    def is_known(self) -> bool:
        """Whether all was drawn."""
        return bool((self.drawn == self.sizes).all())

    @property
    def value(self) -> float:
        """The estimate."""
        return float(self._per_stratum @ (self.shares * self.sign))

    @property
    def _per_stratum(self) -> Floats:
        return np.divide(self.hits, self.drawn, out=np.zeros(len(self.drawn)), where=self.drawn > 0)

    def interval(self, alpha: float) -> Interval:
        """The estimate with its interval at confidence 1 - alpha."""
        if self.is_known:
            return scalar_interval(self.value, self.value, self.value)
        upper = self._upper(alpha / 2)
        mirrored = replace(self, sign=-self.sign)
        value, low, high = self.value, -mirrored._upper(alpha / 2), upper
        return scalar_interval(value, min(low, value), max(high, value))

    def caps(self, alpha: float) -> Floats:
        """(H,) what the chance of a hit is, at most: as seen, or as the chain allows."""
        n, k = self.drawn.astype(float), self.hits.astype(float)
        # One error for the whole chain, not for each link.
        own = np.where(n > 0, betaincinv(k + 1, np.maximum(n - k, 1e-9), 1 - alpha), 1.0)
        own = np.where((n > 0) & (k >= n), 1.0, own)
        return chained(own, k > 0, self.stronger, self.falls)

    def _upper(self, alpha: float) -> float:
        """The end at probability 1 - alpha."""
        n, k, w = self.drawn.astype(float), self.hits.astype(float), self.shares * self.sign
        rest = 1 - n / self.sizes
        caps, known = self.caps(alpha), k / self.sizes
        safe = np.maximum(n, 1e-9)
        p = np.where(n > 0, k / safe, 0.5)
        # In strata whose hits lower the sum, what was not seen is one more draw without a hit.
        one_more = np.where(w > 0, (k + 1) / (n + 1), k / (n + 1)) - p
        one_more = np.where(n > 0, one_more, np.where(w > 0, 0.5, -0.5))
        is_free = (w < 0) | (k > 0) | (self.falls >= 1)
        cost = np.where(is_free, w * rest * one_more, -np.inf)
        worst = int(np.argmax(cost)) if is_free.any() else -1
        # A stratum in which nothing was seen may add its cap, where that is less than one more.
        fixed = np.where(is_free, 0.0, np.maximum(w, 0.0) * rest * caps)
        mean = w * (known + rest * p)
        variance = np.where(n > 0, p * (1 - p) / (n + 1), 0.25)
        variance = w**2 * (rest**2 * variance + rest * p * (1 - p) / self.sizes)
        if worst >= 0:
            a = np.where(w > 0, k + 1, k)[worst]
            b = (n - k + (w < 0))[worst]
            if a + b > 0 and n[worst] > 0:
                q = a / (a + b)
                var = q * (1 - q) / (a + b + 1)
                mean[worst] = w[worst] * (known + rest * q)[worst]
                variance[worst] = w[worst] ** 2 * (
                    rest[worst] ** 2 * var + rest[worst] * q * (1 - q) / self.sizes[worst]
                )
            else:
                mean[worst] = max(w[worst], 0.0)
        least, most = float(np.minimum(w, 0).sum()), float(np.maximum(w, 0).sum())
        end = _quantile(float(mean.sum()), float(variance.sum()), least, most, 1 - alpha)
        return min(end + float(fixed.sum()), most)


def chained(
    own: Floats, seen: NDArray[np.bool_], stronger: NDArray[np.int64], falls: Floats
) -> Floats:
    """(H,) upper limits, of strata without hits no more than a fraction of the next stronger's.

    Args:
        own: (H,) by each stratum's draws alone.
        seen: (H,) whether there were hits.
        stronger, falls: as of ``Strata``; a stronger stratum has a higher number.
    """
    found = own.copy()
    for h in range(len(own) - 1, -1, -1):
        if falls[h] < 1 and not seen[h]:
            above = found[stronger[h]] if stronger[h] >= 0 else 1.0
            found[h] = min(found[h], falls[h] * above)
    return found


def _quantile(mean: float, variance: float, least: float, most: float, level: float) -> float:
    """Of the Beta law between bounds that has this mean and variance."""
    span = most - least
    m = (mean - least) / span
    v = variance / span**2
    if v <= 0 or not 0 < m < 1:
        return float(np.clip(mean, least, most))
    size = max(m * (1 - m) / v - 1, 1e-6)
    return float(least + span * betaincinv(m * size, (1 - m) * size, level))


def plan(
    strata: Strata, expected: Floats, half_width: float, alpha: float, most: int
) -> NDArray[np.int64]:
    """(H,) how many pairs of each stratum to draw in all, so that the interval is narrow enough.

    Args:
        strata: what is known; its draws and hits do not count.
        expected: (H,) chances of a hit, as far as they are known.
        half_width: wanted.
        alpha: 1 - confidence.
        most: draws, in all; at least one of each stratum is drawn all the same.
    """
    sizes, w = strata.sizes, strata.shares
    n = np.ones(len(sizes), dtype=np.int64)
    z, unseen = float(-ndtri(alpha / 2)), float(-np.log(alpha / 2))
    for _ in range(_STEPS):
        grown = np.minimum(np.ceil(n * _GROWTH).astype(np.int64) + 1, sizes)
        rows = np.repeat(n[None], len(n) + 1, axis=0)
        np.fill_diagonal(rows[1:], grown)
        widths = _widths(rows, strata, expected, w, z, unseen)
        more = grown - n
        if widths[0] <= half_width or n.sum() >= most or not more.any():
            break
        gain = np.where(more > 0, (widths[0] - widths[1:]) / np.maximum(more, 1), -np.inf)
        n[int(np.argmax(gain))] = grown[int(np.argmax(gain))]
    if 2 * n.sum() >= sizes.sum() and sizes.sum() <= most:
        return sizes.copy()
    return n


def _widths(
    n: NDArray[np.int64], strata: Strata, p: Floats, w: Floats, z: float, unseen: float
) -> Floats:
    """(R,) half-widths to be expected of R allocations (R, H)."""
    rest = 1 - n / strata.sizes
    variance = (w**2 * rest * p * (1 - p) / n).sum(1)
    alone = np.minimum(p + 2 * np.sqrt(p * (1 - p) / n) + unseen / n, 1.0)
    caps = alone.copy()
    seen = n * p >= 1
    for h in range(n.shape[1] - 1, -1, -1):
        if strata.falls[h] < 1:
            above = caps[:, strata.stronger[h]] if strata.stronger[h] >= 0 else 1.0
            fallen = np.minimum(alone[:, h], strata.falls[h] * above)
            caps[:, h] = np.where(seen[:, h], alone[:, h], fallen)
    is_free = seen | (strata.falls >= 1)
    fixed = np.where(is_free, 0.0, w * rest * caps).sum(1)
    free = np.where(is_free, w * rest * (1 - p) / n, 0.0)
    found: Floats = np.hypot(z * np.sqrt(variance), unseen * np.sqrt((free**2).max(1))) + fixed
    return found
