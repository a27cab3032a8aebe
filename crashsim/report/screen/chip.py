"""A run of the spiking chip on one screen."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel

from crashsim.report import chip
from crashsim.report.screen.table import FittedTable
from crashsim.report.text import plain
from crashsim.results.chip_record import ChipRecord
from crashsim.results.numbers import says_little


def render(record: ChipRecord) -> RenderableType:
    """What the faults do to the chip, and how close it is to its network."""
    facts = record.hardware
    parts: list[RenderableType] = [
        Panel(
            plain(chip.headline(record)),
            title=plain(f"crashsim hardware: {record.model}"),
            title_align="left",
        )
    ]
    if figures := chip.figures(record):
        parts.append(FittedTable(("the chip with faults", "value", "unit"), figures, words={2}))
    parts += [plain(told, "yellow") for told in _wide(record)]
    if chip.has_network(facts):
        titles = ("the chip beside the network", "value", "meaning")
        parts.append(FittedTable(titles, chip.rows(facts), words={2}))
        parts.append(plain(chip.sentence(facts), "dim"))
    else:
        parts.append(plain(chip.graph_sentence(facts), "dim"))
    return Group(*parts)


def _wide(record: ChipRecord) -> list[str]:
    """Which numbers are hardly known."""
    found = []
    for e in record.estimates:
        if e.input != "all" or e.output != "all" or e.low is None or e.high is None:
            continue
        if says_little(e.low, e.high, is_probability=e.quantity != "variance"):
            masks = record.hardware["masks"]
            found.append(
                f"{e.quantity}: the interval says little after {masks:,} masks; --masks "
                f"{4 * masks} would halve it, about"
            )
    return found
