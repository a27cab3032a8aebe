"""Polynomials in named quantities with indices, such as k2_0 F_01^2: exact sums and products.

What the derivation of a Taylor polynomial's moments needs, and no more, so that it does not wait
for sympy's import; sympy expands the same polynomials in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TypeAlias

Quantity: TypeAlias = tuple[str, tuple[int, ...]]
"""A name and the coordinates that it belongs to: ("F", (0, 1)) is F_01."""

Monomial: TypeAlias = tuple[Quantity, ...]
"""The factors of a product in order, one that is squared twice."""


class Polynomial:
    """A sum of monomials with rational coefficients, none of them zero."""

    def __init__(self, terms: Mapping[Monomial, Fraction | int] | None = None) -> None:
        self.terms = {m: Fraction(c) for m, c in (terms or {}).items() if c}

    @classmethod
    def of(cls, name: str, *indices: int) -> Polynomial:
        """One quantity."""
        return cls({((name, indices),): 1})

    @classmethod
    def constant(cls, value: Fraction | int) -> Polynomial:
        return cls({(): value})

    def __iter__(self) -> Iterator[tuple[Monomial, Fraction]]:
        return iter(self.terms.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self.terms == other.terms

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Polynomial) -> Polynomial:
        total = dict(self.terms)
        for monomial, coefficient in other:
            total[monomial] = total.get(monomial, Fraction(0)) + coefficient
        return Polynomial(total)

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + other * Polynomial.constant(-1)

    def __mul__(self, other: Polynomial) -> Polynomial:
        total: dict[Monomial, Fraction] = {}
        for left, a in self:
            for right, b in other:
                product = tuple(sorted(left + right))
                total[product] = total.get(product, Fraction(0)) + a * b
        return Polynomial(total)
