"""The symbols and expressions that formulas of laws are written in."""

from __future__ import annotations

from typing import Any

import sympy as sp

from crashsim_theory.errors import TheoryError

t = sp.Symbol("t", real=True)
"""The argument of every cumulant generating function."""


def as_expression(name: str, value: Any) -> Any:
    """A number or sympy expression; no text, of which sympy would run what it holds as code."""
    try:
        return sp.sympify(value, strict=True)
    except sp.SympifyError as error:
        raise TheoryError(name, value, "give a number or a sympy expression") from error


def check_symbols(name: str, value: Any, known: set[Any]) -> None:
    """Raises TheoryError where an expression contains other symbols than the known ones."""
    strange = set() if value is None else as_expression(name, value).free_symbols - known
    if strange:
        raise TheoryError(name, value, f"add {sorted(map(str, strange))} to parameters")
