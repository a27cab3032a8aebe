"""Monte Carlo of very many outputs (maps of pixels, logits of tokens): sums of bounded size.

Averages over inputs are counted for every output, with their powers, from which intervals follow;
what is asked of each input is kept for a few outputs alone: those that were named, and those that
vary most in the first samples. Nothing of the size samples x outputs is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.metrics import CLASS_CHANGE, NOT_FINITE, AskedMetrics, Event
from crashsim.results.estimate import MOST_OUTPUTS, Interval
from crashsim.results.estimates import Estimates, estimates_of
from crashsim.sampling.bounded_means import clustered_proportion_interval
from crashsim.sampling.from_sums import QUANTILES, Moments
from crashsim.sampling.intervals import (
    ENOUGH,
    Spread,
    degrees_of_freedom,
    half_width,
    mean_interval,
    proportion_interval,
    variance_interval,
)
from crashsim.sampling.quantiles import quantiles_of
from crashsim.sampling.sums.joint_sums import JointSums
from crashsim.sampling.sums.metric_sums import (
    MeanSums,
    MetricSums,
    centre_of,
    intervals_of,
    none_of,
    sums_of,
)
from crashsim.sampling.tally import LARGEST

_AT_ONCE = 2**15  # values of samples, inputs and outputs that are summed together
DENSE = 2**18  # inputs times outputs beyond which they are counted so


@dataclass(frozen=True)
class DenseSums:
    """Sums over samples of d = Delta - centre.

    Attributes:
        n: number of samples.
        first, second: (B, K) of d and of its square.
        pooled: of d averaged over inputs, and of d^2 so, for K + 1 columns each; the last is summed
            over outputs.
        tails: of the shares of inputs with |Delta_k| >= epsilon, (K,); empty without epsilon.
        events: of the shares of inputs of which any output moves by epsilon, the class changes,
            some output is not finite, (3,).
        changes, lost: (B,) counts of the last two.
        beyond: number of samples with a Delta that has no square, which d leaves out.
        metrics: of each metric of the user's own.
        kept: (n', B, K') in pieces: Delta of the first samples, of the outputs looked at.
    """

    n: int
    first: Floats
    second: Floats
    pooled: MeanSums
    squares: MeanSums
    tails: JointSums
    events: JointSums
    changes: Floats
    lost: Floats
    beyond: float
    metrics: tuple[MetricSums, ...] = ()
    kept: tuple[NDArray[np.float32], ...] = ()

    def __add__(self, other: DenseSums) -> DenseSums:
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        pairs = zip(self.metrics, other.metrics, strict=True)
        return DenseSums(**{**added, "metrics": tuple(a + b for a, b in pairs)})


@dataclass(frozen=True)
class DenseTally:
    """What is counted of each sample, as ``crashsim.sampling.tally.Tally`` but for many outputs.

    Attributes:
        clean: (B, K) F(0).
        reach: the change of an output that counts for the tails; infinite without an epsilon.
        asked: the user's own metrics.
        named: outputs that are looked at for each input, whatever they do.
        outputs: (K',) those and others that are, ascending.
        centre: (B, K) what d is measured from.
        square: (K + 1,) what the averages of d^2 are measured from.
        metric_centres: of each metric, (B + 1,) what its values are measured from.
    """

    clean: Floats
    reach: float
    asked: AskedMetrics
    named: tuple[int, ...]
    outputs: NDArray[np.int64]
    centre: Floats
    square: Floats
    metric_centres: tuple[Floats, ...]

    @classmethod
    def of(
        cls, clean: Floats, reach: float, asked: AskedMetrics, named: Sequence[int]
    ) -> DenseTally:
        """Without a centre."""
        none = np.zeros(len(clean) + 1)
        centres = tuple(none for _ in asked.metrics)
        outputs = np.array(sorted(named), np.int64)
        zero, square = np.zeros_like(clean), np.zeros(clean.shape[1] + 1)
        return cls(clean, reach, asked, tuple(named), outputs, zero, square, centres)

    @property
    def control(self) -> None:
        """It takes none."""

    def aimed(self, first: Sequence[tuple[Points, Floats]]) -> DenseTally:
        """The same with the centre, and the outputs, that some first samples suggest."""
        count = max(sum(len(outputs) for _, outputs in first), 1)
        centre, square = np.zeros_like(self.clean), np.zeros_like(self.square)
        for _, outputs in first:
            centre += _squarable(outputs - self.clean).sum(0) / count
        for _, outputs in first:
            d = _squarable(outputs - self.clean) - centre
            square += _with_total((d * d).mean(1)).sum(0) / count
        k = min(MOST_OUTPUTS, self.clean.shape[1])
        most = np.argpartition(-square[:-1], k - 1)[:k]
        most = most[np.argsort(-square[most], kind="stable")]
        chosen = list(dict.fromkeys([*self.named, *most.tolist()]))[: max(k, len(self.named))]
        metric_centres = tuple(
            centre_of([self.asked.values(metric, outputs, self.clean) for _, outputs in first])
            for metric in self.asked.metrics
        )
        return replace(
            self,
            outputs=np.array(sorted(chosen), np.int64),
            centre=centre,
            square=square,
            metric_centres=metric_centres,
        )

    def none(self) -> DenseSums:
        """Of no samples."""
        b, k = self.clean.shape
        return DenseSums(
            0,
            np.zeros((b, k)),
            np.zeros((b, k)),
            _Powers.none(np.zeros(k + 1)).sums(0),
            _Powers.none(self.square).sums(0),
            JointSums.none(1, (0 if np.isinf(self.reach) else k,)),
            JointSums.none(1, (3,)),
            np.zeros(b),
            np.zeros(b),
            0.0,
            tuple(none_of(metric, b) for metric in self.asked.metrics),
        )

    def count(self, points: Points, outputs: Floats, room: int) -> DenseSums:
        """The sums of samples with outputs (n, B, K), of which the first ``room`` are kept."""
        delta = outputs - self.clean
        lost = np.zeros(delta.shape[:2], np.bool_)
        most, least = delta.max((1, 2)), delta.min((1, 2))
        has_square = (most <= LARGEST) & (least >= -LARGEST)  # NaN has none
        finite = delta
        if not has_square.all():
            lost = NOT_FINITE.happens(outputs, self.clean, None)
            finite = np.where(np.abs(delta) <= LARGEST, delta, self.centre)
        changed = CLASS_CHANGE.happens(outputs, self.clean, None)
        moved = np.zeros((*delta.shape[:2], 0), np.bool_)
        if not np.isinf(self.reach):
            moved = (np.abs(delta) >= self.reach) | lost[:, :, None]
        shares = np.stack([event.mean(1) for event in (moved.any(2), changed, lost)], axis=1)
        with np.errstate(over="ignore"):  # of what single precision does not hold
            kept = delta[:room][:, :, self.outputs].astype(np.float32)
        values = zip(self.asked.metrics, self.metric_centres, strict=True)
        return DenseSums(
            len(outputs),
            *self._moments(finite),
            JointSums.of([moved.mean(1)]),
            JointSums.of([shares]),
            changed.sum(0).astype(float),
            lost.sum(0).astype(float),
            float((~has_square).sum()),
            tuple(
                sums_of(metric, self.asked.values(metric, outputs, self.clean), centre, None)
                for metric, centre in values
            ),
            (kept,) if room > 0 else (),
        )

    def _moments(self, delta: Floats) -> tuple[Floats, Floats, MeanSums, MeanSums]:
        """The first four sums, a few columns at a time: as many as a processor keeps at hand."""
        n, b, k = delta.shape
        first, second = np.empty((2, b, k))
        zero, totals = np.zeros_like(self.square), np.zeros((2, n))
        found = [_Powers.none(centre) for centre in (zero, self.square)]
        step = max(1, _AT_ONCE // max(n * b, 1))
        for start in range(0, k, step):
            part = slice(start, min(start + step, k))
            d = delta[:, :, part] - self.centre[:, part]
            square = d * d
            d.sum(0, out=first[:, part])
            square.sum(0, out=second[:, part])
            averages = (d[:, 0], square[:, 0]) if b == 1 else (d.mean(1), square.mean(1))
            for powers, total, values in zip(found, totals, averages, strict=True):
                total += values.sum(1)
                powers.fill(part, values)
        for powers, total in zip(found, totals, strict=True):
            powers.fill(slice(k, k + 1), total[:, None])
        return first, second, found[0].sums(n), found[1].sums(n)


@dataclass(frozen=True)
class _Powers:
    """Sums over samples of powers of values about a centre, filled column by column."""

    centre: Floats
    powers: Floats
    least: Floats
    most: Floats

    @classmethod
    def none(cls, centre: Floats) -> _Powers:
        """Of no samples."""
        least, most = np.full_like(centre, np.inf), np.full_like(centre, -np.inf)
        return cls(centre, np.zeros((4, len(centre))), least, most)

    def fill(self, part: slice, values: Floats) -> None:
        """Takes the values (n, k) of some columns."""
        off = values - self.centre[part]
        square = off * off
        off.sum(0, out=self.powers[0, part])
        square.sum(0, out=self.powers[1, part])
        np.einsum("sk,sk->k", square, off, out=self.powers[2, part])
        np.einsum("sk,sk->k", square, square, out=self.powers[3, part])
        values.min(0, out=self.least[part])
        values.max(0, out=self.most[part])

    def sums(self, n: int) -> MeanSums:
        """The same as sums that add up."""
        return MeanSums(float(n), self.centre, self.powers, self.least, self.most)


def _squarable(delta: Floats) -> Floats:
    if delta.max() <= LARGEST and delta.min() >= -LARGEST:
        return delta
    return np.where(np.abs(delta) <= LARGEST, delta, 0.0)


def _with_total(values: Floats) -> Floats:
    """Values (S, K), and their sum over outputs as one more column."""
    return np.concatenate([values, values.sum(1, keepdims=True)], axis=1)


class FromDense:
    """Estimates with their intervals, from what was counted of many outputs.

    Args:
        tally, sums: what was counted.
        epsilon: of the tails; none are estimated without.
        is_random: whether anything is.
        is_seldom_struck: whether some faults strike too seldom to show what they do.
        may_overflow: whether faults can make outputs that are not finite.

    Attributes:
        n: number of samples.
        kept: (n', B, K') Delta of the first samples, of the ``outputs`` (K',).
    """

    covariance = None  # of so many outputs

    def __init__(
        self,
        tally: DenseTally,
        sums: DenseSums,
        epsilon: float | None,
        *,
        is_random: bool,
        is_seldom_struck: bool,
        may_overflow: bool,
    ) -> None:
        self._tally, self._sums, self._epsilon = tally, sums, epsilon
        self._is_random, self._is_seldom_struck = is_random, is_seldom_struck
        self._may_overflow = may_overflow
        self.n, self.outputs = sums.n, tally.outputs
        self._looked: dict[float, Moments] = {}  # by alpha: it takes a while
        shape = (0, len(tally.clean), len(tally.outputs))
        self.kept = np.concatenate([np.empty(shape, np.float32), *sums.kept])

    @property
    def has_moments(self) -> bool:
        """Whether Delta has a mean and a variance in the samples."""
        return self._sums.beyond == 0

    def moments(self, alpha: float) -> Moments:
        """E Delta and Var Delta; of single inputs without intervals (NaN). NaN without any."""
        if not self.has_moments:
            none = np.full_like(self._sums.first, np.nan)
            every = (none, none[0], none, np.append(none[0], np.nan))
            return Moments(*(Interval(v, v, v, None, np.zeros(v.shape, bool)) for v in every))
        if alpha not in self._looked:
            self._looked = {alpha: self._moments_at(alpha)}
        return self._looked[alpha]

    def _moments_at(self, alpha: float) -> Moments:
        sums, n = self._sums, self.n
        shift = sums.first / n
        variance = np.maximum(sums.second / n - shift**2, 0.0) * (n / max(n - 1, 1))
        unknown = np.full_like(shift, np.nan)
        centre = _with_total(self._tally.centre.mean(0)[None])[0]
        value, half, enough = self._interval(sums.pooled, alpha)
        pooled_mean = mean_interval(centre + value, half)
        _, half, of_square = self._interval(sums.squares, alpha)
        pooled = _with_total(variance.mean(0)[None])[0]
        pooled_variance = variance_interval(pooled, half)
        k = len(self._tally.square) - 1
        return Moments(
            Interval(self._tally.centre + shift, unknown, unknown),
            replace(pooled_mean, enough=enough)[:k],
            Interval(variance, unknown, unknown),
            replace(pooled_variance, enough=of_square),
        )

    def _interval(self, sums: MeanSums, alpha: float) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Averages, half the widths of their intervals, and whether these are to be trusted."""
        mean, squares, fourths = sums.spread()
        largest = np.maximum(sums.most - mean, mean - sums.least)
        spread = Spread.of_sums(self.n, squares, fourths, np.maximum(largest, 0.0))
        enough = degrees_of_freedom(spread, self.n) >= ENOUGH
        return mean, half_width(spread, self.n, alpha), enough & (not self._is_seldom_struck)

    def estimates(self, alpha: float) -> Estimates:
        """Everything, with intervals of confidence ``1 - alpha``."""
        found = self._moments(alpha) if self.has_moments else Estimates()
        sums, b, outputs = self._sums, len(self._tally.clean), self.outputs
        some, changed, lost = (self._share(sums.events, alpha, i) for i in range(3))
        if self._epsilon is not None:
            hits = (np.abs(self.kept) >= self._tally.reach) | ~np.isfinite(self.kept)
            of_input = proportion_interval(hits.sum(0), len(self.kept), alpha)
            found += self._made("tail", alpha, of_input, level=self._epsilon, outputs=outputs)
            every = clustered_proportion_interval(
                sums.tails.mean[0], sums.tails.covariance[0, 0], self.n, b, alpha
            )
            found += self._made("tail", alpha, None, every, some, level=self._epsilon)
        of_input = proportion_interval(sums.changes, self.n, alpha)
        found += self._made("class-change", alpha, of_input, changed)
        if self._may_overflow or sums.lost.any():
            of_input = proportion_interval(sums.lost, self.n, alpha)
            found += self._made("not-finite", alpha, of_input, lost)
        for level, (of_input, pooled) in zip(
            QUANTILES, quantiles_of(self.kept, QUANTILES, alpha), strict=True
        ):
            if np.isfinite(of_input.value).all() and np.isfinite(pooled.value).all():
                found += self._made(
                    "quantile", alpha, of_input, pooled, level=level, outputs=outputs
                )
        for metric, counted in zip(self._tally.asked.metrics, sums.metrics, strict=True):
            of_input, pooled = intervals_of(metric, counted, n=self.n, alpha=alpha)
            if self._is_seldom_struck and not isinstance(metric, Event):
                of_input, pooled = map(_doubted, (of_input, pooled))
            found += self._made(metric.name, alpha, of_input, pooled)
        return found

    def _moments(self, alpha: float) -> Estimates:
        moments = self.moments(alpha)
        total = moments.pooled_variance[-1]
        values = self.kept.astype(float)
        centred = values - values.mean(0)
        n = len(values)
        squares = centred**2 * (n / max(n - 1, 1))
        spreads = [_of_each_input(v) for v in (values, squares)]
        halves = [half_width(spread, n, alpha) for spread in spreads]
        mean = mean_interval(values.mean(0), halves[0])
        variance = variance_interval(squares.mean(0), halves[1])
        enough = [degrees_of_freedom(spread, n) >= ENOUGH for spread in spreads]
        trusted = not self._is_seldom_struck
        mean = replace(mean, enough=enough[0] & trusted)
        variance = replace(variance, enough=enough[1] & trusted)
        return (
            self._made("mean", alpha, mean, outputs=self.outputs)
            + self._made("mean", alpha, None, moments.pooled_mean)
            + self._made("variance", alpha, variance, outputs=self.outputs)
            + self._made("variance", alpha, None, moments.pooled_variance[:-1], total)
        )

    def _share(self, sums: JointSums, alpha: float, column: int) -> Interval:
        share, spread = sums.mean[0, column], sums.covariance[0, 0, column]
        return clustered_proportion_interval(share, spread, self.n, len(self._tally.clean), alpha)

    def _made(
        self,
        quantity: str,
        alpha: float,
        of_input: Interval | None,
        pooled: Interval | None = None,
        total: Interval | None = None,
        **facts: Any,
    ) -> Estimates:
        settled = [v and self._settle(v) for v in (of_input, pooled, total)]
        return estimates_of(
            "monte-carlo",
            quantity,
            "statistical",
            per_input=settled[0],
            pooled=settled[1],
            total=settled[2],
            confidence=1 - alpha,
            **facts,
        )

    def _settle(self, values: Interval) -> Interval:
        """Where nothing is random (p = 0 or 1), one sample tells all: the interval is a point."""
        return values if self._is_random else Interval(values.value, values.value, values.value)


def _of_each_input(values: Floats) -> Spread:
    """Of samples (n, B, K')."""
    spread = Spread.of(values)
    # What was not seen of one input may be as large as what was of another.
    largest = np.broadcast_to(spread.largest.max(0), spread.largest.shape)
    return replace(spread, largest=largest)


def _doubted(values: Interval) -> Interval:
    return replace(values, enough=np.zeros(values.value.shape, np.bool_))
