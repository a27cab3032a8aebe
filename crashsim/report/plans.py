"""A plan of protection as text for a terminal, and as one self-contained HTML page."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel

from crashsim.report.html import page
from crashsim.report.screen.table import FittedTable
from crashsim.report.text import as_text, plain
from crashsim.results.plan import plans as words
from crashsim.results.plan.plan_record import PlanRecord

_FEW = 8  # rows of a table on one screen


def _around(rows: list[list[str]]) -> list[list[str]]:
    """A few rows: the first, and those around the plan that was chosen."""
    chosen = next((i for i, row in enumerate(rows) if row[0].endswith("<")), 0)
    start = min(max(chosen - _FEW // 2, 0), max(len(rows) - _FEW, 0))
    return rows[start : start + _FEW]


def render(plan: PlanRecord, details: bool = True) -> RenderableType:
    """A plan as rich renderables, one under the other; without details, on one screen."""
    parts: list[RenderableType] = [
        Panel(
            plain(" ".join(words.sentences(plan))),
            title=plain(f"crashsim protect: {words.title(plan)}"),
            title_align="left",
        ),
        plain(words.faults_of(plan), "dim"),
    ]
    for heading, titles, rows in (
        ("what to protect", words.CHOSEN, words.chosen_rows(plan)),
        ("plans that no other beats", words.FRONT, words.front_rows(plan)),
    ):
        if rows:
            shown = rows if details else _around(rows)
            parts.append(FittedTable(titles, shown, title=heading))
        if rows and len(shown) < len(rows):
            parts.append(plain(f"{len(shown)} of {len(rows)} rows: --details has all", "dim"))
    parts += [plain(line, "yellow") for line in plan.told]
    parts.append(plain(words.footer(plan), "dim"))
    parts += [plain(f"note: {warning}", "yellow") for warning in plan.warnings]
    return Group(*parts)


def to_text(plan: PlanRecord, width: int) -> str:
    """Plain text of the given width."""
    return as_text(render(plan), width)


def to_html(plan: PlanRecord) -> str:
    """The page: no network, no script, the figure inline."""
    from crashsim.report import plan_plots

    return page("plans.html", plan=plan, words=words, figure=plan_plots.front(plan))
