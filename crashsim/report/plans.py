"""A plan of protection as text for a terminal, and as one self-contained HTML page."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from crashsim.report.html import page
from crashsim.report.text import plain
from crashsim.results.plan import plans as words
from crashsim.results.plan.plan_record import PlanRecord


def render(plan: PlanRecord) -> RenderableType:
    """A plan as rich renderables, one under the other."""
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
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        table.title = plain(heading)
        for i, title in enumerate(titles):
            table.add_column(plain(title), justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*map(plain, row))
        if rows:
            parts.append(table)
    parts += [plain(line, "yellow") for line in plan.told]
    parts.append(plain(words.footer(plan), "dim"))
    parts += [plain(f"note: {warning}", "yellow") for warning in plan.warnings]
    return Group(*parts)


def to_text(plan: PlanRecord, width: int) -> str:
    """Plain text of the given width."""
    into = StringIO()
    console = Console(
        file=into, width=width, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(render(plan))
    return "\n".join(line.rstrip() for line in into.getvalue().splitlines()) + "\n"


def to_html(plan: PlanRecord) -> str:
    """The page: no network, no script, the figure inline."""
    from crashsim.report import plan_plots

    return page("plans.html", plan=plan, words=words, figure=plan_plots.front(plan))
