"""Faults that strike or do not: each coordinate by chance, or an exact number of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from crashsim_theory import BERNOULLI, Law

from crashsim.arguments import shown, whole
from crashsim.errors import ArgumentError
from crashsim.faults.fault import Fault, range_of, take_rate
from crashsim.faults.rates import Rate

Per = Literal["all", "site"]


@dataclass(frozen=True)
class BernoulliFault(Fault):
    """A fault that strikes each coordinate independently with probability ``p``, or exactly
    ``count`` of them.

    Args:
        p: the probability: a number; a tensor or array that broadcasts to the units at every site
            (to the groups, where groups are struck); or a function of the ``Site`` that returns
            one of these.
        count: in place of ``p``: exactly this number of coordinates, of all sites of the fault
            together, is struck, each choice of them with the same probability.
        per: ``"site"``: ``count`` of each site's coordinates instead (of each layer's neurons).
    """

    law: ClassVar[Law] = BERNOULLI
    parameter: ClassVar[str] = "p"
    p: Rate | None = None
    count: int | None = field(default=None, kw_only=True)
    per: Per = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        cls = type(self).__name__
        if (self.p is None) == (self.count is None):
            given = "both" if self.count is not None else "neither"
            raise ArgumentError(
                f"{cls}: {given} of p={shown(self.p)} and count={shown(self.count)}; give the "
                "probability p of each fault, or count, the exact number of faults"
            )
        if self.per not in ("all", "site"):
            raise ArgumentError(f"{cls}: per={shown(self.per)} is not known; give 'all' or 'site'")
        if self.count is not None:
            object.__setattr__(self, "count", whole(f"{cls}: count", self.count, 0))
            return
        if self.per != "all":
            raise ArgumentError(f"{cls}: per={self.per!r} says what count counts; give count too")
        take_rate(self, "p")
        low, high = range_of(self.p)
        if not (low >= 0 and high <= 1):
            raise ArgumentError(
                f"{cls}: p={self.p!r} is not a probability; give a number in [0, 1], or several"
            )

    def to_dict(self) -> dict[str, object]:
        own = super().to_dict()
        if self.count is None:
            return {name: value for name, value in own.items() if name not in ("count", "per")}
        own = {name: value for name, value in own.items() if name != "p"}
        return own if self.per == "site" else {n: v for n, v in own.items() if n != "per"}
