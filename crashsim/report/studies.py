"""Studies as tables in a terminal, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from crashsim.report.html import page
from crashsim.report.text import plain
from crashsim.results.numbers import CORE, RATE_NAME, interval_numbers, words_of_time
from crashsim.results.studies.case_record import CaseRecord
from crashsim.results.studies.changes import Change, Changes
from crashsim.results.studies.planned import PlannedCases

_HEADINGS = ("value", "from", "to", "chips", "rank", "behind the next better model")
_NAMES = ("model", "data", "fault", "sites", "rate", "metric", "seed")
_SHOWN = 200  # cases in a terminal; a file has all


def render(name: str, cases: Sequence[CaseRecord]) -> RenderableType:
    """The cases, with intervals and ranks."""
    names = distinguishing(cases)
    table = _table((*names, *_HEADINGS), len(names))
    for case in cases[:_SHOWN]:
        table.add_row(*map(plain, (*named(case, names), *row(case))))
    parts: list[RenderableType] = [plain(f"study {name}: {sentence(cases)}", "bold"), table]
    if len(cases) > _SHOWN:
        parts.append(plain(f"and {len(cases) - _SHOWN} more; --json or --csv has all", "dim"))
    if any(case.rank for case in cases):
        parts.append(plain(legend(cases), "dim"))
    return Group(*parts)


def distinguishing(cases: Sequence[CaseRecord]) -> list[str]:
    """What tells the cases apart: the parts of their names that are not all the same."""
    found = [name for name in _NAMES if len({getattr(case, name) for case in cases}) > 1]
    return found or ["metric"]


def named(case: CaseRecord, names: Sequence[str]) -> list[str]:
    """These parts of a case's name."""
    parts = [getattr(case, name) for name in names]
    return ["" if p is None else f"{p:.6g}" if isinstance(p, float) else str(p) for p in parts]


def row(case: CaseRecord) -> tuple[str, ...]:
    """What a table says of a case."""
    numbers = interval_numbers(case.value, case.low, case.high)
    rank = "" if case.rank is None else str(case.rank)
    return (*numbers, f"{case.chips:,}", rank, _behind(case))


def _behind(case: CaseRecord) -> str:
    if case.behind is None:
        return ""
    value, low, high = interval_numbers(*(case.behind[e] for e in ("difference", "low", "high")))
    sure = "" if case.behind["low"] > 0 else ", could be even"
    paired = ", same faults" if case.behind["same_chips"] else ""
    return f"{case.behind['model']} by {value} ({low} to {high}{paired}{sure})"


def sentence(cases: Sequence[CaseRecord]) -> str:
    """How many cases there are, and how many have the width that was asked for."""
    asked = [case for case in cases if case.asked_width is not None]
    narrow = sum(case.is_narrow for case in asked)
    words = f"{len(cases)} {'case' if len(cases) == 1 else 'cases'}"
    if asked:
        words += f", {narrow} of {len(asked)} as narrow as was asked for"
    if any(case.partial for case in cases):
        words += "; interrupted: not all chips were judged"
    return words


def legend(cases: Sequence[CaseRecord]) -> str:
    """What ranks mean."""
    level = f"{100 * max(case.confidence for case in cases):g}%"
    return (
        f"Ranks are of the models in the same case. Each difference has an interval of {level} of "
        "its own; of many, some miss by chance. 'Same faults': chips are compared one by one."
    )


def render_live(name: str, progress: Any, seconds: float | None, rows: int) -> RenderableType:
    """The cases with the widest intervals while a study runs.

    Args:
        name: of the study.
        progress: with ``cases``, ``count``, ``done`` and ``planned``.
        seconds: to the end of what is planned; None: not known yet.
        rows: that fit.
    """
    names = distinguishing(progress.cases)
    table = _table((*names, "value", "from", "to", "chips", "asked +-"), len(names))
    waiting = sorted(progress.cases, key=lambda case: case.is_narrow)
    for case in waiting[:rows]:
        asked = "" if case.asked_width is None else f"{case.asked_width:.2g}"
        table.add_row(*map(plain, (*named(case, names), *row(case)[:4], asked)))
    done = 100 * progress.done / progress.planned if progress.planned else 100.0
    end = "" if seconds is None else f", {words_of_time(seconds)} to the end of it"
    words = f"{name}: {len(progress.cases)} of {progress.count} cases have chips; {done:.0f}%"
    return Group(plain(f"{words} of what is planned{end}", "bold"), table)


def render_plan(planned: Sequence[PlannedCases]) -> RenderableType:
    """What a study would run, with its cost; time is counted, not measured."""
    table = _table(("cases", "chips at first", "time", "at most", "time"))
    for each in planned:
        for case in each.cases[:-1]:
            table.add_row(plain(case), "", "", "", "")
        table.add_row(
            plain(each.cases[-1]),
            f"{each.first:,}",
            words_of_time(each.first_operations / CORE),
            f"{each.most:,}",
            words_of_time(each.most_operations / CORE),
        )
    first = sum(each.first_operations for each in planned)
    most = sum(each.most_operations for each in planned)
    count = sum(len(each.cases) for each in planned)
    total = (
        f"{count} cases on {len(planned)} sets of chips: {first:.3g} operations at first "
        f"({words_of_time(first / CORE)}), {most:.3g} at most ({words_of_time(most / CORE)}), at "
        f"{RATE_NAME}"
    )
    return Group(table, plain(total, "bold"))


def render_changes(changes: Changes) -> RenderableType:
    """What changed between two studies; what surely did comes first."""
    table = _table(("case", "old", "new", "change", "from", "to", ""))
    order = sorted(changes.cases, key=lambda change: change.is_better is None)
    for change in order[:_SHOWN]:
        numbers = interval_numbers(change.difference, change.low, change.high)
        cells = (change.case, f"{change.old:.4g}", f"{change.new:.4g}", *numbers, _verdict(change))
        table.add_row(*map(plain, cells))
    sure = [change for change in changes.cases if change.is_better is not None]
    better = sum(bool(change.is_better) for change in sure)
    words = (
        f"{len(changes.cases)} cases in both: {better} better, {len(sure) - better} worse, "
        f"{len(changes.cases) - len(sure)} within their intervals"
    )
    parts: list[RenderableType] = [plain(words, "bold"), table]
    if len(order) > _SHOWN:
        parts.append(plain(f"and {len(order) - _SHOWN} more; --json has all", "dim"))
    for label, names in (("new", changes.added), ("gone", changes.gone)):
        parts += [plain(f"{label}: {name}") for name in names[:_SHOWN]]
    return Group(*parts)


def _verdict(change: Change) -> str:
    if change.is_better is None:
        return ""
    return "better" if change.is_better else "worse"


def _table(headings: Sequence[str], names: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        justify = "right" if number >= names and heading != _HEADINGS[-1] else "left"
        table.add_column(plain(heading), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def to_html(name: str, cases: Sequence[CaseRecord]) -> str:
    """The page: no network, no script, figures inline."""
    from crashsim.report import study_plots

    names = distinguishing(cases)
    return page(
        "studies.html",
        name=name,
        sentence=sentence(cases),
        headings=[*names, *_HEADINGS],
        rows=[(*named(case, names), *row(case)) for case in cases],
        legend=legend(cases) if any(case.rank for case in cases) else "",
        figures=study_plots.pictures(cases),
    )
