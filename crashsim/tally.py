"""Sums over Monte Carlo samples, of bounded size, and the estimates that follow from them.

Samples are drawn from all faults, or given two or more of them (``crashsim.few``); the rest of the
probability is then summed exactly. With a control (``crashsim.control``) means and variances are
regressions on it. Everything is centred about a fixed centre, the mean of the first samples, which
keeps sums accurate; it is computed ahead, so it does not depend on how samples are batched.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from crashsim.control import Control, Controlled, Limits, controlled_mean
from crashsim.estimate import Estimate, Quantity, Values, estimates_of
from crashsim.few import FewFaults
from crashsim.intervals import (
    clustered_proportion_interval,
    mean_interval,
    pooled_quantile,
    proportion_interval,
    quantile_interval,
    stratified_quantiles,
    variance_interval,
)
from crashsim.points import Floats, Points
from crashsim.space import FaultSpace
from crashsim.sums import JointSums

MOST_OUTPUTS = 64  # whose covariance is kept
QUANTILES = (0.5, 0.9, 0.99)
_ROUNDING = 2.0  # of outputs, in units of the last place: what no control takes out


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


class Tally:
    """What a run has seen so far.

    Args:
        space: the model, its inputs and faults.
        epsilon: of the tails; none are counted without.
        control: a surrogate of Delta; without, samples are averaged as they are.
        few: outcomes that are summed exactly; samples are then given that none of them happens.
        most_kept: number of samples kept for quantiles and pictures.

    Attributes:
        n: number of samples.
    """

    def __init__(
        self,
        space: FaultSpace,
        epsilon: float | None,
        control: Control | None,
        few: FewFaults | None,
        most_kept: int,
    ) -> None:
        self._space, self._epsilon = space, epsilon
        self._control, self._few = control, few
        self._clean = space.clean()
        self._class = self._clean.argmax(1)
        self._centre = np.zeros_like(self._clean)
        self._rest = 1.0 if few is None else few.rest
        self._is_random = bool((space.moments.k2 > 0).any())
        self._sums = self._none()
        self._exact = self._none()
        self._kept = np.empty((most_kept, *self._clean.shape), np.float32)

    @property
    def kept(self) -> NDArray[np.float32]:
        """(n', B, K) Delta of the first samples."""
        return self._kept[: self.n]

    @property
    def n(self) -> int:
        return int(self._sums.per_input.n)

    def aim(self, points: list[Points]) -> None:
        """Takes the mean that these first points suggest for the centre."""
        self._sum_exactly()
        for part in points:
            self.add(part)
        self._centre = self._mean()[0]
        self._sums = self._none()
        self._sum_exactly()

    def add(self, points: Points) -> None:
        """Evaluates samples and counts them."""
        delta = self._space.outputs(points) - self._clean
        room = max(0, len(self._kept) - self.n)
        self._kept[self.n : self.n + len(delta)] = delta[:room]
        # One assignment: an interrupt finds the sums with these samples or without them.
        self._sums = self._sums + self._sum(delta, points)

    def _none(self) -> Sums:
        b, k = self._clean.shape
        m = 4 if self._control else 2
        products = (b, k, k) if k <= MOST_OUTPUTS else (0,)
        return Sums(
            JointSums.none(m, (b, k)),
            JointSums.none(m, (k + 1,)),
            JointSums.none(1, (k + 2,)),
            np.zeros((b, k)),
            np.zeros(b),
            np.zeros(products),
        )

    def _sum_exactly(self) -> None:
        if self._few is not None:
            self._exact = self._sum(self._few.deltas, self._few.points, self._few.weights)

    def _sum(self, delta: Floats, points: Points, weights: Floats | None = None) -> Sums:
        d = delta - self._centre
        square = d * d
        quantities = [d, square]
        if self._control is not None:
            linear = self._control.at(points)
            quantities += [linear, linear * linear]
        pooled = [q.mean(1) for q in quantities]
        pooled = [np.concatenate([q, q.sum(1, keepdims=True)], axis=1) for q in pooled]
        epsilon = np.inf if self._epsilon is None else self._epsilon
        moved = np.abs(delta) >= epsilon
        changed = (delta + self._clean).argmax(2) != self._class
        shares = np.concatenate(
            [moved.mean(1), moved.any(2).mean(1)[:, None], changed.mean(1)[:, None]], axis=1
        )
        counts = np.ones(len(delta)) if weights is None else weights
        products = np.zeros(0)
        if delta.shape[2] <= MOST_OUTPUTS:
            weighted = d if weights is None else d * weights[:, None, None]
            products = np.einsum("sbk,sbl->bkl", weighted, d, optimize=True)
        return Sums(
            JointSums.of(quantities, weights),
            JointSums.of(pooled, weights),
            JointSums.of([shares], weights),
            np.einsum("s,sbk->bk", counts, moved),
            counts @ changed,
            products,
        )

    # -- What follows from the sums -----------------------------------------------------------

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

    def _controlled(self, target: Floats, pooled: bool = False) -> tuple[Floats, Controlled]:
        """The mean of a combination of d and d^2 over all faults, and the sampled part of it."""
        sums = self._sums.pooled if pooled else self._sums.per_input
        exact = self._exact.pooled if pooled else self._exact.per_input
        found = controlled_mean(sums, target, self._known(pooled), self._limits(pooled))
        value: Floats = (target * exact.first[:2]).sum(0) + self._rest * found.mean
        return value, found

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

    def _mean(self) -> tuple[Floats, Controlled]:
        value, found = self._controlled(_target(np.zeros_like(self._clean), 1.0, 0.0))
        return self._centre + value, found

    def _worth(self, naive: Floats, variance: Floats) -> Floats | None:
        """Plain samples that would do as well."""
        if self._control is None and self._few is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(variance > 0, naive * self.n / variance, np.nan))

    def _rounding(self) -> Floats:
        """(B, 1) what rounding may do to an output, where a control takes out all else."""
        if self._control is None:
            return np.zeros((len(self._clean), 1))
        unit = torch.finfo(self._space.dtype).eps
        largest: Floats = np.abs(self._clean).max(1, keepdims=True)
        return _ROUNDING * unit * largest

    def means(self, alpha: float) -> tuple[Values, Values]:
        """E Delta, (B, K) and averaged over inputs, (K,)."""
        rounding = self._rounding()
        value, found = self._mean()
        variance = self._rest**2 * found.variance
        naive = self._naive_variance(_target(value, 1.0, 0.0))
        per_input = _widened(
            mean_interval(value, variance, self.n, alpha, found.fitted),
            rounding,
            self._worth(naive, variance),
        )
        k = value.shape[1]
        target = _target(np.zeros(k + 1), 1.0, 0.0)
        # With a control, not quite the average of the values above: one regression serves all.
        shift, found = self._controlled(target, pooled=True)
        average = self._centre.mean(0) + shift[:k]
        variance = (self._rest**2 * found.variance)[:k]
        naive = self._naive_variance(target, pooled=True)[:k]
        pooled = _widened(
            mean_interval(average, variance, self.n, alpha, found.fitted),
            rounding.mean(0),
            self._worth(naive, variance),
        )
        return per_input, pooled

    def variances(self, alpha: float) -> tuple[Values, Values]:
        """Var Delta, (B, K), and averaged over inputs, (K + 1,): the last summed over outputs."""
        mean, of_mean = self._mean()
        shift = mean - self._centre
        # E (d - shift)^2, whose own error is that of d^2 - 2 shift d.
        target = _target(shift, -2 * shift, 1.0)
        value, found = self._controlled(target)
        bias = self._rest**2 * of_mean.residual / self.n  # of shift^2
        unbiased = np.maximum(value + shift**2 + bias, 0.0)
        variance = self._rest**2 * found.variance
        room = 2 * np.sqrt(unbiased) * self._rounding()
        per_input = _widened(
            variance_interval(unbiased, variance, self.n, alpha, found.fitted),
            room,
            self._worth(self._naive_variance(target), variance),
            least=0.0,
        )
        # The shift is small, so its own error is neglected in what is averaged over inputs.
        target = _target(np.zeros(mean.shape[1] + 1), 0.0, 1.0)
        value, found = self._controlled(target, pooled=True)
        correction, room = (bias - shift**2).mean(0), room.mean(0)
        value = np.maximum(value + np.append(correction, correction.sum()), 0.0)
        variance = self._rest**2 * found.variance
        pooled = _widened(
            variance_interval(value, variance, self.n, alpha, found.fitted),
            np.append(room, room.sum()),
            self._worth(self._naive_variance(target, pooled=True), variance),
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
            sums.failed.mean[0], sums.failed.covariance[0, 0], self.n, self._space.B, alpha
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
        size = np.abs(self.kept)
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

        add("mean", *self.means(alpha))
        per_input, pooled = self.variances(alpha)
        add("variance", per_input, pooled[:k], pooled[k])
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
            parts.append("with the linear surrogate as control variate")
        return "; ".join(parts) or None

    def _settle(self, values: Values) -> Values:
        """Where nothing is random (p = 0 or 1), one sample tells all: the interval is a point."""
        return values if self._is_random else Values(values.value, values.value, values.value)


def _target(like: Floats, of_d: Floats | float, of_square: float) -> Floats:
    """(2, ...) coefficients of d and d^2."""
    return np.stack([np.broadcast_to(of_d, like.shape), np.full(like.shape, of_square)])


def _widened(values: Values, room: Floats, worth: Floats | None, least: float = -np.inf) -> Values:
    assert values.low is not None
    assert values.high is not None
    low = np.maximum(values.low - room, least)
    return Values(values.value, low, values.high + room, worth)
