"""Polynomials against sympy's."""

import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from crashsim_theory.polynomials import Polynomial

QUANTITIES = [("c", (0,)), ("c", (1,)), ("k2", (0,)), ("F", (0, 1)), ("F", (1, 1))]
SYMBOLS = {q: sp.Symbol(f"{q[0]}_{'_'.join(map(str, q[1]))}") for q in QUANTITIES}


def at_random(rng):
    def monomial():
        return tuple(sorted(QUANTITIES[i] for i in rng.integers(5, size=rng.integers(4))))

    shares = [Fraction(int(a), int(b)) for a, b in rng.integers((-3, 1), (4, 7), (4, 2))]
    return Polynomial.summed((monomial(), share) for share in shares)


def as_sympy(polynomial):
    return sum(
        sp.Rational(c.numerator, c.denominator) * math.prod(SYMBOLS[q] for q in monomial)
        for monomial, c in polynomial
    )


@pytest.mark.parametrize("seed", range(20))
def test_sums_and_products_are_those_of_sympy(seed):
    rng = np.random.default_rng(seed)
    a, b, c = (at_random(rng) for _ in range(3))
    found, wanted = a * b + c - b * b, as_sympy(a) * as_sympy(b) + as_sympy(c) - as_sympy(b) ** 2
    assert sp.expand(as_sympy(found) - wanted) == 0
    assert all(coefficient != 0 for _, coefficient in found)
    assert found - found == Polynomial()


def test_a_constant_times_a_quantity():
    half = Polynomial.constant(Fraction(1, 2)) * Polynomial.of("F", 0, 1)
    assert dict(half) == {(("F", (0, 1)),): Fraction(1, 2)}
