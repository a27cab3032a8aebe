"""Rates of their own for each unit: a fault's parameter as an array in place of one number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arguments import as_float, is_number, shown
from crashsim.arrays import Floats
from crashsim.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Rates:
    """An array of rates that cannot be written to, equal to another by its numbers.

    Attributes:
        array: the rates; of a fault that is placed, (n,), one for each coordinate.
    """

    array: Floats

    @classmethod
    def of(cls, argument: str, value: Any) -> Rates:
        """Rates from a tensor, an array, or lists of numbers.

        Raises:
            ArgumentError: it holds something else than finite numbers, or nothing.
        """
        try:
            if isinstance(value, Tensor):  # numpy knows no bfloat16
                value = value.detach().cpu()
                value = (value.double() if value.is_floating_point() else value).numpy()
            given = np.asarray(value)
            if given.dtype.kind not in "fiu":
                raise TypeError(given.dtype)
            array = np.array(given, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(
                f"{argument}={_brief(value)}: holds something else than numbers; give a number, "
                "an array of numbers, or a function of the site"
            ) from error
        if array.size == 0 or not np.isfinite(array).all():
            raise ArgumentError(
                f"{argument}={_brief(value)}: give finite numbers, one for each unit or some that "
                "broadcast to the units"
            )
        array.setflags(write=False)
        return cls(array)

    def over(self, shape: tuple[int, ...]) -> Rates:
        """(n,) the rates of coordinates of this shape, with which they broadcast.

        Raises:
            ValueError: they do not.
        """
        return Rates.of("rates", np.broadcast_to(self.array, shape).reshape(-1))

    @property
    def mean(self) -> float:
        return float(self.array.mean())

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the numbers, in double precision, the least significant byte first."""
        return hashlib.sha256(self.array.astype("<f8").tobytes()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What reports and JSON hold in place of the numbers."""
        return {
            "shape": list(self.array.shape),
            "min": float(self.array.min()),
            "mean": self.mean,
            "max": float(self.array.max()),
            "sha256": self.digest,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rates):
            return NotImplemented
        return self is other or np.array_equal(self.array, other.array)

    @cached_property
    def _hash(self) -> int:
        return hash((self.array.shape, self.digest))

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        low, high = self.array.min(), self.array.max()
        return f"<{self.array.size} rates from {low:.3g} to {high:.3g}>"


Rate: TypeAlias = float | Tensor | NDArray[Any] | Rates | Callable[[Any], Any]
"""A rate as it is given: a number, an array that broadcasts to the struck units, or a function."""


def as_rate(argument: str, value: Any) -> float | Rates | Callable[[Any], Any]:
    """A number of any kind as a float; an array as ``Rates``; a function as it is.

    Raises:
        ArgumentError: it is none of these.
    """
    if isinstance(value, Rates) or (callable(value) and not isinstance(value, Tensor)):
        found: Rates | Callable[[Any], Any] = value
        return found
    if isinstance(value, Tensor | np.ndarray | list | tuple):
        rates = Rates.of(argument, value)
        return rates if rates.array.ndim else float(rates.array)
    number = as_float(value)
    if not is_number(value) or math.isnan(number):
        raise ArgumentError(f"{argument}={shown(value)} is not a number; give one")
    return number


def _brief(value: Any) -> str:
    """An array by its shape, all else as it is."""
    if isinstance(value, Tensor | np.ndarray):
        return f"<array of shape {tuple(value.shape)}>"
    return shown(value)
