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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import numpy as np

from crashsim_theory.arrays import Array, as_array
from crashsim_theory.errors import TheoryError
from crashsim_theory.laws import Law, Moments
from crashsim_theory.polynomials import Monomial, Polynomial
from crashsim_theory.proofs.contractions import Contraction, Factor, canonical

Point: TypeAlias = Literal["mean", "zero"]

HIGHEST_MOMENT = 4


@dataclass(frozen=True)
class Term:
    """A rational coefficient times a contraction."""

    coefficient: Fraction
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
        left_mean, left_variance = self._left_sides()
        if self.law is None:
            mean, variance = _sum_as_text(self.mean_terms), _sum_as_text(self.variance_terms)
        else:
            import sympy as sp

            mean, variance = sp.sstr(self.mean), sp.sstr(self.variance)
        return "\n".join(
            [
                f"{left_mean} = {mean}",
                f"{left_variance} = {variance}",
                f"neglected: {self.neglected}",
            ]
        )

    def latex(self) -> str:
        """The formulas as an aligned LaTeX block."""
        if self.law is None:
            mean, variance = _sum_as_latex(self.mean_terms), _sum_as_latex(self.variance_terms)
        else:
            import sympy as sp

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
    mean, variance = _collect(few.mean), _collect(few.variance)
    if (mean, variance) != (_collect(more.mean), _collect(more.variance)):
        raise RuntimeError(f"order {order} at {point}: one more coordinate changes the pattern")
    return mean, variance


class _Taylor:
    """The Taylor polynomial minus F(point) in `size` coordinates, with its mean and variance.

    Its quantities: the derivatives F, the centred coordinates c, and their moments m, k2, k3, k4.
    """

    def __init__(self, size: int, order: int, point: Point, with_variance: bool = True) -> None:
        orders = range(1, order + 1)
        parts = {r: _of_order(r, size, point) for r in orders}
        means = {r: _expectation(part) for r, part in parts.items()}
        self.mean = sum(means.values(), start=Polynomial())
        if with_variance:
            # Products of derivatives of a higher total order would need higher moments.
            limit = min(2 * order, HIGHEST_MOMENT)
            pairs = [(r, s) for r in orders for s in orders if r + s <= limit]
            square = sum((parts[r] * parts[s] for r, s in pairs), start=Polynomial())
            squared = sum((means[r] * means[s] for r, s in pairs), start=Polynomial())
            self.variance = _expectation(square) - squared


def _of_order(r: int, size: int, point: Point) -> Polynomial:
    """The part of the Taylor polynomial with derivatives of order r."""
    e = [Polynomial.of("c", i) for i in range(size)]
    if point == "zero":
        e = [centred + Polynomial.of("m", i) for i, centred in enumerate(e)]
    total = Polynomial()
    for indices in itertools.combinations_with_replacement(range(size), r):
        # Each derivative stands for all orders of its indices: 1 / r! times their number.
        share = Fraction(1, math.prod(map(math.factorial, Counter(indices).values())))
        powers = math.prod((e[i] for i in indices), start=Polynomial.constant(share))
        total += Polynomial.of("F", *indices) * powers
    return total


def _expectation(polynomial: Polynomial) -> Polynomial:
    """Replace c_i^a by the a-th central moment, coordinate by coordinate (independence)."""
    return Polynomial.summed(_averaged(polynomial))


def _averaged(polynomial: Polynomial) -> Iterator[tuple[Monomial, Fraction]]:
    for monomial, coefficient in polynomial:
        powers = Counter(indices for name, indices in monomial if name == "c")
        if 1 in powers.values():
            continue
        moments = [(f"k{power}", indices) for indices, power in powers.items()]
        rest = [quantity for quantity in monomial if quantity[0] != "c"]
        yield tuple(sorted(rest + moments)), coefficient


def _factors(polynomial: Polynomial) -> Iterator[tuple[tuple[Factor, ...], Fraction]]:
    for monomial, coefficient in polynomial:
        factors = (Factor(*quantity, power) for quantity, power in Counter(monomial).items())
        yield tuple(factors), coefficient


def _collect(polynomial: Polynomial) -> tuple[Term, ...]:
    """Collect the monomials that are permutations of each other; their coefficients must agree."""
    coefficients: dict[Contraction, Fraction] = {}
    for factors, coefficient in _factors(polynomial):
        contraction, symmetries = canonical(factors)
        # A sum over ordered tuples of distinct coordinates meets each monomial `symmetries` times.
        share = coefficient / symmetries
        if coefficients.setdefault(contraction, share) != share:
            raise RuntimeError(f"{contraction.text}: coefficients differ between coordinates")
    ordered = sorted(coefficients, key=lambda c: (c.size, len(c.text), c.text))
    return tuple(Term(coefficients[contraction], contraction) for contraction in ordered)


def _sum_as_text(terms: tuple[Term, ...]) -> str:
    """The sum as sympy writes it."""
    return _written(terms, lambda c: c.text, "{0}*{1}", "{0}/{1}")


def _sum_as_latex(terms: tuple[Term, ...]) -> str:
    return _written(terms, lambda c: c.latex, "{0} {1}", "\\frac{{{0}}}{{{1}}}")


def _written(
    terms: tuple[Term, ...], name: Callable[[Contraction], str], product: str, quotient: str
) -> str:
    parts = []
    for term in sorted(terms, key=lambda term: term.contraction.text):
        size = abs(term.coefficient)
        part = name(term.contraction)
        part = part if size.numerator == 1 else product.format(size.numerator, part)
        part = part if size.denominator == 1 else quotient.format(part, size.denominator)
        parts += ["-" if term.coefficient < 0 else "+", part]
    return " ".join(parts).removeprefix("+ ") or "0"


def _expression(terms: tuple[Term, ...], law: Law | None) -> Any:
    import sympy as sp

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
    known = {term.contraction for term in _collect(taylor.mean)}
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
