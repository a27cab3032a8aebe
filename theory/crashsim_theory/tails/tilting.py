"""Drawing fault coordinates under exponential tilts, as importance sampling does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from crashsim_theory.arrays import Array
from crashsim_theory.tails.coordinates import Coordinates, OfLaw


@dataclass(frozen=True, eq=False)
class TiltedCoordinates:
    """The law of N independent coordinates, tilted coordinate by coordinate.

    Under tilts y, e_i has the density e^(y_i e_i) / E e^(y_i e_i) over its own law.

    Attributes:
        p: (N,) probability of Bernoulli coordinates, 0 for the others.
        std: (N,) of normal coordinates, 0 for the others.
        is_bernoulli: (N,).
        others: the blocks of other laws, and where their coordinates are.
    """

    p: Array
    std: Array
    is_bernoulli: npt.NDArray[np.bool_]
    others: tuple[tuple[slice, OfLaw], ...]

    @classmethod
    def of(cls, coordinates: Coordinates) -> TiltedCoordinates:
        p, std = np.zeros((2, len(coordinates)))
        p[coordinates.is_bernoulli] = coordinates.p
        std[coordinates.is_normal] = coordinates.std
        return cls(p, std, coordinates.is_bernoulli, coordinates.others)

    def log_mean_exp(self, tilts: Array) -> Array:
        """log E exp(sum y_i e_i) for each row of tilts (J, N)."""
        with np.errstate(divide="ignore"):  # p = 0 and p = 1 have a log of -infinity
            bernoulli = np.logaddexp(np.log1p(-self.p), np.log(self.p) + tilts)
        terms = np.where(self.is_bernoulli, bernoulli, (self.std * tilts) ** 2 / 2)
        for where, block in self.others:
            (terms[..., where],) = block.cumulants(tilts[..., where], 0)
        total: Array = terms.sum(-1)
        return total

    def mean(self, tilts: Array) -> Array:
        """E e under tilts (..., N)."""
        with np.errstate(divide="ignore"):
            crash = expit(logit(self.p) + tilts)
        mean = np.where(self.is_bernoulli, crash, self.std**2 * tilts)
        for where, block in self.others:
            (mean[..., where],) = block.cumulants(tilts[..., where], 1)
        return mean

    def scattered(self, struck: float) -> Array:
        """The tilts (N,) under which about ``struck`` Bernoulli coordinates strike together.

        No direction is preferred: it finds what a linear surrogate does not know of, such as two
        faults that together move the output the other way.
        """
        wanted = min(0.5, struck / max(int((self.p > 0).sum()), 1))
        random = (self.p > 0) & (self.p < wanted)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(random, logit(wanted) - logit(self.p), 0.0)

    def draw(self, rng: np.random.Generator, tilts: Array) -> Array:
        """Coordinates (S, N), one row for each row of tilts."""
        mean = self.mean(tilts)
        e = (rng.random(mean.shape) < mean).astype(float)
        if self.is_bernoulli.all():
            return e
        normal = mean + self.std * rng.standard_normal(mean.shape)
        e = np.where(self.is_bernoulli, e, normal)
        for where, block in self.others:
            e[..., where] = block.draw(rng, tilts[..., where])
        return e
