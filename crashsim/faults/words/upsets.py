"""Bits of stored words that flip or are stuck: ``BitFlip`` and ``BitStuck``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from crashsim.arguments import whole
from crashsim.faults.fault import Strikes
from crashsim.faults.words.word_fault import WordFault


@dataclass(frozen=True)
class BitFlip(WordFault):
    """Each bit of a stored word flips with probability ``p``, or exactly ``count`` bits do.

    ``BitFlip(p, format="float32")`` flips bits of single-precision words, ``format="stored"`` those
    of the words in which the model stores its weights. ``BitFlip(p)`` and ``BitFlip(p, bits=8)``
    are of *fixed point*: the weight tensor is taken as stored in two's complement of ``bits`` bits
    with the symmetric scale ``max|w| / (2^(bits-1) - 1)``; flipping bit j adds or subtracts ``2^j``
    scales (the sign bit the other way round), so the bits' changes add up. The clean network keeps
    its unquantised weights; only the changes are those of the stored word. All arguments are
    those of ``WordFault``.
    """

    name: ClassVar[str] = "bit-flip"

    def __post_init__(self) -> None:
        if self.bits is None and self.format is None:
            object.__setattr__(self, "bits", 8)
        super().__post_init__()

    @property
    def strikes(self) -> Strikes:  # type: ignore[override]
        """Weights, where it is of fixed point by a number of bits: ``hidden`` then means these."""
        return "weights" if isinstance(self.bits, int) else "both"

    def act(self, words: Tensor, masks: Tensor | int) -> Tensor:
        return words ^ masks

    @property
    def joins(self) -> np.ufunc:
        return np.bitwise_xor


@dataclass(frozen=True)
class BitStuck(WordFault):
    """Each bit of a stored word is stuck at ``to`` with probability ``p``, or ``count`` bits are.

    Args:
        to: 0 or 1.

    All others are those of ``WordFault``. By default words are those that the model stores.
    """

    name: ClassVar[str] = "bit-stuck"
    reported: ClassVar[tuple[str, ...]] = ("to", *WordFault.reported)
    to: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "to", whole("BitStuck: to", self.to, 0, 1))

    @property
    def strikes(self) -> Strikes:  # type: ignore[override]
        return "weights" if isinstance(self.bits, int) else "both"

    def act(self, words: Tensor, masks: Tensor | int) -> Tensor:
        return words | masks if self.to else words & ~masks

    @property
    def joins(self) -> np.ufunc:
        return np.bitwise_or
