"""Formats of stored numbers: which bits a value is stored as, and what any bits mean.

Words are held as int64, whatever their width; bit 0 is the least significant. What a word of
floating point means is torch's own conversion, so infinities, NaN and subnormal numbers are what
they are on the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from crashsim.arguments import nearest, shown
from crashsim.errors import ArgumentError

Fields = Mapping[str, tuple[int, ...]]


class Stored(Protocol):
    """How the numbers of a tensor are stored."""

    @property
    def name(self) -> str:
        """As reports say it."""

    @property
    def bits(self) -> int:
        """Of a word."""

    @property
    def fields(self) -> Fields:
        """The bits of each part of a word, by the part's name."""

    @property
    def linear_bits(self) -> frozenset[int]:
        """The bits whose changes of the value add up, whatever the others of them do."""

    def read(self, value: Tensor) -> Tensor:
        """The words (int64) of a tensor: the nearest, within the format's range."""

    def step(self, value: Tensor) -> Tensor | None:
        """The scale of each number of the tensor, which broadcasts to it; None where words have
        none."""

    def change(self, old: Tensor, new: Tensor, step: Tensor | None) -> Tensor:
        """By how much (double precision) the values change where words ``old`` become ``new``."""

    def struck(self, value: Tensor, old: Tensor, new: Tensor, step: Tensor | None) -> Tensor:
        """The values (double precision) where words ``old`` became ``new``.

        Args:
            value: as it is computed with; what rounding to a word took off it stays off.
            old, new: words.
            step: of these numbers.
        """


@dataclass(frozen=True)
class FloatFormat:
    """Floating point as IEEE 754 has it, or near to it: sign, exponent and mantissa.

    Attributes:
        dtype: torch's type of it.
        integer: torch's integers of that width.
        exponent, mantissa: numbers of bits.
        is_ieee: whether a number is not finite if and only if all bits of its exponent are set.
    """

    dtype: torch.dtype
    integer: torch.dtype
    exponent: int
    mantissa: int
    is_ieee: bool = True

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def fields(self) -> Fields:
        top = self.mantissa + self.exponent
        return {
            "sign": (top,),
            "exponent": tuple(range(self.mantissa, top)),
            "mantissa": tuple(range(self.mantissa)),
        }

    @property
    def linear_bits(self) -> frozenset[int]:
        """The mantissa's, as long as they cannot make a number NaN."""
        return frozenset(self.fields["mantissa"]) if self.is_ieee else frozenset()

    def read(self, value: Tensor) -> Tensor:
        most = torch.finfo(self.dtype).max
        near = torch.where(value.isfinite(), value.clamp(-most, most), value)
        words = near.to(self.dtype).contiguous().view(self.integer).long()
        return words if self.bits == 64 else words & ((1 << self.bits) - 1)

    def values(self, words: Tensor) -> Tensor:
        """What words mean, in double precision."""
        if self.bits < 64:
            top = 1 << (self.bits - 1)
            words = torch.where(words >= top, words - 2 * top, words)
        return words.to(self.integer).contiguous().view(self.dtype).double()

    def step(self, value: Tensor) -> Tensor | None:
        return None

    def change(self, old: Tensor, new: Tensor, step: Tensor | None) -> Tensor:
        return self.values(new) - self.values(old)

    def struck(self, value: Tensor, old: Tensor, new: Tensor, step: Tensor | None) -> Tensor:
        off, found = value.double() - self.values(old), self.values(new)
        # Where nothing was rounded off, nothing is added: -0 stays what it is.
        return torch.where(off.isfinite() & (off != 0), found + off, found)


@dataclass(frozen=True)
class IntegerFormat:
    """Whole numbers of scales, in two's complement or without a sign: fixed point, or quantised.

    Attributes:
        bits: of a word.
        scale: of all numbers; ``"tensor"``: such that the largest number fits; ``"channel"``: the
            same for each index of the first axis.
        is_signed: two's complement; else from 0, for what is never negative.
        name: as reports say it.
    """

    bits: int
    scale: str | float = "tensor"
    is_signed: bool = True
    name: str = "fixed point"

    @property
    def fields(self) -> Fields:
        every = tuple(range(self.bits))
        if not self.is_signed:
            return {"sign": (), "magnitude": every}
        return {"sign": every[-1:], "magnitude": every[:-1]}

    @property
    def linear_bits(self) -> frozenset[int]:
        return frozenset(range(self.bits))

    @property
    def _range(self) -> tuple[int, int]:
        top = 1 << (self.bits - 1)
        return (-top, top - 1) if self.is_signed else (0, 2 * top - 1)

    def step(self, value: Tensor) -> Tensor:
        if isinstance(self.scale, float):
            return torch.tensor(self.scale, dtype=torch.float64, device=value.device)
        size = value.detach().abs()
        if self.scale == "channel" and size.dim():
            most = size.flatten(1).amax(1) if size.dim() > 1 else size
            most = most.view(-1, *[1] * (size.dim() - 1))
        else:
            most = size.max()
        return most.double() / self._range[1]

    def read(self, value: Tensor) -> Tensor:
        step = self.step(value)
        low, high = self._range
        # In place: of a large tensor each copy counts.
        scaled = value.detach().to(torch.float64, copy=True).div_(step)
        words = scaled.masked_fill_(~(step > 0), 0.0).round_().clamp_(low, high).long()
        return words.bitwise_and_((1 << self.bits) - 1)

    def values(self, words: Tensor) -> Tensor:
        """What words mean, in scales."""
        if not self.is_signed:
            return words.double()
        return signed(words, self.bits).double()

    def change(self, old: Tensor, new: Tensor, step: Tensor | None) -> Tensor:
        assert step is not None
        return (self.values(new) - self.values(old)) * step

    def struck(self, value: Tensor, old: Tensor, new: Tensor, step: Tensor | None) -> Tensor:
        return value.double() + self.change(old, new, step)


def signed(words: Tensor, bits: int) -> Tensor:
    """Words of two's complement as the whole numbers that they mean."""
    top = 1 << (bits - 1)
    return torch.where(words >= top, words - 2 * top, words)


FLOATS: Mapping[str, FloatFormat] = {
    form.name: form
    for form in (
        FloatFormat(torch.float64, torch.int64, 11, 52),
        FloatFormat(torch.float32, torch.int32, 8, 23),
        FloatFormat(torch.float16, torch.int16, 5, 10),
        FloatFormat(torch.bfloat16, torch.int16, 8, 7),
        FloatFormat(torch.float8_e5m2, torch.int8, 5, 2),
        FloatFormat(torch.float8_e4m3fn, torch.int8, 4, 3, is_ieee=False),
        FloatFormat(torch.float8_e5m2fnuz, torch.int8, 5, 2, is_ieee=False),
        FloatFormat(torch.float8_e4m3fnuz, torch.int8, 4, 3, is_ieee=False),
    )
}
_INTEGER = re.compile(r"(u?)int([0-9]+)")
AS_STORED = "stored"  # in place of a format: as the model stores it


def format_named(name: str, scale: str | float | None = None) -> FloatFormat | IntegerFormat:
    """The format of this name: ``float32``, ``bfloat16``, ``int8``, ``uint4`` and so on.

    Args:
        name: that of torch's type, or ``int`` or ``uint`` with a number of bits from 2 to 32.
        scale: of integers: ``"tensor"``, ``"channel"``, or a number.

    Raises:
        ArgumentError: there is no such format; or a scale that makes no sense.
    """
    if name in FLOATS:
        if scale is not None:
            raise ArgumentError(
                f"scale={shown(scale)}: words of {name} have no scale; leave it out, or give "
                "format='int8'"
            )
        return FLOATS[name]
    match = _INTEGER.fullmatch(name)
    if match is None or not 2 <= int(match[2]) <= 32:
        raise ArgumentError(
            f"format={shown(name)} is not known{nearest(name, (AS_STORED, *FLOATS))}"
            f"; give {AS_STORED!r}, {', '.join(FLOATS)}, or int2 "
            "to int32 (int8, say), or uint2 to uint32"
        )
    return IntegerFormat(int(match[2]), _scale(scale), not match[1], name)


def _scale(scale: str | float | None) -> str | float:
    if scale is None:
        return "tensor"
    if isinstance(scale, str) and scale in ("tensor", "channel"):
        return scale
    if isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < math.inf:
        return float(scale)
    raise ArgumentError(
        f"scale={shown(scale)}; give 'tensor', 'channel', or a positive number: what a step of the "
        "integers stands for"
    )
