"""A comparison as a ranked table in a terminal."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crashsim.report.tables import number
from crashsim.report.text import plain
from crashsim.results.comparison import Comparison, Contender
from crashsim.results.numbers import percent


def render_comparison(comparison: Comparison) -> RenderableType:
    """Ranked table, with a rule where the next one is significantly worse."""
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    for title in ("rank", "model"):
        table.add_column(title, no_wrap=True)
    for title in (
        "P(class changes)", "Var Δ", "Var Δ / Var out", "accuracy", "params", "next is worse",
    ):  # fmt: skip
        table.add_column(title, justify="right", overflow="fold")
    for i, contender in enumerate(comparison.contenders):
        table.add_row(
            str(i + 1), plain(contender.name), *_cells(contender), _against_next(comparison, i)
        )
    title = "crashsim compare" + (" (partial)" if comparison.partial else "")
    return Group(
        Panel(plain(comparison.verdict), title=title, title_align="left"),
        table,
        Text(
            "intervals: 95%, "
            + (
                f"over {comparison.inits} initialisations"
                if comparison.inits > 1
                else "of Monte Carlo"
            ),
            style="dim",
        ),
    )


def _cells(contender: Contender) -> list[str]:
    change, variance = (contender.measures.get(q) for q in ("class-change", "variance"))
    relative = contender.relative_variance
    return [
        f"{percent(change.value)} [{percent(change.low)}, {percent(change.high)}]"
        if change
        else "",
        f"{number(variance.value)} [{number(variance.low)}, {number(variance.high)}]"
        if variance
        else "",
        "" if math.isnan(relative) else number(relative),
        "" if contender.accuracy is None else f"{contender.accuracy:.1%}",
        f"{contender.parameters:,}",
    ]


def _against_next(comparison: Comparison, i: int) -> str:
    if i >= len(comparison.p_values):
        return ""
    p = comparison.p_values[i]
    return f"yes (p {p:.1g})" if comparison.is_significant[i] else f"not sure (p {p:.2f})"
