"""The formulas of the built-in faults' laws, derived from their generating functions."""

from __future__ import annotations

from typing import Any

import sympy as sp

from crashsim_theory.laws.law import Law
from crashsim_theory.laws.symbols import t


def bernoulli() -> Law:
    p = sp.Symbol("p", nonnegative=True)
    cgf = sp.log(1 - p + p * sp.exp(t))
    atoms = ((sp.Integer(0), 1 - p), (sp.Integer(1), p))
    moments = _central_moments(sp.exp(cgf), p)
    return Law("Bernoulli", (p,), p, *moments, cgf, atoms=atoms, support=(0, 1))


def normal() -> Law:
    s = sp.Symbol("s", nonnegative=True)
    cgf = s**2 * t**2 / 2
    k2, k3, k4 = _central_moments(sp.exp(cgf), sp.Integer(0))
    return Law("Normal", (s,), sp.Integer(0), k2, k3, k4, cgf)


def _central_moments(generating: Any, mean: Any) -> tuple[Any, Any, Any]:
    """k2, k3, k4 as derivatives at 0 of the centred moment generating function."""
    centred = sp.exp(-mean * t) * generating
    k2, k3, k4 = (sp.factor(sp.diff(centred, t, order).subs(t, 0)) for order in (2, 3, 4))
    return k2, k3, k4
