"""Checks that the arguments of many functions share."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import HardwareError

__all__ = ["as_numbers", "is_number", "probability", "whole"]


def is_number(value: Any) -> bool:
    """Whether a value is one real number of Python or numpy, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int, most: int = 2**64 - 1) -> int:
    """An integer from `least` to `most`."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integral or not least <= value <= most:
        wanted = f"of at least {least}" if most == 2**64 - 1 else f"from {least} to {most}"
        raise HardwareError(f"{name} must be an integer {wanted}, got {value!r}")
    return int(value)


def probability(name: str, value: Any) -> float:
    """A number in [0, 1]."""
    if not is_number(value) or not 0.0 <= value <= 1.0:
        raise HardwareError(f"{name} must be a probability in [0, 1], got {value!r}")
    return float(value)


def as_numbers(name: str, value: Any) -> NDArray[Any]:
    """`value` as an array of float64."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise HardwareError(f"{name} must be an array of numbers, got {value!r:.80}") from None
