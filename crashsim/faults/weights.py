"""Faults of weights: a synapse that is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crashsim.faults.bernoulli import BernoulliFault
from crashsim.faults.fault import Strikes


@dataclass(frozen=True)
class WeightCrash(BernoulliFault):
    """A weight (synapse) is lost: it reads 0 with probability ``p``."""

    strikes: ClassVar[Strikes] = "weights"
    name: ClassVar[str] = "weight-crash"
    zeroes: ClassVar[bool] = True
    is_elementwise: ClassVar[bool] = True

    def displacement(self, value: Tensor) -> Tensor:
        return -value
