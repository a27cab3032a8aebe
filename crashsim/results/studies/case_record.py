"""What a study found of a case: a flat record, and a line of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from typing import Any

from typing_extensions import TypedDict  # which pydantic asks for before Python 3.12

from crashsim.errors import FileError
from crashsim.results.json_reading import finite, read
from crashsim.results.schema import Number

SCHEMA = 1
_MOST = 10**6  # lines


class BehindFacts(TypedDict):
    """How a model differs from the one that is next better in the same case.

    Attributes:
        model: the better one.
        difference: how much better it is, at least 0.
        low, high: its interval, at the confidence of the case.
        same_chips: whether both met the same faults, so that chips are compared one by one.
    """

    model: str
    difference: Number
    low: Number
    high: Number
    same_chips: bool


@dataclass(frozen=True)
class CaseRecord:
    """A metric of faulty chips, with all that says which.

    Attributes:
        case: its name, the same in every study that has it.
        study: name of the study.
        model, data, fault, sites, rate, metric, seed: of the case; ``rate`` None where the fault's
            own holds, and ``sites`` where the fault says them itself or leaves them open.
        value, low, high: mean over chips, and its interval at ``confidence``.
        confidence: also where the case was looked at several times to decide on its chips.
        wide_low, wide_high: the interval at half the error, which differences are made from.
        clean: the metric without faults.
        lower_is_better: of the metric.
        chips: that were judged.
        asked_width: half-width that was asked for; None: none.
        is_narrow: whether the interval has it.
        operations: that the chips took, counted.
        rank: 1 for the best model of this case; None where there is one model.
        behind: how it differs from the next better one.
        partial: whether the study was interrupted before the case had all its chips.
    """

    case: str
    study: str
    model: str
    data: str
    fault: str
    sites: str | None
    rate: float | None
    metric: str
    seed: int
    value: Number
    low: Number
    high: Number
    confidence: float
    wide_low: Number
    wide_high: Number
    clean: Number
    lower_is_better: bool
    chips: int
    asked_width: Number | None
    is_narrow: bool
    operations: float
    rank: int | None = None
    behind: BehindFacts | None = None
    partial: bool = False
    kind: str = "statistical"
    schema: int = SCHEMA

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2


def to_lines(cases: Iterable[CaseRecord]) -> str:
    """A line of JSON for each case."""
    lines = (json.dumps(finite(asdict(case)), ensure_ascii=False) for case in cases)
    return "".join(f"{line}\n" for line in lines)


def to_csv(cases: Sequence[CaseRecord]) -> str:
    """A row for each case, with what it is behind in columns of its own."""
    text = StringIO()
    names = [f.name for f in fields(CaseRecord) if f.name != "behind"]
    behind = list(BehindFacts.__annotations__)
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*names, *(f"behind_{name}" for name in behind)])
    for case in cases:
        plain = asdict(case)
        other: Mapping[str, Any] = case.behind or {}
        row = [plain[name] for name in names] + [other.get(name) for name in behind]
        rows.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def from_lines(text: str, subject: str) -> list[CaseRecord]:
    """The cases that ``to_lines`` wrote.

    Args:
        subject: what is read, in messages.

    Raises:
        FileError: it is something else; says which line.
    """
    found: list[CaseRecord] = []
    remedy = "give a file that `crashsim campaign run --json` wrote"
    lines = text.splitlines()
    if len(lines) > _MOST:
        raise FileError(f"{subject}: holds more than {_MOST} lines; {remedy}")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_case(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise FileError(f"{subject}: line {number}: {error}; {remedy}") from error
    if not found:
        raise FileError(f"{subject}: holds no case; {remedy}")
    names = [case.case for case in found]
    if len(set(names)) < len(names):
        raise FileError(f"{subject}: a case is there twice; {remedy}")
    return found


def _case(plain: Any) -> CaseRecord:
    if not isinstance(plain, Mapping) or plain.get("schema") != SCHEMA or "case" not in plain:
        raise ValueError(f"is no case of schema {SCHEMA}")
    found: CaseRecord = read(CaseRecord, plain)
    if not (found.low <= found.value <= found.high or found.value != found.value):
        raise ValueError("value: lies outside its interval")
    return found
