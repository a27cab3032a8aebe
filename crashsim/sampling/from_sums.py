"""What follows from the sums over Monte Carlo samples: estimates with their intervals."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from crashsim.arrays import Floats
from crashsim.results.estimate import MOST_OUTPUTS, Estimate, Quantity, Values, estimates_of
from crashsim.sampling.control_variates import Control, Controlled, Limits, controlled_mean
from crashsim.sampling.exact_strata import FewFaults
from crashsim.sampling.intervals import (
    ENOUGH,
    Spread,
    clustered_proportion_interval,
    degrees_of_freedom,
    half_width,
    mean_interval,
    pooled_quantile,
    proportion_interval,
    quantile_interval,
    stratified_quantiles,
    variance_interval,
)
from crashsim.sampling.joint_sums import JointSums

QUANTILES = (0.5, 0.9, 0.99)
_AT_ONCE = 2**15  # kept values looked at together: small enough for the cache
_ROUNDING = 2.0  # of outputs, in units of the last place: what no control takes out

Kept = Floats | NDArray[np.float32]


@dataclass(frozen=True)
class Sums:
    """Sums over samples (or over weighted outcomes) of Delta, which is d = Delta - centre here.

    Attributes:
        per_input: of d and d^2, and with a control of L and L^2, each (B, K).
        pooled: of the same averaged over inputs, (K + 1,): the last is summed over outputs.
        failed: of the shares of inputs that fail, (K + 2,): |Delta_k| >= epsilon; for any k;
            class changed.
        tails, changes: (B, K) and (B,) counts of |Delta| >= epsilon and of changed classes.
        products: (B, K, K) of d across outputs; empty beyond 64 of them.
    """

    per_input: JointSums
    pooled: JointSums
    failed: JointSums
    tails: Floats
    changes: Floats
    products: Floats

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Average:
    """The mean of a combination of d and d^2 over all faults.

    Attributes:
        value, half: (...) it, and half the width of its interval.
        residual: (...) variance of one sample's value, after the control where that is used.
        variance: (...) the same, but no smaller than the samples can show.
        enough: (...) whether it rests on enough samples for its interval to be trusted.
        controlled: (...) whether the control is used.
    """

    value: Floats
    half: Floats
    residual: Floats
    variance: Floats
    enough: NDArray[np.bool_]
    controlled: NDArray[np.bool_]


class Moments(NamedTuple):
    """E Delta and Var Delta: (B, K); averaged over inputs, (K,); and the variance so, (K + 1,), of
    which the last is summed over outputs."""

    mean: Values
    pooled_mean: Values
    variance: Values
    pooled_variance: Values


@dataclass(frozen=True)
class Counted:
    """What a run has counted.

    Attributes:
        clean, centre: (B, K) F(0), and what d = Delta - centre is measured from.
        sums: over the samples.
        exact: over the outcomes that are summed exactly, with their probabilities.
        kept, linear: (n', B, K) Delta of the first samples; L there, empty without a control.
        unit: rounding of the numbers that the model computes with.
        is_random: whether anything is.
        is_seldom_struck: whether some faults strike too seldom to show what they do.
    """

    clean: Floats
    centre: Floats
    sums: Sums
    exact: Sums
    kept: NDArray[np.float32]
    linear: NDArray[np.float32]
    unit: float
    is_random: bool
    is_seldom_struck: bool


def quantities_of(d: Kept, linear: Kept | None) -> list[Floats]:
    """d and d^2, and with a control L and L^2, each of the shape of d (S, B, K)."""
    d = d.astype(np.float64, copy=False)
    if linear is None:
        return [d, d * d]
    linear = linear.astype(np.float64, copy=False)
    return [d, d * d, linear, linear * linear]


def pooled_over_inputs(quantities: list[Floats], control: Control | None) -> list[Floats]:
    """Averaged over inputs, and then also summed over outputs, each (S, K + 1)."""
    pooled = [q.mean(1) for q in quantities]
    pooled = [np.concatenate([q, q.sum(1, keepdims=True)], axis=1) for q in pooled]
    if len(pooled) > 2 and control is not None:
        pooled[2] *= control.adds_up
    return pooled


class FromSums:
    """Means, variances, probabilities and quantiles, from what a run has counted.

    Args:
        counted: it.
        epsilon: of the tails; none are estimated without.
        control: the control variate, of which ``counted`` holds sums.
        few: outcomes that are summed exactly.

    Attributes:
        n: number of samples.
    """

    def __init__(
        self,
        counted: Counted,
        epsilon: float | None,
        control: Control | None,
        few: FewFaults | None,
    ) -> None:
        self._clean, self._centre = counted.clean, counted.centre
        self._sums, self._exact = counted.sums, counted.exact
        self._kept, self._linear = counted.kept, counted.linear
        self._unit, self._is_random = counted.unit, counted.is_random
        self._is_seldom_struck = counted.is_seldom_struck
        self._epsilon, self._control, self._few = epsilon, control, few
        self._rest = 1.0 if few is None else few.rest
        self._looked: float | None = None
        self.n = int(counted.sums.per_input.n)

    def _known(self, pooled: bool) -> Floats | None:
        """The true means of the controls among the samples that are drawn."""
        if self._control is None:
            return None
        second = self._control.second
        exact = (self._exact.pooled if pooled else self._exact.per_input).first[2:]
        if pooled:
            second = second.mean(0)
            second = np.append(second, second.sum())
        known: Floats = (np.stack([np.zeros_like(second), second]) - exact) / self._rest
        return known

    def _average(self, target: Floats, alpha: float, pooled: bool = False) -> Average:
        """The mean of a combination of d and d^2, with the control where its interval is narrower.

        Args:
            target: (2, ...) the coefficients.
            alpha: 1 - confidence.
            pooled: of the sums over inputs, and not of each input.
        """
        sums = self._sums.pooled if pooled else self._sums.per_input
        exact = self._exact.pooled if pooled else self._exact.per_input
        found = controlled_mean(sums, target)
        pays, control = np.zeros(found.mean.shape, bool), found
        # No interval is narrower than this: where the control's is, the plain one is not needed.
        half, enough = stats.norm.ppf(1 - alpha / 2) * np.sqrt(found.variance / self.n), pays
        limits = self._limits(pooled)
        if limits is not None:
            control = controlled_mean(sums, target, self._known(pooled), limits)
            narrower, known = self._half(target, control, alpha, pooled)
            pays = narrower < half
        if not pays.all():
            half, enough = self._half(target, found, alpha, pooled)
        if limits is not None:
            pays = narrower < half
            half = np.where(pays, narrower, half)
            enough = np.where(pays, known, enough) & limits.enough
        if self._is_seldom_struck:
            enough = np.zeros_like(enough)
        value = np.where(pays, control.mean, found.mean)
        residual = np.where(pays, control.residual, found.residual)
        variance = np.where(pays, control.variance, found.variance)
        rest = self._rest
        value = (target * exact.first[:2]).sum(0) + rest * value
        return Average(value, rest * half, rest**2 * residual, rest**2 * variance, enough, pays)

    def _half(
        self, target: Floats, found: Controlled, alpha: float, pooled: bool
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Half the width of the interval of a mean over the sampled part; and if it is trusted."""
        shape = self._shape(np.concatenate([target, -found.slopes]), pooled)
        spread, fitted = replace(shape, variance=found.variance), len(found.slopes)
        half = half_width(spread, self.n, alpha, fitted)
        return half, degrees_of_freedom(spread, self.n, fitted) >= ENOUGH

    def _shape(self, coefficients: Floats, pooled: bool) -> Spread:
        """How the kept values of a combination of d, d^2, L and L^2 are spread.

        Args:
            coefficients: (m, ...) of the first m of them.
            pooled: of the sums over inputs, and not of each input.
        """
        sums = self._sums.pooled if pooled else self._sums.per_input
        m, kept = len(coefficients), self._kept
        centre = (coefficients * sums.mean[:m]).sum(0)
        second, fourth, largest = np.zeros((3, *centre.shape))
        step = max(1, _AT_ONCE // self._clean.size)
        for start in range(0, len(kept), step):
            part = slice(start, min(start + step, len(kept)))
            quantities = quantities_of(
                kept[part] - self._centre, self._linear[part] if m > 2 else None
            )
            quantities = pooled_over_inputs(quantities, self._control) if pooled else quantities
            values = -centre
            for coefficient, quantity in zip(coefficients, quantities, strict=True):
                values = values + coefficient * quantity
            squares = values * values
            second += squares.sum(0)
            fourth += np.einsum("s...,s...->...", squares, squares)
            np.maximum(largest, squares.max(0), out=largest)
        if not pooled:  # what was not seen of one input may be as large as what was of another
            largest = np.broadcast_to(largest.max(0), largest.shape)
        return Spread.of_sums(len(kept), second, fourth, np.sqrt(largest))

    def _limits(self, pooled: bool) -> Limits | None:
        if self._control is None:
            return None
        limits = self._control.limits(self.n)
        return limits.pooled() if pooled else limits

    def _naive_variance(self, target: Floats, pooled: bool = False) -> Floats:
        """Variance of one plain sample of the combination."""
        sums = self._sums.pooled if pooled else self._sums.per_input
        exact = self._exact.pooled if pooled else self._exact.per_input
        first = exact.first[:2] + self._rest * sums.first[:2] / sums.n
        second = exact.second[:2, :2] + self._rest * sums.second[:2, :2] / sums.n
        square = np.einsum("i...,ij...,j...->...", target, second, target)
        variance: Floats = np.maximum(square - (target * first).sum(0) ** 2, 0.0)
        return variance

    def _worth(self, naive: Floats, variance: Floats) -> Floats | None:
        """Plain samples that would do as well."""
        if self._control is None and self._few is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(variance > 0, naive * self.n / variance, np.nan))

    def _rounding(self) -> Floats:
        """(B, 1) what rounding may do to an output, where a control takes out all else."""
        largest: Floats = np.abs(self._clean).max(1, keepdims=True)
        return _ROUNDING * self._unit * largest

    def moments(self, alpha: float) -> Moments:
        """E Delta and Var Delta, with intervals of confidence ``1 - alpha``."""
        if alpha != self._looked:  # through all that is kept, so once
            found = self._average(_target(np.zeros_like(self._clean), 1.0, 0.0), alpha)
            mean = self._centre + found.value
            means, variances = self._means(alpha, mean, found), self._variances(alpha, mean, found)
            self._looked, self._moments = alpha, Moments(*means, *variances)
        return self._moments

    def _means(self, alpha: float, value: Floats, found: Average) -> tuple[Values, Values]:
        """E Delta, (B, K) and averaged over inputs, (K,)."""
        rounding = self._rounding()
        naive = self._naive_variance(_target(value, 1.0, 0.0))
        per_input = _widened(
            mean_interval(value, found.half),
            rounding * found.controlled,
            self._worth(naive, found.variance),
            found.enough,
        )
        k = value.shape[1]
        target = _target(np.zeros(k + 1), 1.0, 0.0)
        # With a control, not quite the average of the values above: one regression serves all.
        found = self._average(target, alpha, pooled=True)
        naive = self._naive_variance(target, pooled=True)
        pooled = _widened(
            mean_interval(self._centre.mean(0) + found.value[:k], found.half[:k]),
            rounding.mean(0) * found.controlled[:k],
            self._worth(naive[:k], found.variance[:k]),
            found.enough[:k],
        )
        return per_input, pooled

    def _variances(self, alpha: float, mean: Floats, of_mean: Average) -> tuple[Values, Values]:
        """Var Delta, (B, K), and averaged over inputs, (K + 1,): the last summed over outputs."""
        shift = mean - self._centre
        # E (d - shift)^2, whose own error is that of d^2 - 2 shift d.
        target = _target(shift, -2 * shift, 1.0)
        found = self._average(target, alpha)
        bias = of_mean.residual / self.n  # of shift^2
        unbiased = np.maximum(found.value + shift**2 + bias, 0.0)
        room = 2 * np.sqrt(unbiased) * self._rounding()
        per_input = _widened(
            variance_interval(unbiased, found.half),
            room * found.controlled,
            self._worth(self._naive_variance(target), found.variance),
            found.enough,
            least=0.0,
        )
        # The shift is small, so its own error is neglected in what is averaged over inputs.
        target = _target(np.zeros(mean.shape[1] + 1), 0.0, 1.0)
        found = self._average(target, alpha, pooled=True)
        correction, room = (bias - shift**2).mean(0), room.mean(0)
        value = np.maximum(found.value + np.append(correction, correction.sum()), 0.0)
        pooled = _widened(
            variance_interval(value, found.half),
            np.append(room, room.sum()) * found.controlled,
            self._worth(self._naive_variance(target, pooled=True), found.variance),
            found.enough,
            least=0.0,
        )
        return per_input, pooled

    @property
    def covariance(self) -> Floats | None:
        """(B, K, K) of Delta across outputs; None beyond 64."""
        if self._clean.shape[1] > MOST_OUTPUTS:
            return None
        n, sums, exact = self.n, self._sums, self._exact
        sampled = sums.per_input.first[0] / n
        shift = exact.per_input.first[0] + self._rest * sampled
        within = sums.products / n - sampled[:, :, None] * sampled[:, None, :]
        second = exact.products + self._rest * sums.products / n
        outer = shift[:, :, None] * shift[:, None, :]
        covariance: Floats = second - outer + self._rest**2 * within / max(n - 1, 1)
        return covariance

    def shares(self, alpha: float) -> tuple[Values, Values, Values]:
        """Probabilities: tails (B, K), class change (B,), and both pooled (K + 2,), as ``failed``.

        Intervals of what is sampled are exact (Clopper and Pearson); the rest has no error.
        """
        sums, exact = self._sums, self._exact
        tails = self._proportion(exact.tails, proportion_interval(sums.tails, self.n, alpha))
        changes = self._proportion(exact.changes, proportion_interval(sums.changes, self.n, alpha))
        failed = clustered_proportion_interval(
            sums.failed.mean[0], sums.failed.covariance[0, 0], self.n, len(self._clean), alpha
        )
        spread = np.maximum(sums.failed.covariance[0, 0], 0.0)
        return tails, changes, self._proportion(exact.failed.first[0], failed, spread)

    def _proportion(self, exact: Floats, sampled: Values, spread: Floats | None = None) -> Values:
        """A probability of which only a part is sampled; ``spread`` is of one sample's share."""
        if self._few is None:
            return sampled
        assert sampled.low is not None
        assert sampled.high is not None
        value, low, high = (
            np.clip(exact + self._rest * part, 0.0, 1.0)
            for part in (sampled.value, sampled.low, sampled.high)
        )
        variance = sampled.value * (1 - sampled.value) if spread is None else spread
        worth = self._worth(value * (1 - value), self._rest**2 * variance)
        return Values(value, low, high, worth)

    def quantiles(self, alpha: float) -> list[tuple[Values, Values]]:
        """Of |Delta| for each of ``QUANTILES``: (B, K), and over samples and inputs, (K,)."""
        size = np.abs(self._kept)
        if self._few is None:
            ordered = np.sort(size, axis=0)
            return [
                (quantile_interval(ordered, q, alpha), pooled_quantile(size, q, alpha))
                for q in QUANTILES
            ]
        n, b, k = size.shape
        outcomes, weights, rest = np.abs(self._few.deltas), self._few.weights, self._few.rest
        per_input = stratified_quantiles(
            size.reshape(n, 1, -1), outcomes.reshape(-1, 1, b * k), weights, rest, QUANTILES, alpha
        )
        pooled = stratified_quantiles(size, outcomes, weights, rest, QUANTILES, alpha)
        return [(q.reshape(b, k), p) for q, p in zip(per_input, pooled, strict=True)]

    def estimates(self, alpha: float) -> list[Estimate]:
        """Everything, with intervals of confidence ``1 - alpha``."""
        k = self._clean.shape[1]
        found: list[Estimate] = []

        def add(
            quantity: Quantity,
            per_input: Values,
            pooled: Values,
            total: Values | None = None,
            level: float | None = None,
        ) -> None:
            found.extend(
                estimates_of(
                    "monte-carlo",
                    quantity,
                    "statistical",
                    per_input=self._settle(per_input),
                    pooled=self._settle(pooled),
                    total=total and self._settle(total),
                    confidence=1 - alpha,
                    level=level,
                    note=self._note(quantity),
                )
            )

        moments = self.moments(alpha)
        add("mean", moments.mean, moments.pooled_mean)
        pooled = moments.pooled_variance
        add("variance", moments.variance, pooled[:k], pooled[k])
        tails, changes, failed = self.shares(alpha)
        if self._epsilon is not None:
            add("tail", tails, failed[:k], failed[k], self._epsilon)
        if k > 1:
            add("class-change", changes, failed[k + 1])
        for level, (per_input, pooled) in zip(QUANTILES, self.quantiles(alpha), strict=True):
            add("quantile", per_input, pooled, level=level)
        return found

    def _note(self, quantity: Quantity) -> str | None:
        parts = []
        if self._few is not None:
            off = " off the usual state" if self._few.points.base.any() else ""
            parts.append(f"0 and 1 fault{off} exact, 2 or more sampled")
        if self._control is not None and quantity in ("mean", "variance"):
            parts.append("with the linear surrogate as control variate where that is narrower")
        return "; ".join(parts) or None

    def _settle(self, values: Values) -> Values:
        """Where nothing is random (p = 0 or 1), one sample tells all: the interval is a point."""
        return values if self._is_random else Values(values.value, values.value, values.value)


def _target(like: Floats, of_d: Floats | float, of_square: float) -> Floats:
    """(2, ...) coefficients of d and d^2."""
    return np.stack([np.broadcast_to(of_d, like.shape), np.full(like.shape, of_square)])


def _widened(
    values: Values,
    room: Floats,
    worth: Floats | None,
    enough: NDArray[np.bool_],
    least: float = -np.inf,
) -> Values:
    assert values.low is not None
    assert values.high is not None
    low = np.maximum(values.low - room, least)
    return Values(values.value, low, values.high + room, worth, enough)
