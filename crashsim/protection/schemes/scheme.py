"""What a protection scheme is: where it applies, what it leaves of faults, and what it costs."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

import numpy as np
from torch import nn

from crashsim.arguments import shown
from crashsim.arrays import Integers
from crashsim.errors import ArgumentError
from crashsim.faults import BernoulliFault, Fault, WordFault
from crashsim.faults.words import Detection, Guard, Members
from crashsim.faults.words.bits import Bits, chosen_bits, is_field, listed
from crashsim.model.sites.site import Site

# Of a multiply-accumulate: a comparator of 8 bits has about so many of the gates that a multiplier
# of 8 by 8 bits with its accumulator has.
COMPARISON = 1 / 16


@dataclass(frozen=True)
class Cost:
    """What protection adds, in units that hardware counts.

    Attributes:
        bits: stored besides those of the unprotected network.
        macs: multiply-accumulates for each example; a comparison counts as a sixteenth.
        latency: steps that an answer waits for, besides: decoding, comparing, voting, clipping.
    """

    bits: float = 0.0
    macs: float = 0.0
    latency: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.bits + other.bits, self.macs + other.macs, max(self.latency, other.latency)
        )

    def to_dict(self) -> dict[str, float]:
        return {"bits": self.bits, "macs": self.macs, "latency": self.latency}


@dataclass(frozen=True)
class Part:
    """What a scheme protects at one site, as its cost is reckoned.

    Attributes:
        bits: stored bits that are protected; 0 for neurons.
        words: that they belong to.
        units: neurons' values that are protected, for each example; 0 for weights.
        macs: multiply-accumulates with which the protected values are computed.
        groups: ranges of clipping, or groups of words that share spares.
    """

    bits: int = 0
    words: int = 0
    units: int = 0
    macs: float = 0.0
    groups: int = 1


@dataclass(frozen=True)
class Shares:
    """What is left of the harm of single faults, as shares of it.

    Attributes:
        silent: does what it did.
        zeroed: of the harm that words or neurons do which become 0, of each of their bits.
    """

    silent: float = 0.0
    zeroed: float = 0.0


@dataclass(frozen=True)
class Scheme(ABC):
    """One way to protect a network; frozen and hashable.

    Args:
        sites: name or glob of the sites that it protects (a layer's weights, ``"0.weight"``, or
            neurons, ``"1"``); by default all that faults strike.
        bits: of words: which bits, as faults name them (``"sign"``, ``"exponent"``, numbers).
        only: parts of sites, by name: the numbers of those coordinates of the fault there that are
            protected, bits of words (word times bits, plus bit) or neurons.
    """

    name: ClassVar[str]
    sites: str = field(default="*", kw_only=True)
    bits: Bits = field(default=None, kw_only=True)
    only: tuple[tuple[str, Members], ...] | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        cls = type(self).__name__
        if not isinstance(self.sites, str) or not self.sites:
            raise ArgumentError(f"{cls}: sites={shown(self.sites)}; give a name or glob")
        if self.bits is not None and not is_field(self.bits):
            object.__setattr__(self, "bits", listed(cls, self.bits))
        if isinstance(self.only, Mapping):
            pairs = ((n, m if isinstance(m, Members) else Members.of(m)) for n, m in
                     self.only.items())  # fmt: skip
            object.__setattr__(self, "only", tuple(pairs))

    def at(self, only: Mapping[str, Integers]) -> Self:
        """The scheme for these coordinates alone, by site."""
        return replace(self, only=tuple((n, Members.of(np.asarray(m))) for n, m in only.items()))

    # What it leaves of faults.

    def applies(self, site: Site) -> bool:
        """Whether it protects a site."""
        named = any(fnmatchcase(name, self.sites) for name in {site.name, site.first_name})
        return named and (self.only is None or any(n == site.name for n, _ in self.only))

    def rated(self, fault: Fault, site: Site) -> Fault:
        """The fault as it strikes the hardware, before anything corrects it."""
        return fault

    def guard(self, fault: WordFault, site: Site, shape: tuple[int, ...]) -> Guard | None:
        """What guards the words of a site; None: nothing.

        Raises:
            ArgumentError: the scheme is none against such faults.
        """
        return None

    def guarded(self, fault: BernoulliFault, site: Site, shape: tuple[int, ...]) -> Fault | None:
        """What is left of a fault that is none of words; None: the scheme does nothing there."""
        return None

    @property
    def clips_words(self) -> bool:
        """Whether words that are read as impossible numbers become 0."""
        return False

    def left(self, p: float, bits: int) -> Shares:
        """What is left of the harm of faults where it protects, about, at a probability p of each.

        Args:
            p: of a fault, small.
            bits: of a word; 1 of neurons.
        """
        return Shares()

    @property
    def is_whole(self) -> bool:
        """Whether it is for a whole network, and not for some of its coordinates."""
        return self.clips_words or type(self).harden is not Scheme.harden

    # What it does to the network.

    def harden(self, model: nn.Module, inputs: Any) -> nn.Module:
        """The model with what the scheme adds to its computation; the same if that is nothing.

        Args:
            model: a copy, which may be changed.
            inputs: clean examples, as the model is called; None: there are none.
        """
        return model

    # What it costs.

    def cost(self, part: Part) -> Cost:
        """What it adds where it protects this."""
        return Cost()

    # Which coordinates.

    def members(self, fault: WordFault, site: Site, shape: tuple[int, ...]) -> Members:
        """Which bits of a site's words are protected, of those that can be struck."""
        chosen, words = fault.chosen, int(np.prod(shape, dtype=int))
        wanted = chosen if self.bits is None else chosen_bits(self.name, self.bits, fault.word)
        which = np.flatnonzero(np.isin(chosen, wanted))
        if not len(which):
            raise ArgumentError(
                f"{type(self).__name__}: bits={shown(self.bits)}: none of them can be struck at "
                f"{site.name!r}; give some of {list(chosen)}"
            )
        every = (np.arange(words)[:, None] * len(chosen) + which).reshape(-1)
        own = self._only(site, words * len(chosen))
        return Members.of(every if own is None else np.intersect1d(every, own))

    def units(self, fault: Fault, site: Site, shape: tuple[int, ...]) -> Members:
        """Which coordinates of neurons are protected."""
        count = fault.coordinate_count(shape)
        own = self._only(site, count)
        return Members.of(np.arange(count) if own is None else own)

    def _only(self, site: Site, count: int) -> Integers | None:
        own = next((m for name, m in self.only or () if name == site.name), None)
        if own is None:
            return None
        numbers = np.unique(own.numbers)
        if len(numbers) and not (numbers[0] >= 0 and numbers[-1] < count):
            raise ArgumentError(
                f"{type(self).__name__}: only: {site.name!r} has {count} coordinates; give numbers "
                "below that"
            )
        return numbers

    def to_dict(self) -> dict[str, Any]:
        """The scheme as plain data: its name, and what is not as by default."""
        found: dict[str, Any] = {"scheme": self.name}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "only" and (value != f.default or not f.kw_only):
                found[f.name] = list(value) if isinstance(value, tuple) else value
        if self.only is not None:
            found["parts"] = {name: len(members) for name, members in self.only}
        return found


def detection_given(cls: str, on_detection: Any) -> Detection:
    """Raises ArgumentError for what is none."""
    if on_detection in ("zero", "last", "stop"):
        found: Detection = on_detection
        return found
    raise ArgumentError(
        f"{cls}: on_detection={shown(on_detection)}; give 'zero', 'last' (the last good value) or "
        "'stop'"
    )


def per_word(members: Members, bits: int) -> int:
    """How many members each word has.

    Raises:
        ArgumentError: not all words have as many.
    """
    if not len(members):
        return 1
    counts = np.unique(members.numbers // bits, return_counts=True)[1]
    if counts.min() != counts.max():
        raise ArgumentError(
            "only: words of different numbers of protected bits cannot be compared word by word; "
            "give the same bits of each"
        )
    return int(counts[0])
