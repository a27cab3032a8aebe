"""Faults of weights that are stored as integer words."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from crashsim.errors import ArgumentError
from crashsim.faults import AdditiveNoise, BitFlip, Fault, GainNoise
from crashsim.model.multiplied.stored_words import Words
from crashsim.model.sites.site import Site


@dataclass(frozen=True)
class StoredBitFlip(BitFlip):
    """Each bit of the words that a quantised layer stores flips with probability ``p``.

    One coordinate for each bit, least significant first; a flip of bit j changes the weight by
    2^j scales of its tensor or channel, the sign bit the other way round.
    """

    words: Words | None = None

    def displacement(self, value: Tensor) -> Tensor:
        """Change of the value by each bit's flip, (*shape, bits), least significant bit first."""
        if self.words is None:
            return super().displacement(value)
        scale, _ = self.words.along(value)
        powers = 2 ** torch.arange(self.bits, device=value.device)
        is_set = (self.words.read(value).unsqueeze(-1) & powers) != 0
        change = torch.where(is_set, -powers, powers)
        change[..., -1] = -change[..., -1]  # the sign bit weighs -2^(bits-1)
        steps: Tensor = (change * scale.unsqueeze(-1)).to(value.dtype)
        return steps

    def to_dict(self) -> dict[str, object]:
        told = super().to_dict()
        del told["words"]
        return told


def as_stored(fault: Fault, site: Site) -> Fault:
    """The fault as it strikes a site's stored words; the fault itself where those are floats.

    A crashed weight is the word that means 0; a flipped sign or a stuck value the nearest word.

    Raises:
        ArgumentError: the fault cannot strike such words.
    """
    words = site.words
    if words is None:
        return fault
    if type(fault) is BitFlip:
        if fault.bits != words.bits:
            raise ArgumentError(
                f"BitFlip: bits={fault.bits}, but {site.name!r} is stored in words of "
                f"{words.bits} bits; give bits={words.bits}"
            )
        own = {f.name: getattr(fault, f.name) for f in fields(fault)}
        return StoredBitFlip(**own, words=words)
    if words.is_packed and isinstance(fault, GainNoise | AdditiveNoise):
        raise ArgumentError(
            f"{type(fault).__name__}: {site.name!r} is stored in words of {words.bits} bits, which "
            "hold whole steps and no noise; give BitFlip, WeightCrash, StuckAt or SignFlip, or "
            "the model before it was quantised"
        )
    return fault
