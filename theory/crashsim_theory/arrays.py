"""Array types and the input checks shared by the numeric modules."""

import numbers
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from crashsim_theory.errors import TheoryError

Array: TypeAlias = npt.NDArray[np.float64]
ArrayLike: TypeAlias = npt.ArrayLike


def is_number(value: object) -> bool:
    """Whether a value is one real number of Python or numpy, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_number(argument: str, value: Any) -> float:
    """`value` as one finite number; raises TheoryError otherwise."""
    if not is_number(value) or not np.isfinite(float(value)):
        raise TheoryError(argument, value, "give one finite number")
    return float(value)


def as_array(argument: str, value: Any) -> Array:
    """`value` as a float64 array without NaN or infinity; raises TheoryError otherwise."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TheoryError(argument, value, "give real numbers (an array or a scalar)") from None
    if not np.all(np.isfinite(array)):
        raise TheoryError(argument, value, "every entry must be finite")
    return array


def as_probability(argument: str, value: Any) -> Array:
    """`value` as a float64 array with entries in [0, 1]; raises TheoryError otherwise."""
    array = as_array(argument, value)
    if np.any((array < 0) | (array > 1)):
        raise TheoryError(argument, value, "a probability lies between 0 and 1")
    return array


def as_nonnegative(argument: str, value: Any) -> Array:
    """`value` as a float64 array with entries >= 0; raises TheoryError otherwise."""
    array = as_array(argument, value)
    if np.any(array < 0):
        raise TheoryError(argument, value, "must not be negative")
    return array
