"""Results as tables, in CSV and Parquet: a row for each number, with its kind and interval."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashsim.arguments import path as file_path
from crashsim.errors import MissingExtraError
from crashsim.importing import needed
from crashsim.results.curve.curve_record import CurveRecord
from crashsim.results.curve.curves import title
from crashsim.results.estimate import Estimate
from crashsim.results.record import Record
from crashsim.results.studies.case_record import BehindFacts, CaseRecord
from crashsim.results.vulnerability.vulnerability_record import VulnerabilityRecord
from crashsim.visible import visible
from crashsim.writing import write_files, write_text

if TYPE_CHECKING:
    from crashsim.results.comparison import Comparison

_OF_ESTIMATES = (
    "method", "quantity", "input", "output", "level", "value", "low", "high", "kind", "confidence",
    "worth", "note",
)  # fmt: skip
_OF_POINTS = ("rate", "value", "low", "high", "band_low", "band_high", "kind", "predicted")
_OF_ROWS = (
    "coordinates", "value", "low", "high", "kind", "evaluations", "settled", "uniform", "usual",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        columns: by name; texts, numbers or truth values, None where there is nothing to say.
    """

    columns: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
        """The table of these rows."""
        found: list[list[Any]] = [[] for _ in names]
        for row in rows:
            for column, value in zip(found, row, strict=True):
                column.append(value)
        return cls(dict(zip(names, found, strict=True)))

    def csv(self) -> str:
        """As CSV, with a line of names; what is not known is empty."""
        into = StringIO()
        writer = csv.writer(into, lineterminator="\n")
        writer.writerow(self.columns)
        for row in zip(*self.columns.values(), strict=True):
            writer.writerow(["" if value is None else value for value in row])
        return into.getvalue()

    def parquet(self) -> bytes:
        """As a Parquet file. Raises MissingExtraError without pyarrow."""
        check_parquet()
        import pyarrow
        from pyarrow import parquet

        into = BytesIO()
        arrays = {name: pyarrow.array(_alike(column)) for name, column in self.columns.items()}
        parquet.write_table(pyarrow.table(arrays), into)
        return into.getvalue()

    def to_dataframe(self) -> Any:
        """As a DataFrame of pandas. Raises MissingExtraError without pandas."""
        return needed("pandas", "to_dataframe()").DataFrame(dict(self.columns))

    def to_csv(self, path: str | Path | None = None) -> str:
        """As CSV; also written, where a path is given. Raises FileError if it cannot be."""
        text = self.csv()
        if path is not None:
            write_text("path", file_path("path", path), text)
        return text

    def to_parquet(self, path: str | Path) -> None:
        """Writes Parquet. Raises FileError if it cannot, MissingExtraError without pyarrow."""
        write_files("path", (file_path("path", path), self.parquet()))


def check_parquet() -> None:
    """Raises MissingExtraError where Parquet cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("parquet: needs `pip install crashsim[parquet]`") from error


def of_scores(scores: Sequence[Record]) -> Table:
    """A row for each estimate of scores: what was asked for, by which method, its kind, interval.

    ``seed`` is the score's. ``input`` and ``output`` are numbers or ``all``, or ``loss`` where the
    loss is read in place of the outputs; ``worth`` says how many plain samples would do as well.
    """
    rows = (_row(score, estimate) for score in scores for estimate in score.estimates)
    return Table.of(("seed", *_OF_ESTIMATES), rows)


def _row(score: Record, estimate: Estimate) -> list[Any]:
    told = {"output": score.output_in_files(estimate.output)}
    return [score.seed, *(told.get(name, getattr(estimate, name)) for name in _OF_ESTIMATES)]


def of_curves(curves: Sequence[CurveRecord]) -> Table:
    """A row for each point of curves, first that without faults, at rate 0."""
    names = ("curve", "metric", "parameter", *_OF_POINTS, "accepted_level", "accepted",
             "accepted_low", "accepted_high", "chips")  # fmt: skip
    return Table.of(names, (row for curve in curves for row in _points(curve)))


def _points(curve: CurveRecord) -> Iterable[list[Any]]:
    first = [visible(title(curve)), curve.metric, curve.parameter]
    clean = curve.clean
    yield [*first, 0.0, *[clean] * 5, "exact", None, *[None] * 4, curve.chips]
    for point in curve.points:
        share: Mapping[str, Any] = point["accepted"] or {}
        facts = [point[name] for name in _OF_POINTS]  # type: ignore[literal-required]
        ends = [share.get(name) for name in ("level", "value", "low", "high")]
        yield [*first, *facts, *ends, curve.chips]


def of_parts(found: VulnerabilityRecord) -> Table:
    """A row for each part of a map of single faults."""
    rows = ([*row.part.values(), *(getattr(row, name) for name in _OF_ROWS)] for row in found.rows)
    return Table.of([*found.by, *_OF_ROWS], rows)


def of_comparison(found: Comparison) -> Table:
    """A row for each measure of each model of a comparison, the most tolerant model first."""
    names = ("rank", "model", "measure", "value", "low", "high", "accuracy", "parameters")
    rows = (
        [rank + 1, one.name, measure, m.value, m.low, m.high, one.accuracy, one.parameters]
        for rank, one in enumerate(found.contenders)
        for measure, m in one.measures.items()
    )
    return Table.of(names, rows)


def of_cases(cases: Sequence[CaseRecord]) -> Table:
    """A row for each case of a study, with what it is behind in columns of its own."""
    behind = list(BehindFacts.__annotations__)
    plain = [asdict(case) for case in cases]
    names = [name for name in CaseRecord.__dataclass_fields__ if name != "behind"]
    rows = (
        [case[name] for name in names] + [(case["behind"] or {}).get(name) for name in behind]
        for case in plain
    )
    return Table.of([*names, *(f"behind_{name}" for name in behind)], rows)


def _alike(column: Sequence[Any]) -> list[Any]:
    """The values of a column as one type: texts, or floats, where they are of several."""
    kinds = {type(value) for value in column if value is not None}
    if str in kinds and len(kinds) > 1:
        return [None if value is None else str(value) for value in column]
    if kinds - {bool, int, str}:
        return [None if value is None else float(value) if _is_number(value) else value
                for value in column]  # fmt: skip
    return list(column)


def _is_number(value: Any) -> bool:
    return not isinstance(value, str | bytes | bool)
