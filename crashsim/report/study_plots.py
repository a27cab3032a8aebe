"""The figures of a study: each metric against the rate of faults, a line for each model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crashsim.report.plots import figure_of, svg
from crashsim.results.studies.case_record import CaseRecord
from crashsim.visible import visible

_COLOURS = ("#0f766e", "#dc2626", "#2563eb", "#d97706", "#7c3aed", "#db2777", "#111111", "#64748b")
_LABEL = 60  # characters
_MOST = 24  # figures: each takes a while


def pictures(cases: Sequence[CaseRecord]) -> list[tuple[str, str]]:
    """Title and inline SVG of each curve over several rates."""
    groups: dict[tuple[object, ...], dict[str, list[CaseRecord]]] = {}
    for case in cases:
        if case.rate is not None:
            alike = (case.data, case.fault, case.sites, case.metric, case.seed)
            groups.setdefault(alike, {}).setdefault(case.model, []).append(case)
    found: list[tuple[str, str]] = []
    for lines in groups.values():
        if all(len(line) > 1 for line in lines.values()) and len(found) < _MOST:
            found.append((_title(next(iter(lines.values()))[0]), _drawn(lines)))
    return found


def _title(case: CaseRecord) -> str:
    where = "" if case.sites is None else f" at {case.sites}"
    return f"{case.metric} on {case.data} under {case.fault}{where}, seed {case.seed}"


def _drawn(lines: dict[str, list[CaseRecord]]) -> str:
    with figure_of(7.4, 4.4) as (figure, axes):
        axes.set_prop_cycle(color=_COLOURS)
        for model, line in lines.items():
            points = sorted(line, key=lambda case: case.rate or 0.0)
            rates = np.array([case.rate for case in points], dtype=np.float64)
            value, low, high = (
                np.array([getattr(case, end) for case in points], dtype=np.float64)
                for end in ("value", "low", "high")
            )
            # A name that begins with an underscore would be left out of the legend.
            named = visible(model)[:_LABEL].lstrip("_") or "model"
            (drawn,) = axes.plot(rates, value, "o-", ms=3.5, lw=1.6, label=named)
            axes.vlines(rates, low, high, color=drawn.get_color(), lw=1.1)
            axes.axhline(points[0].clean, color=drawn.get_color(), lw=1, ls=":")
        axes.set_xscale("log")
        axes.set_xlabel("rate of faults")
        axes.set_ylabel(f"{next(iter(lines.values()))[0].metric} (mean over chips)")
        axes.grid(True)
        axes.legend(loc="best")
        return svg(figure)
