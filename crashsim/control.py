"""Control variates: what theory knows of a sample, Monte Carlo need not measure.

The linear surrogate ``L(e) = sum_i (e_i - m_i) g_i`` of Delta has the known mean 0 and variance
``sum_i k2_i g_i^2``. Regressing Delta on L, and Delta^2 on L and L^2, leaves only what the
surrogate misses to be averaged over samples (Glasserman, *Monte Carlo Methods in Financial
Engineering*, 2003, section 4.1). The result does not rest on the surrogate: with wrong gains the
interval is wider, not wrong. Fitted coefficients make a bias of order 1/n, below the interval.

That holds for coordinates that are struck often enough to show what the surrogate misses of them.
What the others contribute to L is known to theory alone: their part of the interval stays that of
plain samples, and where they are most of L, the control is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from crashsim_theory import LinearSurrogate
from numpy.typing import NDArray
from scipy import sparse

from crashsim.few import FewFaults
from crashsim.points import Floats, Listed, Points
from crashsim.space import FaultSpace
from crashsim.sums import JointSums

_SPARSE = 0.1  # share of changed coordinates up to which they are added one by one
_COLLINEAR = 1e-10  # eigenvalues of the controls' correlation that count as zero
_STRIKES = 30  # in a sample, below which it says too little of the coordinates that are struck
_UNSEEN = 3.0  # divided by n: probability, at 95% confidence, of what n samples have not shown
_MOSTLY = 0.25  # share of the variance of L that is seldom met, beyond which L is no control


@dataclass(frozen=True)
class Control:
    """L for every input and output.

    Attributes:
        gains: (B, K, N).
        mean_point: (N,) m.
        second: (B, K) E L^2.
        spread: (G, B, K) variance among samples of the part of L that is due to each group of
            coordinates struck about equally often, the rarest first.
        fourth: (G, B, K) sums of the fourth central moments of its terms.
    """

    gains: Floats
    mean_point: Floats
    second: Floats
    spread: Floats
    fourth: Floats

    @classmethod
    def of(cls, space: FaultSpace, surrogate: LinearSurrogate, few: FewFaults | None) -> Control:
        """With the gains of a surrogate of the space, for samples of all faults or of several."""
        k2, k4 = space.moments.k2, space.moments.k4
        if few is not None:
            p = few.chances(space.N)
            k2 = p * (1 - p)
            k4 = k2 * (1 - 3 * k2)
        random = np.flatnonzero(k2 > 0)
        # A coordinate that is off its usual value with a small probability q has k2^2 = q k4.
        octave = np.floor(np.log2(k2[random] ** 2 / k4[random]))
        shape = (0, *surrogate.variance.shape)
        spread, fourth = [np.zeros(shape)], [np.zeros(shape)]
        for group in np.unique(octave):
            chosen = random[octave == group]
            squares = (gains[:, chosen] ** 2 for gains in surrogate.gains)
            sums = [(s @ k2[chosen], s**2 @ k4[chosen]) for s in squares]
            spread.append(np.stack([of_input for of_input, _ in sums])[None])
            fourth.append(np.stack([of_input for _, of_input in sums])[None])
        return cls(
            surrogate.gains,
            space.mean_point,
            surrogate.variance,
            np.concatenate(spread),
            np.concatenate(fourth),
        )

    def seldom_met(self, n: int) -> Floats:
        """(2, B, K) variance of L and, about, of L^2 that n samples can say too little of.

        It is due to the rarest coordinates, as many groups of them as are struck, weighted by
        their effects, fewer than 30 times in n samples.
        """
        none = np.zeros((1, *self.second.shape))
        spread, fourth = (
            np.concatenate([none, part.cumsum(0)]) for part in (self.spread, self.fourth)
        )
        seldom = n * spread**2 < _STRIKES * fourth
        last = len(seldom) - 1 - seldom[::-1].argmax(0)
        last = np.where(seldom.any(0), last, 0)[None]
        spread, fourth = (np.take_along_axis(part, last, 0)[0] for part in (spread, fourth))
        return np.stack([spread, fourth + 4 * spread * self.spread.sum(0)])

    def says_enough(self, n: int) -> NDArray[np.bool_]:
        """(B, K) whether n samples can show what L misses of most of its variance."""
        enough: NDArray[np.bool_] = self.seldom_met(n)[0] <= _MOSTLY * self.spread.sum(0)
        return enough

    @cached_property
    def _columns(self) -> Floats:
        """(N, B K) gains."""
        return np.ascontiguousarray(self.gains.reshape(-1, len(self.mean_point)).T)

    def at(self, points: Points) -> Floats:
        """L at each point, (S, B, K)."""
        n = len(self.mean_point)
        b, k, _ = self.gains.shape
        listed = all(isinstance(change, Listed) for change in points.changes)
        if listed and len(points.rows) <= _SPARSE * points.count * n:
            steps = points.values - points.base[points.columns]
            changes = sparse.csr_array(
                (steps, (points.rows, points.columns)), shape=(points.count, n)
            )
            moved = changes @ self._columns + (points.base - self.mean_point) @ self._columns
        else:
            moved = (points.dense() - self.mean_point) @ self._columns
        return np.asarray(moved).reshape(points.count, b, k)


@dataclass(frozen=True)
class Controlled:
    """A mean with controls taken out.

    Attributes:
        mean: (...) adjusted.
        residual: (...) variance of one sample's adjusted value.
        variance: (...) the same, but no smaller than n samples can show.
        fitted: number of coefficients fitted.
    """

    mean: Floats
    residual: Floats
    variance: Floats
    fitted: int


def controlled_mean(
    sums: JointSums,
    target: Floats,
    known: Floats | None,
    use: NDArray[np.bool_] | None = None,
) -> Controlled:
    """The mean of a combination of quantities, given the others' true means.

    However well the controls fit n samples, what happens with a probability of 3/n may be missing
    from all of them (the rule of three): at most a factor of n/3 is taken off the variance.

    Args:
        sums: of t quantities that are combined, and of c controls after them.
        target: (t, ...) coefficients of the combination.
        known: (c, ...) true means of the controls; None without controls.
        use: (...) where the controls are used; everywhere, if not given.
    """
    t = len(target)
    covariance, mean = sums.covariance, sums.mean
    value = (target * mean[:t]).sum(0)
    variance = np.einsum("i...,ij...,j...->...", target, covariance[:t, :t], target)
    variance = np.maximum(variance, 0.0)
    if known is None:
        return Controlled(value, variance, variance, 0)
    cross = np.moveaxis(np.einsum("i...,ij...->j...", target, covariance[:t, t:]), 0, -1)
    of_controls = np.moveaxis(covariance[t:, t:], (0, 1), (-2, -1))
    scale = np.sqrt(np.maximum(np.diagonal(of_controls, axis1=-2, axis2=-1), 0.0))
    safe = np.where(scale > 0, scale, 1.0)
    correlation = of_controls / (safe[..., :, None] * safe[..., None, :])
    inverse = np.linalg.pinv(correlation, rcond=_COLLINEAR, hermitian=True)
    slopes = np.einsum("...ij,...j->...i", inverse, cross / safe) / safe
    if use is not None:
        slopes = np.where(use[..., None], slopes, 0.0)
    excess = np.moveaxis(mean[t:] - known, 0, -1)
    explained = (slopes * cross).sum(-1)
    c = len(known)
    lost = max(sums.n - 1, 1) / max(sums.n - 1 - c, 1)  # degrees of freedom
    residual = np.maximum(variance - explained, 0.0) * lost
    least = np.minimum(_UNSEEN / sums.n, 1.0) * variance
    return Controlled(value - (slopes * excess).sum(-1), residual, np.maximum(residual, least), c)
