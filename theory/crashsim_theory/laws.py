"""Laws of one fault coordinate: symbolic moments, cumulant generating function, quadrature.

A site a_i under fault becomes a_i + e_i v_i; the law is that of the random coordinate e_i.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from crashsim_theory.arrays import Array, ArrayLike, as_array, as_nonnegative, as_probability
from crashsim_theory.errors import TheoryError

t = sp.Symbol("t", real=True)
"""The argument of every cumulant generating function."""


@dataclass(frozen=True)
class Moments:
    """Mean and central moments k2, k3, k4 of the fault coordinates, each of shape (N,)."""

    mean: Array
    k2: Array
    k3: Array
    k4: Array

    @staticmethod
    def concatenate(blocks: Sequence[Moments]) -> Moments:
        """The moments of several faults' coordinates, one after the other."""
        if not blocks:
            raise TheoryError("blocks", blocks, "give at least one Moments")

        def joined(name: str) -> Array:
            return np.concatenate([np.atleast_1d(getattr(block, name)) for block in blocks], -1)

        return Moments(joined("mean"), joined("k2"), joined("k3"), joined("k4"))


@dataclass(frozen=True)
class Law:
    """The law of one fault coordinate e, as sympy expressions in its parameters.

    Attributes:
        name: what to call it in formulas and reports.
        parameters: the sympy symbols the other fields may contain, in the order shown to people.
        mean, k2, k3, k4: E e and the central moments E (e - E e)^j.
        cgf: log E exp(t e) in `crashsim_theory.laws.t`, or None where only moments are known.
    """

    name: str
    parameters: tuple[Any, ...]
    mean: Any
    k2: Any
    k3: Any
    k4: Any
    cgf: Any = None

    def __post_init__(self) -> None:
        known = {*self.parameters, t}
        for field in ("mean", "k2", "k3", "k4", "cgf"):
            value = getattr(self, field)
            strange = set() if value is None else _expression(field, value).free_symbols - known
            if strange:
                raise TheoryError(field, value, f"add {sorted(map(str, strange))} to parameters")

    def moments(self, **parameters: ArrayLike) -> Moments:
        """The moments at numeric parameters, which broadcast against each other.

        Raises:
            TheoryError: a parameter is missing, unknown or outside its range.
        """
        values = self._checked(parameters)
        shape = np.broadcast_shapes(*(value.shape for value in values)) if values else ()
        columns = (np.broadcast_to(f(*values), shape) for f in _compiled(self))
        mean, k2, k3, k4 = (np.array(column, dtype=np.float64) for column in columns)
        if np.any(k2 < 0):
            raise TheoryError("k2", k2, "a variance is not negative: check the parameters")
        return Moments(mean, k2, k3, k4)

    def nodes(self, **parameters: ArrayLike) -> tuple[Array, Array]:
        """A quadrature rule of the law: (nodes, weights), each (number of nodes, *shape).

        Exact for Bernoulli ({0, 1} with 1 - p, p); five-point Gauss-Hermite for a normal law (exact
        to degree 9). A law known by its moments gets the three-point rule with a node at the mean
        that matches them all (exact to degree 4).
        """
        if self == BERNOULLI:
            (p,) = self._checked(parameters)
            return np.stack([np.zeros_like(p), np.ones_like(p)]), np.stack([1 - p, p])
        if self == NORMAL:
            (std,) = self._checked(parameters)
            x, w = np.polynomial.hermite_e.hermegauss(5)
            column = (slice(None), *(np.newaxis,) * std.ndim)
            nodes = x[column] * std
            return nodes, np.broadcast_to((w / w.sum())[column], nodes.shape).copy()
        return _three_point_rule(self.moments(**parameters))

    def _checked(self, parameters: dict[str, ArrayLike]) -> list[Array]:
        names = [str(symbol) for symbol in self.parameters]
        if set(parameters) != set(names):
            raise TheoryError("parameters", sorted(parameters), f"{self.name} takes {names}")
        check = {"p": as_probability, "s": as_nonnegative} if self in (BERNOULLI, NORMAL) else {}
        return [check.get(name, as_array)(name, parameters[name]) for name in names]


def _expression(field: str, value: Any) -> Any:
    """A number or sympy expression; no text, of which sympy would run what it holds as code."""
    try:
        return sp.sympify(value, strict=True)
    except sp.SympifyError as error:
        raise TheoryError(field, value, "give a number or a sympy expression") from error


@functools.cache
def _compiled(law: Law) -> tuple[Callable[..., Any], ...]:
    expressions = (law.mean, law.k2, law.k3, law.k4)
    return tuple(sp.lambdify(law.parameters, sp.sympify(e), "numpy") for e in expressions)


def _three_point_rule(moments: Moments) -> tuple[Array, Array]:
    # In units of the standard deviation, with skewness g and kurtosis k, the two outer nodes a, b
    # satisfy a + b = g and a b = g^2 - k; the weights then follow from moments 1 and 2.
    std = np.sqrt(moments.k2)
    scale = np.where(std > 0, std, 1.0)
    skewness, kurtosis = moments.k3 / scale**3, moments.k4 / scale**4
    gap = np.where(std > 0, kurtosis - skewness**2, 1.0)
    if np.any(gap < 1 - 1e-9):
        raise TheoryError("k4", moments.k4, "no law has k4 < k2^2 + k3^2/k2: check the moments")
    root = np.sqrt(skewness**2 / 4 + gap)
    a, b = skewness / 2 + root, skewness / 2 - root
    w_a, w_b = 1 / (a * (a - b)), 1 / (b * (b - a))
    nodes = moments.mean + std * np.stack([b, np.zeros_like(a), a])
    return nodes, np.stack([w_b, 1 - w_a - w_b, w_a])


def law_from_moments(name: str, *, mean: Any, k2: Any, k3: Any, k4: Any) -> Law:
    """A law known by its mean and central moments, numbers or sympy expressions.

    Its parameters are the free symbols of the expressions, in alphabetical order.
    """
    given = {"mean": mean, "k2": k2, "k3": k3, "k4": k4}
    expressions = [_expression(field, value) for field, value in given.items()]
    symbols = set().union(*(expression.free_symbols for expression in expressions))
    return Law(name, tuple(sorted(symbols, key=str)), *expressions)


def _bernoulli() -> Law:
    p = sp.Symbol("p", nonnegative=True)
    cgf = sp.log(1 - p + p * sp.exp(t))
    return Law("Bernoulli", (p,), p, *_central_moments(sp.exp(cgf), p), cgf)


def _normal() -> Law:
    s = sp.Symbol("s", nonnegative=True)
    cgf = s**2 * t**2 / 2
    return Law("Normal", (s,), sp.Integer(0), *_central_moments(sp.exp(cgf), sp.Integer(0)), cgf)


def _central_moments(generating: Any, mean: Any) -> tuple[Any, Any, Any]:
    """k2, k3, k4 as derivatives at 0 of the centred moment generating function."""
    centred = sp.exp(-mean * t) * generating
    k2, k3, k4 = (sp.factor(sp.diff(centred, t, order).subs(t, 0)) for order in (2, 3, 4))
    return k2, k3, k4


BERNOULLI = _bernoulli()
"""e in {0, 1}, P(e = 1) = p: crashes, stuck-at faults, sign flips, bit flips."""

NORMAL = _normal()
"""e ~ Normal(0, s^2), s a standard deviation: gain noise and additive noise."""
