"""The numbers behind a report's pictures, computed once and saved with the score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from crashsim_theory import LinearSurrogate, TheoryError
from crashsim_theory.tails.gathered import gathered
from scipy.special import ndtr

from crashsim.analytic.first_order import Surrogate, of_pair, tail_probability
from crashsim.analytic.gains import are_dense
from crashsim.analytic.proofs import Provable, certify_tail, linear_bracket
from crashsim.arrays import Floats
from crashsim.coordinates.streams import Stream
from crashsim.results.schema import Curves, Histogram
from crashsim.sampling.tilted import importance
from crashsim.sampling.tilted.aiming import AIMING
from crashsim.sampling.tilted.events import tail_events
from crashsim.scoring.request import Request
from crashsim.scoring.running import Results
from crashsim.space import FaultSpace

_POINTS = 48
_BINS = 60
_CERTIFIED = 6  # points of a curve that get a certificate: each takes about a second
_SAMPLED = 8  # points of a curve that are sampled,
_OF_MANY = 0.1  # with as many samples as Monte Carlo has, or this share of them
_GROWTH, _TOGETHER = 1.25, 8  # thresholds tried for the end of a curve, so many at once
_SMALLEST = 1e-9  # tail probability down to which the curves go


def curves_of(space: FaultSpace, results: Results, asked: Request, samples: int) -> Curves | None:
    """The curves of every method at hand; None where nothing moves or nothing was computed.

    Args:
        asked: seed and confidence of what is sampled for the curves alone.
        samples: importance sampling draws no more than these, of one input, for its whole curve.
    """
    analysis, sampled = results.analysis, results.sampled
    variance = _variance(results)
    if variance is None or not variance.max() > 0:
        return None
    kept = None if sampled is None else sampled.outputs
    variance = _of_named(variance, asked.outputs or kept)
    if not variance.max() > 0:
        return None
    row, output = (int(i) for i in np.unravel_index(int(variance.argmax()), variance.shape))
    one = analysis.surrogate and _drawn(analysis.surrogate, row, output)
    end = 8 * float(np.sqrt(variance[row, output]))
    if one is not None and not one.without_cgf:
        end = _where_seldom(one, end)
    grid = np.linspace(0, end, _POINTS + 1)[1:]
    methods: dict[str, list[float]] = {}
    low = high = None
    if results.exact is not None:
        methods["exact"] = [float(results.exact.tail(e)[row, output]) for e in grid]
    if one is not None:
        methods["chebyshev"] = tail_probability("chebyshev", one, grid).tolist()
        if not one.without_cgf:
            methods["chernoff"] = tail_probability("chernoff", one, grid).tolist()
            methods["saddlepoint"] = tail_probability("saddlepoint", one, grid).tolist()
    if results.proof is not None and one is not None:
        methods |= _proved_curves(results.proof, grid, row, output)
    if analysis.surrogate is not None and "importance-sampling" in results.found:
        # Of many coordinates each sample takes long to draw, and a curve is but a picture.
        samples = samples if are_dense(space) else int(_OF_MANY * samples)
        points = min(_SAMPLED, samples // (importance.FEWEST + AIMING))
        if points > 0:
            exact = of_pair(analysis.surrogate, row, output)
            rare = _rare_events(space.at_input(row), exact, output, grid, asked, samples, points)
            methods["importance-sampling"] = rare.tolist()
    if sampled is not None:
        interval = sampled.tail(row, output, grid)
        methods["monte-carlo"] = interval.value.tolist()
        low, high = interval.low.tolist(), interval.high.tolist()
    return Curves(row, output, grid.tolist(), methods, low, high)


def _where_seldom(one: Surrogate, end: float) -> float:
    """The first of growing thresholds that is reached next to never."""
    while True:  # it ends at the latest where every coordinate has struck
        thresholds = np.asarray(end * _GROWTH ** np.arange(_TOGETHER), dtype=np.float64)
        seldom = np.flatnonzero(one.saddlepoint(thresholds) <= _SMALLEST)
        if len(seldom):
            return float(thresholds[seldom[0]])
        end = float(thresholds[-1]) * _GROWTH


def _proved_curves(proof: Provable, grid: Floats, row: int, output: int) -> dict[str, list[float]]:
    """A certificate at a few points of the grid; the exact curve where the output is linear."""
    if proof.is_linear:
        highs = [linear_bracket(proof, row, float(e), output)[1] for e in grid]
        return {"linear-exact": highs}
    values = np.full(len(grid), np.nan)
    for i in _few(_CERTIFIED):
        found = certify_tail(proof, row, float(grid[i]), output)
        values[i] = found.probability
    return {"certificate": values.tolist()}


def _rare_events(
    alone: FaultSpace,
    one: Surrogate,
    output: int,
    grid: Floats,
    asked: Request,
    samples: int,
    points: int,
) -> Floats:
    """Importance sampling at some points of the grid, with at most these samples in all."""
    values = np.full(len(grid), np.nan)
    each = min(samples // points - AIMING, importance.SAMPLES)
    for i in _few(points):
        events = tail_events(one, output, alone.K, float(grid[i]))
        try:
            found = importance.sample_union(
                alone, events, asked.seed, Stream.CURVE, i, asked.confidence, each
            )
        except (
            TheoryError
        ):  # the law cannot be drawn under as strong a tilt as so rare a tail needs
            continue
        values[i] = found.value if found.value > 0 else np.nan
    return values


def _few(count: int) -> list[int]:
    """Some places of the grid, evenly spread."""
    return [int(i) for i in np.linspace(_POINTS // 8, _POINTS - 1, count)]


def histogram_of(results: Results, outputs: Sequence[int] | None = None) -> Histogram | None:
    """Delta of the input and output that vary most (of those named, if any are).

    None without samples that differ.
    """
    analysis, sampled = results.analysis, results.sampled
    if sampled is None or not sampled.variance.max() > 0:
        return None
    variance = _of_named(sampled.variance, outputs or sampled.outputs)
    if not variance.max() > 0:
        return None
    where = np.unravel_index(int(variance.argmax()), variance.shape)
    outcomes, masses = sampled.law(int(where[0]), int(where[1]))
    n = len(sampled.kept)
    counts, edges = np.histogram(outcomes, bins=_BINS, weights=n * masses)
    saddlepoint = normal = None
    if analysis.surrogate is not None:
        one = _drawn(analysis.surrogate, int(where[0]), int(where[1]))
        if one.variance > 0 and not one.without_cgf:
            above = one.saddlepoint(edges, "upper")
            saddlepoint = (n * -np.diff(above)).tolist()
        if one.variance > 0:
            normal = (n * _normal_mass(edges, one)).tolist()
    return Histogram(
        int(where[0]), int(where[1]), edges.tolist(), counts.tolist(), saddlepoint, normal
    )


def _drawn(surrogate: Surrogate, row: int, output: int) -> Surrogate:
    """One of them, as exact as a picture shows."""
    one = of_pair(surrogate, row, output)
    return gathered(one) if isinstance(one, LinearSurrogate) else one


def _normal_mass(edges: Floats, surrogate: Surrogate) -> Floats:
    scale = float(np.sqrt(surrogate.variance))
    mass: Floats = np.diff(ndtr((edges - float(surrogate.mean)) / scale))
    return mass


def _of_named(variance: Floats, outputs: Sequence[int] | None) -> Floats:
    """The variances (B, K), zero but for the outputs that were named."""
    if not outputs:
        return variance
    some = np.zeros_like(variance)
    some[:, list(outputs)] = variance[:, list(outputs)]
    return some


def _variance(results: Results) -> Floats | None:
    if results.sampled is not None:
        return results.sampled.variance
    surrogate = results.analysis.surrogate
    return None if surrogate is None else surrogate.variance
