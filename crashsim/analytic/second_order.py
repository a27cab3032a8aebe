"""Second-order estimates: all pairs of faults, and curvature at the mean point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from crashsim_theory import derive
from scipy.special import stdtrit

from crashsim.analytic.first_order import Analysis, shift_to
from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import NotApplicableError
from crashsim.results.estimate import Interval
from crashsim.results.estimates import Estimates, deterministic, estimates_of
from crashsim.space import FaultSpace

MAX_PAIRED = 150  # coordinates whose pairs are all tried
MAX_EXACT_HESSIAN = 256  # coordinates up to which the whole Hessian is computed
_PROBES = 32
_STEP = 4096
_AT_ONCE = 2**18  # numbers of the inputs' interactions, small enough for the cache
_HESSIAN_NOTE = "kinks (ReLU, max) have no second derivative: theirs is left out"


def pairs(space: FaultSpace, analysis: Analysis) -> None:
    """``pairs``: every fault alone and every two together on the otherwise clean network.

    With D_ij = F(i and j) - F(i) - F(j) + F(0), Delta is replaced by sum e_i D_i + sum_{i<j} e_i
    e_j D_ij: a polynomial whose mean and variance the second-order derivation at e = 0 gives
    exactly (coordinates are 0 or 1, so it has no squares). Exact to second order in p. Adds to
    ``analysis``.

    Raises:
        NotApplicableError: a coordinate takes other values than 0 and 1.
    """
    noise = next((p.fault.name for p in space.placements if not p.fault.is_binary), None)
    if noise is not None:
        raise NotApplicableError(f"for faults that strike or do not, not for {noise}")
    n, shape = space.N, (space.B, space.K)
    clean = space.clean()
    single = np.empty((*shape, n))
    for columns, outputs in space.single_changes(np.zeros(n), np.ones(n)):
        single[..., columns] = np.moveaxis(outputs - clean, 0, -1)
    first, second = np.triu_indices(n, 1)
    interaction = np.zeros((*shape, n, n))
    for start in range(0, len(first), _STEP):
        i, j = first[start : start + _STEP], second[start : start + _STEP]
        rows = np.repeat(np.arange(len(i)), 2)
        columns = np.stack([i, j], axis=1).ravel()
        points = Points(len(i), np.zeros(n), rows, columns, np.ones(len(rows)))
        together = np.moveaxis(space.outputs(points) - clean, 0, -1)
        interaction[..., i, j] = together - single[..., i] - single[..., j]
        interaction[..., j, i] = interaction[..., i, j]
    formula = derive(order=2, point="zero")
    analysis.formulas["pairs"] = {"text": formula.text(), "latex": formula.latex()}
    mean, variance = np.empty((2, *shape))
    inputs = max(1, _AT_ONCE // (space.K * n * n))  # bounds the memory of the contractions
    for start in range(0, space.B, inputs):
        b = slice(start, start + inputs)
        gradient, hessian = single[b], interaction[b]
        mean[b] = formula.evaluate_mean(space.moments, gradient, hessian=hessian)
        variance[b] = formula.evaluate_variance(space.moments, gradient, hessian)
    note = "F_i are the differences D_i, F_ij are D_ij, and F_ii is 0"
    analysis.estimates += deterministic("pairs", "mean", "estimate", mean, note=note)
    analysis.estimates += deterministic("pairs", "variance", "estimate", variance, note=note)


def mean_point_curvature(
    space: FaultSpace, analysis: Analysis, *, seed: int, confidence: float
) -> None:
    """``mean-point-curvature``: second order around the mean point.

    Up to 256 coordinates from the whole Hessian; beyond, from Hessian-vector products with random
    signs z (Hutchinson 1990): E z'Hz is its trace, E |Hz|^2 the sum of its squares, and the
    product of two independent estimates of a diagonal entry is unbiased for its square. Those
    have a statistical interval over probes, besides the truncation's error.

    Args:
        space: in double precision.
        analysis: to which the estimates are added.
        seed, confidence: of the random signs, and of the interval over them.

    Raises:
        NotApplicableError: torch has no second derivative of an operation of the model.
    """
    formula = derive(order=2, point="mean")
    analysis.formulas["mean-point-curvature"] = {"text": formula.text(), "latex": formula.latex()}
    shift = shift_to(space, space.mean_point)
    if space.N <= MAX_EXACT_HESSIAN:
        mean, variance = np.empty((2, space.B, space.K))
        for part, gradient, hessian in _products(space, np.eye(space.N)):
            mean[part] = formula.evaluate_mean(space.moments, gradient, hessian=hessian)
            mean[part] += shift[part]
            variance[part] = formula.evaluate_variance(space.moments, gradient, hessian)
        method, note = "mean-point-curvature", _HESSIAN_NOTE
        analysis.estimates += deterministic(method, "mean", "estimate", mean, note=note)
        analysis.estimates += deterministic(method, "variance", "estimate", variance, note=note)
        return
    means, variances = _probed(space, seed)
    means += shift
    analysis.estimates += _spread("mean", means, confidence)
    analysis.estimates += _spread("variance", variances, confidence)


def _products(space: FaultSpace, vectors: Floats) -> Iterator[tuple[slice, Floats, Floats]]:
    """Products of the Hessian at the mean point with vectors; see ``hessian_products``."""
    try:
        yield from space.hessian_products(space.mean_point, vectors)
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        raise NotApplicableError(f"torch has no second derivative here ({error})") from error


def _probed(space: FaultSpace, seed: int) -> tuple[Floats, Floats]:
    """Independent unbiased estimates of mean and variance, (pairs of probes, B, K)."""
    formula = derive(order=2, point="mean")
    m = space.moments
    scale = np.sqrt(m.k2)
    signs = generator(seed, Stream.PROBES).choice([-1.0, 1.0], size=(_PROBES, space.N))
    means, variances = np.empty((2, _PROBES // 2, space.B, space.K))
    # With S = diag sqrt(k2), all contractions are of the Hessian S H S.
    for part, gradient, products in _products(space, signs * scale):
        scaled = products * scale  # (b, K, probes, N): S H S z
        diagonal = scaled * signs
        for pair in range(_PROBES // 2):
            one, two = diagonal[:, :, 2 * pair], diagonal[:, :, 2 * pair + 1]
            both = (one + two) / 2
            squares = one * two  # k2_i^2 F_ii^2, entry by entry
            ratio = np.divide(1.0, m.k2, out=np.zeros_like(m.k2), where=m.k2 > 0)
            total = (scaled[:, :, 2 * pair : 2 * pair + 2] ** 2).sum(-1).mean(-1)
            known = {
                "sum_i k2_i F_ii": both.sum(-1),
                "sum_i k3_i F_i F_ii": (both * gradient * m.k3 * ratio).sum(-1),
                "sum_i k2_i^2 F_ii^2": squares.sum(-1),
                "sum_i k4_i F_ii^2": (squares * m.k4 * ratio**2).sum(-1),
                "sum_{i!=j} k2_i k2_j F_ij^2": total - squares.sum(-1),
            }
            means[pair, part] = formula.evaluate_mean(m, gradient, contractions=known)
            variances[pair, part] = formula.evaluate_variance(m, gradient, contractions=known)
    return means, variances


def _spread(quantity: Literal["mean", "variance"], values: Floats, confidence: float) -> Estimates:
    """Estimates from independent ones, (n, B, K), with Student's interval of their mean."""

    def interval(each: Floats) -> Interval:
        n = len(each)
        half = stdtrit(n - 1, 0.5 + confidence / 2) * each.std(0, ddof=1) / np.sqrt(n)
        mean = each.mean(0)
        return Interval(mean, mean - half, mean + half)

    pooled = values.mean(1)
    return estimates_of(
        "mean-point-curvature",
        quantity,
        "estimate",
        per_input=interval(values),
        pooled=interval(pooled),
        total=interval(pooled.sum(1)) if quantity == "variance" else None,
        confidence=confidence,
        note=f"interval over {_PROBES} random probes of the Hessian; {_HESSIAN_NOTE}",
    )
