"""A comparison as a ranked table in a terminal."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.panel import Panel

from crashsim.report.screen.table import FittedTable
from crashsim.report.tables import number
from crashsim.report.text import plain
from crashsim.results.comparison import Comparison, Contender, inits_needed
from crashsim.results.numbers import interval_numbers, percents, samples_needed, says_little


def render_comparison(comparison: Comparison) -> RenderableType:
    """Ranked table, and whether each model is surely worse than the one before it."""
    titles = ("", "model", "P(class changes)", "Var Δ", "Var Δ / Var out", "accuracy")
    rows = [
        (str(i + 1), contender.name, *_cells(contender))
        for i, contender in enumerate(comparison.contenders)
    ]
    title = "crashsim compare" + (" (partial)" if comparison.partial else "")
    over = f"over {comparison.inits} initialisations" if comparison.inits > 1 else "of Monte Carlo"
    parameters = ", ".join(f"{c.name} {c.parameters:,}" for c in comparison.contenders)
    return Group(
        Panel(plain(comparison.verdict), title=title, title_align="left"),
        FittedTable(titles, rows, names=2),
        *(plain(told, "yellow") for told in wide(comparison)),
        *(plain(_against_next(comparison, i)) for i in range(len(comparison.p_values))),
        plain(
            f"intervals: 95%, {over}; Var Δ in squared output units; parameters: {parameters}",
            "dim",
        ),
    )


def _cells(contender: Contender) -> list[str]:
    change, variance = (contender.measures.get(q) for q in ("class-change", "variance"))
    relative = contender.relative_variance
    return [
        _with_interval(percents(change.value, change.low, change.high)) if change else "",
        _with_interval(interval_numbers(variance.value, variance.low, variance.high))
        if variance
        else "",
        "" if math.isnan(relative) else number(relative),
        "" if contender.accuracy is None else f"{contender.accuracy:.1%}",
    ]


def _with_interval(texts: tuple[str, str, str]) -> str:
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _against_next(comparison: Comparison, i: int) -> str:
    better, worse = comparison.contenders[i : i + 2]
    p = comparison.p_values[i]
    sure = f"yes (p {_least(p)})" if comparison.is_significant[i] else f"not sure (p {p:.2f})"
    return f"{worse.name} worse than {better.name}: {sure}"


def _least(p: float) -> str:
    return "< 1e-12" if p < 1e-12 else f"{p:.1g}"


def wide(comparison: Comparison) -> list[str]:
    """Whose interval of what ranks them says little, and what would narrow it."""
    told = []
    for contender in comparison.contenders:
        found = contender.measures[comparison.by]
        is_probability = comparison.by == "class-change"
        if not says_little(found.low, found.high, is_probability=is_probability):
            continue
        if comparison.inits > 1:
            more = inits_needed(found.each)
            many = "more initialisations" if more is None else f"--inits {more}, about,"
        else:
            more = samples_needed(comparison.samples, found.value, found.low, found.high)
            many = "more samples" if more is None else f"--samples {more}, about,"
        told.append(f"{contender.name}: the interval says little; {many} would tell more")
    return told
