"""Faults of neurons: a neuron, channel or core that dies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from crashsim.arguments import is_whole, shown
from crashsim.errors import ArgumentError, NotApplicableError
from crashsim.faults.bernoulli import BernoulliFault
from crashsim.faults.fault import Strikes

Group = Literal["unit", "feature", "channel"] | int


@dataclass(frozen=True)
class NeuronCrash(BernoulliFault):
    """A neuron dies: its output is 0 with probability ``p``, or exactly ``count`` neurons die.

    Args:
        p, count, per: how likely each group is to crash, or how many do; as in ``BernoulliFault``.
        group: what dies together. ``"unit"``: every scalar on its own, as where a neuron of the
            chip computes each. ``"feature"``: a feature in all positions (of tokens, pixels,
            patches), as where one circuit computes it for one position after the other: the last
            axis of (T, F) values, the channel of a convolution. ``"channel"``: a whole channel (the
            first axis of the site's shape), as where it fills a core of its own. An integer: that
            many consecutive units (a core of a neuromorphic chip).
    """

    strikes: ClassVar[Strikes] = "neurons"
    name: ClassVar[str] = "neuron-crash"
    reported: ClassVar[tuple[str, ...]] = ("group",)
    zeroes: ClassVar[bool] = True
    is_elementwise: ClassVar[bool] = True
    group: Group = "unit"

    def __post_init__(self) -> None:
        super().__post_init__()
        named = isinstance(self.group, str) and self.group in ("unit", "feature", "channel")
        if not (named or (is_whole(self.group) and 1 <= int(self.group) < 2**63)):
            raise ArgumentError(
                f"NeuronCrash: group={shown(self.group)} is not known; "
                "give 'unit', 'feature', 'channel' or the number of consecutive units that die "
                "together"
            )
        if not named:
            object.__setattr__(self, "group", int(self.group))

    @property
    def is_of_features(self) -> bool:
        return self.group == "feature"

    def group_size(self, shape: tuple[int, ...]) -> int:
        if self.group == "feature" and len(shape) > 1:
            raise NotApplicableError(
                "for faults that need not know which axis holds the features (group='feature' does)"
            )
        if self.group in ("unit", "feature"):
            return 1
        if self.group == "channel":
            return math.prod(shape[1:])
        return min(int(self.group), math.prod(shape))

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        return -(-math.prod(shape) // self.group_size(shape))

    def displacement(self, value: Tensor) -> Tensor:
        return -value
