"""Which cases get chips next: those with the widest intervals, by what was found alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """How far chips are that cases share.

    Attributes:
        ratio: the widest of the cases' intervals, relative to the width that it is to have.
        price: operations of as many chips again; infinite where there are to be no more.
    """

    ratio: float
    price: float


def next_round(standings: Sequence[Standing], left: float) -> list[int]:
    """The numbers of those that get twice their chips, the widest first; none at the end.

    Intervals shrink by about the square root of 2 where chips are doubled. So all that are wider
    than the widest over that would have their turn before it has its next, and are run together.

    Args:
        standings: of each.
        left: operations that may be spent.
    """
    wide = [
        number
        for number, each in enumerate(standings)
        if not each.ratio <= 1 and math.isfinite(each.price)
    ]
    wide.sort(key=lambda number: (-_size(standings[number].ratio), number))
    found: list[int] = []
    least = math.inf
    for number in wide:
        each = standings[number]
        if each.price > left:
            continue
        if found and _size(each.ratio) < least:
            break
        if not found:
            least = _size(each.ratio) / math.sqrt(2)
        left -= each.price
        found.append(number)
    return found


def _size(ratio: float) -> float:
    return math.inf if math.isnan(ratio) else ratio
