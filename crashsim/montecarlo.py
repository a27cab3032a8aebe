"""Monte Carlo crash injection: sample faults, run the network, count.

One sample is one draw of all fault coordinates, applied to every input at once (as on one chip).
So samples are independent of each other, inputs within a sample are not: what is averaged over
inputs gets its interval from the spread over samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crashsim.errors import ArgumentError, CrashsimWarning
from crashsim.estimate import Estimate, Quantity, Values, estimates_of
from crashsim.intervals import (
    clustered_proportion_interval,
    mean_interval,
    proportion_interval,
    quantile_interval,
    variance_interval,
)
from crashsim.points import Floats, Points, check_seed, sample_block
from crashsim.space import FaultSpace

DEFAULT_SAMPLES = 10_000
DEFAULT_BUDGET = 1_000_000  # samples, where a relative width is asked for
MOST_OUTPUTS = 64  # whose covariance is kept
QUANTILES = (0.5, 0.9, 0.99)
_KEEP_VALUES = 2**26  # Deltas kept for quantiles and histograms: 256 MiB
_STEP_VALUES = 2**22  # Deltas computed at once
_PILOT = 128  # samples, at most a tenth of the run, that fix the centre

StopReason = Literal["samples", "relative width", "budget", "interrupted"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MonteCarlo:
    """What a Monte Carlo run found.

    Attributes:
        samples: number of samples n.
        stopped: why it stopped: the number of ``samples`` asked for was reached, or the
            ``relative width``, or the ``budget`` was spent first, or it was ``interrupted``.
        mean, variance: of Delta, (B, K).
        covariance: of Delta across outputs, (B, K, K); None beyond 64 outputs.
        estimates: everything, as estimates.
        kept: (n', B, K) the first n' <= n samples of Delta (all, unless there were too many).
        confidence: of each interval. It is higher than asked for where the run looked several
            times at its result to decide when to stop.
    """

    samples: int
    stopped: StopReason
    mean: Floats
    variance: Floats
    covariance: Floats | None
    estimates: list[Estimate]
    kept: NDArray[np.float32]
    confidence: float


def monte_carlo(
    space: FaultSpace,
    *,
    epsilon: float | None = None,
    samples: int | None = None,
    rel_width: float | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> MonteCarlo:
    """Samples Delta under random faults.

    Args:
        space: the model, its inputs and faults.
        epsilon: also estimate P(|Delta| >= epsilon).
        samples: number of samples; with ``rel_width``, the most to spend.
        rel_width: stop when the interval of every output's variance, pooled over inputs, has at
            most this half-width relative to its value. The run looks after 1, 2, 4, 8, ... blocks;
            look j spends ``alpha / (j (j + 1))`` of the error probability ``alpha = 1 -
            confidence``, so the final intervals hold although the run chose its end.
        seed: the samples depend on this alone.
        confidence: of the intervals.
        progress: called with the number of samples done and the most there will be.

    Raises:
        ArgumentError: an argument out of its range.
    """
    budget = check_sampling(samples, rel_width, epsilon, confidence)
    seed = check_seed(seed)
    tally = _Tally(space, epsilon, budget)
    alpha, look, next_look = 1 - confidence, 0, 1
    stopped: StopReason = "samples" if rel_width is None else "budget"
    block = 0
    try:
        while tally.n < budget:
            points = sample_block(space.placements, seed, block)
            points = points.part(0, min(points.count, budget - tally.n))
            if block == 0:
                tally.aim(points.part(0, max(1, min(points.count, budget // 10, _PILOT))))
            for part in _steps(space, points):
                tally.add(part)
            block += 1
            if progress:
                progress(tally.n, budget)
            if rel_width is not None and block == next_look:
                look, next_look = look + 1, next_look * 2
                alpha = (1 - confidence) / (look * (look + 1))
                pooled = tally.pooled_variance(alpha)
                assert pooled.low is not None
                assert pooled.high is not None
                if (pooled.high - pooled.low <= 2 * rel_width * pooled.value).all():
                    stopped = "relative width"
                    break
    except KeyboardInterrupt:
        if tally.n < 2:
            raise
        stopped = "interrupted"
    if rel_width is not None and stopped != "relative width":
        look += 1  # the end of the budget is one more look
        alpha = (1 - confidence) / (look * (look + 1))
    return tally.result(alpha, stopped)


def _steps(space: FaultSpace, points: Points) -> Iterator[Points]:
    """Points a few at a time, so that their outputs stay small."""
    step = max(1, _STEP_VALUES // (space.B * space.K))
    for start in range(0, points.count, step):
        yield points.part(start, min(start + step, points.count))


class _Tally:
    """Sums over samples from which all estimates follow; of bounded size.

    Moments are taken about a fixed centre, the mean of the first samples, which keeps their sums
    accurate. It is computed ahead (``aim``), so that it does not depend on how samples are batched.
    """

    def __init__(self, space: FaultSpace, epsilon: float | None, budget: int) -> None:
        self._space, self._epsilon = space, epsilon
        self._clean = space.clean()
        self._class = self._clean.argmax(1)
        b, k = self._clean.shape
        self.n = 0
        self._centre = np.zeros((b, k))
        self._power = [np.zeros((b, k)) for _ in range(4)]  # sums of d, d^2, d^3, d^4
        self._products = np.zeros((b, k, k)) if k <= MOST_OUTPUTS else None
        # Averages over inputs: of d and d^2 for each output, and of d^2 summed over outputs.
        self._pooled = _Moments((2 * k + 1,))
        self._tails, self._any = np.zeros((b, k)), np.zeros(b)
        self._changes = np.zeros(b)
        self._failed = _Moments((k + 2,))  # shares of inputs: |d_k| >= eps; any k; class changed
        self._keep = np.empty((min(budget, max(1000, _KEEP_VALUES // (b * k))), b, k), np.float32)

    def aim(self, points: Points) -> None:
        """Takes these points' mean for the centre."""
        parts = (self._space.outputs(part).sum(0) for part in _steps(self._space, points))
        self._centre = sum(parts, np.zeros_like(self._clean)) / points.count - self._clean

    def add(self, points: Points) -> None:
        delta = self._space.outputs(points) - self._clean  # (S, B, K)
        d = delta - self._centre
        square = d * d
        for total, power in zip(self._power, (d, square, square * d, square * square), strict=True):
            total += power.sum(0)
        if self._products is not None:
            self._products += np.einsum("sbk,sbl->bkl", d, d, optimize=True)
        pooled = square.mean(1)
        self._pooled.add(np.concatenate([d.mean(1), pooled, pooled.sum(1, keepdims=True)], axis=1))
        shares = []
        epsilon = np.inf if self._epsilon is None else self._epsilon
        moved = np.abs(delta) >= epsilon
        any_moved = moved.any(2)
        changed = (delta + self._clean).argmax(2) != self._class
        self._tails += moved.sum(0)
        self._any += any_moved.sum(0)
        self._changes += changed.sum(0)
        shares = [moved.mean(1), any_moved.mean(1)[:, None], changed.mean(1)[:, None]]
        self._failed.add(np.concatenate(shares, axis=1))
        room = min(len(delta), len(self._keep) - self.n)
        if room > 0:
            self._keep[self.n : self.n + room] = delta[:room]
        self.n += len(delta)

    @property
    def _shift(self) -> Floats:
        return self._power[0] / self.n

    def pooled_variance(self, alpha: float) -> Values:
        """Var Delta averaged over inputs: for each output, then summed over outputs, (K + 1,)."""
        k = self._clean.shape[1]
        # (d - mean d)^2 averaged over samples; the shift is small, so its own error is neglected.
        correction = (self._shift**2).mean(0)
        correction = np.append(correction, correction.sum())
        unbiased = (self._pooled.mean[k:] - correction) * self.n / max(self.n - 1, 1)
        return variance_interval(np.maximum(unbiased, 0), self._pooled.variance[k:], self.n, alpha)

    def result(self, alpha: float, stopped: StopReason) -> MonteCarlo:
        n, k = self.n, self._clean.shape[1]
        shift = self._shift
        raw = [power / n for power in self._power]
        second = np.maximum(raw[1] - shift**2, 0)
        fourth = raw[3] - 4 * shift * raw[2] + 6 * shift**2 * raw[1] - 3 * shift**4
        mean, variance = self._centre + shift, second * n / max(n - 1, 1)
        covariance = None
        if self._products is not None:
            outer = shift[:, :, None] * shift[:, None, :]
            covariance = (self._products / n - outer) * n / max(n - 1, 1)
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
                )
            )

        add(
            "mean",
            mean_interval(mean, variance, n, alpha),
            mean_interval(mean.mean(0), self._pooled.variance[:k], n, alpha),
        )
        pooled = self.pooled_variance(alpha)
        add(
            "variance",
            variance_interval(variance, fourth - second**2, n, alpha),
            _at(pooled, slice(0, k)),
            _at(pooled, k),
        )
        failed = clustered_proportion_interval(self._failed.mean, self._failed.variance, n, alpha)
        if self._epsilon is not None:
            add(
                "tail",
                proportion_interval(self._tails, n, alpha),
                _at(failed, slice(0, k)),
                _at(failed, k),
                level=self._epsilon,
            )
        if k > 1:
            add(
                "class-change",
                proportion_interval(self._changes, n, alpha),
                _at(failed, k + 1),
            )
        kept = self._keep[: min(n, len(self._keep))]
        size = np.sort(np.abs(kept), axis=0)
        for level in QUANTILES:
            add(
                "quantile",
                quantile_interval(size, level, alpha),
                _pooled_quantile(np.abs(kept), level, alpha),
                level=level,
            )
        if self._is_random and (variance == 0).all():
            warnings.warn(
                f"samples={n}: no sample moved any output, so only upper limits are known; "
                "ask for more samples",
                CrashsimWarning,
                stacklevel=4,
            )
        return MonteCarlo(n, stopped, mean, variance, covariance, found, kept, 1 - alpha)

    @property
    def _is_random(self) -> bool:
        return bool((self._space.moments.k2 > 0).any())

    def _settle(self, values: Values) -> Values:
        """Where nothing is random (p = 0 or 1), one sample tells all: the interval is a point."""
        return values if self._is_random else Values(values.value, values.value, values.value)


class _Moments:
    """Running mean and variance of vectors (Welford, merged by Chan et al. 1983)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.n, self.mean, self._squares = 0, np.zeros(shape), np.zeros(shape)

    def add(self, rows: Floats) -> None:
        n, mean = len(rows), rows.mean(0)
        change = mean - self.mean
        total = self.n + n
        self._squares += ((rows - mean) ** 2).sum(0) + change**2 * (self.n * n / total)
        self.mean = self.mean + change * (n / total)
        self.n = total

    @property
    def variance(self) -> Floats:
        return self._squares / max(self.n - 1, 1)


def _pooled_quantile(size: Floats | NDArray[np.float32], level: float, alpha: float) -> Values:
    """Quantile of |Delta| over samples and inputs together, with Woodruff's interval, (K,).

    The interval of the share of |Delta| below the quantile, which allows for inputs that share a
    mask, is read back through the empirical quantiles (Woodruff, JASA 47, 1952).
    """
    n, _, k = size.shape
    value = np.quantile(size, level, axis=(0, 1), method="inverted_cdf")
    # How much wider than for independent inputs; the larger side, where many share the quantile.
    design = np.maximum(_design_effect(size <= value), _design_effect(size < value))
    shares = clustered_proportion_interval(
        np.full(k, level), design * level * (1 - level), n, alpha
    )
    assert shares.low is not None
    assert shares.high is not None
    low = [np.quantile(size[:, :, j], shares.low[j], method="inverted_cdf") for j in range(k)]
    high = [
        np.quantile(size[:, :, j], shares.high[j], method="inverted_cdf")
        if shares.high[j] < 1
        else np.inf
        for j in range(k)
    ]
    return Values(value, np.minimum(low, value), np.maximum(high, value))


def _design_effect(hits: NDArray[np.bool_]) -> Floats:
    """Variance over masks of the share of inputs that are hit, over that of a single one, (K,)."""
    share = hits.mean(1)
    alone = share.mean(0) * (1 - share.mean(0))
    effect: Floats = np.ones_like(alone)
    np.divide(share.var(0, ddof=1), alone, out=effect, where=alone > 0)
    return effect


def _at(values: Values, where: slice | int) -> Values:
    assert values.low is not None
    assert values.high is not None
    return Values(
        np.asarray(values.value[where]),
        np.asarray(values.low[where]),
        np.asarray(values.high[where]),
    )


def check_sampling(
    samples: int | None, rel_width: float | None, epsilon: float | None, confidence: float
) -> int:
    """The number of samples to spend at most, if the arguments make sense."""
    if samples is not None and (
        isinstance(samples, bool) or not isinstance(samples, int | np.integer) or samples < 2
    ):
        raise ArgumentError(f"samples={samples!r}; give an integer of at least 2")
    if rel_width is not None and not _is_share(rel_width):
        raise ArgumentError(f"rel_width={rel_width!r}; give a number between 0 and 1, such as 0.02")
    if not _is_share(confidence):
        raise ArgumentError(f"confidence={confidence!r}; give a number between 0 and 1")
    check_epsilon(epsilon)
    return samples or (DEFAULT_SAMPLES if rel_width is None else DEFAULT_BUDGET)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float | np.floating) and bool(0 < value < 1)


def check_epsilon(epsilon: float | None) -> None:
    """ArgumentError unless epsilon is None or a positive finite number."""
    if epsilon is None:
        return
    number = isinstance(epsilon, int | float | np.floating) and not isinstance(epsilon, bool)
    if not number or not 0 < epsilon < np.inf:
        raise ArgumentError(
            f"epsilon={epsilon!r}; give a positive number in the units of the outputs"
        )
