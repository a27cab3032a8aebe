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
        is_packed: whether the layer multiplies integers, so that its weights are words always;
            else they are multiplied as floats, to which noise may be added.
    """

    bits: int
    scale: Tensor
    zero_point: Tensor
    axis: int | None = None
    is_packed: bool = False

    @classmethod
    def of(cls, quantised: Tensor) -> Words:
        """Those of torch's quantised tensor of int8, which layers multiply as integers."""
        if quantised.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            return cls(
                8,
                quantised.q_per_channel_scales(),
                quantised.q_per_channel_zero_points(),
                quantised.q_per_channel_axis(),
                is_packed=True,
            )
        scale, zero_point = quantised.q_scale(), quantised.q_zero_point()
        whole = torch.tensor(scale, dtype=torch.float64), torch.tensor(zero_point)
        return cls(8, *whole, is_packed=True)

    def means(self, value: Tensor) -> bool:
        """Whether a tensor holds what such words stand for, up to rounding."""
        scale, zero_point = self.along(value)
        off = (self.read(value) - zero_point) * scale - value.double()
        return bool((off.abs() <= 1e-4 * scale).all())

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


def words_of_fake_quantiser(layer: nn.Module, value: Tensor) -> Words | None:
    """The words in which a quantisation-aware layer will store a weight; None if not known.

    Args:
        layer: with a ``weight_fake_quant``, as torch's own have.
        value: the weight after fake quantisation.
    """
    fake = getattr(layer, "weight_fake_quant", None)
    parts = [getattr(fake, name, None) for name in ("scale", "zero_point")]
    low, high = (getattr(fake, name, None) for name in ("quant_min", "quant_max"))
    if not all(isinstance(part, Tensor) for part in parts):
        return None
    if not isinstance(low, int) or not isinstance(high, int) or not -128 <= low < 0 < high:
        return None
    scale, zero_point = (part.detach().clone() for part in parts)  # type: ignore[union-attr]
    axis = None if scale.numel() == 1 else int(getattr(fake, "ch_axis", 0))
    shape = () if axis is None else (-1,)
    bits = (high - low).bit_length()
    words = Words(bits, scale.reshape(shape), zero_point.reshape(shape), axis)
    return words if words.means(value) else None


def words_of_integers(stored: Tensor, value: Tensor) -> Words | None:
    """The words of a weight that a forward computes from stored int8; None if it is not of these.

    Args:
        stored: (n, ...) integers.
        value: (n, ...) the weight: for each output a scale times (integer - zero point).
    """
    if stored.dtype != torch.int8 or stored.shape != value.shape or value.dim() < 2:
        return None
    ints, values = stored.flatten(1).double(), value.flatten(1).double()
    (high, at_high), (low, at_low) = ints.max(1), ints.min(1)
    most, least = (values.gather(1, at[:, None])[:, 0] for at in (at_high, at_low))
    scale = (most - least) / (high - low)  # not a number where all are the same
    if not bool((scale > 0).all() and torch.isfinite(scale).all()):
        return None
    words = Words(8, scale, (high - most / scale).round().long(), axis=0)
    return words if words.means(value) and torch.equal(words.read(value), stored.long()) else None


def stored_by_subclass(tensor: Tensor) -> tuple[Tensor, Words] | None:
    """The values and words of a tensor of a class of its own that stores int8 weights.

    Such as torchao's ``Int8Tensor``: ``qdata``, ``scale`` and ``zero_point``, one scale for all or
    for each output; values are multiplied as floats. None for any other tensor.
    """
    if type(tensor) in (Tensor, nn.Parameter):
        return None
    parts = [getattr(tensor, name, None) for name in ("qdata", "scale", "zero_point")]
    data, scale, zero_point = parts
    if not isinstance(data, Tensor) or not isinstance(scale, Tensor) or data.dtype != torch.int8:
        return None
    if data.shape != tensor.shape or getattr(tensor, "act_quant_kwargs", None) is not None:
        return None
    if scale.numel() not in (1, len(data)) or (scale.dim() and scale.numel() != scale.shape[0]):
        return None
    axis = None if scale.numel() == 1 else 0
    shape = () if axis is None else (-1,)
    start = zero_point if isinstance(zero_point, Tensor) else torch.zeros_like(scale)
    words = Words(8, scale.detach().reshape(shape), start.detach().reshape(shape).long(), axis)
    factors, starts = words.along(data)
    return ((data.double() - starts) * factors).to(tensor.dtype), words
