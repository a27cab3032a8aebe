"""The exact law of a linear surrogate with any number of coordinates: tails, quantiles, brackets.

A sum of millions of independent rare contributions is all but compound Poisson: its law is found on
a lattice by one pair of FFTs (`sums.lattice`), from a few thousand numbers for each surrogate
(`sums.profile`), at as many rates as wanted. No density is assumed, as the saddlepoint does, which
is far off where a fault or two in all are expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from crashsim_theory.arrays import Array, ArrayLike, as_array, as_probability
from crashsim_theory.errors import TheoryError
from crashsim_theory.sums.bracket import tail_at_least, tail_at_most, why_no_bracket
from crashsim_theory.sums.profile import Profile, profiles_of, profiles_of_chunks
from crashsim_theory.sums.tails import CELLS, central_moments, tails
from crashsim_theory.tails.gain_chunks import GainChunk
from crashsim_theory.tails.surrogate import LinearSurrogate, Side

_QUANTILE = 1e-4  # relative precision
_STEPS = 200


@dataclass(frozen=True, eq=False)
class SurrogateLaw:
    """The law of linear surrogates L of shape (...).

    Attributes:
        profiles: one for each, in C order.
        shape: the leading axes (...).

    `eps` of shape (*E) gives results of shape (..., *E).
    """

    profiles: Sequence[Profile]
    shape: tuple[int, ...]

    @staticmethod
    def of(surrogate: LinearSurrogate) -> SurrogateLaw:
        """Of a dense surrogate.

        Raises:
            TheoryError: a law of coordinates that is neither normal nor known by its outcomes.
        """
        return SurrogateLaw(list(profiles_of(surrogate)), surrogate.shape)

    @staticmethod
    def of_chunks(
        chunks: Iterable[GainChunk], shift: ArrayLike, normal_variance: ArrayLike = 0.0
    ) -> SurrogateLaw:
        """Of R surrogates whose gains come in chunks, which are read once; R = shift.size.

        Args:
            chunks: of Bernoulli coordinates.
            shift: L without faults, shape (...); its flattened order is that of the chunks' rows.
            normal_variance: that normal coordinates add, broadcast to (...).
        """
        at = as_array("shift", shift)
        normal = np.broadcast_to(as_array("normal_variance", normal_variance), at.shape)
        profiles = profiles_of_chunks(chunks, at.reshape(-1), normal.reshape(-1))
        return SurrogateLaw(profiles, at.shape)

    def at_rate(self, p: float) -> SurrogateLaw:
        """The same gains, with the rate p at every Bernoulli coordinate."""
        rate = float(as_probability("p", p))
        return SurrogateLaw([profile.at_rate(rate) for profile in self.profiles], self.shape)

    @property
    def mean(self) -> Array:
        """E L, shape (...)."""
        return self._shaped([profile.mean() for profile in self.profiles])

    @property
    def variance(self) -> Array:
        """Var L, shape (...)."""
        return self._shaped([central_moments(profile)[1] for profile in self.profiles])

    def tail(self, eps: ArrayLike, side: Side = "both", cells: int = CELLS) -> Array:
        """P(L >= eps), P(L <= -eps) or P(|L| >= eps), shape (..., *E).

        An estimate, exact but for the lattice, which keeps mean and variance of L. Tails below
        1e-8 are computed under the tilt that makes them typical.
        """
        thresholds = _checked(eps, side)
        rows = []
        for profile in self.profiles:
            found = tails(profile, thresholds, side, cells)
            rows.append(np.where(thresholds <= 0, 1.0, found) if side == "both" else found)
        return np.array(rows).reshape(self.shape + thresholds.shape)

    def bracket(self, eps: ArrayLike, side: Side = "both") -> tuple[Array, Array]:
        """(low, high) with low <= the tail <= high, proved for the surrogate, (..., *E) each.

        Raises:
            TheoryError: coordinates that are not Bernoulli, or more than 64 different rates among
                more than 16,384 coordinates.
        """
        low, high = (self._sides(eps, side, _each(end)) for end in (tail_at_least, tail_at_most))
        if side == "both":  # each is a rounded sum of two
            low = np.where(low < 1, np.maximum(np.nextafter(low, -1.0), 0.0), low)
            high = np.where(high > 0, np.minimum(np.nextafter(high, 2.0), 1.0), high)
        return low, high

    @property
    def why_no_bracket(self) -> str | None:
        """Why there is no proved bracket; None where there is."""
        return next(filter(None, map(why_no_bracket, self.profiles)), None)

    def quantile(self, delta: ArrayLike) -> Array:
        """The least eps >= 0 with P(|L| >= eps) <= delta, about, shape (..., *D)."""
        goals = as_probability("delta", delta)
        if np.any(goals == 0):
            raise TheoryError("delta", delta, "must be positive: only certainty excludes a tail")
        each = [[_quantile(profile, float(d)) for d in goals.ravel()] for profile in self.profiles]
        return np.array(each).reshape(self.shape + goals.shape)

    def _sides(self, eps: ArrayLike, side: Side, upper: Callable[[Profile, Array], Array]) -> Array:
        thresholds = _checked(eps, side)
        rows = []
        for profile in self.profiles:
            total = np.zeros(thresholds.shape)
            if side != "lower":
                total += upper(profile, thresholds)
            if side != "upper":
                total += upper(profile.negative, thresholds)
            if side == "both":
                total = np.where(thresholds <= 0, 1.0, total)
            rows.append(np.minimum(total, 1.0))
        return np.array(rows).reshape(self.shape + thresholds.shape)

    def _shaped(self, values: list[float]) -> Array:
        return np.array(values).reshape(self.shape)


def law_over_rates(
    chunks: Iterable[GainChunk],
    shift: ArrayLike,
    rates: ArrayLike,
    eps: ArrayLike,
    side: Side = "both",
) -> Array:
    """The tail at many rates from gains that are read once, shape (rates, ..., *E).

    Args:
        chunks: gains of R surrogates; their own rates do not count.
        shift: L without faults, shape (...) of R numbers.
        rates: (rates,) at every coordinate alike.
        eps, side: as `SurrogateLaw.tail` takes them.
    """
    wanted = np.atleast_1d(as_probability("rates", rates))
    alike = (GainChunk(chunk.gains, chunk.displacements, 0.5) for chunk in chunks)
    law = SurrogateLaw.of_chunks(alike, shift)
    return np.stack([law.at_rate(float(p)).tail(eps, side) for p in wanted])


def _checked(eps: ArrayLike, side: Side) -> Array:
    if side not in ("upper", "lower", "both"):
        raise TheoryError("side", side, 'choose "upper", "lower" or "both"')
    return as_array("eps", eps)


def _each(tail: Callable[[Profile, float], float]) -> Callable[[Profile, Array], Array]:
    def of(profile: Profile, c: Array) -> Array:
        return np.array([tail(profile, float(one)) for one in c.reshape(-1)]).reshape(c.shape)

    return of


def _quantile(profile: Profile, delta: float) -> float:
    """The eps >= 0 with P(|L| >= eps) = delta, by bisection on the logarithm of eps."""

    def tail(eps: float) -> float:
        return float(tails(profile, np.asarray(eps), "both"))

    mean, variance, _ = central_moments(profile)
    scale = abs(mean) + math.sqrt(variance)
    if delta >= 1 or scale == 0:
        return 0.0 if delta >= 1 else abs(profile.shift)
    least = 1e-12 * scale
    low = high = scale
    while tail(high) > delta:
        low, high = high, 2 * high
    while low == high or tail(low) <= delta:
        high, low = low, low / 2
        if low < least:
            return 0.0 if tail(least) <= delta else least
    for _ in range(_STEPS):
        if high <= low * (1 + _QUANTILE):
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if tail(middle) <= delta else (middle, high)
    return high
