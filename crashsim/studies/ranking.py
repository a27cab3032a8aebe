"""Ranks of models in the same case, and the intervals of what is between neighbours.

Models whose faults have the same coordinates meet the same faults under the same seed. Their chips
are then compared one by one, which leaves out what the faults of each chip do to both. Others are
compared by their intervals at half the error each, which needs no independence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from crashsim.metrics import bounds_of
from crashsim.results.estimate import Interval
from crashsim.results.studies.case_record import BehindFacts, CaseRecord
from crashsim.sampling.chips.found import FoundChips
from crashsim.sampling.chips.law import ChipLaw
from crashsim.studies.cases import Case
from crashsim.studies.spaces import SharedChips


@dataclass(frozen=True)
class Measured:
    """A case with the chips it was judged on.

    Attributes:
        case: which.
        chips, found: its chips, and what they showed.
        number: of the metric.
        look: how often it has been looked at.
        error: of its interval: 1 - confidence, or what this look may spend of it.
        confidence: of its interval, at whichever look.
    """

    case: Case
    chips: SharedChips
    found: FoundChips
    number: int
    look: int
    error: float
    confidence: float

    @property
    def chips_judged(self) -> int:
        """The number of chips, those without a fault among them."""
        singles = self.found.singles
        return self.found.sums.chips + (0 if singles is None else singles.chips)

    def interval(self, share: float = 1.0) -> Interval:
        """Of the mean over chips, at this share of the error."""
        return self.found.mean(self.number, share * self.error)


def ranked(
    cases: Sequence[tuple[Measured, CaseRecord]], *, is_partial: bool = False
) -> list[CaseRecord]:
    """The records, with the rank of each model among those of the same case."""
    groups: dict[tuple[object, ...], list[tuple[Measured, CaseRecord]]] = {}
    for measured, record in cases:
        record = replace(record, partial=is_partial)
        draw = measured.case.draw
        alike = (draw.data, draw.fault, draw.sites, draw.rate, draw.seed, record.metric)
        groups.setdefault(alike, []).append((measured, record))
    return [record for group in groups.values() for record in _in_group(group)]


def _in_group(group: list[tuple[Measured, CaseRecord]]) -> list[CaseRecord]:
    if len(group) == 1:
        return [group[0][1]]

    def order(one: tuple[Measured, CaseRecord]) -> tuple[float, str]:
        record = one[1]
        value = record.value if record.lower_is_better else -record.value
        return (np.inf if np.isnan(value) else value), record.model

    group = sorted(group, key=order)
    found = [replace(group[0][1], rank=1)]
    for rank, (better, one) in enumerate(pairwise(group), 2):
        found.append(replace(one[1], rank=rank, behind=_behind(better, one)))
    return found


def _behind(better: tuple[Measured, CaseRecord], one: tuple[Measured, CaseRecord]) -> BehindFacts:
    difference, is_paired = difference_of(better[0], one[0])
    value, low, high = (float(end) for end in (difference.value, difference.low, difference.high))
    if one[1].lower_is_better:
        value, low, high = -value, -high, -low
    return {
        "model": better[1].model,
        "difference": value,
        "low": low,
        "high": high,
        "same_chips": is_paired,
    }


def difference_of(one: Measured, other: Measured) -> tuple[Interval, bool]:
    """By how much the mean of one exceeds that of the other, and whether chips were paired."""
    if _are_same_chips(one, other):
        return _paired(one, other), True
    first, second = one.interval(0.5), other.interval(0.5)
    return (
        Interval(first.value - second.value, first.low - second.high, first.high - second.low),
        False,
    )


def _are_same_chips(one: Measured, other: Measured) -> bool:
    return (
        one.case.draw.seed == other.case.draw.seed
        and (one.found.singles is None) == (other.found.singles is None)
        and one.chips.law == other.chips.law
    )


def _paired(one: Measured, other: Measured) -> Interval:
    """Of the chips that both have: the first of whichever has more."""
    first, second = one.found.values[:, one.number], other.found.values[:, other.number]
    count = min(len(first), len(second))
    known = one.found.known[:, one.number] - other.found.known[:, other.number]
    weights = np.concatenate([[one.found.none], one.found.chances])
    low, high = bounds_of(one.found.asked.metrics[one.number])
    with np.errstate(invalid="ignore"):
        sampled = first[:count] - second[:count]
    law = ChipLaw(known, weights, sampled, low - high, high - low)
    fewer = min(one, other, key=lambda measured: measured.look)
    # At each look of the one with fewer chips, whichever ends the run.
    return law.mean(max(one.error, other.error) if one.look == other.look else fewer.error)
