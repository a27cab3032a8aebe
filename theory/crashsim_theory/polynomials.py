"""Polynomials in named quantities with indices, such as k2_0 F_01^2: exact sums and products.

What the derivation of a Taylor polynomial's moments needs, and no more, so that it does not wait
for sympy's import; sympy expands the same polynomials in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TypeAlias

Quantity: TypeAlias = tuple[str, tuple[int, ...]]
"""A name and the coordinates that it belongs to: ("F", (0, 1)) is F_01."""

Monomial: TypeAlias = tuple[Quantity, ...]
"""The factors of a product in order, one that is squared twice."""


class Polynomial:
    """A sum of monomials with rational coefficients, none of them zero.

    Args:
        terms: a whole number for each monomial.
        over: what all of them are divided by: whole numbers are multiplied faster than fractions.
    """

    def __init__(self, terms: Mapping[Monomial, int] | None = None, over: int = 1) -> None:
        self._terms = {monomial: count for monomial, count in (terms or {}).items() if count}
        self._over = over

    @classmethod
    def of(cls, name: str, *indices: int) -> Polynomial:
        """One quantity."""
        return cls({((name, indices),): 1})

    @classmethod
    def constant(cls, value: Fraction | int) -> Polynomial:
        return cls({(): value.numerator}, value.denominator)

    @classmethod
    def summed(cls, terms: Iterable[tuple[Monomial, Fraction]]) -> Polynomial:
        """The sum of terms, of which several may have the same monomial."""
        given = list(terms)
        over = math.lcm(*(coefficient.denominator for _, coefficient in given))
        counts: dict[Monomial, int] = {}
        for monomial, c in given:
            counts[monomial] = counts.get(monomial, 0) + c.numerator * (over // c.denominator)
        return cls(counts, over)

    def __iter__(self) -> Iterator[tuple[Monomial, Fraction]]:
        return ((monomial, Fraction(n, self._over)) for monomial, n in self._terms.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Polynomial) -> Polynomial:
        over = math.lcm(self._over, other._over)
        mine, its = over // self._over, over // other._over
        total = {monomial: mine * count for monomial, count in self._terms.items()}
        for monomial, count in other._terms.items():
            total[monomial] = total.get(monomial, 0) + its * count
        return Polynomial(total, over)

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + other * Polynomial.constant(-1)

    def __mul__(self, other: Polynomial) -> Polynomial:
        total: dict[Monomial, int] = {}
        for left, a in self._terms.items():
            for right, b in other._terms.items():
                product = tuple(sorted(left + right))
                total[product] = total.get(product, 0) + a * b
        return Polynomial(total, self._over * other._over)
