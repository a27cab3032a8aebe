"""Single faults looked at before sampling: what L misses of those that samples seldom meet.

Where faults are rare, most of the variance of Delta may rest on coordinates that no sample at hand
has struck, and what L misses of them is not seen in the samples. So some single faults are
evaluated, chosen with probabilities in proportion to what they matter by L
(``analytic.single_sample``): the sum over all coordinates of what a single strike leaves over
follows from them, however rare each is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crashsim.analytic.gains import Gains
from crashsim.analytic.shares import SharesByValue
from crashsim.analytic.single_sample import choose
from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.space import FaultSpace

STRIKES = 96  # single faults that are looked at
_COLLINEAR = 1e-10  # eigenvalues of the controls' products that count as zero
_SURE = 1.0  # standard errors that are added to the sum that they stand for


@dataclass(frozen=True)
class Pilot:
    """Single strikes, and how often samples meet what each stands for.

    Attributes:
        rates: (m,) expected number of strikes in a sample that each stands for.
        delta, linear: (m, ...) Delta and L of each.
    """

    rates: Floats
    delta: Floats
    linear: Floats

    @classmethod
    def of(cls, space: FaultSpace, gains: Gains, seed: int) -> Pilot | None:
        """Evaluates single strikes; None where coordinates do not just strike or not, or none do.

        Args:
            space: that is sampled.
            gains: that L is computed from, (B, K).
            seed: of the choice.
        """
        if not space.is_random or not all(p.fault.is_binary for p in space.placements):
            return None
        shares = SharesByValue.of(gains)
        if not shares.is_any:
            return None
        chosen = choose(space, shares, STRIKES, seed)
        columns, back = np.unique(chosen.columns, return_inverse=True)
        base, ones = np.zeros(space.N), np.ones(len(columns))
        points = Points.one_at_a_time(base, columns, ones)
        delta = space.outputs(points) - space.clean()
        linear = gains.along(points) + gains.sums.mean
        rates = chosen.k2 / chosen.chances / len(back)
        return cls(rates, delta[back], linear[back])

    def left_over(self, target: Floats, slopes: Floats, pooled: bool) -> Floats:
        """Variance among samples, due to single strikes, of a combination less its controls.

        A standard error more than they say: a variance is seen too small more often than too large.

        Args:
            target: (2, ...) coefficients of d and d^2.
            slopes: (2, ...) of L and L^2.
            pooled: of averages over inputs, of which the last is summed over outputs.
        """
        coefficients = np.concatenate([target, -slopes])
        left = sum(c * q for c, q in zip(coefficients, self._quantities(pooled), strict=True))
        terms = self.rates.reshape(-1, *[1] * (np.ndim(left) - 1)) * np.square(left)
        error = terms.std(0, ddof=1) * np.sqrt(len(terms))
        found: Floats = terms.sum(0) + _SURE * error
        return found

    def slopes(self, target: Floats, pooled: bool) -> Floats:
        """(2, ...) slopes of L and L^2 that leave the least of a combination; as ``left_over``."""
        d, square, *controls = self._quantities(pooled)
        wanted = target[0] * d + target[1] * square
        scale = [np.sqrt(np.einsum("m,m...,m...->...", self.rates, c, c)) for c in controls]
        safe = np.stack([np.where(s > 0, s, 1.0) for s in scale])
        units = np.stack(controls) / safe[:, None]
        gram = np.einsum("m,im...,jm...->...ij", self.rates, units, units)
        right = np.einsum("m,im...,m...->...i", self.rates, units, wanted)
        inverse = np.linalg.pinv(gram, rcond=_COLLINEAR, hermitian=True)
        found: Floats = np.moveaxis(np.einsum("...ij,...j->...i", inverse, right), -1, 0) / safe
        return found

    def _quantities(self, pooled: bool) -> list[Floats]:
        """Delta, Delta^2, L and L^2; averaged over inputs, of which the last is summed."""
        quantities = [self.delta, self.delta**2, self.linear, self.linear**2]
        if not pooled:
            return quantities
        averaged = [quantity.mean(1) for quantity in quantities]
        return [np.concatenate([q, q.sum(1, keepdims=True)], 1) for q in averaged]
