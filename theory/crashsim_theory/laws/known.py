"""The laws of the built-in faults: Bernoulli and normal."""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy as sp

from crashsim_theory.arrays import Array
from crashsim_theory.laws.law import Law, t


def _bernoulli() -> Law:
    p = sp.Symbol("p", nonnegative=True)
    cgf = sp.log(1 - p + p * sp.exp(t))
    atoms = ((sp.Integer(0), 1 - p), (sp.Integer(1), p))
    return Law("Bernoulli", (p,), p, *_central_moments(sp.exp(cgf), p), cgf, atoms=atoms)


def _normal() -> Law:
    s = sp.Symbol("s", nonnegative=True)
    cgf = s**2 * t**2 / 2
    k2, k3, k4 = _central_moments(sp.exp(cgf), sp.Integer(0))
    return Law(
        "Normal", (s,), sp.Integer(0), k2, k3, k4, cgf, sampler=_draw_normal,
        quadrature=_gauss_hermite, tilted_sampler=_draw_tilted_normal,
    )  # fmt: skip


def _draw_normal(rng: np.random.Generator, shape: tuple[int, ...], s: Array) -> Array:
    return rng.normal(0.0, s, shape)


def _draw_tilted_normal(rng: np.random.Generator, tilt: Array, s: Array) -> Array:
    return rng.normal(s**2 * tilt, s)


def _gauss_hermite(s: Array) -> tuple[Array, Array]:
    x, w = np.polynomial.hermite_e.hermegauss(5)
    column = (slice(None), *(np.newaxis,) * s.ndim)
    nodes = x[column] * s
    return nodes, np.broadcast_to((w / w.sum())[column], nodes.shape).copy()


def _central_moments(generating: Any, mean: Any) -> tuple[Any, Any, Any]:
    """k2, k3, k4 as derivatives at 0 of the centred moment generating function."""
    centred = sp.exp(-mean * t) * generating
    k2, k3, k4 = (sp.factor(sp.diff(centred, t, order).subs(t, 0)) for order in (2, 3, 4))
    return k2, k3, k4


BERNOULLI = _bernoulli()
"""e in {0, 1}, P(e = 1) = p: crashes, stuck-at faults, sign flips, bit flips."""

NORMAL = _normal()
"""e ~ Normal(0, s^2), s a standard deviation: gain noise and additive noise."""
