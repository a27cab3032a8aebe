"""Activation functions as symbols: derivatives, their suprema, ranges on intervals, kinks.

Everything is found from the sympy expression: critical points are the roots of the next derivative,
isolated on a grid and refined, and limits at infinity are taken far out in arbitrary precision. A
bound found this way is verified with interval arithmetic by the tests, for the activations named
here; for a user's expression it assumes that no two critical points lie within one grid step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import sympy as sp
from scipy.special import expit, ndtr

from crashsim_theory.arrays import Array, ArrayLike, as_array, is_number
from crashsim_theory.errors import TheoryError

x = sp.Symbol("x", real=True)
"""The argument of every activation expression."""

REACH, STEP = 40.0, 0.01  # critical points are sought on [-REACH, REACH]
FAR = (60.0, 1e3)  # where limits at infinity are read off
ULPS = 8.0  # numpy and scipy evaluate the functions used here to within a few units
EPSILON = float(np.finfo(float).eps)


@dataclass(frozen=True)
class Activation:
    """A scalar activation phi.

    Attributes:
        name: as people call it.
        expression: phi as a sympy expression in `crashsim_theory.activations.x`.
        kinks: where phi' jumps (ReLU: 0). Derivatives are one-sided there; phi'' ignores them.
        breaks: where a higher derivative jumps although phi' does not (ELU: 0).
        period: of phi, if it is periodic.
        numeric: a stable numpy implementation; None compiles the expression.
    """

    name: str
    expression: Any
    kinks: tuple[float, ...] = ()
    breaks: tuple[float, ...] = ()
    period: float | None = None
    numeric: Callable[[Array], Array] | None = field(default=None, compare=False)

    @property
    def smooth(self) -> bool:
        """Whether phi has a continuous derivative: second-order theory applies."""
        return not self.kinks

    def __call__(self, z: ArrayLike) -> Array:
        """phi(z), elementwise."""
        values = np.asarray(z, dtype=np.float64)
        if self.numeric is not None:
            return self.numeric(values)
        return self.derivative(0, values)

    def derivative(self, order: int, z: ArrayLike) -> Array:
        """The derivative of the given order at z, elementwise (right-sided at a kink)."""
        values = np.asarray(z, dtype=np.float64)
        with np.errstate(all="ignore"):
            found = np.broadcast_to(_compiled(self.expression, order)(values), values.shape)
        found = np.array(found, dtype=np.float64)
        # Quotients of exponentials overflow far out although their limits exist.
        for bad in np.argwhere(~np.isfinite(found)):
            found[tuple(bad)] = _precise(self.expression, order, float(values[tuple(bad)]))
        return found

    def supremum(self, order: int) -> float:
        """sup over all real z of |phi^(order)(z)|, rounded up; order 1, 2 or 3 (L1, L2, L3).

        Away from the kinks. Infinite if the derivative grows without bound.
        """
        if order not in (1, 2, 3):
            raise TheoryError("order", order, "choose 1, 2 or 3")
        return _supremum(self, order)

    def range(self, low: ArrayLike, high: ArrayLike) -> tuple[Array, Array]:
        """(min, max) of phi on [low, high], elementwise, rounded outward."""
        return self._range(0, low, high)

    def slope_range(self, low: ArrayLike, high: ArrayLike) -> tuple[Array, Array]:
        """(min, max) of phi' on [low, high], elementwise, rounded outward (kinks included)."""
        return self._range(1, low, high)

    def derivative_bound(self, order: int, low: ArrayLike, high: ArrayLike) -> Array:
        """sup |phi^(order)| on [low, high], elementwise, rounded up; order 1, 2 or 3."""
        bottom, top = self._range(order, low, high)
        return np.asarray(np.maximum(np.abs(bottom), np.abs(top)))

    def _range(self, order: int, low: ArrayLike, high: ArrayLike) -> tuple[Array, Array]:
        l, u = as_array("low", low), as_array("high", high)  # noqa: E741
        l, u = np.broadcast_arrays(l, u)  # noqa: E741
        if np.any(l > u):
            raise TheoryError("low", low, "must not exceed high")
        ends = [self(z) if order == 0 else self.derivative(order, z) for z in (l, u)]
        bottom, top = np.minimum(*ends), np.maximum(*ends)
        for point, values in _extrema(self, order):
            inside = self._contains(point, l, u)
            bottom = np.where(inside, np.minimum(bottom, min(values)), bottom)
            top = np.where(inside, np.maximum(top, max(values)), top)
        return outward(bottom, top, 1 + np.maximum(np.abs(l), np.abs(u)))

    def _contains(self, point: float, l: Array, u: Array) -> Any:  # noqa: E741
        slack = 1e-9 * (1 + abs(point))
        if self.period is None:
            return (l - slack <= point) & (point <= u + slack)
        first = np.ceil((l - slack - point) / self.period)
        return first <= np.floor((u + slack - point) / self.period)


def outward(low: Array, high: Array, scale: Array) -> tuple[Array, Array]:
    """Widen by a few units in the last place of `scale`, the largest number on the way."""
    return (
        low - ULPS * EPSILON * (np.abs(low) + scale),
        high + ULPS * EPSILON * (np.abs(high) + scale),
    )


@functools.cache
def _derivative(expression: Any, order: int) -> Any:
    return sp.diff(expression, x, order)


@functools.cache
def _compiled(expression: Any, order: int) -> Callable[[Any], Any]:
    compiled: Callable[[Any], Any] = sp.lambdify(x, _derivative(expression, order), "scipy")
    return compiled


def _precise(expression: Any, order: int, at: float) -> float:
    with mpmath.workdps(40):
        return float(sp.lambdify(x, _derivative(expression, order), "mpmath")(mpmath.mpf(at)))


@functools.cache
def _critical_points(activation: Activation, order: int) -> tuple[float, ...]:
    """Where phi^(order) may have an extremum: roots of the next derivative."""
    span = (0.0, activation.period) if activation.period else (-REACH, REACH)
    grid = np.linspace(*span, math.ceil((span[1] - span[0]) / STEP) + 1) + STEP / math.pi
    values = activation.derivative(order + 1, grid)
    crossing = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
    return tuple(_bisect(activation, order + 1, grid[i], grid[i + 1]) for i in crossing)


def _bisect(activation: Activation, order: int, low: float, high: float) -> float:
    sign = np.sign(activation.derivative(order, low))
    for _ in range(60):
        middle = (low + high) / 2
        if np.sign(activation.derivative(order, middle)) == sign:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@functools.cache
def _extrema(activation: Activation, order: int) -> tuple[tuple[float, tuple[float, ...]], ...]:
    """(point, values phi^(order) takes there or just beside it) for all critical points, kinks."""
    points: list[tuple[float, tuple[float, ...]]]
    points = [(c, (c,)) for c in _critical_points(activation, order)]
    beside = 1e-12
    jumps = activation.kinks + activation.breaks
    points += [(k, (k - beside, k, k + beside)) for k in jumps]
    return tuple(
        (point, tuple(float(activation.derivative(order, z)) for z in places))
        for point, places in points
    )


@functools.cache
def _supremum(activation: Activation, order: int) -> float:
    expression = activation.expression
    candidates = [abs(v) for _, values in _extrema(activation, order) for v in values]
    if activation.period is None:
        near, far = (
            max(abs(_precise(expression, order, side * at)) for side in (-1, 1)) for at in FAR
        )
        if far > near * (1 + 1e-3) + 1e-9:
            return math.inf
        candidates += [near, far]
    else:
        candidates.append(abs(float(activation.derivative(order, 0.0))))
    return max(candidates) * (1 + 1e-12)


_SIGMOID = 1 / (1 + sp.exp(-x))

SIGMOID = Activation("sigmoid", _SIGMOID, numeric=lambda z: np.asarray(expit(z)))
TANH = Activation("tanh", sp.tanh(x), numeric=np.tanh)
SOFTPLUS = Activation("softplus", sp.log(1 + sp.exp(x)), numeric=lambda z: np.logaddexp(0, z))
GELU = Activation(
    "gelu", x * (1 + sp.erf(x / sp.sqrt(2))) / 2, numeric=lambda z: np.asarray(z * ndtr(z))
)
GELU_TANH = Activation(
    "gelu-tanh",
    x * (1 + sp.tanh(sp.sqrt(2 / sp.pi) * (x + sp.Rational(44715, 1000000) * x**3))) / 2,
)
SILU = Activation("silu", x * _SIGMOID, numeric=lambda z: np.asarray(z * expit(z)))
ELU = Activation(
    "elu",
    sp.Piecewise((x, x >= 0), (sp.exp(x) - 1, True)),
    breaks=(0.0,),
    numeric=lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
)
SINE = Activation("sine", sp.sin(x), period=2 * math.pi, numeric=np.sin)
RELU = Activation(
    "relu",
    sp.Piecewise((x, x >= 0), (0, True)),
    kinks=(0.0,),
    numeric=lambda z: np.maximum(z, 0.0),
)
IDENTITY = Activation("identity", x, numeric=lambda z: z)

ACTIVATIONS: dict[str, Activation] = {
    a.name: a for a in (SIGMOID, TANH, SOFTPLUS, GELU, GELU_TANH, SILU, ELU, SINE, RELU, IDENTITY)
}


@functools.cache
def leaky_relu(slope: float = 0.01) -> Activation:
    """max(z, slope z), for a slope in [0, 1)."""
    if not is_number(slope) or not 0 <= slope < 1:
        raise TheoryError("slope", slope, "choose a slope in [0, 1)")
    expression = sp.Piecewise((x, x >= 0), (sp.Float(slope) * x, True))
    return Activation(
        f"leaky-relu({slope:g})",
        expression,
        kinks=(0.0,),
        numeric=lambda z: np.maximum(z, slope * z),
    )


def activation(name: str | Activation) -> Activation:
    """The activation of that name, or the given one."""
    if isinstance(name, Activation):
        return name
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise TheoryError("activation", name, f"choose one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]
