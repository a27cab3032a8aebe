"""Control variates: what theory knows of a sample, Monte Carlo need not measure.

The linear surrogate ``L(e) = sum_i (e_i - m_i) g_i`` of Delta has the known mean 0 and variance
``sum_i k2_i g_i^2``. Regressing Delta on L, and Delta^2 on L and L^2, leaves only what the
surrogate misses to be averaged over samples (Glasserman, *Monte Carlo Methods in Financial
Engineering*, 2003, section 4.1). The result does not rest on the surrogate: with wrong gains the
interval is wider, not wrong. Fitted coefficients make a bias of order 1/n, below the interval.

That holds for coordinates that are struck often enough to show what the surrogate misses of them.
What the others contribute to L is known to theory alone: their part of the interval stays that of
plain samples, and where they are most of L, the control is not used. Nor is it where the interval
is narrower without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from crashsim_theory import LinearSurrogate
from numpy.typing import NDArray
from scipy import sparse

from crashsim.analytic.gains import Gains
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.arrays import Floats
from crashsim.coordinates.points import Listed, Points
from crashsim.sampling.exact_strata import FewFaults
from crashsim.sampling.intervals import ENOUGH
from crashsim.sampling.pilot import MendedGains, Pilot
from crashsim.sampling.sums.joint_sums import JointSums
from crashsim.space import FaultSpace

_SPARSE = 0.1  # share of changed coordinates up to which they are added one by one
_COLLINEAR = 1e-10  # eigenvalues of the controls' correlation that count as zero
_STRIKES = 30  # in a sample, below which it says too little of the coordinates that are struck
_FEW_SAMPLES = 200  # that a run has at least: where they do, no pilot is needed
_MOSTLY = 0.25  # share of the variance of L that is seldom met, beyond which L is no control
_CANCELLED = 1e-9  # size of a sum, relative to its terms, below which it is their rounding
_CANCELLED_SINGLE = 1e-9  # the same of its square, for gains in single precision
_UNSEEN = 3.0  # divided by n: probability, at 95% confidence, of what n samples have not shown
_TOGETHER = 3.0  # coordinates that such an unseen case is about


@dataclass(frozen=True)
class Limits:
    """How far n samples can be trusted to show what L misses; of inputs and outputs, or pooled.

    Attributes:
        use: (...) whether they show it of most of the variance of L, so that L is a control.
        seldom: (2, ...) variance of L and, about, of L^2 due to coordinates that they seldom meet.
        least: (...) share of the plain variance that is left at least.
        enough: (...) whether, by L, they hold enough strikes that matter for any interval.
        pilot: single strikes that show it in place of samples, which seldom meet them.
        is_pooled: whether these are of averages over inputs.
    """

    use: NDArray[np.bool_]
    seldom: Floats
    least: Floats
    enough: NDArray[np.bool_]
    pilot: Pilot | None = None
    is_pooled: bool = False

    def pooled(self) -> Limits:
        """For averages over inputs, (K + 1,): the last is summed over outputs."""
        # Inputs and outputs share the faults: in the worst case standard deviations add up.
        deviations = np.sqrt(self.seldom).mean(1)
        deviations = np.concatenate([deviations, deviations.sum(1, keepdims=True)], axis=1)
        return Limits(
            np.append(self.use.all(0), self.use.all()),
            deviations**2,
            np.append(self.least.max(0), self.least.max()),
            np.append(self.enough.all(0), self.enough.all()),
            self.pilot,
            is_pooled=True,
        )


@dataclass(frozen=True)
class DenseGains:
    """L from gains that are written out.

    Attributes:
        gains: (B, K, N).
        mean_point: (N,) m.
    """

    gains: Floats
    mean_point: Floats

    @cached_property
    def _columns(self) -> Floats:
        """(N, B K) gains."""
        return np.ascontiguousarray(self.gains.reshape(-1, len(self.mean_point)).T)

    def along(self, points: Points) -> Floats:
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
class Control:
    """L for every input and output.

    Attributes:
        gains: that L is computed from.
        second: (B, K) E L^2.
        spread: (G, B, K) variance among samples of the part of L that is due to each group of
            coordinates struck about equally often, the rarest first.
        fourth: (G, B, K) sums of the fourth central moments of its terms.
        matter: (B, K) number of coordinates that L rests on, (sum v_i)^2 / sum v_i^2 of the
            variances v_i of its terms.
        adds_up: (K + 1,) whether L averaged over inputs, and then summed over outputs, is more than
            the rounding of its terms: they cancel where outputs sum to a constant, as softmax's do.
        pilot: single strikes that show what L misses of coordinates that are seldom met.
    """

    gains: DenseGains | Gains | MendedGains
    second: Floats
    spread: Floats
    fourth: Floats
    matter: Floats
    adds_up: NDArray[np.bool_]
    pilot: Pilot | None = None

    @classmethod
    def of(
        cls,
        space: FaultSpace,
        surrogate: LinearSurrogate | FactoredSurrogate,
        few: FewFaults | None,
        seed: int = 0,
        samples: int = 0,
    ) -> Control:
        """With the gains of a surrogate of the space, for samples of all faults or of several.

        Args:
            space: the model, its inputs and faults.
            surrogate: (B, K), of its outputs.
            few: the faults that are summed exactly, of surrogates with dense gains.
            seed: of the choice of a pilot's single strikes, where gains are factored.
            samples: that will be drawn, or about as many: what such strikes may cost.
        """
        if isinstance(surrogate, FactoredSurrogate):
            return cls._factored(space, surrogate, seed, samples)
        k2, k4 = space.moments.k2, space.moments.k4
        if few is not None:
            p = few.chances(space.N)
            k2 = p * (1 - p)
            k4 = k2 * (1 - 3 * k2)
        random = np.flatnonzero(k2 > 0)
        # A coordinate that is off its usual value with a small probability q has k2^2 = q k4.
        octave = np.floor(np.log2(k2[random] ** 2 / k4[random]))
        groups = np.unique(octave)
        sums = np.zeros((3, len(groups), *surrogate.variance.shape))
        for g, group in enumerate(groups):
            chosen = random[octave == group]
            weights = np.stack([k4[chosen], k2[chosen] ** 2])
            for b, gains in enumerate(surrogate.gains):
                squares = gains[:, chosen] ** 2
                sums[0, g, b] = squares @ k2[chosen]
                sums[1:, g, b] = weights @ (squares**2).T
        return cls(
            DenseGains(surrogate.gains, space.mean_point),
            surrogate.variance,
            sums[0],
            sums[1],
            _effective(sums[0], sums[2]),
            _adds_up(surrogate.gains, space.moments.k2),
        )

    @classmethod
    def _factored(
        cls, space: FaultSpace, surrogate: FactoredSurrogate, seed: int, samples: int
    ) -> Control:
        """From sums by octaves of rates that one pass through the gains has made."""
        sums = surrogate.gains.sums
        reach = np.sqrt(sums.variance).sum(1) ** 2
        adds_up = np.append(
            np.ones(surrogate.shape[1], bool), (sums.of_sum > _CANCELLED_SINGLE * reach).any()
        )
        found = cls(
            surrogate.gains,
            surrogate.variance,
            sums.spread,
            sums.fourth,
            _effective(sums.spread, sums.squares),
            adds_up,
        )
        if found.limits(_FEW_SAMPLES).use.all():
            return found
        pilot = Pilot.of(space, surrogate.gains, seed, samples)
        if pilot is None or pilot.mended is None:
            return replace(found, pilot=pilot)
        second = np.maximum(found.second + pilot.mended.variance, 0.0)
        return replace(found, gains=pilot.mended, second=second, pilot=pilot)

    def limits(self, n: int) -> Limits:
        """Of n samples, (B, K).

        Seldom met are the rarest coordinates, as many groups of them as are struck, weighted by
        their effects, fewer than 30 times. Apart from them, n samples may have missed what happens
        with probability 3/n (the rule of three): a few coordinates together, whose part of the
        variance is large where L rests on few. What a pilot shows of single strikes needs no
        samples.
        """
        none = np.zeros((1, *self.second.shape))
        spread, fourth = (
            np.concatenate([none, part.cumsum(0)]) for part in (self.spread, self.fourth)
        )
        seldom = n * spread**2 < _STRIKES * fourth
        last = np.where(seldom.any(0), len(seldom) - 1 - seldom[::-1].argmax(0), 0)[None]
        total = spread[-1]
        enough = 2 * n * total**2 >= ENOUGH * fourth[-1]
        if self.pilot is not None:
            all_of = np.ones(total.shape, bool)
            return Limits(
                all_of,
                np.zeros((2, *total.shape)),
                np.minimum(_UNSEEN / n, 1.0) * np.minimum(_TOGETHER / self.matter, 1.0),
                all_of,
                self.pilot,
            )
        spread, fourth = (np.take_along_axis(part, last, 0)[0] for part in (spread, fourth))
        return Limits(
            spread <= _MOSTLY * total,
            np.stack([spread, fourth + 4 * spread * total]),
            np.minimum(_UNSEEN / n, 1.0) * np.minimum(_TOGETHER / self.matter, 1.0),
            enough,
        )

    def at(self, points: Points) -> Floats:
        """L at each point, (S, B, K)."""
        return self.gains.along(points)


def _effective(spread: Floats, squares: Floats) -> Floats:
    """(sum v)^2 / sum v^2 from sums (G, B, K) by groups; infinite where nothing varies."""
    total, square = spread.sum(0), squares.sum(0)
    matter = np.full(total.shape, np.inf)
    np.divide(total**2, square, out=matter, where=square > 0)
    return matter


def _adds_up(gains: Floats, k2: Floats) -> NDArray[np.bool_]:
    """(K + 1,) whether the sums of gains over inputs, and then outputs, are more than rounding."""
    sums, sizes = gains.sum(0), np.abs(gains).sum(0)
    sums, sizes = (np.concatenate([g, g.sum(0, keepdims=True)]) for g in (sums, sizes))
    return np.asarray((sums**2) @ k2 > _CANCELLED**2 * ((sizes**2) @ k2))


@dataclass(frozen=True)
class Controlled:
    """A mean with controls taken out.

    Attributes:
        mean: (...) adjusted.
        slopes: (c, ...) of the controls.
        residual: (...) variance of one sample's adjusted value.
        variance: (...) the same, but no smaller than the samples can show; infinite where L is no
            control.
    """

    mean: Floats
    slopes: Floats
    residual: Floats
    variance: Floats


def controlled_mean(
    sums: JointSums,
    target: Floats,
    known: Floats | None = None,
    limits: Limits | None = None,
) -> Controlled:
    """The mean of a combination of quantities, given the others' true means.

    Args:
        sums: of t quantities that are combined, and of c controls after them.
        target: (t, ...) coefficients of the combination.
        known: (c, ...) true means of the controls; None without controls.
        limits: of the samples; none, if not given.
    """
    t = len(target)
    covariance, mean = sums.covariance, sums.mean
    value = (target * mean[:t]).sum(0)
    variance = np.einsum("i...,ij...,j...->...", target, covariance[:t, :t], target)
    variance = np.maximum(variance, 0.0)
    if known is None:
        return Controlled(value, np.zeros((0, *value.shape)), variance, variance)
    cross = np.moveaxis(np.einsum("i...,ij...->j...", target, covariance[:t, t:]), 0, -1)
    of_controls = np.moveaxis(covariance[t:, t:], (0, 1), (-2, -1))
    scale = np.sqrt(np.maximum(np.diagonal(of_controls, axis1=-2, axis2=-1), 0.0))
    safe = np.where(scale > 0, scale, 1.0)
    correlation = of_controls / (safe[..., :, None] * safe[..., None, :])
    inverse = np.linalg.pinv(correlation, rcond=_COLLINEAR, hermitian=True)
    slopes = np.einsum("...ij,...j->...i", inverse, cross / safe) / safe
    slopes = np.moveaxis(slopes, -1, 0)
    lost = max(sums.n - 1, 1) / max(sums.n - 1 - len(known), 1)  # degrees of freedom
    fitted = _with_slopes(sums, target, known, slopes, lost, limits)
    if limits is None or limits.pilot is None:
        return fitted
    # The pilot's slopes are of strikes that the samples at hand may not hold at all.
    own = _with_slopes(
        sums, target, known, limits.pilot.slopes(target, limits.is_pooled), 1.0, limits
    )
    better = own.variance < fitted.variance
    return Controlled(
        *(
            np.where(better, getattr(own, name), getattr(fitted, name))
            for name in ("mean", "slopes", "residual", "variance")
        )
    )


def _with_slopes(
    sums: JointSums,
    target: Floats,
    known: Floats,
    slopes: Floats,
    lost: float,
    limits: Limits | None,
) -> Controlled:
    """The mean with controls taken out with these slopes (c, ...).

    Args:
        sums, target, known, limits: as ``controlled_mean`` says.
        slopes: of the controls.
        lost: by what the variance is too small, as slopes were fitted to the same samples.
    """
    t, covariance, mean = len(target), sums.covariance, sums.mean
    value, excess = (target * mean[:t]).sum(0), mean[t:] - known
    coefficients = np.concatenate([target, -slopes])
    variance = np.einsum("i...,ij...,j...->...", target, covariance[:t, :t], target)
    left = np.einsum("i...,ij...,j...->...", coefficients, covariance, coefficients)
    residual = np.maximum(left, 0.0) * lost
    if limits is None:
        return Controlled(value - (slopes * excess).sum(0), slopes, residual, residual)
    seldom = (target**2 * limits.seldom).sum(0)
    if limits.pilot is not None:
        residual = np.maximum(residual, limits.pilot.left_over(target, slopes, limits.is_pooled))
    trusted = np.maximum(residual, limits.least * np.maximum(variance, 0.0)) + seldom
    trusted = np.where(limits.use, trusted, np.inf)
    return Controlled(value - (slopes * excess).sum(0), slopes, residual, trusted)
