"""Faults of neurons: a neuron, channel or core that dies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from crashsim.arguments import is_whole, shown
from crashsim.errors import ArgumentError
from crashsim.faults.fault import BernoulliFault, Strikes

Group = Literal["unit", "channel"] | int


@dataclass(frozen=True)
class NeuronCrash(BernoulliFault):
    """A neuron dies: its output is 0 with probability ``p``, or exactly ``count`` neurons die.

    Args:
        p, count, per: how likely each group is to crash, or how many do; as in ``BernoulliFault``.
        group: what dies together. ``"unit"``: every scalar on its own; ``"channel"``: a whole
            channel (the first axis of the site's shape); an integer: that many consecutive units
            (a core of a neuromorphic chip).
    """

    strikes: ClassVar[Strikes] = "neurons"
    name: ClassVar[str] = "neuron-crash"
    reported: ClassVar[tuple[str, ...]] = ("group",)
    zeroes: ClassVar[bool] = True
    is_elementwise: ClassVar[bool] = True
    group: Group = "unit"

    def __post_init__(self) -> None:
        super().__post_init__()
        named = isinstance(self.group, str) and self.group in ("unit", "channel")
        if not (named or (is_whole(self.group) and 1 <= int(self.group) < 2**63)):
            raise ArgumentError(
                f"NeuronCrash: group={shown(self.group)} is not known; "
                "give 'unit', 'channel' or the number of consecutive units that die together"
            )
        if not named:
            object.__setattr__(self, "group", int(self.group))

    def group_size(self, shape: tuple[int, ...]) -> int:
        if self.group == "unit":
            return 1
        if self.group == "channel":
            return math.prod(shape[1:])
        return min(int(self.group), math.prod(shape))

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        return -(-math.prod(shape) // self.group_size(shape))

    def displacement(self, value: Tensor) -> Tensor:
        return -value
