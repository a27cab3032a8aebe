"""The law of a metric over chips: what is known exactly of it, and a sample of the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import betaincinv

from crashsim.arrays import Floats
from crashsim.results.estimate import Interval
from crashsim.sampling.bounded_means import bounded_mean_interval
from crashsim.sampling.intervals import proportion_interval, scalar_interval


@dataclass(frozen=True)
class ChipLaw:
    """A metric of a chip, as a random number.

    Attributes:
        known: (A,) values of the metric that have known probabilities, such as that without faults.
        weights: (A,) these probabilities.
        sampled: (n,) independent values, given that none of the known cases happens.
        low, high: what no value can be beyond; infinite without a bound.
    """

    known: Floats
    weights: Floats
    sampled: Floats
    low: float
    high: float

    @property
    def rest(self) -> float:
        """Probability of what was sampled."""
        return float(max(1 - self.weights.sum(), 0.0))

    def mean(self, alpha: float) -> Interval:
        """The mean over chips, with its interval, ()."""
        exact = float(self.weights @ self.known) if self.weights.any() else 0.0
        if self.rest == 0 or not np.isfinite(exact):  # whatever the rest is
            return scalar_interval(exact, exact, exact)
        if not len(self.sampled) and not np.isfinite(self.low + self.high):
            return scalar_interval(exact + self.rest * self.known[0], -np.inf, np.inf)
        found = bounded_mean_interval(self.sampled, self.low, self.high, alpha)
        value = found.value
        if not len(self.sampled):  # the best guess is that nothing changes
            value = np.asarray(self.known[0])
        return scalar_interval(*(exact + self.rest * end for end in (value, found.low, found.high)))

    def at_least(self, limit: float, alpha: float) -> Interval:
        """P(the metric >= limit), with its exact interval, ()."""
        exact = float(self.weights @ (self.known >= limit))
        return self._probability(exact, int((self.sampled >= limit).sum()), alpha)

    def at_most(self, limit: float, alpha: float) -> Interval:
        """P(the metric <= limit), with its exact interval, ()."""
        exact = float(self.weights @ (self.known <= limit))
        return self._probability(exact, int((self.sampled <= limit).sum()), alpha)

    def _probability(self, exact: float, hits: int, alpha: float) -> Interval:
        n = len(self.sampled)
        if not n:
            known = float(self.weights.sum())
            value = exact / known if known > 0 else np.nan
            return scalar_interval(value, exact, exact + self.rest)
        part = proportion_interval(np.asarray(hits), n, alpha)
        ends = (exact + self.rest * end for end in (part.value, part.low, part.high))
        return scalar_interval(*(np.clip(end, 0.0, 1.0) for end in ends))

    def quantile(self, level: float, alpha: float) -> Interval:
        """The value that a share ``level`` of all chips do not exceed, with its exact interval, ().

        The interval holds every value that the sample does not refute: order statistics, where
        nothing is known beforehand.
        """
        values = self._sorted
        n = len(values)
        points = np.unique(np.concatenate([self.known, values]))
        at = self._known_up_to(points) + self.rest * np.searchsorted(values, points, "right") / (
            max(n, 1)
        )
        value = points[min(int(np.searchsorted(at, level * (1 - 1e-12))), len(points) - 1)]

        def refuted_below(point: float) -> bool:
            """Whether too few chips do not exceed the point."""
            hits = int(np.searchsorted(values, point, "right"))
            most = betaincinv(hits + 1, n - hits, 1 - alpha / 2) if hits < n else 1.0
            known = float(self._known_up_to(np.array([point]))[0])
            return bool(known + self.rest * most < level)

        def refuted_above(point: float) -> bool:
            """Whether too many chips stay below the point."""
            hits = int(np.searchsorted(values, point, "left"))
            least = betaincinv(hits, n - hits + 1, alpha / 2) if hits else 0.0
            known = float(self.weights @ (self.known < point))
            return bool(known + self.rest * least > level)

        if self.rest == 0:
            return scalar_interval(value, value, value)
        first = _first(points, lambda point: not refuted_below(point))
        beyond = _first(points, refuted_above)
        low = self.low if not refuted_below(-np.inf) else points[min(first, len(points) - 1)]
        high = self.high if not refuted_above(np.inf) else points[max(beyond - 1, 0)]
        return scalar_interval(value, min(low, value), max(high, value))

    @cached_property
    def _sorted(self) -> Floats:
        return np.sort(self.sampled)

    def _known_up_to(self, points: Floats) -> Floats:
        found: Floats = (self.known[None] <= points[:, None]) @ self.weights
        return found


def _first(points: Floats, holds: Callable[[float], bool]) -> int:
    """The first of sorted points for which something holds, that then holds for all later ones."""
    start, stop = 0, len(points)
    while start < stop:
        middle = (start + stop) // 2
        if holds(float(points[middle])):
            stop = middle
        else:
            start = middle + 1
    return start
