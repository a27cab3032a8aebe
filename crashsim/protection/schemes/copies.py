"""Schemes with copies: triple modular redundancy, duplication with comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from crashsim_theory.codes import tripled

from crashsim.arguments import shown
from crashsim.errors import ArgumentError
from crashsim.faults import BernoulliFault, Fault, WordFault
from crashsim.faults.guarded_units import GuardedUnits
from crashsim.faults.words import CopyGuard, Detection, Guard, VoteGuard
from crashsim.model.sites.site import Site
from crashsim.protection.schemes.scheme import (
    Cost,
    Part,
    Scheme,
    Shares,
    detection_given,
    per_word,
)

Of = Literal["words", "neurons", "channels", "layers"]


@dataclass(frozen=True)
class TMR(Scheme):
    """Triple modular redundancy: three copies of what faults strike, and the majority of them.

    Each copy is struck on its own, so a majority is wrong with probability q = 3 p^2 - 2 p^3 in
    place of p (``law``). Words are voted bit by bit where they are read; neurons, channels and
    layers value by value.

    Costs two more copies, and a step of voting. Of stored words: ``bits = 2 * protected``. Of
    neurons, channels or layers: ``macs = 2 * those with which they are computed``. ``latency = 1``.

    Args:
        of: what there are three of: ``"words"`` of memory; or ``"neurons"``, ``"channels"``,
            ``"layers"``: which of them can be chosen alone.
    """

    name: ClassVar[str] = "tmr"
    of: Of = "neurons"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in ("words", "neurons", "channels", "layers"):
            raise ArgumentError(
                f"TMR: of={shown(self.of)}; give 'words', 'neurons', 'channels' or 'layers'"
            )

    def law(self, p: float) -> float:
        """P(the majority is struck)."""
        return float(tripled(p))

    def guard(self, fault: WordFault, site: Site, shape: tuple[int, ...]) -> Guard:
        return VoteGuard(self.members(fault, site, shape), 1, "last")

    def guarded(self, fault: BernoulliFault, site: Site, shape: tuple[int, ...]) -> Fault:
        return GuardedUnits.of(fault, self.units(fault, site, shape), shape, "vote")

    def left(self, p: float, bits: int) -> Shares:
        return Shares(silent=self.law(p) / max(p, 1e-300))

    def cost(self, part: Part) -> Cost:
        return Cost(bits=2.0 * part.bits, macs=2.0 * part.macs, latency=1.0)


@dataclass(frozen=True)
class Duplication(Scheme):
    """Two copies that are compared: where they differ, an error is detected, not corrected.

    Words are compared word by word, neurons value by value. Only what strikes both copies alike is
    not seen: of a single bit p^2.

    Costs a second copy, and a step of comparing: ``bits = protected``, ``macs = those with which
    neurons are computed``, ``latency = 1``.

    Args:
        on_detection: ``"zero"``, ``"last"`` or ``"stop"``, as of ``SECDED``; of neurons not
            ``"stop"``.
    """

    name: ClassVar[str] = "duplication"
    on_detection: Detection = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        detection_given("Duplication", self.on_detection)

    def guard(self, fault: WordFault, site: Site, shape: tuple[int, ...]) -> Guard:
        members = self.members(fault, site, shape)
        return CopyGuard(members, per_word(members, len(fault.chosen)), self.on_detection)

    def guarded(self, fault: BernoulliFault, site: Site, shape: tuple[int, ...]) -> Fault:
        if self.on_detection == "stop":
            raise ArgumentError(
                f"Duplication: on_detection='stop' at {site.name!r}: neurons that are compared go "
                "on; give 'zero' or 'last'"
            )
        return GuardedUnits.of(fault, self.units(fault, site, shape), shape, self.on_detection)

    def left(self, p: float, bits: int) -> Shares:
        return Shares(silent=p, zeroed=0.0 if self.on_detection == "last" else 2.0)

    def cost(self, part: Part) -> Cost:
        return Cost(bits=part.bits, macs=part.macs, latency=1.0)
