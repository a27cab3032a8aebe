"""Checks that the arguments of many functions share: each returns the value, or says what to do."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crashsim.errors import ArgumentError


def whole(argument: str, value: Any, least: int, most: int | None = None) -> int:
    """An integer from ``least`` to ``most``; of Python or numpy, and no truth value."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ArgumentError(f"{argument}={value!r}; give an integer {wanted}")
    return int(value)


def number(
    argument: str,
    value: Any,
    remedy: str,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """A finite number of Python or numpy within these limits; no truth value."""
    if (
        not is_number(value)
        or not math.isfinite(value)
        or not (least <= value <= most and above < value < below)
    ):
        raise ArgumentError(f"{argument}={value!r}; give {remedy}")
    return float(value)


def one_of(argument: str, value: Any, choices: Sequence[str]) -> None:
    """ArgumentError unless the value is one of these strings."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{argument}={value!r}; choose among {', '.join(choices)}")


def fraction(argument: str, value: Any) -> float:
    """A number strictly between 0 and 1, as is its difference from 1."""
    found = number(argument, value, "a number between 0 and 1", above=0, below=1)
    return number(argument, found, "a number between 0 and 1", most=1 - 1e-15, least=1e-15)


def callback(argument: str, value: Any) -> None:
    """ArgumentError unless the value is None or can be called."""
    if value is not None and not callable(value):
        raise ArgumentError(f"{argument}={value!r}; give a function, or leave it out")


def instance(argument: str, value: Any, kind: type | tuple[type, ...], remedy: str) -> None:
    """ArgumentError unless the value is of this class, or one of these."""
    if not isinstance(value, kind):
        raise ArgumentError(f"{argument}={value!r}; give {remedy}")


def path(argument: str, value: Any) -> Path:
    """A path, of a string or of pathlib."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise ArgumentError(f"{argument}={value!r}; give the name of a file")
    return Path(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
