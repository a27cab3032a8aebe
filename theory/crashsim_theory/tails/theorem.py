"""The main theorem of arXiv 1902.01686: Chebyshev plus the chance of too many crashes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from crashsim_theory.arrays import as_number
from crashsim_theory.errors import TheoryError


@dataclass(frozen=True)
class TheoremTail:
    """The paper's bound on P(Delta >= eps) and its parts.

    Attributes:
        probability: delta_0 + Var / (eps - E - remainder)^2, at most 1.
        alpha: the allowed fraction of crashes it was evaluated at.
        delta_0: exp(-n q KL(alpha || p)): the chance that more than that crash.
        chebyshev: the second term.
    """

    probability: float
    alpha: float
    delta_0: float
    chebyshev: float


def divergence(alpha: float, p: float) -> float:
    """KL(alpha || p) between Bernoulli laws, in nats."""
    terms = ((alpha, p), (1 - alpha, 1 - p))
    return math.fsum(a * math.log(a / b) if b > 0 else math.inf for a, b in terms if a > 0)


def theorem_tail(
    mean: float,
    variance: float,
    eps: float,
    *,
    n: int,
    p: float,
    q: float = 1.0,
    curvature: float = 0.0,
    alpha: float | None = None,
) -> TheoremTail:
    """P(Delta >= eps) <= delta_0(alpha) + Var / (eps - E - curvature alpha^2 / 2)^2.

    A bound under the assumption that mean and variance are those of the first-order surrogate and
    that, as long as at most a fraction alpha of the (balance-weighted) neurons crash, the surrogate
    errs by at most curvature alpha^2 / 2 (curvature = n^2 sup |F_ij| in the continuous limit).
    Balance enters through q = `balance(weight)`: n q neurons count as independent and equal.

    Args:
        alpha: the allowed fraction of crashes, above p; None takes the best.

    Raises:
        TheoryError: p, q or alpha outside its range.
    """
    mean, variance = as_number("mean", mean), as_number("variance", variance)
    eps, curvature = as_number("eps", eps), as_number("curvature", curvature)
    for name, value in (("n", n), ("p", p), ("q", q), ("alpha", 1 if alpha is None else alpha)):
        as_number(name, value)
    if not 0 < p < 1:
        raise TheoryError("p", p, "lies strictly between 0 and 1")
    if not 0 < q <= 1:
        raise TheoryError("q", q, "a balance factor lies in (0, 1]")
    if alpha is not None and not p < alpha <= 1:
        raise TheoryError("alpha", alpha, f"lies between p = {p} and 1")

    def parts(a: float) -> TheoremTail:
        delta_0 = math.exp(-n * q * divergence(a, p))
        gap = eps - mean - curvature * a * a / 2
        chebyshev = min(1.0, variance / gap / gap) if gap > 0 else 1.0
        return TheoremTail(min(1.0, delta_0 + chebyshev), a, delta_0, chebyshev)

    if alpha is not None:
        return parts(alpha)
    grid = np.append(p + (1 - p) * np.geomspace(1e-6, 1, 200), 1.0)
    start = int(np.argmin([parts(min(float(a), 1.0)).probability for a in grid]))
    low, high = grid[max(start - 1, 0)], min(1.0, grid[min(start + 1, len(grid) - 1)])
    candidates = [min(float(grid[start]), 1.0)]
    if low < high:
        found = minimize_scalar(
            lambda a: parts(a).probability, bounds=(low, high), method="bounded"
        )
        candidates.append(float(found.x))
    return min((parts(a) for a in candidates), key=lambda tail: tail.probability)
