"""Gaussian noise: of the gain, or added to a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from crashsim_theory import NORMAL, Law
from torch import Tensor

from crashsim.errors import ArgumentError
from crashsim.faults.fault import Fault, range_of, take_rate
from crashsim.faults.rates import Rate


@dataclass(frozen=True)
class NormalFault(Fault):
    """A fault that adds Gaussian noise of standard deviation ``std`` times a displacement.

    Args:
        std: a number; a tensor or array that broadcasts to the units at every site; or a function
            of the ``Site`` that returns one of these.
    """

    law: ClassVar[Law] = NORMAL
    parameter: ClassVar[str] = "std"
    std: Rate

    def __post_init__(self) -> None:
        take_rate(self, "std")
        low, high = range_of(self.std)
        if not (low >= 0 and high < math.inf):
            raise ArgumentError(
                f"{type(self).__name__}: std={self.std!r}; give a finite standard deviation >= 0"
            )


@dataclass(frozen=True)
class GainNoise(NormalFault):
    """A value is multiplied by 1 + Normal(0, std²) (device mismatch)."""

    name: ClassVar[str] = "gain-noise"
    is_elementwise: ClassVar[bool] = True

    def displacement(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class AdditiveNoise(NormalFault):
    """Normal(0, std²) is added to a value (read noise), in the units of the value."""

    name: ClassVar[str] = "additive-noise"
    is_elementwise: ClassVar[bool] = True

    def displacement(self, value: Tensor) -> Tensor:
        return torch.ones_like(value)
