"""Faults of stored words: bits that flip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crashsim.arguments import whole
from crashsim.faults.bernoulli import BernoulliFault
from crashsim.faults.fault import Strikes


@dataclass(frozen=True)
class BitFlip(BernoulliFault):
    """Each bit of a stored weight flips with probability ``p``.

    The weight tensor is taken as stored in two's complement fixed point of ``bits`` bits with the
    symmetric scale ``max|w| / (2^(bits-1) - 1)``. Flipping bit j adds or subtracts ``2^j`` scales
    (the sign bit the other way round), so the bits' changes add up: one coordinate per bit. The
    clean network keeps its unquantised weights; only the changes are those of the stored word.

    Probabilities of their own have the shape of the tensor with an axis for the bits behind it:
    ``p`` of shape (bits,) gives one to each bit, ``p[..., None]`` one to each word.
    """

    strikes: ClassVar[Strikes] = "weights"
    name: ClassVar[str] = "bit-flip"
    reported: ClassVar[tuple[str, ...]] = ("bits",)
    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "bits", whole("BitFlip: bits", self.bits, 2, 32))

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self.bits

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, self.bits)

    def displacement(self, value: Tensor) -> Tensor:
        """Change of the value by each bit's flip, (*shape, bits), least significant bit first."""
        wide = value.double()
        top = 2 ** (self.bits - 1)
        scale = wide.abs().max() / (top - 1)
        word = torch.where(scale > 0, wide / scale, 0.0).round().clamp(-top, top - 1).long()
        powers = 2 ** torch.arange(self.bits, device=value.device)
        is_set = (word.unsqueeze(-1) & powers) != 0
        change = torch.where(is_set, -powers, powers)
        change[..., -1] = -change[..., -1]  # the sign bit weighs -2^(bits-1)
        steps: Tensor = (change * scale).to(value.dtype)
        return steps

    def perturb(self, value: Tensor, e: Tensor, shape: tuple[int, ...]) -> Tensor:
        e = e.reshape(*e.shape[:-1], *shape, self.bits)
        return value + (e * self.displacement(value)).sum(-1)
