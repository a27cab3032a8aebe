"""Ways to harden a network as a table in a terminal, and as one self-contained HTML page."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel

from crashsim.report.html import page
from crashsim.report.screen.table import FittedTable
from crashsim.report.text import as_text, plain
from crashsim.results.hardening import words
from crashsim.results.hardening.record import HardeningRecord


def render(found: HardeningRecord) -> RenderableType:
    """The comparison as rich renderables."""
    styles = {
        i: "bold" if way["name"] == found.chosen else "dim"
        for i, way in enumerate(found.ways)
        if way["name"] == found.chosen or way["refused"]
    }
    table = FittedTable(words.titles(found), words.rows(found), styles=styles)
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
    return as_text(render(found), width)


def to_html(found: HardeningRecord) -> str:
    """The page: no network, no script."""
    return page("hardening.html", found=found, words=words)
