"""E Delta and Var Delta derived from a truncated Taylor polynomial, for any law and order 1 to 4.

A polynomial in a few independent symbolic coordinates with symbolic derivatives F_i, F_ij, ... is
built, its expectation and variance are taken exactly, and monomials that differ by a permutation of
the coordinates are collected into contractions. The result holds for any number of coordinates,
because one more coordinate gives the same contractions with the same coefficients: this is checked
each time. Numeric evaluation runs over the derived terms; no formula is typed in.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import sympy as sp
from sympy.polys.rings import ring

from crashsim_theory.arrays import Array, as_array
from crashsim_theory.errors import TheoryError
from crashsim_theory.laws import Law, Moments
from crashsim_theory.proofs.contractions import Contraction, Factor, canonical

Point: TypeAlias = Literal["mean", "zero"]
Polynomial: TypeAlias = Any  # an element of a sympy polynomial ring

HIGHEST_MOMENT = 4


@dataclass(frozen=True)
class Term:
    """A rational coefficient times a contraction."""

    coefficient: Any
    contraction: Contraction


@dataclass(frozen=True)
class Derivation:
    """E and Var of Delta = F(e) - F(0), for the Taylor polynomial of F at `point`.

    With point = "mean" the polynomial is in e - E e, and `mean` is E F(e) - F(E e): add
    F(E e) - F(0) to get E Delta. With point = "zero" it is in e, and `mean` is E Delta.

    Source: order 1 at zero is bound b3 of arXiv 1902.01686, which writes p where the variance of a
    Bernoulli coordinate is k2 = p (1 - p). The others follow by the same algebra.
    """

    order: int
    point: Point
    law: Law | None
    mean_terms: tuple[Term, ...]
    variance_terms: tuple[Term, ...]
    neglected: str

    @property
    def mean(self) -> Any:
        """The mean as a sympy expression in contraction symbols."""
        return _expression(self.mean_terms, self.law)

    @property
    def variance(self) -> Any:
        """The variance as a sympy expression in contraction symbols."""
        return _expression(self.variance_terms, self.law)

    @property
    def contractions(self) -> tuple[Contraction, ...]:
        """Every contraction that occurs in `mean` or `variance`."""
        found = [term.contraction for term in self.mean_terms + self.variance_terms]
        if self.law is not None:
            found = [contraction.derivatives_only for contraction in found]
        return tuple(dict.fromkeys(found))

    def text(self) -> str:
        """The formulas for a terminal."""
        mean, variance = self._left_sides()
        return "\n".join(
            [
                f"{mean} = {sp.sstr(self.mean)}",
                f"{variance} = {sp.sstr(self.variance)}",
                f"neglected: {self.neglected}",
            ]
        )

    def latex(self) -> str:
        """The formulas as an aligned LaTeX block."""
        names = {contraction.symbol: contraction.latex for contraction in self.contractions}
        mean = sp.latex(self.mean, symbol_names=names)
        variance = sp.latex(self.variance, symbol_names=names)
        left = (
            "\\mathbb{E} F(e) - F(\\mathbb{E} e)"
            if self.point == "mean"
            else ("\\mathbb{E} \\Delta")
        )
        return (
            "\\begin{aligned}\n"
            f"{left} &\\approx {mean} \\\\\n"
            f"\\operatorname{{Var}} \\Delta &\\approx {variance}\n"
            "\\end{aligned}"
        )

    def _left_sides(self) -> tuple[str, str]:
        return ("E F(e) - F(E e)" if self.point == "mean" else "E Delta"), "Var Delta"

    def evaluate_mean(
        self,
        moments: Moments,
        gradient: Any = None,
        hessian_diagonal: Any = None,
        *,
        hessian: Any = None,
        third_diagonal: Any = None,
        third: Any = None,
        fourth_diagonal: Any = None,
        fourth: Any = None,
        contractions: Mapping[str, Any] | None = None,
    ) -> Array:
        """E of the Taylor polynomial minus its value at the point, shape (...).

        Args:
            moments: of the N coordinates.
            gradient: dF/de_i at the point, (..., N).
            hessian_diagonal: d2F/de_i^2, (..., N); enough for every mean at the mean point.
            hessian: all second derivatives, (..., N, N).
            third_diagonal, third: d3F/de_i^3 (..., N); all third derivatives (..., N, N, N).
            fourth_diagonal, fourth: d4F/de_i^4 (..., N); all fourth ones (..., N, N, N, N).
            contractions: values (...) of contractions that are already known, by their text.

        Raises:
            TheoryError: a derivative the formula needs is missing.
        """
        arrays = _arrays(
            moments,
            gradient=gradient,
            hessian_diagonal=hessian_diagonal,
            hessian=hessian,
            third_diagonal=third_diagonal,
            third=third,
            fourth_diagonal=fourth_diagonal,
            fourth=fourth,
        )
        return _evaluate(self.mean_terms, arrays, contractions)

    def evaluate_variance(
        self,
        moments: Moments,
        gradient: Any = None,
        hessian: Any = None,
        *,
        hessian_diagonal: Any = None,
        third_diagonal: Any = None,
        third: Any = None,
        fourth_diagonal: Any = None,
        fourth: Any = None,
        contractions: Mapping[str, Any] | None = None,
    ) -> Array:
        """Var of the Taylor polynomial, shape (...). Arguments and errors as in evaluate_mean.

        A Hessian too large to store is replaced by the contractions it enters, for instance
        `contractions={"sum_{i!=j} k2_i k2_j F_ij^2": value}` with `hessian_diagonal=`.
        """
        arrays = _arrays(
            moments,
            gradient=gradient,
            hessian_diagonal=hessian_diagonal,
            hessian=hessian,
            third_diagonal=third_diagonal,
            third=third,
            fourth_diagonal=fourth_diagonal,
            fourth=fourth,
        )
        return _evaluate(self.variance_terms, arrays, contractions)


@functools.cache
def derive(order: int = 1, point: Point = "mean", law: Law | None = None) -> Derivation:
    """Derive E Delta and Var Delta from the Taylor polynomial of the given order.

    Args:
        order: 1 to 4, of the moments that a law has. The mean is complete, and the variance of
            orders 1 and 2. At orders 3 and 4 the variance keeps the terms whose derivatives have
            total order at most 4: the others need moments beyond the fourth.
        point: expand at e = E e ("mean") or at e = 0 ("zero", the paper's choice).
        law: None keeps the moments symbolic and coordinate by coordinate; a law is inserted with
            the same parameters at every coordinate, and the result collected by their powers.

    Raises:
        TheoryError: an order or point there is no derivation for.
    """
    if not isinstance(order, int) or not 1 <= order <= HIGHEST_MOMENT:
        raise TheoryError(
            "order", order, "choose 1, 2, 3 or 4: higher ones need moments beyond the fourth"
        )
    if point not in ("mean", "zero"):
        raise TheoryError("point", point, 'choose "mean" or "zero"')
    mean_terms, variance_terms = _terms(order, point)
    return Derivation(order, point, law, mean_terms, variance_terms, _neglected(order, point))


@functools.cache
def _terms(order: int, point: Point) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    # Distinct coordinates in one monomial: at the mean point each must occur twice among at most
    # four; at zero a monomial of the variance needs only one coordinate shared by its two halves.
    coordinates = 2 if point == "mean" else max(3, order)
    few, more = _Taylor(coordinates, order, point), _Taylor(coordinates + 1, order, point)
    mean, variance = _collect(few, few.mean), _collect(few, few.variance)
    if (mean, variance) != (_collect(more, more.mean), _collect(more, more.variance)):
        raise RuntimeError(f"order {order} at {point}: one more coordinate changes the pattern")
    return mean, variance


class _Taylor:
    """The Taylor polynomial minus F(point) in `size` coordinates, with its mean and variance."""

    def __init__(self, size: int, order: int, point: Point, with_variance: bool = True) -> None:
        orders = range(1, order + 1)
        tensors = [
            i for r in orders for i in itertools.combinations_with_replacement(range(size), r)
        ]
        moments = [(name, (i,)) for name in ("m", "k2", "k3", "k4") for i in range(size)]
        self.atoms = [("c", (i,)) for i in range(size)] + moments + [("F", i) for i in tensors]
        names = [name + "_" + "_".join(map(str, indices)) for name, indices in self.atoms]
        self.ring, *generators = ring(names, sp.QQ)
        self.generator = dict(zip(self.atoms, generators, strict=True))
        parts = {r: self._polynomial(size, r, point) for r in orders}
        means = {r: self._expectation(part) for r, part in parts.items()}
        self.mean = sum(means.values(), start=self.ring.zero)
        if with_variance:
            # Products of derivatives of a higher total order would need higher moments.
            limit = min(2 * order, HIGHEST_MOMENT)
            pairs = [(r, s) for r in orders for s in orders if r + s <= limit]
            square = sum((parts[r] * parts[s] for r, s in pairs), start=self.ring.zero)
            squared = sum((means[r] * means[s] for r, s in pairs), start=self.ring.zero)
            self.variance = self._expectation(square) - squared

    def _polynomial(self, size: int, r: int, point: Point) -> Polynomial:
        """The part with derivatives of order r."""
        e = [self.generator["c", (i,)] for i in range(size)]
        if point == "zero":
            e = [centred + self.generator["m", (i,)] for i, centred in enumerate(e)]
        total = self.ring.zero
        for indices in itertools.product(range(size), repeat=r):
            derivative = self.generator["F", tuple(sorted(indices))]
            powers = math.prod((e[i] for i in indices), start=self.ring.one)
            total += derivative * powers * sp.QQ(1, math.factorial(r))
        return total

    def _expectation(self, polynomial: Polynomial) -> Polynomial:
        """Replace c_i^a by the a-th central moment, coordinate by coordinate (independence)."""
        total: dict[tuple[int, ...], Any] = {}
        for exponents, coefficient in polynomial.terms():
            replaced = list(exponents)
            for position, (name, indices) in enumerate(self.atoms):
                power = exponents[position]
                if name != "c" or power == 0:
                    continue
                if power == 1:
                    break
                replaced[position] = 0
                replaced[self.atoms.index((f"k{power}", indices))] += 1
            else:
                key = tuple(replaced)
                total[key] = total.get(key, 0) + coefficient
        return self.ring.from_dict(total)

    def monomials(self, polynomial: Polynomial) -> Iterator[tuple[tuple[Factor, ...], Any]]:
        for exponents, coefficient in polynomial.terms():
            yield (
                tuple(
                    Factor(name, indices, power)
                    for power, (name, indices) in zip(exponents, self.atoms, strict=True)
                    if power
                ),
                coefficient,
            )


def _collect(taylor: _Taylor, polynomial: Polynomial) -> tuple[Term, ...]:
    """Collect the monomials that are permutations of each other; their coefficients must agree."""
    coefficients: dict[Contraction, Any] = {}
    for factors, coefficient in taylor.monomials(polynomial):
        contraction, symmetries = canonical(factors)
        # A sum over ordered tuples of distinct coordinates meets each monomial `symmetries` times.
        share = sp.Rational(int(coefficient.numerator), int(coefficient.denominator)) / symmetries
        if coefficients.setdefault(contraction, share) != share:
            raise RuntimeError(f"{contraction.text}: coefficients differ between coordinates")
    ordered = sorted(coefficients, key=lambda c: (c.size, len(c.text), c.text))
    return tuple(Term(coefficients[contraction], contraction) for contraction in ordered)


def _expression(terms: tuple[Term, ...], law: Law | None) -> Any:
    if law is None:
        return sp.Add(*(term.coefficient * term.contraction.symbol for term in terms))
    values = {"m": law.mean, "k2": law.k2, "k3": law.k3, "k4": law.k4}
    total = sp.Integer(0)
    for term in terms:
        contraction = term.contraction
        moments = sp.prod([values[f.name] ** f.power for f in contraction.moment_factors])
        total += term.coefficient * moments * contraction.derivatives_only.symbol
    return sp.collect(sp.expand(total), law.parameters)


def _neglected(order: int, point: Point) -> str:
    note = "" if order < 3 else "; in the variance, products of derivatives of total order above 4"
    if order == HIGHEST_MOMENT:  # the next order's terms have moments that no law here has
        return f"derivatives of order {order + 1} and higher{note}"
    taylor = _Taylor(2 if point == "mean" else order + 1, order + 1, point, with_variance=False)
    known = {term.contraction for term in _collect(taylor, taylor.mean)}
    first = known - {term.contraction for term in _terms(order, point)[0]}
    if not first:  # at the mean point the first order contributes nothing
        return f"derivatives of order {order + 1} and higher"
    shown = sorted(first, key=lambda c: (c.order_in_p, len(c.text), c.text))
    names = ", ".join(f"{c.text} (order p^{c.order_in_p})" for c in shown)
    return f"derivatives of order {order + 1} and higher, first in the mean: {names}{note}"


_AXES = {"hessian": 2, "third": 3, "fourth": 4}


def _arrays(moments: Moments, **given: Any) -> dict[str, Array | None]:
    arrays = {name: None if a is None else as_array(name, a) for name, a in given.items()}
    size = moments.mean.shape[-1]
    for name, array in arrays.items():
        axes = _AXES.get(name, 1)
        if array is not None and array.shape[-axes:] != (size,) * axes:
            remedy = f"its last {axes} axes must have length N = {size}, the number of moments"
            raise TheoryError(f"{name}.shape", array.shape, remedy)
    return {"m": moments.mean, "k2": moments.k2, "k3": moments.k3, "k4": moments.k4, **arrays}


def _evaluate(
    terms: tuple[Term, ...],
    arrays: dict[str, Array | None],
    known: Mapping[str, Any] | None,
) -> Array:
    known = dict(known or {})
    leading = [
        array.shape[: -_AXES.get(name, 1)] for name, array in arrays.items() if array is not None
    ]
    total = np.zeros(np.broadcast_shapes(*leading))
    for term in terms:
        text = term.contraction.text
        value = known.get(text)
        value = term.contraction.evaluate(arrays) if value is None else as_array(text, value)
        total = total + float(term.coefficient) * value
    return total
