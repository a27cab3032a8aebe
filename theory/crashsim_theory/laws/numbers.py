"""What the formulas of a law come to in numpy: functions of its parameters' values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from crashsim_theory.arrays import Array

Check: TypeAlias = Callable[[str, Any], Array]
"""(name, value) -> the value as an array; raises TheoryError where it is out of range."""

Function: TypeAlias = Callable[..., tuple[Any, ...]]
"""(*values of the parameters, in their order) -> numbers that broadcast with them."""


@dataclass(frozen=True)
class Numbers:
    """A law's formulas as functions in numpy.

    Attributes:
        checks: what a value of each parameter must be, by its name and in the law's order.
        moments: (*values) -> mean, k2, k3, k4.
        ends: (*values) -> the least and largest value of e.
        is_bounded: whether both are finite.
        values, chances: (*values) -> the values that e takes, and their probabilities; None for a
            law that is not known by its atoms.
        cumulants: (t, *values) -> the cumulant generating function and its first three derivatives
            at t; None where it is not known.
    """

    checks: Mapping[str, Check]
    moments: Function
    ends: Function
    is_bounded: bool
    values: Function | None = None
    chances: Function | None = None
    cumulants: Function | None = None
