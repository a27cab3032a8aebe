"""Curves as tables in a terminal, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel

from crashsim.report.html import page
from crashsim.report.screen.table import FittedTable
from crashsim.report.text import as_text, plain
from crashsim.results.curve import curves as words
from crashsim.results.curve.curve_record import CurveRecord


def render(curves: Sequence[CurveRecord]) -> RenderableType:
    """Curves as rich renderables, one under the other."""
    parts: list[RenderableType] = []
    for curve in curves:
        table = FittedTable(words.titles(curve), words.rows(curve))
        heading = f"crashsim sweep: {words.title(curve)}"
        parts += [
            Panel(plain(told(curve)), title=plain(heading), title_align="left"),
            plain(words.faults_of(curve), "dim"),
            table,
            plain(words.footer(curve), "dim"),
        ]
        if curve.prediction:
            parts.append(plain(curve.prediction, "dim"))
        parts += [plain(f"note: {warning}", "yellow") for warning in curve.warnings]
    return Group(*parts)


def told(curve: CurveRecord) -> str:
    """What the curve says, in a few sentences."""
    return " ".join(words.sentences(curve))


def to_text(curves: Sequence[CurveRecord], width: int) -> str:
    """Plain text of the given width."""
    return as_text(render(curves), width)


def to_html(curves: Sequence[CurveRecord]) -> str:
    """The page: no network, no script, the figure inline."""
    from crashsim.report import curve_plots

    return page(
        "curves.html",
        curves=curves,
        words=words,
        figure=curve_plots.picture(curves),
        shares=curve_plots.accepted(curves),
    )
