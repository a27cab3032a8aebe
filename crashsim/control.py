"""Control variates: what theory knows of a sample, Monte Carlo need not measure.

The linear surrogate ``L(e) = sum_i (e_i - m_i) g_i`` of Delta has the known mean 0 and variance
``sum_i k2_i g_i^2``. Regressing Delta on L, and Delta^2 on L and L^2, leaves only what the
surrogate misses to be averaged over samples (Glasserman, *Monte Carlo Methods in Financial
Engineering*, 2003, section 4.1). The result does not rest on the surrogate: with wrong gains the
interval is wider, not wrong. Fitted coefficients make a bias of order 1/n, below the interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from crashsim_theory import LinearSurrogate
from scipy import sparse

from crashsim.points import Floats, Listed, Points
from crashsim.space import FaultSpace
from crashsim.sums import JointSums

_SPARSE = 0.1  # share of changed coordinates up to which they are added one by one
_COLLINEAR = 1e-10  # eigenvalues of the controls' correlation that count as zero


@dataclass(frozen=True)
class Control:
    """L for every input and output.

    Attributes:
        gains: (B, K, N).
        mean_point: (N,) m.
        second: (B, K) E L^2.
    """

    gains: Floats
    mean_point: Floats
    second: Floats

    @classmethod
    def of(cls, space: FaultSpace, surrogate: LinearSurrogate) -> Control:
        """With the gains of a surrogate of the space."""
        return cls(surrogate.gains, space.mean_point, surrogate.variance)

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
        variance: (...) of one sample's adjusted value.
        fitted: number of coefficients fitted.
    """

    mean: Floats
    variance: Floats
    fitted: int


def controlled_mean(sums: JointSums, target: Floats, known: Floats | None) -> Controlled:
    """The mean of a combination of quantities, given the others' true means.

    Args:
        sums: of t quantities that are combined, and of c controls after them.
        target: (t, ...) coefficients of the combination.
        known: (c, ...) true means of the controls; None without controls.
    """
    t = len(target)
    covariance, mean = sums.covariance, sums.mean
    value = (target * mean[:t]).sum(0)
    variance = np.einsum("i...,ij...,j...->...", target, covariance[:t, :t], target)
    variance = np.maximum(variance, 0.0)
    if known is None:
        return Controlled(value, variance, 0)
    cross = np.moveaxis(np.einsum("i...,ij...->j...", target, covariance[:t, t:]), 0, -1)
    of_controls = np.moveaxis(covariance[t:, t:], (0, 1), (-2, -1))
    scale = np.sqrt(np.maximum(np.diagonal(of_controls, axis1=-2, axis2=-1), 0.0))
    safe = np.where(scale > 0, scale, 1.0)
    correlation = of_controls / (safe[..., :, None] * safe[..., None, :])
    inverse = np.linalg.pinv(correlation, rcond=_COLLINEAR, hermitian=True)
    slopes = np.einsum("...ij,...j->...i", inverse, cross / safe) / safe
    excess = np.moveaxis(mean[t:] - known, 0, -1)
    explained = (slopes * cross).sum(-1)
    c = len(known)
    lost = max(sums.n - 1, 1) / max(sums.n - 1 - c, 1)  # degrees of freedom
    return Controlled(
        value - (slopes * excess).sum(-1), np.maximum(variance - explained, 0.0) * lost, c
    )
