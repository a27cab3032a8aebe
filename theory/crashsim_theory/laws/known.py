"""The laws of the built-in faults, Bernoulli and normal: numbers at once, formulas when asked for.

A run that only draws and averages needs a handful of numbers of these laws, and no sympy, whose
import takes longer than many runs. So their numbers are written in numpy, and the formulas they
come from are derived when somebody reads one; tests hold the two equal.
"""

from __future__ import annotations

import functools
from importlib import import_module
from operator import attrgetter
from typing import Any

import numpy as np

from crashsim_theory.arrays import Array, as_nonnegative, as_probability
from crashsim_theory.laws.law import Law, Rule, Sampler, TiltedSampler
from crashsim_theory.laws.numbers import Numbers


class KnownLaw(Law):
    """A law whose numbers are given, and whose formulas are derived when one is first read.

    Args:
        name: of the law.
        numbers: what the formulas come to.
        formulas: the function in `crashsim_theory.laws.formulas` that derives them.
        constant: the name of this law in this module.
        sampler, quadrature, tilted_sampler: as in `Law`.
    """

    _numbers: Numbers
    _formulas: str
    _constant: str

    def __init__(
        self,
        name: str,
        numbers: Numbers,
        *,
        formulas: str,
        constant: str,
        sampler: Sampler | None = None,
        quadrature: Rule | None = None,
        tilted_sampler: TiltedSampler | None = None,
    ) -> None:
        # The instances are frozen, as those of every law are.
        vars(self).update(
            name=name, _numbers=numbers, _formulas=formulas, _constant=constant, sampler=sampler,
            quadrature=quadrature, tilted_sampler=tilted_sampler,
        )  # fmt: skip

    @functools.cached_property
    def formulas(self) -> Law:
        """The law as sympy expressions, derived."""
        derived: Law = getattr(import_module("crashsim_theory.laws.formulas"), self._formulas)()
        return derived

    @property
    def numbers(self) -> Numbers:
        return self._numbers

    def __eq__(self, other: object) -> bool:
        if self is other or isinstance(other, KnownLaw) or not isinstance(other, Law):
            return self is other
        return self.formulas == other

    __hash__ = Law.__hash__

    def __reduce__(self) -> str:
        return self._constant

    parameters = property(attrgetter("formulas.parameters"))
    mean = property(attrgetter("formulas.mean"))
    k2 = property(attrgetter("formulas.k2"))
    k3 = property(attrgetter("formulas.k3"))
    k4 = property(attrgetter("formulas.k4"))
    cgf = property(attrgetter("formulas.cgf"))
    atoms = property(attrgetter("formulas.atoms"))
    support = property(attrgetter("formulas.support"))


def _bernoulli_moments(p: Array) -> tuple[Any, ...]:
    k2 = p * (1 - p)
    return p, k2, k2 * (1 - 2 * p), k2 * (3 * p**2 - 3 * p + 1)


def _bernoulli_cumulants(t: Array, p: Array) -> tuple[Any, ...]:
    struck = p * np.exp(t)
    tilted = struck / (1 - p + struck)
    k2 = tilted * (1 - tilted)
    return np.log(1 - p + struck), tilted, k2, k2 * (1 - 2 * tilted)


def _normal_cumulants(t: Array, s: Array) -> tuple[Any, ...]:
    return s**2 * t**2 / 2, s**2 * t, s**2, 0.0


def _draw_normal(rng: np.random.Generator, shape: tuple[int, ...], s: Array) -> Array:
    return rng.normal(0.0, s, shape)


def _draw_tilted_normal(rng: np.random.Generator, tilt: Array, s: Array) -> Array:
    return rng.normal(s**2 * tilt, s)


def _gauss_hermite(s: Array) -> tuple[Array, Array]:
    x, w = np.polynomial.hermite_e.hermegauss(5)
    column = (slice(None), *(np.newaxis,) * s.ndim)
    nodes = x[column] * s
    return nodes, np.broadcast_to((w / w.sum())[column], nodes.shape).copy()


BERNOULLI: Law = KnownLaw(
    "Bernoulli",
    Numbers(
        checks={"p": as_probability},
        moments=_bernoulli_moments,
        ends=lambda p: (0.0, 1.0),
        is_bounded=True,
        values=lambda p: (0.0, 1.0),
        chances=lambda p: (1 - p, p),
        cumulants=_bernoulli_cumulants,
    ),
    formulas="bernoulli",
    constant="BERNOULLI",
)
"""e in {0, 1}, P(e = 1) = p: crashes, stuck-at faults, sign flips, bit flips."""

NORMAL: Law = KnownLaw(
    "Normal",
    Numbers(
        checks={"s": as_nonnegative},
        moments=lambda s: (0.0, s**2, 0.0, 3 * s**4),
        ends=lambda s: (-np.inf, np.inf),
        is_bounded=False,
        cumulants=_normal_cumulants,
    ),
    formulas="normal",
    constant="NORMAL",
    sampler=_draw_normal,
    quadrature=_gauss_hermite,
    tilted_sampler=_draw_tilted_normal,
)
"""e ~ Normal(0, s^2), s a standard deviation: gain noise and additive noise."""
