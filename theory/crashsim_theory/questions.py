"""What an engineer asks: the largest p, the width, eps for delta, and where the variance arises.

Closed forms where there are any (derived by sympy once), else bracketed root finding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sympy as sp

from crashsim_theory.arrays import Array, as_array, as_nonnegative, as_number, as_probability
from crashsim_theory.errors import TheoryError
from crashsim_theory.tails.coordinates import Bernoulli, Coordinates
from crashsim_theory.tails.surrogate import LinearSurrogate, Side

SMALLEST_P = 1e-15


def largest_p(tail: Callable[[float], float], delta: float, highest: float = 0.5) -> float:
    """The p up to which tail(p) <= delta, at most `highest`.

    The first crossing is sought on a grid of eight points a decade and refined by bisection: the
    tail need not increase over all p (if everything crashes nothing is random). The p returned
    meets the requirement itself.

    Raises:
        TheoryError: even p = 1e-15 is too much.
    """
    _check_delta(delta)
    if tail(SMALLEST_P) > delta:
        raise TheoryError("delta", delta, "no p reaches it: raise eps or delta")
    low = math.log(SMALLEST_P)
    steps = math.ceil((math.log(highest) - low) / math.log(10) * 8)
    for high in np.linspace(low, math.log(highest), steps + 1)[1:].tolist():
        if tail(math.exp(high)) > delta:
            break
        low = high
    else:
        return highest
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if tail(math.exp(middle)) <= delta else (low, middle)
    return math.exp(low)


def largest_p_of_gains(
    gains: Any,
    eps: float,
    delta: float,
    method: Literal["chernoff", "saddlepoint"] = "chernoff",
    side: Side = "both",
) -> float:
    """The largest common crash probability with tail <= delta, for Delta = sum b_i g_i.

    The gains (N,) are taken as they are at p = 0 (the derivative, or single-fault differences).
    """
    g = as_array("gains", gains)

    def tail(p: float) -> float:
        s = LinearSurrogate(0.0, g, Coordinates([Bernoulli(np.full(g.size, p))]))
        return float(s.chernoff(eps, side) if method == "chernoff" else s.saddlepoint(eps, side))

    return largest_p(tail, delta)


@functools.cache
def _largest_p_formula() -> tuple[Any, tuple[Any, ...]]:
    p, s1, s2, eps, delta = sp.symbols("p S1 S2 eps delta", positive=True)
    # Var = delta (eps - E)^2 with Var = p (1 - p) S2 and E = p S1: a quadratic in p.
    roots = sp.solve(p * (1 - p) * s2 - delta * (eps - p * s1) ** 2, p)
    at_zero = [root for root in roots if sp.limit(root, eps, 0) == 0]
    return at_zero[0], (s1, s2, eps, delta)


def largest_p_chebyshev(sum_g: float, sum_g2: float, eps: float, delta: float) -> float:
    """The largest p with p (1 - p) sum g^2 / (eps - p |sum g|)^2 <= delta, in closed form.

    The expression comes from sympy; `largest_p_expression` shows it.
    """
    _check_delta(as_number("delta", delta))
    sum_g, sum_g2 = as_number("sum_g", sum_g), as_number("sum_g2", sum_g2)
    eps = as_number("eps", eps)
    expression, symbols = _largest_p_formula()
    values = (max(abs(sum_g), 1e-300), sum_g2, eps, delta)
    value = complex(sp.lambdify(symbols, expression, "numpy")(*map(np.complex128, values)))
    if abs(value.imag) > 1e-9:  # the bound holds for every p
        return 1.0
    return min(1.0, max(0.0, value.real))


def largest_p_expression() -> Any:
    """The sympy expression behind `largest_p_chebyshev`, in S1 = |sum g|, S2 = sum g^2."""
    return _largest_p_formula()[0]


def eps_chebyshev(mean: Any, variance: Any, delta: Any) -> Array:
    """The eps with Chebyshev's bound P(|Delta| >= eps) <= delta: |mean| + sqrt(Var / delta)."""
    m, v, d = as_array("mean", mean), as_nonnegative("variance", variance), _check_delta(delta)
    return np.asarray(np.abs(m) + np.sqrt(v / d))


@dataclass(frozen=True)
class Width:
    """How wide a layer must be.

    Attributes:
        factor: needed width over the present one (below 1: the layer may shrink).
        neurons: the needed width, rounded up.
    """

    factor: float
    neurons: int


def width_needed(
    gains: Any,
    p: float,
    eps: float,
    delta: float,
    method: Literal["chernoff", "chebyshev"] = "chernoff",
) -> Width:
    """The width with P(|Delta| >= eps) <= delta in the continuous limit.

    The limit keeps the profile of the n gains: r times the neurons, each with 1 / r of the gain.
    Then K_r(t) = r K(t / r), so Chernoff's exponent is r times the present one, and the mean stays
    while the variance falls as 1 / r.

    Raises:
        TheoryError: eps does not exceed |E Delta|: no width helps, lower p.
    """
    g = as_array("gains", gains)
    _check_delta(delta)
    s = LinearSurrogate(0.0, g, Coordinates([Bernoulli(np.full(g.size, p))]))
    mean = float(s.mean)
    eps = as_number("eps", eps)
    if eps <= abs(mean):
        raise TheoryError(
            "eps", eps, f"must exceed |E Delta| = {abs(mean):.3g}, whatever the width"
        )
    if method == "chebyshev":
        factor = float(s.variance) / (delta * (eps - abs(mean)) ** 2)
    elif method == "chernoff":
        exponents = [-_log(float(s.chernoff(eps, side))) for side in ("upper", "lower")]
        factor = _chernoff_factor(exponents, delta)
    else:
        raise TheoryError("method", method, 'choose "chernoff" or "chebyshev"')
    return Width(factor, max(1, math.ceil(factor * g.size)))


def _chernoff_factor(exponents: Sequence[float], delta: float) -> float:
    """r with sum over the two sides of exp(-r I) = delta; the sum decreases in r."""
    finite = [i for i in exponents if math.isfinite(i)]
    if not finite:
        return 0.0
    low, high = 0.0, (math.log(2) - math.log(delta)) / min(finite)
    for _ in range(200):
        middle = (low + high) / 2
        above = sum(math.exp(-middle * i) for i in finite) > delta
        low, high = (middle, high) if above else (low, middle)
    return high


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


@dataclass(frozen=True)
class VarianceShare:
    """What one layer (or any set of coordinates) contributes to Var Delta.

    Attributes:
        variance: sum of k2_i g_i^2 over the layer.
        share: of the total.
        sensitivity: d Var / d p of the layer, for crashes with one p: (1 - 2p) sum g_i^2.
    """

    variance: float
    share: float
    sensitivity: float


def variance_shares(
    p: Any, gains: Any, layers: Sequence[Hashable] | Any
) -> dict[Hashable, VarianceShare]:
    """Var Delta split by layer: crashes are independent, so the parts add up.

    Args:
        p: crash probabilities (N,).
        gains: derivatives or differences at the mean point, (N,).
        layers: the label of each coordinate, (N,).
    """
    probability, g = as_probability("p", p), as_array("gains", gains)
    labels = list(layers)
    if len(labels) != g.size:
        raise TheoryError("layers", len(labels), f"give one label per coordinate: {g.size}")
    probability = np.broadcast_to(probability, g.shape)
    parts = probability * (1 - probability) * g**2
    slopes = (1 - 2 * probability) * g**2
    total = float(parts.sum()) or 1.0
    shares = {}
    for label in dict.fromkeys(labels):
        own = np.array([one == label for one in labels])
        variance = float(parts[own].sum())
        shares[label] = VarianceShare(variance, variance / total, float(slopes[own].sum()))
    return shares


def _check_delta(delta: Any) -> Array:
    values = as_probability("delta", delta)
    if np.any((values <= 0) | (values >= 1)):
        raise TheoryError("delta", delta, "lies strictly between 0 and 1")
    return values
