"""Single-fault estimates from a sample of coordinates, where each alone takes too long.

With gains at hand, only what they miss of single faults is sampled: E Delta = sum m_i g_i +
sum m_i (D_i - g_i), Var Delta = sum k2_i g_i^2 + sum k2_i (D_i^2 - g_i^2), of which the second sums
are estimated (a difference estimator: Saerndal, Swensson and Wretman, *Model Assisted Survey
Sampling*, 1992, section 6.3). Without gains they are estimated as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from crashsim.analytic.gains import MEMORY, Gains
from crashsim.analytic.shares import SharesByValue
from crashsim.analytic.single_sample import Chosen, choose
from crashsim.arrays import Floats, Integers
from crashsim.coordinates.points import Points, no_fault
from crashsim.errors import NotApplicableError
from crashsim.results.estimate import Interval
from crashsim.results.estimates import Estimates, estimates_of
from crashsim.space import FaultSpace

SingleMethod = Literal["single", "mean-point-single"]
SAMPLE = 512  # single faults that are looked at, at most,
FEWEST = 64  # and at least


@dataclass(frozen=True)
class _Sums:
    """Sums over all coordinates: known parts, and terms that stand for the rest.

    Attributes:
        mean, variance: (B, K) the known parts.
        of_mean, of_variance: (m, B, K) of which the averages estimate the rest.
    """

    mean: Floats
    variance: Floats
    of_mean: Floats
    of_variance: Floats


def sampled_singles(
    space: FaultSpace,
    method: SingleMethod,
    *,
    count: int = SAMPLE,
    seed: int = 0,
    confidence: float = 0.95,
    memory: int = MEMORY,
) -> Estimates:
    """``single`` or ``mean-point-single`` of a sample of coordinates, with intervals.

    Args:
        space: of independent faults that strike or do not.
        method: around the clean network or around the mean point.
        count: how many coordinates are looked at; ``mean-point-single`` takes two passes for each.
        seed: of the choice.
        confidence: of the intervals, which are Student's.
        memory: in bytes, for gains.

    Raises:
        NotApplicableError: other faults; or nothing varies; or bits of exponents are struck.
    """
    if space.counts or not all(p.fault.is_binary for p in space.placements):
        raise NotApplicableError("of as many coordinates, for faults that strike or do not")
    if not space.is_random:
        raise NotApplicableError("nothing is random")
    if space.may_overflow:
        raise NotApplicableError(
            "a sample of single faults hardly shows the few bits of exponents whose numbers are "
            "immense and make up the moments; word-strata strikes each bit of each layer"
        )
    gains = None
    if space.has_derivatives:
        gains = Gains.of(space, "zero" if method == "single" else "mean", memory)
    shares = None if gains is None else SharesByValue.of(gains)
    if shares is not None and not shares.is_any:
        gains = shares = None
    chosen = choose(space, shares, count, seed, block=1 + (method != "single"))
    sums = _sums(space, method, gains, chosen)
    shift = gains.shift if gains is not None and method != "single" else 0.0
    if gains is None and method != "single":
        m = space.mean_point
        shift = space.outputs(Points.at(m))[0] - space.clean()
    note = f"{count} of {space.N} coordinates" + (" beside the gradient" if gains else "")

    def estimates(
        quantity: Literal["mean", "variance"], known: Floats, terms: Floats, least: float
    ) -> Estimates:
        totals = known, terms
        per_input = _interval(*totals, confidence, least)
        pooled = _interval(known.mean(0), terms.mean(1), confidence, least)
        total = None
        if quantity == "variance":
            total = _interval(known.mean(0).sum(-1), terms.mean(1).sum(-1), confidence, least)
        return estimates_of(
            method,
            quantity,
            "statistical",
            per_input=per_input,
            pooled=pooled,
            total=total,
            confidence=confidence,
            note=note,
        )

    found = estimates("mean", sums.mean + shift, sums.of_mean, -np.inf)
    return found + estimates("variance", sums.variance, sums.of_variance, 0.0)


def _sums(space: FaultSpace, method: SingleMethod, gains: Gains | None, chosen: Chosen) -> _Sums:
    columns, back = np.unique(chosen.columns, return_inverse=True)
    step = _passes(space, method, columns)
    weight = 1.0 / chosen.chances
    spread: Callable[[Floats], Floats] = lambda a: a[:, None, None]  # noqa: E731
    if method == "single":
        of_mean = step[back] * spread(chosen.mean * weight)
        of_variance = step[back] ** 2 * spread(chosen.k2 * weight)
        if gains is None:
            zero = np.zeros(step.shape[1:])
            return _Sums(zero, zero, of_mean, of_variance)
        sums, linear = gains.sums, _linear(gains, columns)[back]
        of_mean -= linear * spread(chosen.mean * weight)
        of_variance -= linear**2 * spread(chosen.k2 * weight)
        return _Sums(sums.mean, sums.variance, of_mean, of_variance)
    # E over e_i of F(m, e_i) - F(m) is of the curvature along e_i, which the gradient says is 0.
    ends = step.reshape(2, len(columns), *step.shape[1:])[:, back]
    mean = spread(chosen.mean)
    of_mean = ((1 - mean) * ends[0] + mean * ends[1]) * spread(weight)
    of_variance = (ends[1] - ends[0]) ** 2 * spread(chosen.k2 * weight)
    zero = np.zeros(step.shape[1:])
    if gains is None:
        return _Sums(zero, zero, of_mean, of_variance)
    of_variance -= _linear(gains, columns)[back] ** 2 * spread(chosen.k2 * weight)
    return _Sums(zero, gains.sums.variance, of_mean, of_variance)


def _passes(space: FaultSpace, method: SingleMethod, columns: Integers) -> Floats:
    """(m, B, K) F(e_i = 1) - F(0) of each; or (2 m, B, K) F(m, e_i = 0 and then 1) - F(m)."""
    if method == "single":
        points = Points.one_at_a_time(no_fault(space.N), columns, np.ones(len(columns)))
        return space.outputs(points) - space.clean()
    m = space.mean_point
    # F(m) as one of them: computed otherwise it is rounded otherwise, alike for millions
    # of coordinates, which would add up.
    each = np.concatenate([columns[:1], columns, columns])
    values = np.concatenate([m[columns[:1]], np.repeat([0.0, 1.0], len(columns))])
    found: Floats = space.outputs(Points.one_at_a_time(m, each, values))
    passes: Floats = found[1:] - found[0]
    return passes


def _linear(gains: Gains, columns: Integers) -> Floats:
    """(m, B, K) the gains of some coordinates."""
    n = gains.space.N
    points = Points.one_at_a_time(no_fault(n), columns, np.ones(len(columns)))
    return gains.along(points) + gains.sums.mean


def _interval(known: Floats, terms: Floats, confidence: float, least: float) -> Interval:
    """Of a known part and the mean of independent terms (m, ...)."""
    m = len(terms)
    value = known + terms.mean(0)
    half = stdtrit(m - 1, (1 + confidence) / 2) * terms.std(0, ddof=1) / np.sqrt(m)
    value = np.maximum(value, least)
    return Interval(value, np.maximum(value - half, least), value + half)
