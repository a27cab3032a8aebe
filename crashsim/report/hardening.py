"""Ways to harden a network as a table in a terminal, and as one self-contained HTML page."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from crashsim.report.html import page
from crashsim.report.text import plain
from crashsim.results.hardening import words
from crashsim.results.hardening.record import HardeningRecord


def render(found: HardeningRecord) -> RenderableType:
    """The comparison as rich renderables."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(words.titles(found)):
        table.add_column(plain(heading), justify="left" if i == 0 else "right")
    for way, row in zip(found.ways, words.rows(found), strict=True):
        style = "bold" if way["name"] == found.chosen else "dim" if way["refused"] else ""
        table.add_row(*(plain(cell, style) for cell in row))
    heading = f"crashsim harden: {found.model['name']}"
    return Group(
        Panel(plain(words.statement(found)), title=plain(heading), title_align="left"),
        table,
        plain(words.footer(found), "dim"),
        *(plain(f"left out: {told}", "dim") for told in words.refusals(found)),
        *(plain(f"note: {warning}", "yellow") for warning in found.warnings),
    )


def to_text(found: HardeningRecord, width: int) -> str:
    """Plain text of the given width."""
    into = StringIO()
    console = Console(
        file=into, width=width, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(render(found))
    return "\n".join(line.rstrip() for line in into.getvalue().splitlines()) + "\n"


def to_html(found: HardeningRecord) -> str:
    """The page: no network, no script."""
    return page("hardening.html", found=found, words=words)
