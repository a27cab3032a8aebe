"""How a quantised layer stores its weights: integer words, a scale and a zero point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WORDS = "_crashsim_words"  # of a twin's layer: how it stores which of its parameters


@dataclass(frozen=True, eq=False)
class Words:
    """w = scale (q - zero_point), with q a word of two's complement.

    Attributes:
        bits: of a word.
        scale, zero_point: () for the whole tensor, or (n,) along an axis.
        axis: which axis of the tensor has scales of its own; None: one for all.
    """

    bits: int
    scale: Tensor
    zero_point: Tensor
    axis: int | None = None

    @classmethod
    def of(cls, quantised: Tensor) -> Words:
        """Those of torch's quantised tensor of int8."""
        if quantised.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            return cls(
                8,
                quantised.q_per_channel_scales(),
                quantised.q_per_channel_zero_points(),
                quantised.q_per_channel_axis(),
            )
        scale, zero_point = quantised.q_scale(), quantised.q_zero_point()
        return cls(8, torch.tensor(scale, dtype=torch.float64), torch.tensor(zero_point))

    def along(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point in double precision, such that they broadcast to a tensor."""
        shape = [1] * value.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        scale, zero_point = (
            part.to(value.device, torch.float64).view(shape)
            for part in (self.scale, self.zero_point)
        )
        return scale, zero_point

    def read(self, value: Tensor) -> Tensor:
        """The words (int64) of a tensor of weights: the nearest, within their range."""
        scale, zero_point = self.along(value)
        top = 2 ** (self.bits - 1)
        words = (value.double() / scale).round() + zero_point
        return words.clamp(-top, top - 1).long()

    def quantised(self, value: Tensor) -> Tensor:
        """Torch's quantised tensor of int8 with the words nearest to these weights."""
        value = value.detach().float()
        if self.axis is None:
            scale, zero_point = float(self.scale), int(self.zero_point)
            return torch.quantize_per_tensor(value, scale, zero_point, torch.qint8)
        return torch.quantize_per_channel(
            value, self.scale, self.zero_point, self.axis, torch.qint8
        )


def words_of(module: nn.Module, name: str) -> Words | None:
    """How a layer of a twin stores a parameter; None where it is a float."""
    found: Mapping[str, Words] = vars(module).get(WORDS, {})
    return found.get(name)
