"""What changed between two studies: differences of the cases that both have, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crashsim.results.json_reading import finite
from crashsim.results.studies.case_record import CaseRecord


@dataclass(frozen=True)
class Change:
    """A case of both studies.

    Attributes:
        case: its name.
        old, new: values.
        difference, low, high: new less old, with its interval: from both intervals at half the
            error each, so that the two need not be independent.
        confidence: of the interval, the lower of both studies'.
        is_better: whether it got better beyond its interval; None where that holds 0.
    """

    case: str
    old: float
    new: float
    difference: float
    low: float
    high: float
    confidence: float
    is_better: bool | None


@dataclass(frozen=True)
class Changes:
    """Of two studies.

    Attributes:
        cases: that both have, in the order of the new one.
        added, gone: names of the others.
    """

    cases: list[Change]
    added: list[str]
    gone: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        plain: dict[str, Any] = finite({"schema": 1, "record": "changes", **asdict(self)})
        return plain


def changes_of(old: Sequence[CaseRecord], new: Sequence[CaseRecord]) -> Changes:
    """What the cases of a study are, against those of an older one by name."""
    before = {case.case: case for case in old}
    after = {case.case for case in new}
    return Changes(
        [_change(before[case.case], case) for case in new if case.case in before],
        [case.case for case in new if case.case not in before],
        [case.case for case in old if case.case not in after],
    )


def _change(old: CaseRecord, new: CaseRecord) -> Change:
    low, high = new.wide_low - old.wide_high, new.wide_high - old.wide_low
    is_better = None
    if low > 0 or high < 0:
        is_better = (high < 0) == new.lower_is_better
    return Change(
        new.case,
        old.value,
        new.value,
        new.value - old.value,
        low,
        high,
        min(old.confidence, new.confidence),
        is_better,
    )
