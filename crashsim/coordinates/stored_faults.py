"""Faults of weights that are stored as words: floating point, or integers of a quantised layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crashsim.errors import ArgumentError
from crashsim.faults import AdditiveNoise, Fault, GainNoise, WordFault
from crashsim.faults.words import IntegerFormat, format_named
from crashsim.faults.words.formats import AS_STORED, FLOATS, Fields, FloatFormat, signed
from crashsim.model.multiplied.stored_words import Words
from crashsim.model.sites.site import Site


@dataclass(frozen=True)
class QuantisedFormat:
    """The words that a quantised layer stores, as faults of words take them.

    Attributes:
        words: how it stores them.
    """

    words: Words

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def bits(self) -> int:
        return self.words.bits

    @property
    def fields(self) -> Fields:
        return IntegerFormat(self.bits).fields

    @property
    def linear_bits(self) -> frozenset[int]:
        return frozenset(range(self.bits))

    def read(self, value: Tensor) -> Tensor:
        return self.words.read(value) & ((1 << self.bits) - 1)

    def step(self, value: Tensor) -> Tensor:
        return self.words.along(value)[0]

    def change(self, old: Tensor, new: Tensor, step: Tensor | None) -> Tensor:
        assert step is not None
        return (signed(new, self.bits) - signed(old, self.bits)) * step

    def struck(self, value: Tensor, old: Tensor, new: Tensor, step: Tensor | None) -> Tensor:
        return value.double() + self.change(old, new, step)


def as_stored(fault: Fault, site: Site, dtype: torch.dtype) -> Fault:
    """The fault as it strikes a site's stored words; other faults of floats as they are.

    A crashed weight is the word that means 0; a flipped sign or a stuck value the nearest word.

    Args:
        fault: to place.
        site: where.
        dtype: of the model's numbers.

    Raises:
        ArgumentError: the fault cannot strike such words.
    """
    words = site.words
    if isinstance(fault, WordFault):
        return _placed(fault, site, dtype)
    if words is not None and words.is_packed and isinstance(fault, GainNoise | AdditiveNoise):
        raise ArgumentError(
            f"{type(fault).__name__}: {site.name!r} is stored in words of {words.bits} bits, which "
            "hold whole steps and no noise; give BitFlip, WeightCrash, StuckAt or SignFlip, or "
            "the model before it was quantised"
        )
    return fault


def _placed(fault: WordFault, site: Site, dtype: torch.dtype) -> WordFault:
    """The fault with the words that it strikes at a site."""
    words, cls = site.words, type(fault).__name__
    if words is not None:
        bits = fault.bits if isinstance(fault.bits, int) else None
        if bits not in (None, words.bits):
            raise ArgumentError(
                f"{cls}: bits={bits}, but {site.name!r} is stored in words of {words.bits} bits; "
                f"give bits={words.bits}"
            )
        if bits is None and fault.format not in (AS_STORED, f"int{words.bits}"):
            raise ArgumentError(
                f"{cls}: format={fault.format!r}, but {site.name!r} is stored in words of "
                f"{words.bits} bits; give format='stored', or the model before it was quantised"
            )
        return replace(fault, stored=QuantisedFormat(words))
    if fault.format == AS_STORED:
        return replace(fault, stored=format_named(str(dtype).removeprefix("torch.")))
    if site.is_inside and fault.upset in ("row", "column"):
        raise ArgumentError(
            f"{cls}: upset={fault.upset!r} at {site.name!r}: the outputs of a recurrent layer are "
            "struck one by one inside it; give upset='bit', 'word' or a number of bits"
        )
    stored = fault.word
    by_tensor = isinstance(stored, IntegerFormat) and isinstance(stored.scale, str)
    if by_tensor and site.kind != "parameter":
        raise ArgumentError(
            f"{cls}: format={fault.format!r} at {site.name!r}: of neurons' outputs it is not known "
            "which number the largest word stands for; give scale, what a step of the integers "
            "stands for, as a number"
        )
    return fault


def check_range(struck: Iterable[tuple[Fault, Site]], tensors: Mapping[str, Tensor]) -> None:
    """Raises ArgumentError where a model's weights do not fit the format they are to be in.

    Args:
        struck: faults and where they strike.
        tensors: the model's weights, by name.
    """
    for fault, site in struck:
        if not isinstance(fault, WordFault) or site.kind != "parameter":
            continue
        stored = fault.word
        if not isinstance(stored, FloatFormat):
            continue
        found = float(tensors[site.module].detach().abs().max())
        most = torch.finfo(FLOATS[stored.name].dtype).max
        if found > most:
            raise ArgumentError(
                f"{type(fault).__name__}: format={stored.name!r}: {site.name!r} holds "
                f"{found:.3g}, beyond its largest number {most:.3g}; give another format"
            )
