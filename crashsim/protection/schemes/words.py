"""Schemes for stored words: SECDED, parity, spare cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from crashsim_theory.codes import Code, Outcomes, parity, secded

from crashsim.arguments import shown, whole
from crashsim.errors import ArgumentError
from crashsim.faults import BitFlip, WordFault
from crashsim.faults.words import CodeGuard, Detection, Guard, SpareGuard
from crashsim.model.sites.site import Site
from crashsim.protection.schemes.scheme import (
    Cost,
    Part,
    Scheme,
    Shares,
    detection_given,
    per_word,
)

_MOST = 256  # data bits of a block


def _only_flips(scheme: Scheme, fault: WordFault, site: Site) -> None:
    if not isinstance(fault, BitFlip):
        raise ArgumentError(
            f"{type(scheme).__name__}: {type(fault).__name__} at {site.name!r}: whether a stuck "
            "bit is an error of its code depends on what is stored; give BitFlip, or SpareCells "
            "against stuck bits"
        )


@dataclass(frozen=True)
class SECDED(Scheme):
    """Error-correcting code of stored words: one flip of a block is corrected, two are detected.

    Hsiao's code; by default 8 check bits for each 64 data bits. Blocks hold the protected bits in
    order, so that words of int8 share a block with seven others: what happens to them is no longer
    independent, and is computed from all flips of the block, its check bits' among them. Three and
    more flips may be taken for a single one and corrected wrongly. With p the probability that each
    of the n = k + r bits flips, the law of a block is that of ``law(p)``, exact at any p; to
    leading order P(detected) = C(n, 2) p^2.

    Costs r bits for each k, no multiply-accumulates, and a step of decoding:
    ``bits = r * ceil(protected / k)``, ``latency = 1``.

    Args:
        data: k, bits of a block, from 1 to 256.
        on_detection: what the words of a block become in which an error is detected and not
            corrected: ``"zero"``; ``"last"``, their last good values, read from a copy elsewhere;
            or ``"stop"``: no answer (NaN, which counts as a detected, unrecoverable error).
    """

    name: ClassVar[str] = "secded"
    data: int = 64
    on_detection: Detection = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "data", whole("SECDED: data", self.data, 1, _MOST))
        detection_given("SECDED", self.on_detection)

    @property
    def code(self) -> Code:
        """The code of a block."""
        return secded(self.data)

    def law(self, p: float) -> Outcomes:
        """Probabilities that a block is read right, detected as wrong, or silently wrong."""
        return self.code.law(p)

    def guard(self, fault: WordFault, site: Site, shape: tuple[int, ...]) -> Guard:
        _only_flips(self, fault, site)
        return CodeGuard(self.members(fault, site, shape), 1, self.on_detection, self.code)

    def left(self, p: float, bits: int) -> Shares:
        law = self.law(p)
        seen = 0.0 if self.on_detection == "last" else law.detected / max(p * bits, 1e-300)
        # A block that is silently wrong has three flips, and mostly one more by miscorrection.
        return Shares(silent=4 * law.silent / max(p * self.data, 1e-300), zeroed=seen)

    def cost(self, part: Part) -> Cost:
        return Cost(bits=self.code.checks * math.ceil(part.bits / self.data), latency=1.0)


@dataclass(frozen=True)
class Parity(Scheme):
    """A parity bit for each word: an odd number of flips is detected, an even one is not.

    With p the probability that each of the n = k + 1 bits of a word flips, P(detected) = (1 - (1 -
    2p)^n) / 2; that of flips that nobody sees is C(n, 2) p^2 to leading order; ``law`` is exact.

    Costs a bit for each word, and a step of checking: ``bits = protected words``, ``latency = 1``.

    Args:
        on_detection: what the word becomes: ``"zero"``, ``"last"`` or ``"stop"``, as of ``SECDED``.
    """

    name: ClassVar[str] = "parity"
    on_detection: Detection = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        detection_given("Parity", self.on_detection)

    def law(self, p: float, bits: int = 8) -> Outcomes:
        """Probabilities that a word of so many bits is right, detected, or silently wrong."""
        return parity(bits).law(p)

    def guard(self, fault: WordFault, site: Site, shape: tuple[int, ...]) -> Guard:
        _only_flips(self, fault, site)
        members = self.members(fault, site, shape)
        each = per_word(members, len(fault.chosen))
        return CodeGuard(members, each, self.on_detection, parity(each))

    def left(self, p: float, bits: int) -> Shares:
        law = self.law(p, bits)
        seen = 0.0 if self.on_detection == "last" else law.detected / max(p * bits, 1e-300)
        return Shares(silent=2 * law.silent / max(p * bits, 1e-300), zeroed=seen)

    def cost(self, part: Part) -> Cost:
        return Cost(bits=part.words, latency=1.0)


@dataclass(frozen=True)
class SpareCells(Scheme):
    """Spare words in place of those with struck bits, as a test before use finds them.

    For permanent faults (``BitStuck``), or flips that a test knows: of each group of words the
    first struck ones are replaced, one by each spare that has no struck bit itself.

    Costs the spares: ``bits = spares * bits of a word * groups``, ``latency = 0``.

    Args:
        spares: words of each group.
        per: ``"channel"``: a group is an index of the tensor's first axis; ``"layer"``: the tensor.
    """

    name: ClassVar[str] = "spares"
    spares: int = 1
    per: Literal["channel", "layer"] = "channel"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "spares", whole("SpareCells: spares", self.spares, 1, 10**6))
        if self.per not in ("channel", "layer"):
            raise ArgumentError(f"SpareCells: per={shown(self.per)}; give 'channel' or 'layer'")

    def guard(self, fault: WordFault, site: Site, shape: tuple[int, ...]) -> Guard:
        members = self.members(fault, site, shape)
        each = per_word(members, len(fault.chosen))
        words = max(len(members) // each, 1)
        rows = shape[0] if self.per == "channel" and len(shape) > 1 else 1
        return SpareGuard(members, each, "last", -(-words // rows), self.spares)

    def cost(self, part: Part) -> Cost:
        width = part.bits / max(part.words, 1)
        return Cost(bits=self.spares * width * part.groups)
