"""Tail bounds from the mean and the variance alone, and the union over rival classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from crashsim_theory.arrays import Array, as_array, as_nonnegative, as_probability
from crashsim_theory.errors import TheoryError
from crashsim_theory.tails.surrogate import Side


def chebyshev(mean: Any, variance: Any, eps: Any, side: Side = "both") -> Array:
    """Chebyshev's bound on P(X >= eps), P(X <= -eps) or P(|X| >= eps); arguments broadcast.

    One-sided: Var / (Var + (eps - mean)^2) (Cantelli). Both sides: the best of
    Var / (eps - |mean|)^2, of (Var + mean^2) / eps^2 and of the two one-sided bounds' sum. A true
    bound if mean and variance are exact. Source: the tail of arXiv 1902.01686 uses Var / (eps -
    mean)^2.
    """
    m, v = as_array("mean", mean), as_nonnegative("variance", variance)
    threshold = as_array("eps", eps)
    if not isinstance(side, str):
        raise TheoryError("side", side, 'choose "upper", "lower" or "both"')
    if side == "upper":
        return _cantelli(threshold - m, v)
    if side == "lower":
        return _cantelli(threshold + m, v)
    if side != "both":
        raise TheoryError("side", side, 'choose "upper", "lower" or "both"')
    gap = threshold - np.abs(m)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        about_mean = np.where(gap > 0, v / gap**2, 1.0)
        about_zero = np.where(threshold > 0, (v + m * m) / threshold**2, 1.0)
    one_sided = _cantelli(threshold - m, v) + _cantelli(threshold + m, v)
    best = np.minimum(np.minimum(about_mean, about_zero), one_sided)
    return np.asarray(np.minimum(best, 1.0))


def _cantelli(gap: Array, variance: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(gap > 0, variance / (variance + gap**2), 1.0)


def union(probabilities: Any, axis: int = -1) -> Array:
    """The union bound: the sum over `axis` (rival classes, outputs, exceptions), capped at 1."""
    values = as_probability("probabilities", probabilities)
    if not isinstance(axis, int) or not -values.ndim <= axis < values.ndim:
        raise TheoryError("axis", axis, f"the probabilities have {values.ndim} axes")
    summed = values.sum(axis)
    return np.asarray(np.minimum(summed, 1.0))
