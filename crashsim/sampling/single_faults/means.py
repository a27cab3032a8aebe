"""Means of numbers drawn in strata, with intervals: of losses and other metrics without hits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from crashsim.arrays import Floats
from crashsim.results.estimate import Interval
from crashsim.sampling.intervals import scalar_interval


@dataclass(frozen=True)
class MeanStrata:
    """The strata of one row.

    Attributes:
        sizes: (H,) pairs in each, all above 0.
        drawn: (H,) pairs drawn.
        sums, squares: (H,) of their numbers, and of the squares of these.
        reach: how far a number may be from 0.
    """

    sizes: NDArray[np.int64]
    drawn: NDArray[np.int64]
    sums: Floats
    squares: Floats
    reach: float

    @property
    def shares(self) -> Floats:
        """(H,) of the pairs."""
        found: Floats = self.sizes / self.sizes.sum()
        return found

    @property
    def means(self) -> Floats:
        """(H,)."""
        none = np.zeros(len(self.sums))
        return np.asarray(np.divide(self.sums, self.drawn, out=none, where=self.drawn > 0))

    @property
    def value(self) -> float:
        """The estimate."""
        return float(self.shares @ self.means)

    @property
    def deviations(self) -> Floats:
        """(H,) standard deviations, of few draws no less than all draws together suggest."""
        n = self.drawn
        with np.errstate(invalid="ignore", over="ignore"):
            own = self.squares - n * self.means**2
            of_all = float(own.sum() / max(n.sum() - len(n), 1))
        found = np.divide(own + of_all, n, out=np.full(len(n), of_all), where=n > 0)
        return np.asarray(np.sqrt(np.maximum(found, 0.0)))

    def interval(self, alpha: float) -> Interval:
        """Student's, with the degrees of freedom that the strata's variances have together, and an
        allowance for what happens less often than once in the draws of a stratum."""
        value = self.value
        if bool((self.drawn == self.sizes).all()):
            return scalar_interval(value, value, value)
        if not np.isfinite(value) or (self.drawn < 1).any():
            return scalar_interval(value, -np.inf, np.inf)
        n, w = self.drawn.astype(float), self.shares
        rest = 1 - n / self.sizes
        terms = w**2 * rest * self.deviations**2 / n
        freedom = terms.sum() ** 2 / max(float((terms**2 / np.maximum(n - 1, 1)).sum()), 1e-300)
        seen = stdtrit(max(freedom, 1.0), 1 - alpha / 2) * np.sqrt(terms.sum())
        unseen = float((w * rest * np.minimum(-np.log(alpha) / n, 1.0)).max()) * self.reach
        half = float(np.hypot(seen, unseen))
        return scalar_interval(value, value - half, value + half)


def plan_means(strata: MeanStrata, half_width: float, alpha: float, most: int) -> NDArray[np.int64]:
    """(H,) draws of each stratum for an interval so narrow: by Neyman's allocation, and enough for
    what is not seen."""
    w, s = strata.shares, strata.deviations
    z = float(-ndtri(alpha / 2))
    each = w * np.maximum(s, 1e-3 * (s.max() or 1.0))
    total = (z / max(half_width, 1e-300)) ** 2 * each.sum() ** 2
    for_unseen = w * -np.log(alpha) * strata.reach / max(half_width, 1e-300)
    wanted = np.maximum(total * each / each.sum(), for_unseen)
    wanted = np.maximum(wanted * min(1.0, most / max(wanted.sum(), 1e-300)), 2)
    return np.asarray(np.minimum(np.ceil(wanted), strata.sizes), dtype=np.int64)
