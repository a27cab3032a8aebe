"""A score as text in a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crashsim.report import chip
from crashsim.report.screen.table import FittedTable
from crashsim.report.tables import MARKS, columns, legend, number, rows, worths
from crashsim.results import chips
from crashsim.results.agreement import Agreement
from crashsim.results.numbers import CORE, RATE_NAME, words_of_time
from crashsim.results.numbers import share as share_of
from crashsim.results.record import Record
from crashsim.results.schema import ChipFacts
from crashsim.results.verdict import verdict
from crashsim.visible import visible


def to_text(score: Record, width: int = 100) -> str:
    """Plain text of the given width."""
    return as_text(render(score), width)


def as_text(shown: RenderableType, width: int) -> str:
    """What a console of this width prints, without styles."""
    into = StringIO()
    # In a notebook rich would show it instead of writing it.
    console = Console(
        file=into, width=width, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(shown)
    return "\n".join(line.rstrip() for line in into.getvalue().splitlines()) + "\n"


def plain(words: object, style: str = "") -> Text:
    """Words as they are, without markup, and with escapes for what cannot be seen."""
    return Text(visible(str(words)), style=style)


def render(score: Record) -> RenderableType:
    """The score as rich renderables, for a console that knows its width and colours."""
    parts: list[RenderableType] = [
        Panel(plain(verdict(score)), title=plain(_title(score)), title_align="left"),
        *_chips(score),
        _methods(score),
        Text("  ".join(f"{mark} {meaning}" for mark, meaning in legend(score)), style="dim"),
    ]
    parts += [
        plain(f"{method} is worth this number of plain samples: {text}", "dim")
        for method, text in worths(score)
    ]
    if score.agreement:
        parts += [Text(), _agreement(score.agreement)]
    if any(site["share"] is not None for site in score.sites):
        parts += [Text(), _shares(score)]
    if score.answers:
        parts += [Text(), _answers(score)]
    if score.hardware:
        parts += [Text(), render_chip(score.hardware)]
    for warning in score.warnings:
        parts += [Text(), plain(f"warning: {warning}", "yellow")]
    if score.skipped:
        parts += [Text(), _skipped(score)]
    parts += [Text(), plain(footer(score), "dim")]
    return Group(*parts)


def _methods(score: Record) -> FittedTable:
    """Every method's numbers."""
    titles = ["method", *(column.title for column in columns(score))]
    lines = [
        [method, *("" if cell is None else str(cell) for cell in cells)]
        for method, cells in rows(score)
    ]
    return FittedTable(titles, lines, title=f"Average over {score.inputs['count']} inputs")


def _chips(score: Record) -> list[RenderableType]:
    """Metrics over chips, where there are any."""
    if score.chips is None:
        return []
    table = FittedTable(
        chips.TITLES, chips.rows(score.chips), title="Over chips, each judged on all examples"
    )
    return [table, plain(chips.footer(score.chips), "dim"), Text()]


def _title(score: Record) -> str:
    return f"crashsim: {score.model['name']}" + (" (partial)" if score.partial else "")


def _agreement(found: list[Agreement]) -> Table:
    table = _table("Against Monte Carlo, over every input and output")
    table.add_column("method", no_wrap=True)
    for title in ("inside", "worst", "ratio", "error", "(noise)", "corr.", "rank"):
        table.add_column(title, justify="right", no_wrap=True)
    for quantity in dict.fromkeys(a.quantity for a in found):
        table.add_row(plain(quantity, "italic"))
        for a in (a for a in found if a.quantity == quantity):
            table.add_row(
                plain(f"  {a.method}"),
                share_of(a.inside),
                f"{a.worst:.1f}x",
                *(
                    "" if x is None else f"{x:.0e}" if 0 < abs(x) < 1e-3 else number(x, 2)
                    for x in (a.ratio, a.relative_error, a.noise, a.correlation, a.rank_loss)
                ),
            )
    table.caption = (
        "inside: share of values within Monte Carlo's interval (bounds: not below it); "
        "worst: distance in half-widths"
    )
    table.caption_justify = "left"
    return table


def _shares(score: Record) -> Table:
    table = _table("Where the variance comes from")
    for title in ("site", "fault"):
        table.add_column(title)
    for title in ("coordinates", "share"):
        table.add_column(title, justify="right")
    table.add_column("")
    for site in sorted(score.sites, key=lambda s: -(s["share"] or 0))[:12]:
        share = site["share"] or 0.0
        table.add_row(
            plain(site["name"]), plain(site["fault"]), str(site["coordinates"]),
            share_of(share, 1),
            "█" * round(20 * share),
        )  # fmt: skip
    return table


def _answers(score: Record) -> FittedTable:
    found = [
        (
            a.question, "none" if a.value is None else f"{MARKS[a.kind]} {number(a.value)}",
            a.method, a.note,
        )
        for a in score.answers
    ]  # fmt: skip
    titles = ("question", "answer", "method", "note")
    return FittedTable(titles, found, words={2, 3}, title="What the target asks for")


def _skipped(score: Record) -> Text:
    reasons: dict[str, list[str]] = {}
    for method, reason in score.skipped.items():
        reasons.setdefault(reason, []).append(method)
    lines = [f"not computed: {', '.join(m)} ({reason})" for reason, m in reasons.items()]
    return Text("\n".join(map(visible, lines)), style="dim")


def render_chip(facts: ChipFacts) -> RenderableType:
    """The chip against the network under the same masks."""
    table = _table("The spiking chip against the network, mask by mask")
    for title in ("measure", "value", "meaning"):
        table.add_column(title, justify="right" if title == "value" else "left")
    for row in chip.rows(facts):
        table.add_row(*map(plain, row))
    return Group(table, plain(chip.sentence(facts), "dim"))


def footer(score: Record) -> str:
    """Seed, samples and times, and what sharper intervals would cost."""
    return made_of(score) + _sharpening(score)


def made_of(score: Record) -> str:
    """Seed, samples and times, in a line."""
    parts = [f"seed {score.seed}"]
    if score.samples:
        why = f" (stopped: {score.stopped})" if score.stopped != "samples" else ""
        parts.append(f"{score.samples:,} Monte Carlo samples{why}")
        parts.append(f"{100 * score.confidence:.4g}% intervals")
    parts.append(f"{sum(score.timings.values()):.1f} s")
    parts.append(f"crashsim {score.versions.get('crashsim', '?')}")
    return ", ".join(parts)


def _sharpening(score: Record) -> str:
    """What narrower measured intervals would cost."""
    if not score.samples or not score.sample_operations:
        return ""
    more = 4 * score.samples
    time = words_of_time(more * float(score.sample_operations) / CORE)
    return f"; {more:,} samples would halve Monte Carlo's intervals: {time} at {RATE_NAME}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
