"""Curves as tables in a terminal, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from crashsim.report.html import page
from crashsim.report.text import plain
from crashsim.results.curve import curves as words
from crashsim.results.curve.curve_record import CurveRecord


def render(curves: Sequence[CurveRecord]) -> RenderableType:
    """Curves as rich renderables, one under the other."""
    parts: list[RenderableType] = []
    for curve in curves:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, heading in enumerate(words.titles(curve)):
            table.add_column(plain(heading), justify="left" if i == 0 else "right", no_wrap=i < 2)
        for row in words.rows(curve):
            table.add_row(*map(plain, row))
        heading = f"crashsim sweep: {words.title(curve)}"
        parts += [
            Panel(plain(_told(curve)), title=plain(heading), title_align="left"),
            plain(words.faults_of(curve), "dim"),
            table,
            plain(words.footer(curve), "dim"),
        ]
        if curve.prediction:
            parts.append(plain(curve.prediction, "dim"))
        parts += [plain(f"note: {warning}", "yellow") for warning in curve.warnings]
    return Group(*parts)


def _told(curve: CurveRecord) -> str:
    return " ".join(words.sentences(curve))


def to_text(curves: Sequence[CurveRecord], width: int) -> str:
    """Plain text of the given width."""
    into = StringIO()
    console = Console(
        file=into, width=width, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(render(curves))
    return "\n".join(line.rstrip() for line in into.getvalue().splitlines()) + "\n"


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
