"""Scrubbing: how often memory is read, corrected and written back decides how many bits flip."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from crashsim.arguments import number
from crashsim.faults import BitFlip, Fault
from crashsim.model.sites.site import Site
from crashsim.protection.schemes.scheme import Scheme


@dataclass(frozen=True)
class Scrubbing(Scheme):
    """Refresh: memory is put right every ``interval`` hours, so that flips do not pile up.

    Bits flip, as events of a Poisson process, ``rate_per_hour`` times an hour each. At the end of
    an interval, when it is worst, a bit is wrong with probability
    ``p = (1 - exp(-2 rate interval)) / 2``: an odd number of flips. This p takes the place of that
    of flips at its sites. Scrubbing alone must know what is right: from a code (``SECDED``), which
    then meets the flips of one interval, or from a copy elsewhere.

    Costs no bits and no time of an answer; all words are read once in an interval.

    Args:
        interval: hours between two refreshes.
        rate_per_hour: flips of a bit.
    """

    name: ClassVar[str] = "scrubbing"
    interval: float
    rate_per_hour: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("interval", "rate_per_hour"):
            what = "a positive number of hours" if field == "interval" else "flips of a bit an hour"
            value = number(f"Scrubbing: {field}", getattr(self, field), what, above=0)
            object.__setattr__(self, field, value)

    @property
    def is_whole(self) -> bool:
        return True

    @property
    def p(self) -> float:
        """The probability that a bit is wrong at the end of an interval."""
        return -math.expm1(-2 * self.rate_per_hour * self.interval) / 2

    def rated(self, fault: Fault, site: Site) -> Fault:
        changed: dict[str, Any] = {"p": self.p, "count": None, "per": "all"}
        return replace(fault, **changed) if isinstance(fault, BitFlip) else fault
