"""The numbers behind a report's pictures, computed once and saved with the score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from crashsim_theory import LinearSurrogate

from crashsim.analytic import Analysis, tail_probabilities
from crashsim.enumeration import ExactDistribution
from crashsim.intervals import clustered_proportion_interval
from crashsim.montecarlo import MonteCarlo
from crashsim.points import Floats
from crashsim.space import FaultSpace

_POINTS = 48
_BINS = 60
_SMALLEST = 1e-9  # tail probability down to which the curves go


@dataclass(frozen=True)
class Curves:
    """P(|Delta| >= epsilon) against epsilon, of one output, averaged over inputs.

    Attributes:
        output: the output with the largest variance.
        epsilon: grid.
        methods: by method, the probabilities.
        low, high: Monte Carlo's interval, pointwise.
    """

    output: int
    epsilon: list[float]
    methods: dict[str, list[float]]
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True)
class Histogram:
    """Delta of one input and output: counts, and what theory predicts for each bin.

    Attributes:
        input, output: the pair with the largest variance.
        edges: (n + 1,) bins.
        counts: (n,) samples in each bin.
        saddlepoint, normal: (n,) expected counts; the normal law has the surrogate's moments.
    """

    input: int
    output: int
    edges: list[float]
    counts: list[int]
    saddlepoint: list[float] | None = None
    normal: list[float] | None = None


def curves_of(
    space: FaultSpace,
    analysis: Analysis,
    sampled: MonteCarlo | None,
    exact: ExactDistribution | None,
) -> Curves | None:
    """The curves of every method at hand; None where nothing moves or nothing was computed."""
    variance = _variance(analysis, sampled)
    if variance is None or not variance.max() > 0:
        return None
    output = int(variance.mean(0).argmax())
    surrogate = analysis.surrogate and _of_output(analysis.surrogate, output)
    end = 8 * float(np.sqrt(variance[:, output].max()))
    while surrogate is not None and surrogate.saddlepoint(end).mean() > _SMALLEST:
        end *= 1.25  # it ends at the latest where every coordinate has struck
    grid = np.linspace(0, end, _POINTS + 1)[1:]
    methods: dict[str, list[float]] = {}
    low = high = None
    if exact is not None:
        methods["exact"] = [float(exact.tail(e)[:, output].mean()) for e in grid]
    if surrogate is not None:
        for method, values in tail_probabilities(surrogate, grid).items():
            methods[method] = values.mean(0).tolist()
    if sampled is not None:
        size = np.abs(sampled.kept[:, :, output])
        shares = np.stack([(size >= e).mean(1) for e in grid], axis=1)
        interval = clustered_proportion_interval(
            shares.mean(0), shares.var(0, ddof=1), len(size), 1 - sampled.confidence
        )
        assert interval.low is not None
        assert interval.high is not None
        methods["monte-carlo"] = interval.value.tolist()
        low, high = interval.low.tolist(), interval.high.tolist()
    return Curves(output, grid.tolist(), methods, low, high)


def histogram_of(
    space: FaultSpace, analysis: Analysis, sampled: MonteCarlo | None
) -> Histogram | None:
    """Delta of the input and output that vary most; None without samples that differ."""
    if sampled is None or not sampled.variance.max() > 0:
        return None
    where = np.unravel_index(int(sampled.variance.argmax()), sampled.variance.shape)
    delta = sampled.kept[:, where[0], where[1]].astype(float)
    counts, edges = np.histogram(delta, bins=_BINS)
    saddlepoint = normal = None
    if analysis.surrogate is not None:
        one = _of_pair(analysis.surrogate, int(where[0]), int(where[1]))
        if one.variance > 0:
            above = one.saddlepoint(edges, "upper")
            saddlepoint = (len(delta) * -np.diff(above)).tolist()
            normal = (len(delta) * _normal_mass(edges, one)).tolist()
    return Histogram(
        int(where[0]), int(where[1]), edges.tolist(), counts.tolist(), saddlepoint, normal
    )


def _normal_mass(edges: Floats, surrogate: LinearSurrogate) -> Floats:
    from scipy.stats import norm

    scale = float(np.sqrt(surrogate.variance))
    mass: Floats = np.diff(norm.cdf(edges, loc=float(surrogate.mean), scale=scale))
    return mass


def _variance(analysis: Analysis, sampled: MonteCarlo | None) -> Floats | None:
    if analysis.surrogate is not None:
        return analysis.surrogate.variance
    return None if sampled is None else sampled.variance


def _of_output(surrogate: LinearSurrogate, output: int) -> LinearSurrogate:
    return LinearSurrogate(
        surrogate.shift[:, output], surrogate.gains[:, output], surrogate.coordinates
    )


def _of_pair(surrogate: LinearSurrogate, row: int, output: int) -> LinearSurrogate:
    return LinearSurrogate(
        surrogate.shift[row, output], surrogate.gains[row, output], surrogate.coordinates
    )
