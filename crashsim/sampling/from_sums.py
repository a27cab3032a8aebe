"""What follows from the sums over Monte Carlo samples: estimates with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from crashsim.arrays import Floats
from crashsim.metrics import Event
from crashsim.results.estimate import MOST_OUTPUTS, Interval
from crashsim.results.estimates import Estimates, estimates_of
from crashsim.sampling.bounded_means import clustered_proportion_interval
from crashsim.sampling.control_variates import Controlled, Limits, controlled_mean
from crashsim.sampling.intervals import (
    ENOUGH,
    Spread,
    degrees_of_freedom,
    half_width,
    mean_interval,
    proportion_interval,
    variance_interval,
)
from crashsim.sampling.quantiles import quantiles_of, stratified_quantiles
from crashsim.sampling.sums.metric_sums import intervals_of
from crashsim.sampling.tally import Sums, Tally, pooled_over_inputs, quantities_of

QUANTILES = (0.5, 0.9, 0.99)
_AT_ONCE = 2**15  # kept values looked at together: small enough for the cache
_AVERAGES = 2**22  # averages over inputs that are kept, at most, of each quantity
_ROUNDING = 2.0  # of outputs, in units of the last place: what no control takes out


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

    mean: Interval
    pooled_mean: Interval
    variance: Interval
    pooled_variance: Interval


class FromSums:
    """Means, variances, probabilities and quantiles, from what a run has counted.

    Args:
        tally: what was counted of each sample.
        sums: over the samples.
        epsilon: of the tails; none are estimated without.
        unit: rounding of the numbers that the model computes with.
        is_random: whether anything is.
        is_seldom_struck: whether some faults strike too seldom to show what they do.
        may_overflow: whether faults make numbers that overflow, even if no sample shows it.
        named: outputs that get quantiles beside those that vary most.

    Attributes:
        n: number of samples.
        kept: (n', B, K) Delta of the first samples.
    """

    def __init__(
        self,
        tally: Tally,
        sums: Sums,
        epsilon: float | None,
        *,
        unit: float,
        is_random: bool,
        is_seldom_struck: bool,
        may_overflow: bool = False,
        named: Sequence[int] = (),
    ) -> None:
        self._clean, self._centre = tally.clean, tally.centre
        self._sums, self._exact = sums, tally.exact
        self.kept = _joined(sums.kept, tally.clean.shape)
        self._linear = _joined(sums.linear, tally.clean.shape)
        self._unit, self._is_random, self._is_seldom_struck = unit, is_random, is_seldom_struck
        self._epsilon, self._control, self._few = epsilon, tally.control, tally.few
        self._metrics, self._rest = tally.asked.metrics, tally.rest
        self._may_overflow = may_overflow
        self._looked: float | None = None
        self._named = named
        self.n = sums.n

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
        half, enough = ndtri(1 - alpha / 2) * np.sqrt(found.variance / self.n), pays
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
        m, n = len(coefficients), len(self.kept)
        centre = (coefficients * sums.mean[:m]).sum(0)
        second, fourth, largest = np.zeros((3, *centre.shape))
        used = 1 if m == 2 and not coefficients[1].any() else m
        step = max(1, _AT_ONCE // (centre.size if self._averages and pooled else self._clean.size))
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            quantities = self._quantities(part, used, pooled)
            values = coefficients[0] * quantities[0]
            for coefficient, quantity in zip(coefficients[1:], quantities[1:], strict=False):
                values += coefficient * quantity
            values -= centre
            squares = np.multiply(values, values, out=values)
            second += squares.sum(0)
            np.maximum(largest, squares.max(0), out=largest)
            fourth += np.einsum("s...,s...->...", squares, squares)
        if not pooled:  # what was not seen of one input may be as large as what was of another
            largest = np.broadcast_to(largest.max(0), largest.shape)
        return Spread.of_sums(n, second, fourth, np.sqrt(largest))

    def _quantities(self, part: slice, used: int, pooled: bool) -> list[Floats]:
        """The first of d, d^2, L and L^2 of some kept samples, as many as are used."""
        if pooled and self._averages is not None:
            return [average[part] for average in self._averages[:used]]
        d = self.kept[part] - self._centre
        quantities = (
            [d] if used == 1 else quantities_of(d, self._linear[part] if used > 2 else None)
        )
        return pooled_over_inputs(quantities, self._control) if pooled else quantities

    @cached_property
    def _averages(self) -> list[Floats] | None:
        """The quantities of all kept samples averaged over inputs, where that makes few of many:
        they are looked at several times."""
        n, (b, k) = len(self.kept), self._clean.shape
        if b == 1 or n * (k + 1) > _AVERAGES:
            return None
        used = 2 if self._control is None else 4
        found = [np.empty((n, k + 1)) for _ in range(used)]
        step = max(1, _AT_ONCE // (b * k))
        for start in range(0, n, step):
            d = self.kept[start : start + step] - self._centre
            linear = self._linear[start : start + step] if used > 2 else None
            some = pooled_over_inputs(quantities_of(d, linear), self._control)
            for average, values in zip(found, some, strict=True):
                average[start : start + step] = values
        return found

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

    def _worth(
        self, naive: Floats, variance: Floats, controlled: NDArray[np.bool_] | None = None
    ) -> Floats | None:
        """Plain samples that would do as well: these, where no control is used."""
        if self._control is None and self._few is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            worth = np.where(variance > 0, naive * self.n / variance, np.nan)
        if self._few is None and controlled is not None:
            plain = ~controlled & (variance > 0)
            worth = np.where(plain, float(self.n), worth)
        return np.asarray(worth)

    def _rounding(self) -> Floats:
        """(B, 1) what rounding may do to an output, where a control takes out all else."""
        largest: Floats = np.abs(self._clean).max(1, keepdims=True)
        return _ROUNDING * self._unit * largest

    def moments(self, alpha: float) -> Moments:
        """E Delta and Var Delta, with intervals of confidence ``1 - alpha``; NaN without any."""
        if not self.has_moments:
            none = np.full_like(self._clean, np.nan)
            every = (none, none[0], none, np.append(none[0], np.nan))
            return Moments(*(Interval(v, v, v, None, np.zeros(v.shape, bool)) for v in every))
        if alpha != self._looked:  # through all that is kept, so once
            found = self._average(_target(np.zeros_like(self._clean), 1.0, 0.0), alpha)
            mean = self._centre + found.value
            means, variances = self._means(alpha, mean, found), self._variances(alpha, mean, found)
            self._looked, self._moments = alpha, Moments(*means, *variances)
        return self._moments

    def _means(self, alpha: float, value: Floats, found: Average) -> tuple[Interval, Interval]:
        """E Delta, (B, K) and averaged over inputs, (K,)."""
        rounding = self._rounding()
        naive = self._naive_variance(_target(value, 1.0, 0.0))
        per_input = _widened(
            mean_interval(value, found.half),
            rounding * found.controlled,
            self._worth(naive, found.variance, found.controlled),
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
            self._worth(naive[:k], found.variance[:k], found.controlled[:k]),
            found.enough[:k],
        )
        return per_input, pooled

    def _variances(self, alpha: float, mean: Floats, of_mean: Average) -> tuple[Interval, Interval]:
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
            self._worth(self._naive_variance(target), found.variance, found.controlled),
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
            self._worth(
                self._naive_variance(target, pooled=True), found.variance, found.controlled
            ),
            found.enough,
            least=0.0,
        )
        return per_input, pooled

    @property
    def has_moments(self) -> bool:
        """Whether Delta has a mean and a variance, as far as the outcomes show: all have squares
        (in double precision), which outputs that are not finite have not."""
        return self._sums.beyond + self._exact.beyond == 0

    @property
    def _can_be_lost(self) -> bool:
        return self._may_overflow or bool((self._sums.lost + self._exact.lost).any())

    @property
    def covariance(self) -> Floats | None:
        """(B, K, K) of Delta across outputs; None beyond 64, or without moments."""
        if not self.has_moments or self._clean.shape[1] > MOST_OUTPUTS:
            return None
        n, sums, exact = self.n, self._sums, self._exact
        sampled = sums.per_input.first[0] / n
        shift = exact.per_input.first[0] + self._rest * sampled
        within = sums.products / n - sampled[:, :, None] * sampled[:, None, :]
        second = exact.products + self._rest * sums.products / n
        outer = shift[:, :, None] * shift[:, None, :]
        covariance: Floats = second - outer + self._rest**2 * within / max(n - 1, 1)
        return covariance

    def shares(self, alpha: float) -> tuple[Interval, Interval, Interval, Interval]:
        """Probabilities: tails (B, K), class change and outputs that are not finite (B,), and all
        pooled (K + 3,), as ``failed``.

        Intervals of what is sampled are exact (Clopper and Pearson); the rest has no error.
        """
        sums, exact = self._sums, self._exact
        tails = self._proportion(exact.tails, proportion_interval(sums.tails, self.n, alpha))
        changes = self._proportion(exact.changes, proportion_interval(sums.changes, self.n, alpha))
        lost = self._proportion(exact.lost, proportion_interval(sums.lost, self.n, alpha))
        failed = clustered_proportion_interval(
            sums.failed.mean[0], sums.failed.covariance[0, 0], self.n, len(self._clean), alpha
        )
        spread = np.maximum(sums.failed.covariance[0, 0], 0.0)
        return tails, changes, lost, self._proportion(exact.failed.first[0], failed, spread)

    def _proportion(
        self, exact: Floats, sampled: Interval, spread: Floats | None = None
    ) -> Interval:
        """A probability of which only a part is sampled; ``spread`` is of one sample's share."""
        if self._few is None:
            return sampled
        value, low, high = (
            np.clip(exact + self._rest * part, 0.0, 1.0)
            for part in (sampled.value, sampled.low, sampled.high)
        )
        variance = sampled.value * (1 - sampled.value) if spread is None else spread
        worth = self._worth(value * (1 - value), self._rest**2 * variance)
        return Interval(value, low, high, worth)

    @cached_property
    def outputs(self) -> NDArray[np.int64]:
        """(K',) the outputs that get quantiles, ascending: those that were named, and others.

        All up to 64 outputs, or as many that vary most.
        """
        k = self._clean.shape[1]
        if k <= MOST_OUTPUTS:
            return np.arange(k)
        most = np.argsort(-self._sums.pooled.first[1, :k], kind="stable")
        some = list(dict.fromkeys([*self._named, *most[:MOST_OUTPUTS].tolist()]))
        return np.array(sorted(some[: max(MOST_OUTPUTS, len(self._named))]))

    def quantiles(self, alpha: float) -> list[tuple[Interval, Interval]]:
        """Of |Delta| for each of ``QUANTILES``: (B, K'), and over samples and inputs, (K',)."""
        kept = self.kept[:, :, self.outputs] if self._clean.shape[1] > MOST_OUTPUTS else self.kept
        if self._few is None:
            return quantiles_of(kept, QUANTILES, alpha)
        size = np.abs(kept)
        size = np.where(np.isnan(size), np.inf, size)
        n, b, k = size.shape
        deltas = self._few.deltas[:, :, self.outputs]
        outcomes, weights, rest = np.abs(deltas), self._few.weights, self._few.rest
        outcomes = np.where(np.isnan(outcomes), np.inf, outcomes)
        per_input = stratified_quantiles(
            size.reshape(n, 1, -1), outcomes.reshape(-1, 1, b * k), weights, rest, QUANTILES, alpha
        )
        pooled = stratified_quantiles(size, outcomes, weights, rest, QUANTILES, alpha)
        return [(q.reshape(b, k), p) for q, p in zip(per_input, pooled, strict=True)]

    def estimates(self, alpha: float) -> Estimates:
        """Everything, with intervals of confidence ``1 - alpha``."""
        k = self._clean.shape[1]
        found = Estimates()

        def add(
            quantity: str,
            per_input: Interval,
            pooled: Interval,
            total: Interval | None = None,
            level: float | None = None,
            outputs: NDArray[np.int64] | None = None,
        ) -> None:
            nonlocal found
            found += estimates_of(
                "monte-carlo",
                quantity,
                "statistical",
                per_input=self._settle(per_input),
                pooled=self._settle(pooled),
                total=total and self._settle(total),
                confidence=1 - alpha,
                level=level,
                outputs=outputs,
                note=self._note(quantity),
            )

        if self.has_moments:
            moments = self.moments(alpha)
            add("mean", moments.mean, moments.pooled_mean)
            pooled = moments.pooled_variance
            add("variance", moments.variance, pooled[:k], pooled[k])
        tails, changes, lost, failed = self.shares(alpha)
        if self._epsilon is not None:
            add("tail", tails, failed[:k], failed[k], self._epsilon)
        if k > 1:
            add("class-change", changes, failed[k + 1])
        if self._can_be_lost:
            add("not-finite", lost, failed[k + 2])
        for level, (per_input, pooled) in zip(QUANTILES, self.quantiles(alpha), strict=True):
            if np.isfinite(per_input.value).all() and np.isfinite(pooled.value).all():
                some = None if k <= MOST_OUTPUTS else self.outputs
                add("quantile", per_input, pooled, level=level, outputs=some)
        for i, metric in enumerate(self._metrics):
            per_input, pooled = self._metric(i, alpha)
            if np.isfinite(pooled.value).all():  # a mean of infinite losses is none
                add(metric.name, per_input, pooled)
        return found

    def _metric(self, index: int, alpha: float) -> tuple[Interval, Interval]:
        """One of the user's own metrics: (B,), and averaged over inputs, ()."""
        exact = None if self._few is None else self._exact.metrics[index].average
        found = intervals_of(
            self._metrics[index],
            self._sums.metrics[index],
            n=self.n,
            alpha=alpha,
            exact=exact,
            rest=self._rest,
        )
        if not self._is_seldom_struck or isinstance(self._metrics[index], Event):
            return found
        per_input, pooled = (replace(v, enough=np.zeros(v.value.shape, bool)) for v in found)
        return per_input, pooled

    def _note(self, quantity: str) -> str | None:
        parts = []
        if self._few is not None:
            off = " off the usual state" if self._few.points.base.any() else ""
            parts.append(f"0 and 1 fault{off} exact, 2 or more sampled")
        if self._control is not None and quantity in ("mean", "variance"):
            parts.append("with the linear surrogate as control variate where that is narrower")
        return "; ".join(parts) or None

    def _settle(self, values: Interval) -> Interval:
        """Where nothing is random (p = 0 or 1), one sample tells all: the interval is a point."""
        return values if self._is_random else Interval(values.value, values.value, values.value)


def _joined(pieces: Sequence[NDArray[np.float32]], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(n, B, K) of pieces; each column's values beside each other where samples are many."""
    if len(pieces) == 1:
        return pieces[0]
    count = sum(len(piece) for piece in pieces)
    b, k = shape
    is_tall = count > b * k
    found = np.empty((b, k, count) if is_tall else (count, b, k), np.float32)
    found = found.transpose(2, 0, 1) if is_tall else found
    start = 0
    for piece in pieces:
        found[start : start + len(piece)] = piece
        start += len(piece)
    return found


def _target(like: Floats, of_d: Floats | float, of_square: float) -> Floats:
    """(2, ...) coefficients of d and d^2."""
    return np.stack([np.broadcast_to(of_d, like.shape), np.full(like.shape, of_square)])


def _widened(
    values: Interval,
    room: Floats,
    worth: Floats | None,
    enough: NDArray[np.bool_],
    least: float = -np.inf,
) -> Interval:
    low = np.maximum(values.low - room, least)
    return Interval(values.value, low, values.high + room, worth, enough)
