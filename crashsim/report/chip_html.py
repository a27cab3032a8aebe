"""A run of the spiking chip as one self-contained HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crashsim.report import chip
from crashsim.report.html import page
from crashsim.report.tables import LEGEND, MARKS, Cell, cell, number
from crashsim.results.chip_record import ChipRecord
from crashsim.results.estimate import Estimate
from crashsim.results.estimates import Estimates
from crashsim.results.numbers import percent
from crashsim.results.schema import ChipFacts

__all__ = ["to_html"]

_QUANTITIES = (
    ("E Δ", "mean"),
    ("Var Δ, all outputs", "variance"),
    ("P(class changes)", "class-change"),
)


@dataclass(frozen=True)
class Way:
    """One way to the numbers: where they come from, and a cell for each quantity."""

    name: str
    about: str
    cells: list[Cell | None]


def to_html(record: ChipRecord) -> str:
    """The report: no network, no script, pictures inline."""
    from crashsim.report import plots

    facts = record.hardware
    return page(
        "chip.html",
        record=record,
        facts=facts,
        sentence=chip.sentence(facts) if chip.has_network(facts) else chip.graph_sentence(facts),
        headline=_headline(record),
        titles=_titles(record),
        ways=_ways(record),
        gap=chip.rows(facts) if chip.has_network(facts) else [],
        activity=chip.activity_rows(facts, record.picojoules),
        raster=plots.raster(facts),
        rates=plots.rates(facts) if facts["rates"] else None,
        marks=LEGEND,
    )


def _headline(record: ChipRecord) -> list[dict[str, str]]:
    found = []
    for title, quantity in reversed(_QUANTITIES):
        estimate = record.estimates.find("hardware", quantity)
        if estimate is not None and quantity != "mean":
            show = percent if quantity == "class-change" else number
            found.append(
                {"label": title, "value": show(estimate.value), "source": _interval(estimate, show)}
            )
    if (activity := record.hardware.get("activity")) is not None:
        found.append(
            {
                "label": "synaptic operations per inference",
                "value": f"{activity['operations']:,.0f}",
                "source": f"{activity['spikes']:,.0f} spikes of {activity['neurons']:,} neurons in "
                f"{record.hardware['steps']} steps",
            }
        )
    return found


def _interval(estimate: Estimate, show: Any) -> str:
    if estimate.low is None or estimate.high is None:
        return "measured on the chip"
    return (
        f"measured on the chip, {percent(estimate.confidence or 0)} interval {show(estimate.low)} "
        f"to {show(estimate.high)}"
    )


def _leading(estimates: Estimates) -> int:
    """The output that varies most on the chip."""
    variances = {
        e.output: e.value
        for e in estimates
        if e.quantity == "variance" and e.input == "all" and isinstance(e.output, int)
    }
    return int(max(variances, key=variances.__getitem__)) if variances else 0


def _titles(record: ChipRecord) -> list[str]:
    return [
        f"{title}, output {_leading(record.estimates)}" if quantity == "mean" else title
        for title, quantity in _QUANTITIES
    ]


def _ways(record: ChipRecord) -> list[Way]:
    """Theory, Monte Carlo on the network, the network under the chip's masks, and the chip."""
    leading = _leading(record.estimates)
    found = [
        Way(method, _ABOUT[method == "monte-carlo"], _cells(record.beside, method, leading))
        for method in dict.fromkeys(e.method for e in record.beside)
    ]
    if chip.has_network(record.hardware):
        found.append(
            Way(
                "network", "sample moments under the chip's own masks",
                _of_network(record.hardware, leading),
            )
        )  # fmt: skip
    return [
        *found,
        Way("hardware", "the spiking chip", _cells(record.estimates, "hardware", leading)),
    ]


_ABOUT = {False: "theory of the network", True: "faults injected into the network"}


def _cells(estimates: Estimates, method: str, leading: int) -> list[Cell | None]:
    outputs = [leading if quantity == "mean" else "all" for _, quantity in _QUANTITIES]
    return [
        cell(estimates.find(method, quantity, "all", output))
        for (_, quantity), output in zip(_QUANTITIES, outputs, strict=True)
    ]


def _of_network(facts: ChipFacts, leading: int) -> list[Cell | None]:
    means = [row[leading] for row in facts["network_mean"] if leading < len(row)]
    totals = [sum(row) for row in facts["network_variance"]]
    return [
        Cell(MARKS["estimate"], number(sum(values) / len(values))) if values else None
        for values in (means, totals)
    ] + [None]
