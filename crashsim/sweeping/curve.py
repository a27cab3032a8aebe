"""Curve: a metric of faulty chips against the rate of faults, and what follows from it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Self

import numpy as np

from crashsim.arguments import number, whole
from crashsim.arguments import path as file_path
from crashsim.errors import FileError, MissingExtraError, NotApplicableError
from crashsim.files.limits import read_text
from crashsim.notebook import fragment
from crashsim.results.curve import curves as words
from crashsim.results.curve.curve_record import CurveRecord, PointFacts
from crashsim.results.curve.curves import title
from crashsim.results.estimate import Interval
from crashsim.results.flat import numbers_of_curve
from crashsim.sampling.chips.law import ChipLaw
from crashsim.sweeping.tolerable import TolerableRate, tolerable
from crashsim.visible import visible
from crashsim.writing import write_text

_ENDS = ("", "_low", "_high")
_COLUMNS = ("rate", "value", "low", "high", "band_low", "band_high", "predicted")


class Curve(CurveRecord):
    """A metric against the rate of faults: a record that saves, loads, and shows itself.

    Its attributes are those of ``crashsim.results.curve.curve_record.CurveRecord``.
    """

    def tolerable_rate(self, target: float, share: float | None = None) -> TolerableRate:
        """The largest rate at which the metric still reaches a target, with its interval.

        Args:
            target: the metric is to be at least so large (at most, where less is better).
            share: of chips that are to reach it, such as 0.95; by default their mean is to.

        Raises:
            ArgumentError: no numbers, or a share beyond 0 and 1.
            NotApplicableError: no chip was judged: a prediction alone has no interval.
        """
        target = number("target", target, "a value of the metric")
        if not self.is_measured:
            raise NotApplicableError(
                "the curve was predicted alone, which gives no interval; measure it (chips=)"
            )
        laws = [self.law(point) for point in self.points]
        falls, clean, wanted = not self.lower_is_better, self.clean, target

        def interval(i: int, alpha: float) -> Interval:
            return laws[i].mean(alpha)

        def of_share(i: int, alpha: float) -> Interval:
            reach = laws[i].at_most if self.lower_is_better else laws[i].at_least
            return reach(target, alpha)

        if share is not None:
            wanted = number("share", share, "a share of chips, such as 0.95", above=0, below=1)
            clean = float(self.clean <= target if self.lower_is_better else self.clean >= target)
            falls = True
        return tolerable(
            [point["rate"] for point in self.points],
            interval if share is None else of_share,
            clean,
            wanted,
            falls=falls,
            target=target,
            share=share,
            confidence=self.confidence,
        )

    def law(self, point: PointFacts) -> ChipLaw:
        """The law of the metric over chips at one of the points, of which anything may be asked."""
        return ChipLaw(
            np.array([self.clean]),
            np.array([point["without_fault"]]),
            np.repeat(np.array(point["values"], dtype=np.float64), point["counts"]),
            -np.inf if self.least is None else self.least,
            np.inf if self.most is None else self.most,
        )

    def metrics(self) -> dict[str, float]:
        """A flat dict of numbers, as MLflow and W&B log; see ``crashsim.results.flat``."""
        return numbers_of_curve(self)

    def save(self, path: str | Path) -> None:
        """Writes the curve as JSON. Raises FileError if it cannot."""
        path = file_path("path", path)
        write_text("path", path, json.dumps(self.to_dict(), indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a curve from JSON.

        Raises:
            FileError: it cannot be read, is no curve, or would take too much memory (see
                ``crashsim.files.limits``).
        """
        path = file_path("path", path)
        what = f"curve={str(path)!r}"
        remedy = "give a file that `crashsim sweep --json` or `Curve.save` wrote"
        try:
            return cls.from_dict(json.loads(read_text(what, path, remedy)))
        except FileError as error:
            if str(error).startswith(what):
                raise
            raise FileError(f"{what}: {str(error).removeprefix('curve: ')}") from error
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FileError(f"{what}: cannot be read as JSON ({reason}); {remedy}") from error

    def to_csv(self, path: str | Path | None = None) -> str:
        """The points as text, a line each; also written, where a path is given.

        The first line is that without faults, at rate 0. What is not known is empty.

        Raises:
            FileError: it cannot be written.
        """
        text = csv_of([self])
        if path is not None:
            write_text("path", file_path("path", path), text)
        return text

    def to_parquet(self, path: str | Path) -> None:
        """Writes the points as Parquet, with the columns of ``crashsim.results.tables.of_curves``.

        Raises:
            FileError: it cannot be written.
            MissingExtraError: without pyarrow; names the command that installs it.
        """
        from crashsim.results.tables import of_curves

        of_curves([self]).to_parquet(path)

    def plot(self, axes: Any = None, label: str | None = None) -> Any:
        """Draws the curve into matplotlib's axes (new ones, if none are given); returns them."""
        from crashsim.report.curve_plots import draw

        return draw(self, axes, label)

    def to_text(self, width: int = 100) -> str:
        """A table for a terminal of this width."""
        from crashsim.report.curves import to_text

        return to_text([self], whole("width", width, 20, 10_000))

    def to_html(self) -> str:
        """A self-contained HTML page."""
        from crashsim.report.curves import to_html

        return to_html([self])

    def to_dataframe(self) -> Any:
        """The points as a DataFrame of pandas, a row each, first that without faults.

        Raises:
            MissingExtraError: without pandas; names the command that installs it.
        """
        from crashsim.results.tables import of_curves

        return of_curves([self]).to_dataframe()

    def _repr_html_(self) -> str:
        """What a notebook shows: with the figure, where matplotlib is there."""
        title, told = f"crashsim: {words.title(self)}", " ".join(words.sentences(self))
        notes = [words.faults_of(self), words.footer(self), *self.warnings]
        try:
            from crashsim.report.curve_plots import picture
        except MissingExtraError:
            drawn = ""
        else:
            drawn = picture([self])
        return fragment(title, told, words.titles(self), words.rows(self), notes, picture=drawn)

    def __str__(self) -> str:
        return self.to_text()


def csv_of(curves: Sequence[CurveRecord]) -> str:
    """The points of several curves as text; with the curve's name in front where it has one."""
    into = StringIO()
    table = csv.writer(into, lineterminator="\n")
    named = len(curves) > 1
    table.writerow(["curve"] * named + [*_COLUMNS, *(f"accepted{end}" for end in _ENDS), "chips"])
    for curve in curves:
        first = [visible(title(curve))] * named
        chips = [curve.chips if curve.is_measured else ""]
        table.writerow([*first, 0.0, *[_written(curve.clean)] * 5, "", "", "", "", *chips])
        for point in curve.points:
            accepted = point["accepted"]
            found = [point[name] for name in _COLUMNS]  # type: ignore[literal-required]
            found += [accepted and accepted[end] for end in ("value", "low", "high")]
            table.writerow([*first, *map(_written, found), *chips])
    return into.getvalue()


def _written(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else repr(float(value))
