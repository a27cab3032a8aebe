"""A law's sympy expressions as functions in numpy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import sympy as sp

from crashsim_theory.arrays import as_array, as_nonnegative, as_probability
from crashsim_theory.laws.numbers import Check, Function, Numbers
from crashsim_theory.laws.symbols import as_expression, t

if TYPE_CHECKING:
    from crashsim_theory.laws.law import Law


@functools.cache
def compiled(law: Law) -> Numbers:
    """What a law's expressions come to; each is compiled when it is first asked for."""
    values, chances = zip(*law.atoms, strict=True) if law.atoms else ((), ())
    return Numbers(
        checks={str(symbol): _check(symbol, chances) for symbol in law.parameters},
        moments=_function(law.parameters, lambda: (law.mean, law.k2, law.k3, law.k4)),
        ends=_function(law.parameters, lambda: law.support),
        is_bounded=all(as_expression("support", end).is_finite for end in law.support),
        values=_function(law.parameters, lambda: values) if law.atoms else None,
        chances=_function(law.parameters, lambda: chances) if law.atoms else None,
        cumulants=None if law.cgf is None else _cumulants(law),
    )


def _check(symbol: Any, chances: Sequence[Any]) -> Check:
    if symbol in chances:
        return as_probability
    return as_nonnegative if symbol.is_nonnegative else as_array


def _cumulants(law: Law) -> Function:
    k = sp.sympify(law.cgf)
    return _function(
        (t, *law.parameters), lambda: [sp.diff(k, t, order) if order else k for order in range(4)]
    )


def _function(arguments: Sequence[Any], expressions: Callable[[], Sequence[Any]]) -> Function:
    @functools.cache
    def functions() -> list[Callable[..., Any]]:
        return [sp.lambdify(arguments, sp.sympify(e), "numpy") for e in expressions()]

    return lambda *values: tuple(function(*values) for function in functions())
