"""Exactly k of N coordinates struck, all choices alike: dependent, as one strike excludes another.

Each is struck with probability k / N, and two of them have the covariance of the hypergeometric
law, -v / (N - 1) with v = k / N (1 - k / N). So a sum of e_i g_i has the variance
v N / (N - 1) sum (g_i - mean g)^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats


@dataclass(frozen=True)
class Count:
    """The coordinates ``start`` to ``stop``, of which exactly ``struck`` are 1 and the others 0.

    Attributes:
        struck: k.
        start, stop: the coordinates.
        is_per_site: whether they are those of one site, and other sites have as many faults.
    """

    struck: int
    start: int
    stop: int
    is_per_site: bool = False

    @property
    def size(self) -> int:
        """N."""
        return self.stop - self.start

    @property
    def share(self) -> float:
        """How likely each coordinate is to be struck."""
        return self.struck / self.size

    @property
    def patterns(self) -> int:
        """The number of choices of k out of N."""
        return math.comb(self.size, self.struck)

    def every(self) -> NDArray[np.int64]:
        """(patterns, k) all choices, each a row of coordinates counted from ``start``."""
        rows = combinations(range(self.size), self.struck)
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
        return flat.reshape(self.patterns, self.struck)

    def draw(self, rng: np.random.Generator, samples: int) -> NDArray[np.int64]:
        """(samples, k) independent choices, each a row of coordinates from ``start``, in order."""
        n, k = self.size, self.struck
        if 2 * k > n:
            rest = Count(n - k, 0, n).draw(rng, samples)
            struck = np.ones((samples, n), dtype=np.bool_)
            struck[np.arange(samples)[:, None], rest] = False
            return np.nonzero(struck)[1].reshape(samples, k)
        if k * k > n:
            found = [rng.choice(n, k, replace=False, shuffle=False) for _ in range(samples)]
            return np.sort(np.array(found, dtype=np.int64), axis=1)
        # Draws with replacement, again until all of a row differ, are draws without.
        chosen = np.empty((samples, k), dtype=np.int64)
        again = np.arange(samples)
        while len(again):
            rows = np.sort(rng.integers(n, size=(len(again), k)), axis=1)
            chosen[again] = rows
            again = again[(np.diff(rows, axis=1) == 0).any(1)]
        return chosen


def uncorrelated(
    gains: Floats, variances: Floats, counts: Sequence[Count]
) -> tuple[Floats, Floats]:
    """Gains and variances of uncorrelated coordinates whose sums vary as those of the given ones.

    Args:
        gains: (..., N) g of sums of e_i g_i over all coordinates.
        variances: (N,) Var e_i.
        counts: which of the coordinates depend on each other; the others are independent.

    Returns:
        (..., N) g less its mean over the coordinates of each count, and (N,) the variances times
        N / (N - 1) there: sum_i variances_i g_i g'_i is the covariance of two sums.
    """
    if not counts:
        return gains, variances
    gains, variances = gains.copy(), variances.copy()
    for count in counts:
        part = slice(count.start, count.stop)
        gains[..., part] -= gains[..., part].mean(-1, keepdims=True)
        if count.size > 1:
            variances[part] *= count.size / (count.size - 1)
    return gains, variances
