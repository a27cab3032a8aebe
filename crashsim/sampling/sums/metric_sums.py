"""The user's own metrics under Monte Carlo: sums of their values, and intervals from these.

A metric has a truth value or a number for each sample and input. An event's probability for one
input has the exact interval of a binomial count; averaged over inputs, which share each sample's
faults, one that allows for it (``clustered_proportion_interval``). A mean has Student's interval,
with the degrees of freedom that the spread of its values allows. Powers of the values are summed,
so no value is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.metrics import Event, Mean, Metric, bounds_of
from crashsim.results.estimate import Interval
from crashsim.sampling.bounded_means import clustered_proportion_interval
from crashsim.sampling.intervals import (
    ENOUGH,
    Spread,
    degrees_of_freedom,
    half_width,
    mean_interval,
    proportion_interval,
)
from crashsim.sampling.sums.joint_sums import JointSums


@dataclass(frozen=True)
class EventSums:
    """Of an event: how often it happened.

    Attributes:
        hits: (B,) counts.
        shares: of the share of inputs, (1,).
    """

    hits: Floats
    shares: JointSums

    def __add__(self, other: EventSums) -> EventSums:
        return EventSums(self.hits + other.hits, self.shares + other.shares)

    @property
    def average(self) -> Floats:
        """(B + 1,) of the outcomes that were summed with weights; the last over inputs."""
        return np.append(self.hits, self.shares.first[0])


@dataclass(frozen=True)
class MeanSums:
    """Of a mean's values, for each input and then averaged over inputs: B + 1 columns.

    Attributes:
        n: number of samples, or the sum of their weights.
        centre: (B + 1,) what the values are measured from.
        powers: (4, B + 1) sums of the first four powers of what is left.
        least, most: (B + 1,) of the values.
    """

    n: float
    centre: Floats
    powers: Floats
    least: Floats
    most: Floats

    def __add__(self, other: MeanSums) -> MeanSums:
        with np.errstate(over="ignore"):  # of immense values
            powers = self.powers + other.powers
        return MeanSums(
            self.n + other.n,
            other.centre,
            powers,
            np.minimum(self.least, other.least),
            np.maximum(self.most, other.most),
        )

    @property
    def average(self) -> Floats:
        """(B + 1,) of the outcomes that were summed with weights; the last over inputs."""
        with np.errstate(over="ignore", invalid="ignore"):
            average: Floats = self.n * self.centre + self.powers[0]
        return average

    def spread(self) -> tuple[Floats, Floats, Floats]:
        """(B + 1,) averages, and sums of second and fourth powers of the distance from them."""
        n = self.n
        first, second, third, fourth = self.powers
        m = first / n
        with np.errstate(over="ignore", invalid="ignore"):  # of immense values
            squares = second - n * m**2
            fourths = fourth - 4 * m * third + 6 * m**2 * second - 3 * n * m**4
        return self.centre + m, np.maximum(squares, 0.0), np.maximum(fourths, 0.0)


MetricSums = Any  # EventSums or MeanSums, each of which adds to its own kind alone


def centre_of(batches: Sequence[NDArray[Any]]) -> Floats:
    """(B + 1,) the average of the values (n, B) of some samples, as a centre."""
    mean = np.concatenate(batches).astype(np.float64).mean(0)
    return np.append(mean, mean.mean())


def none_of(metric: Metric, inputs: int) -> MetricSums:
    """The sums of no samples."""
    if isinstance(metric, Event):
        return EventSums(np.zeros(inputs), JointSums.none(1, (1,)))
    empty = np.full(inputs + 1, np.inf)
    return MeanSums(0.0, np.zeros(inputs + 1), np.zeros((4, inputs + 1)), empty, -empty)


def sums_of(
    metric: Metric, values: NDArray[Any], centre: Floats, weights: Floats | None
) -> MetricSums:
    """The sums of values (S, B), each sample counting once, or with its weight (S,)."""
    counts = np.ones(len(values)) if weights is None else weights
    if isinstance(metric, Event):
        shares = JointSums.of([values.mean(1, keepdims=True)], weights)
        return EventSums(counts @ values, shares)
    columns = np.concatenate([values, values.mean(1, keepdims=True)], axis=1)
    with np.errstate(over="ignore", invalid="ignore"):  # of outputs that are not finite
        off = columns - centre
        square = off * off
        each = (off, square, square * off, square * square)
        powers = np.stack([counts @ power for power in each])
    return MeanSums(float(counts.sum()), centre, powers, columns.min(0), columns.max(0))


def intervals_of(
    metric: Metric,
    sums: MetricSums,
    *,
    n: int,
    alpha: float,
    exact: Floats | None = None,
    rest: float = 1.0,
) -> tuple[Interval, Interval]:
    """A metric's value for each input (B,) and averaged over them (), with their intervals.

    Args:
        metric: the metric.
        sums: over n samples.
        n: number of samples.
        alpha: 1 - confidence.
        exact: (B + 1,) what outcomes that were summed exactly add.
        rest: probability of what was sampled.
    """
    if isinstance(metric, Event):
        low, high = 0.0, 1.0
        per_input, pooled = _proportions(sums, n, alpha)
    else:
        assert isinstance(metric, Mean)
        low, high = bounds_of(metric)
        both = _means(metric, sums, n, alpha)
        per_input, pooled = both[:-1], both[-1]
    if exact is not None:
        per_input, pooled = _with(per_input, exact[:-1], rest), _with(pooled, exact[-1], rest)
    return _within(per_input, low, high), _within(pooled, low, high)


def _proportions(sums: EventSums, n: int, alpha: float) -> tuple[Interval, Interval]:
    share, variance = sums.shares.mean[0, 0], sums.shares.covariance[0, 0, 0]
    pooled = clustered_proportion_interval(share, variance, n, len(sums.hits), alpha)
    return proportion_interval(sums.hits, n, alpha), pooled


def _means(metric: Mean, sums: MeanSums, n: int, alpha: float) -> Interval:
    """(B + 1,)."""
    mean, squares, fourths = sums.spread()
    with np.errstate(invalid="ignore"):  # of infinite ones
        up, down = sums.most - mean, mean - sums.least
    # What was not seen of one input may be as large as what was of another, or as the bounds allow.
    up[:-1], down[:-1] = up[:-1].max(), down[:-1].max()
    up = up if metric.high is None else metric.high - mean
    down = down if metric.low is None else mean - metric.low
    spread = Spread.of_sums(n, squares, fourths, np.maximum(np.maximum(up, down), 0.0))
    interval = mean_interval(mean, half_width(spread, n, alpha))
    enough = degrees_of_freedom(spread, n) >= ENOUGH
    constant = squares == 0  # of which there is nothing to be known
    return Interval(interval.value, interval.low, interval.high, None, enough | constant)


def _with(sampled: Interval, exact: Floats, rest: float) -> Interval:
    """What is sampled, with probability ``rest``, and what is known exactly."""
    value, low, high = (
        np.asarray(exact + rest * part) for part in (sampled.value, sampled.low, sampled.high)
    )
    return Interval(value, low, high, None, sampled.enough)


def _within(interval: Interval, low: float, high: float) -> Interval:
    """The interval as far as it lies between bounds."""
    value, least, most = (
        np.clip(part, low, high) for part in (interval.value, interval.low, interval.high)
    )
    return Interval(value, least, most, interval.worth, interval.enough)
