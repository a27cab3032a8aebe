"""Checks that the arguments of many functions share: each returns the value, or says what to do."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from crashsim.errors import ArgumentError

# More samples than that would take days, and tell no more: variances are then known to a
# ten-thousandth, and what is rarer than one in a hundred million is for importance sampling.
MOST_SAMPLES = 10**9
MOST_STEPS = 10**6  # epochs, time steps, networks: more than anyone waits for
MOST_COPIES = 100_000  # replicas of a network
_LONGEST = 200  # characters of a name that others are compared with
MOST_INITS = 10_000  # initialisations of an architecture


def whole(argument: str, value: Any, least: int, most: int | None = None, why: str = "") -> int:
    """An integer from ``least`` to ``most``; of Python or numpy, and no truth value.

    Args:
        why: what is wrong with more than ``most``, for the message.
    """
    if not is_whole(value) or value < least or (most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        told = f" ({why})" if why and is_whole(value) and value > least else ""
        raise ArgumentError(f"{argument}={shown(value)}; give an integer {wanted}{told}")
    return int(value)


def sample_count(argument: str, value: Any, least: int) -> int:
    """A number of samples that can be drawn in this life."""
    return whole(
        argument, value, least, MOST_SAMPLES,
        "more would take days; for events that are rarer than one in a hundred million, use "
        "importance-sampling",
    )  # fmt: skip


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
    found = as_float(value)
    if not math.isfinite(found) or not (least <= found <= most and above < found < below):
        raise ArgumentError(f"{argument}={shown(value)}; give {remedy}")
    return found


def one_of(argument: str, value: Any, choices: Sequence[str]) -> None:
    """ArgumentError unless the value is one of these strings."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(
            f"{argument}={shown(value)}{nearest(value, choices)}; choose among {', '.join(choices)}"
        )


def nearest(name: Any, known: Iterable[str]) -> str:
    """`` (did you mean 'relu1'?)``, where one of the names is close to this one; else nothing."""
    if not isinstance(name, str):
        return ""
    lower = {one.lower(): one for one in known}
    found = get_close_matches(name.lower()[:_LONGEST], lower, 1, 0.6)
    return f" (did you mean {lower[found[0]]!r}?)" if found else ""


def fraction(argument: str, value: Any) -> float:
    """A number strictly between 0 and 1, as is its difference from 1."""
    found = number(argument, value, "a number between 0 and 1", above=0, below=1)
    return number(argument, found, "a number between 0 and 1", most=1 - 1e-15, least=1e-15)


def callback(argument: str, value: Any) -> None:
    """ArgumentError unless the value is None or can be called."""
    if value is not None and not callable(value):
        raise ArgumentError(f"{argument}={shown(value)}; give a function, or leave it out")


def instance(argument: str, value: Any, kind: type | tuple[type, ...], remedy: str) -> None:
    """ArgumentError unless the value is of this class, or one of these."""
    if not isinstance(value, kind):
        raise ArgumentError(f"{argument}={shown(value)}; give {remedy}")


def path(argument: str, value: Any) -> Path:
    """A path, of a string or of pathlib."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise ArgumentError(f"{argument}={shown(value)}; give the name of a file")
    return Path(value)


def shown(value: Any) -> str:
    """A value as messages show it; Python writes no integer of more than 4,300 digits."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def as_float(value: Any) -> float:
    """A real number of Python or numpy as a float; NaN for anything else.

    Fractions are real numbers too; a number beyond the largest float is infinite.
    """
    if not is_number(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_seed(seed: object) -> int:
    """The seed as an int, or ArgumentError."""
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    value = int(seed) if whole else -1  # type: ignore[call-overload]
    if not 0 <= value < 2**64:
        raise ArgumentError(f"seed={shown(seed)} is not an integer from 0 to 2^64 - 1")
    return int(value)


def named_outputs(outputs: Any, count: int) -> tuple[int, ...] | None:
    """The numbers of outputs that are asked for, of so many; None if none are.

    Raises:
        ArgumentError: no list of different whole numbers below ``count``.
    """
    if outputs is None:
        return None
    try:
        given = list(outputs)
    except TypeError:
        given = [outputs]
    wrong = [k for k in given if not is_whole(k) or not 0 <= k < count]
    if not given or wrong or len(set(given)) < len(given):
        raise ArgumentError(
            f"outputs={shown(outputs)}; give different whole numbers from 0 to {count - 1}, "
            "such as [0]"
        )
    return tuple(int(k) for k in given)
