"""Making a law from what is known of it: its atoms, its generating function, or its moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp

from crashsim_theory.errors import TheoryError
from crashsim_theory.laws.law import Law, Rule, Sampler, TiltedSampler
from crashsim_theory.laws.symbols import as_expression, t


def law_of_atoms(name: str, atoms: Mapping[Any, Any]) -> Law:
    """A discrete law: everything about it follows from its values and their probabilities.

    Args:
        name: what to call it.
        atoms: probability by value, as numbers or sympy expressions; 2 values or more.

    Raises:
        TheoryError: fewer values, or probabilities whose sum is another number than 1.
    """
    pairs = tuple(
        (as_expression("value", v), as_expression("probability", q)) for v, q in atoms.items()
    )
    total = sp.nsimplify(sp.simplify(sum(q for _, q in pairs)), rational=True, tolerance=1e-12)
    if len(pairs) < 2 or total != 1:
        raise TheoryError("atoms", dict(atoms), "give 2 values or more, of probabilities of sum 1")
    mean = sp.simplify(sum(q * v for v, q in pairs))
    k2, k3, k4 = (
        sp.factor(sp.expand(sum(q * (v - mean) ** order for v, q in pairs))) for order in (2, 3, 4)
    )
    cgf = sp.log(sum(q * sp.exp(t * v) for v, q in pairs))
    return Law(name, _symbols(cgf), mean, k2, k3, k4, cgf, atoms=pairs)


def law_from_cgf(
    name: str,
    cgf: Any,
    *,
    draw: Sampler | None = None,
    nodes: Rule | None = None,
    draw_tilted: TiltedSampler | None = None,
    support: tuple[Any, Any] = (-sp.oo, sp.oo),
) -> Law:
    """A law known by its cumulant generating function, from which its moments are derived.

    Args:
        name: what to call it.
        cgf: log E exp(t e), an expression in `crashsim_theory.laws.t` and the law's parameters.
            Where E exp(t e) is infinite, it must be infinite or not a real number.
        draw: (rng, shape, **parameters) -> independent draws; without, nothing is sampled.
        nodes: (**parameters) -> a quadrature rule, where three nodes that match four moments are
            too few.
        draw_tilted: (rng, tilt, **parameters) -> draws of the tilted law; needed where the
            support is unbounded, for importance sampling alone.
        support: the least and largest value of e.

    Raises:
        TheoryError: sympy finds no moments in it.
    """
    given = as_expression("cgf", cgf)
    try:
        # A series about 0 also where the expression itself is 0/0 there, as log(sinh(t)/t) is.
        series = sp.series(sp.exp(given), t, 0, 5).removeO()
        raw = [sp.simplify(series.coeff(t, order) * sp.factorial(order)) for order in range(5)]
    except (NotImplementedError, ValueError, TypeError) as error:
        raise TheoryError("cgf", cgf, "sympy finds no series about t = 0") from error
    if sp.simplify(raw[0] - 1) != 0:
        raise TheoryError("cgf", cgf, "log E exp(t e) is 0 at t = 0")
    mean = raw[1]
    k2, k3, k4 = (_central(raw, order) for order in (2, 3, 4))
    return Law(
        name, _symbols(given), mean, k2, k3, k4, given, sampler=draw, quadrature=nodes,
        tilted_sampler=draw_tilted, support=support,
    )  # fmt: skip


def _central(raw: list[Any], n: int) -> Any:
    """The central moment of order n from the raw ones, 0 to 4."""
    terms = [sp.binomial(n, j) * raw[j] * (-raw[1]) ** (n - j) for j in range(n + 1)]
    return sp.factor(sp.expand(sum(terms)))


def law_from_moments(
    name: str,
    *,
    mean: Any,
    k2: Any,
    k3: Any,
    k4: Any,
    cgf: Any = None,
    draw: Sampler | None = None,
    nodes: Rule | None = None,
    draw_tilted: TiltedSampler | None = None,
    support: tuple[Any, Any] = (-sp.oo, sp.oo),
) -> Law:
    """A law known by its mean and central moments, numbers or sympy expressions.

    Its parameters are the free symbols of the expressions, in alphabetical order. The rest, as
    ``law_from_cgf`` takes it, may be left out; methods that need it then say so.
    """
    given = {"mean": mean, "k2": k2, "k3": k3, "k4": k4}
    expressions = [as_expression(field, value) for field, value in given.items()]
    m, c2, c3, c4 = expressions
    return Law(
        name, _symbols(*expressions), m, c2, c3, c4, cgf, sampler=draw, quadrature=nodes,
        tilted_sampler=draw_tilted, support=support,
    )  # fmt: skip


def _symbols(*expressions: Any) -> tuple[Any, ...]:
    found = set().union(*(expression.free_symbols for expression in expressions)) - {t}
    return tuple(sorted(found, key=str))
