"""A metric's law over chips from two levels: many chips judged by a surrogate, few judged in truth.

E real = E virtual + E (real - virtual), whatever the surrogate: virtual chips give the first part,
chips that are judged both ways the second (a control variate whose mean is sampled; two levels of
Giles' multilevel Monte Carlo, Operations Research 56, 2008). Each part has an interval that holds
for a fixed number of chips. A surrogate that is wrong makes the second part wide, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.results.estimate import Interval
from crashsim.sampling.bounded_means import bounded_mean_interval
from crashsim.sampling.chips.law import ChipLaw
from crashsim.sampling.intervals import proportion_interval, scalar_interval

_VIRTUAL = 0.2  # share of the error that the virtual chips' interval may spend
_PILOT = 10  # one virtual chip in so many says beyond what the surrogate's values are cut off
_CUT = 0.005  # share of them on either side
_POINTS = 64  # values at which the law is compared with a percentile


@dataclass(frozen=True)
class TwoLevelLaw:
    """A metric of a chip, as a random number: as ``ChipLaw``, with virtual chips beside.

    Attributes:
        plain: what is known exactly, and the chips judged in truth, without the surrogate.
        paired: (n,) what the surrogate says of each of these chips.
        virtual: (N,) what it says of others, independent of them, of the same law.
    """

    plain: ChipLaw
    paired: Floats
    virtual: Floats

    @property
    def sampled(self) -> Floats:
        """(n,) the metric of the chips that were judged in truth."""
        return self.plain.sampled

    @property
    def _is_plain(self) -> bool:
        """Whether there is nothing to compare: no chips, or values that are not finite."""
        few = min(len(self.paired), len(self.virtual) - len(self.virtual) // _PILOT) < 2
        return few or self.plain.rest == 0 or not np.isfinite(self.sampled).all()

    @cached_property
    def _cut(self) -> tuple[float, float]:
        """What the surrogate's values are cut off at, from the pilot, which serves nothing else.

        A difference from a value within this range cannot be large upwards and downwards.
        """
        pilot = self.virtual[: max(len(self.virtual) // _PILOT, 1)]
        pilot = pilot[np.isfinite(pilot)]
        if not len(pilot):
            return float(self.plain.known[0]), float(self.plain.known[0])
        low, high = np.quantile(pilot, [_CUT, 1 - _CUT], method="nearest")
        return float(low), float(high)

    @property
    def _others(self) -> Floats:
        """(N - pilot,) the virtual chips that count."""
        return self.virtual[max(len(self.virtual) // _PILOT, 1) :]

    def mean(self, alpha: float) -> Interval:
        """The mean over chips, with its interval, (), and how many plain chips would do as well."""
        law = self.plain
        if self._is_plain:
            return law.mean(alpha)
        first, second = self._cut_off(self._others), self._cut_off(self.paired)
        low, high = self._cut
        part = bounded_mean_interval(first, low, high, alpha * _VIRTUAL)
        off = bounded_mean_interval(
            self.sampled - second, law.low - high, law.high - low, alpha * (1 - _VIRTUAL)
        )
        exact = float(law.weights @ law.known) if law.weights.any() else 0.0
        ends = (
            exact + law.rest * float(np.clip(a + b, law.low, law.high))
            for a, b in ((part.value, off.value), (part.low, off.low), (part.high, off.high))
        )
        worth = np.asarray(self.worth() / law.rest)
        return replace(scalar_interval(*ends), worth=worth)

    def _cut_off(self, values: Floats) -> Floats:
        low, high = self._cut
        return np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)

    def at_least(self, limit: float, alpha: float) -> Interval:
        """P(the metric >= limit), with its interval, ()."""
        if self._is_plain:
            return self.plain.at_least(limit, alpha)
        return self._probability(lambda values: values >= limit, alpha)

    def at_most(self, limit: float, alpha: float) -> Interval:
        """P(the metric <= limit), with its interval, ()."""
        if self._is_plain:
            return self.plain.at_most(limit, alpha)
        return self._probability(lambda values: values <= limit, alpha)

    def _probability(
        self, happens: Callable[[Floats], NDArray[np.bool_]], alpha: float
    ) -> Interval:
        """Of an event of the metric's values."""
        law, virtual = self.plain, happens(self._others)
        part = proportion_interval(np.asarray(int(virtual.sum())), len(virtual), alpha * _VIRTUAL)
        real, paired = happens(self.sampled), happens(self.paired)
        up, down = int((real & ~paired).sum()), int((paired & ~real).sum())
        off = _difference(up, down, len(real), alpha * (1 - _VIRTUAL))
        exact = float(law.weights @ happens(law.known))
        ends = (
            exact + law.rest * float(np.clip(a + b, 0.0, 1.0))
            for a, b in ((part.value, off.value), (part.low, off.low), (part.high, off.high))
        )
        return scalar_interval(*(np.clip(end, 0.0, 1.0) for end in ends))

    def quantile(self, level: float, alpha: float) -> Interval:
        """The value that a share ``level`` of all chips do not exceed, with its interval, ().

        The interval reaches from the first to the last of up to 64 values that the shares of chips
        at or below it, and below it, do not refute, and on to the next ones that they do.
        """
        if self._is_plain:
            return self.plain.quantile(level, alpha)
        points, (below, at) = self._points, self._shares(alpha)
        last = len(points) - 1
        first = next(i for i, share in enumerate(at) if share.high >= level or i == last)
        final = next(i for i in range(last, -1, -1) if below[i].low <= level or i == 0)
        values = np.maximum.accumulate([float(share.value) for share in at])
        value = points[min(int(np.searchsorted(values, level * (1 - 1e-12))), last)]
        step = int(len(points) < len(self._distinct))  # what lies between was not looked at
        low, high = points[max(first - step, 0)], points[min(final + step, last)]
        if first == 0 and below[0].high >= level:
            low = self.plain.low
        if final == last and at[last].low <= level:
            high = self.plain.high
        return scalar_interval(value, min(low, value), max(high, value))

    def _shares(self, alpha: float) -> tuple[list[Interval], list[Interval]]:
        """The shares of chips below each of the points, and at or below it."""
        if alpha not in self._known_shares:
            below = [self.at_most(np.nextafter(x, -np.inf), alpha) for x in self._points]
            at = [self.at_most(x, alpha) for x in self._points]
            self._known_shares[alpha] = below, at
        return self._known_shares[alpha]

    @cached_property
    def _known_shares(self) -> dict[float, tuple[list[Interval], list[Interval]]]:
        return {}

    @cached_property
    def _distinct(self) -> Floats:
        """All values that a chip was seen or said to have, in order."""
        every = np.concatenate([self.plain.known, self.sampled, self.virtual])
        found: Floats = np.unique(every[np.isfinite(every)])
        return found

    @cached_property
    def _points(self) -> Floats:
        """The values at which the law is looked at: all, or so many of about equal shares."""
        if len(self._distinct) <= _POINTS:
            return self._distinct
        levels = np.linspace(0, 1, _POINTS)
        spread = np.quantile(self.virtual[np.isfinite(self.virtual)], levels, method="nearest")
        ends = self._distinct[[0, -1]]
        found: Floats = np.unique(np.concatenate([spread, ends]))
        return found

    def worth(self) -> float:
        """How many plain chips with a fault the mean is worth, by the variances that were seen.

        NaN where no two chips differ. Intervals allow for what was not seen, too, and this part
        shrinks with the chips judged in truth alone.
        """
        if self._is_plain:
            return float(len(self.sampled))
        second = self._cut_off(self.paired)
        return _worth(self._cut_off(self._others), second, self.sampled)

    def worth_at(self, limit: float) -> float:
        """The same of the share of chips at or above a limit."""
        if self._is_plain:
            return float(len(self.sampled))
        levels = (self._others, self.paired, self.sampled)
        return _worth(*((values >= limit).astype(np.float64) for values in levels))


@lru_cache(2**14)
def _difference(up: int, down: int, n: int, alpha: float) -> Interval:
    """P(an event happens) less that of another, which chips of n are alone in so often."""
    seen = np.repeat([1.0, -1.0, 0.0], [up, down, n - up - down])
    return bounded_mean_interval(seen, -1.0, 1.0, alpha)


def _worth(virtual: Floats, paired: Floats, real: Floats) -> float:
    variance = (real - paired).var(ddof=1) / len(real) + virtual.var(ddof=1) / len(virtual)
    plain = real.var(ddof=1)
    return float(plain / variance) if plain > 0 < variance else float("nan")
