"""Faults of a neuron's or weight's value: stuck at a number, or of the wrong sign."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crashsim.errors import ArgumentError
from crashsim.faults.bernoulli import BernoulliFault
from crashsim.faults.fault import take_number


@dataclass(frozen=True)
class StuckAt(BernoulliFault):
    """A neuron or weight reads ``value`` whatever it should be, with probability ``p``."""

    name: ClassVar[str] = "stuck-at"
    reported: ClassVar[tuple[str, ...]] = ("value",)
    is_elementwise: ClassVar[bool] = True
    value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        take_number(self, "value")
        if not math.isfinite(self.value):
            raise ArgumentError(f"StuckAt: value={self.value!r}; give a finite number")

    def displacement(self, value: Tensor) -> Tensor:
        return self.value - value


@dataclass(frozen=True)
class SignFlip(BernoulliFault):
    """A neuron or weight changes sign with probability ``p`` (a simple Byzantine fault)."""

    name: ClassVar[str] = "sign-flip"
    is_elementwise: ClassVar[bool] = True

    def displacement(self, value: Tensor) -> Tensor:
        return -2 * value
