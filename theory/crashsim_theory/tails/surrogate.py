"""The linear surrogate L = shift + sum_i e_i g_i of Delta, and its tails.

The coordinates e_i are independent and NOT centred. The first-order surrogate at the mean point has
g = dF(m) and shift = F(m) - F(0) - sum_i m_i g_i.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from crashsim_theory.arrays import Array, ArrayLike, as_array, as_probability
from crashsim_theory.errors import TheoryError
from crashsim_theory.tails.coordinates import Coordinates
from crashsim_theory.tails.estimates import (
    RowFunction,
    chernoff_tail,
    deciding_strikes,
    saddlepoint_tail,
    solve_tilt,
    two_sided_quantile,
)
from crashsim_theory.tails.rows import Cumulants, Rows

Side: TypeAlias = Literal["upper", "lower", "both"]


@dataclass(frozen=True, eq=False)
class LinearSurrogate:
    """L = shift + sum_i e_i g_i for independent fault coordinates e_i.

    Attributes:
        shift: L at e = 0, shape (...).
        gains: g, shape (..., N); leading axes broadcast with those of shift.
        coordinates: the laws of the N coordinates.

    Throughout, `eps` of shape (*E) gives results of shape (..., *E): a curve for every surrogate.
    All but mean and variance need the cumulant generating functions of all laws, and raise a
    TheoryError that names a law without.
    """

    shift: Any
    gains: Any
    coordinates: Coordinates

    def __post_init__(self) -> None:
        gains, shift = as_array("gains", self.gains), as_array("shift", self.shift)
        if gains.ndim == 0 or gains.shape[-1] != len(self.coordinates):
            remedy = f"the last axis must have length {len(self.coordinates)}, as coordinates"
            raise TheoryError("gains.shape", gains.shape, remedy)
        try:
            leading = np.broadcast_shapes(shift.shape, gains.shape[:-1])
        except ValueError:
            remedy = f"must broadcast with the leading axes {gains.shape[:-1]} of gains"
            raise TheoryError("shift.shape", shift.shape, remedy) from None
        object.__setattr__(self, "shift", np.broadcast_to(shift, leading))
        object.__setattr__(self, "gains", np.broadcast_to(gains, (*leading, gains.shape[-1])))

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading axes (...)."""
        return tuple(self.shift.shape)

    @property
    def without_cgf(self) -> list[str]:
        """The names of the laws without a cumulant generating function, which tails need."""
        return self.coordinates.without_cgf

    @functools.cached_property
    def bernoulli_gains(self) -> Array:
        """The gains of the Bernoulli coordinates, (..., number of them)."""
        gains: Array = self.gains[..., self.coordinates.is_bernoulli]
        return gains

    @functools.cached_property
    def normal_variance(self) -> Array:
        """The variance that the normal coordinates contribute, shape (...)."""
        normal = self.gains[..., self.coordinates.is_normal]
        return np.asarray((normal**2) @ (self.coordinates.std**2), dtype=np.float64)

    @functools.cached_property
    def mean(self) -> Array:
        """E L, shape (...)."""
        mean = self.shift + self.bernoulli_gains @ self.coordinates.p
        for where, block in self.coordinates.others:
            mean = mean + self.gains[..., where] @ block.mean
        return np.asarray(mean, dtype=np.float64)

    @functools.cached_property
    def variance(self) -> Array:
        """Var L, shape (...)."""
        p = self.coordinates.p
        bernoulli = (self.bernoulli_gains**2) @ (p * (1 - p))
        variance = bernoulli + self.normal_variance
        for where, block in self.coordinates.others:
            variance = variance + self.gains[..., where] ** 2 @ block.variance
        return np.asarray(variance, dtype=np.float64)

    @property
    def negative(self) -> LinearSurrogate:
        """The surrogate -L, whose upper tail is the lower tail of L."""
        return LinearSurrogate(-self.shift, -self.gains, self.coordinates)

    def cumulants(self, tilt: ArrayLike) -> Cumulants:
        """K(t) = log E exp(t L) and its first three derivatives at t of shape (...)."""
        t = np.broadcast_to(as_array("tilt", tilt), self.shape)
        found = self._rows.cumulants(np.arange(t.size), t.reshape(-1))
        return Cumulants(*(a.reshape(self.shape) for a in (found.k, found.k1, found.k2, found.k3)))

    def chernoff(self, eps: ArrayLike, side: Side = "both") -> Array:
        """Chernoff's bound on P(L >= eps), P(L <= -eps) or P(|L| >= eps), shape (..., *E).

        exp(K(t) - t eps) at K'(t) = eps; 1 at or below the mean. A true bound for the surrogate
        (every t >= 0 gives one, so the root's last digits do not matter).
        """
        return self._tail(eps, side, chernoff_tail)

    def saddlepoint(self, eps: ArrayLike, side: Side = "both") -> Array:
        """The Lugannani-Rice estimate of the tail, shape (..., *E), within [0, 1].

        Lugannani and Rice 1980, in the form for continuous laws. Never above Chernoff's bound, nor
        below the probability of the largest attainable value; 0 beyond it.
        """
        return self._tail(eps, side, saddlepoint_tail)

    def tilt(self, eps: ArrayLike) -> Array:
        """The t with K'(t) = eps, shape (..., *E); +-inf beyond the ends of the support.

        Importance sampling crashes coordinate i with p e^{t g} / (1 - p + p e^{t g}).
        """
        return self._at_thresholds(as_array("eps", eps), solve_tilt)

    def deciding_strikes(self, eps: ArrayLike) -> Array:
        """About how many strikes bring L to eps, shape (..., *E): few, where few faults decide.

        Below two the saddlepoint, which takes L's law for continuous, is several times off.
        """
        return self._at_thresholds(as_array("eps", eps), deciding_strikes)

    def quantile(
        self, delta: ArrayLike, method: Literal["saddlepoint", "chernoff"] = "saddlepoint"
    ) -> Array:
        """The eps >= 0 with P(|L| >= eps) = delta, by the given method; shape (..., *D)."""
        tails = {"saddlepoint": saddlepoint_tail, "chernoff": chernoff_tail}
        if method not in tails:
            raise TheoryError("method", method, f"choose one of {sorted(tails)}")
        goals = as_probability("delta", delta)
        if np.any(goals == 0):
            raise TheoryError("delta", delta, "must be positive: only certainty excludes a tail")
        rows = self._rows
        return self._at_thresholds(
            goals, lambda _, i, d: two_sided_quantile(rows, i, d, tails[method])
        )

    @functools.cached_property
    def _rows(self) -> Rows:
        if unknown := self.coordinates.without_cgf:
            raise TheoryError(
                "law", unknown[0], "its cumulant generating function is not known: give it a cgf"
            )
        gains, count = self.bernoulli_gains, self.shift.size
        others = tuple(
            (self.gains[..., where].reshape(count, len(block)), block)
            for where, block in self.coordinates.others
        )
        return Rows(
            self.shift.reshape(-1),
            gains.reshape(count, gains.shape[-1]),
            self.normal_variance.reshape(-1),
            self.coordinates.p,
            others,
        )

    def _tail(self, eps: ArrayLike, side: Side, upper: RowFunction) -> Array:
        """Apply an upper-tail function to L, to -L or to both (summed, capped at 1)."""
        if side not in ("upper", "lower", "both"):
            raise TheoryError("side", side, 'choose "upper", "lower" or "both"')
        thresholds = as_array("eps", eps)
        total = np.zeros((*self.shape, *thresholds.shape))
        if side != "lower":
            total += self._at_thresholds(thresholds, upper)
        if side != "upper":
            total += self.negative._at_thresholds(thresholds, upper)
        if side == "both":
            total = np.where(thresholds <= 0, 1.0, total)
        return np.asarray(np.minimum(total, 1.0))

    def _at_thresholds(self, thresholds: Array, function: RowFunction) -> Array:
        """function(rows, index, value) at every surrogate and threshold, shape (..., *E)."""
        count = len(self._rows.shift)
        index = np.repeat(np.arange(count), thresholds.size)
        values = function(self._rows, index, np.tile(thresholds.reshape(-1), count))
        return values.reshape((*self.shape, *thresholds.shape))
