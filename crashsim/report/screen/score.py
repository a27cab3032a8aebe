"""A score on one screen: verdict, the figures that were asked for, what matters, warnings."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from crashsim.report.screen import figures, notes
from crashsim.report.screen.table import FittedTable
from crashsim.report.text import made_of, plain
from crashsim.results.numbers import percent, share
from crashsim.results.record import Record
from crashsim.results.verdict import headline

_NOTES = 2  # on intervals that say little; more samples narrow the others too
_SITES = 4  # that matter most


def render(score: Record) -> RenderableType:
    """The screen as rich renderables, for a console that knows its width and colours."""
    title = f"crashsim: {score.model['name']}" + (" (partial)" if score.partial else "")
    parts: list[RenderableType] = [
        Panel(plain(headline(score)), title=plain(title), title_align="left"),
    ]
    if rows := figures.figures(score):
        titles = list(figures.TITLES)
        titles[3] = f"{percent(score.confidence)} interval"
        parts.append(FittedTable(titles, rows, words={4}))
    parts += [plain(f"note: {told}", "yellow") for told in figures.wide(score)[:_NOTES]]
    parts += [Text(), *_shares(score)]
    parts += [plain(told, "yellow") for told in notes.lines(score.warnings)]
    parts.append(plain(_footer(score), "dim"))
    return Group(*parts)


def _footer(score: Record) -> str:
    count = len({method for method, _ in score.estimates.of})
    return (
        f"{made_of(score)}; all numbers of {count} method{'s' * (count != 1)}: --details; a page: "
        "--report FILE.html"
    )


def _shares(score: Record) -> list[RenderableType]:
    """Where the variance comes from, the most first; nothing of a single site."""
    sites = [site for site in score.sites if site["share"]]
    if len(sites) < 2:
        return []
    sites = sorted(sites, key=lambda site: -(site["share"] or 0.0))
    rows = [
        (
            site["name"], site["fault"], f"{site['coordinates']:,}", share(site["share"] or 0.0, 1),
            "█" * round(20 * (site["share"] or 0.0)),
        )
        for site in sites[:_SITES]
    ]  # fmt: skip
    titles = ("where the variance comes from", "fault", "coordinates", "share", "")
    table = FittedTable(titles, rows, names=2, words={4})
    more = len(sites) - len(rows)
    return [table, *([plain(f"and {more} more sites: --details", "dim")] if more else []), Text()]
