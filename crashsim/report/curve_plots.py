"""The figure of curves: a metric against the rate of faults, with band, clean value, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.importing import needed
from crashsim.report.plots import figure_of, svg
from crashsim.results.curve import curves as words
from crashsim.results.curve.curve_record import CurveRecord
from crashsim.visible import visible

_COLOURS = ("#0f766e", "#dc2626", "#2563eb", "#d97706", "#7c3aed", "#db2777", "#111111", "#64748b")
_LABEL = 60  # characters


def draw(curve: CurveRecord, axes: Any = None, label: str | None = None) -> Any:
    """Draws a curve into matplotlib's axes; new ones, if none are given. Returns the axes.

    Shaded is the band over all rates at once; bars are intervals at each rate alone, a
    dotted line is the clean network, a dashed one what theory predicts.
    """
    if axes is None:
        axes = needed("matplotlib.figure", "a plot").Figure(layout="constrained").subplots()
    named = visible(label or words.title(curve))[:_LABEL]
    rates, values = _column(curve, "rate"), _column(curve, "value")
    style = "-" if curve.is_measured else "--"
    # A name that begins with an underscore would be left out of the legend.
    (line,) = axes.plot(rates, values, style, lw=1.8, label=named.lstrip("_") or "curve")
    colour = line.get_color()
    if curve.is_measured or words.has_intervals(curve):
        low, high = _column(curve, "low"), _column(curve, "high")
        axes.fill_between(
            rates, _column(curve, "band_low"), _column(curve, "band_high"), color=colour,
            alpha=0.15, lw=0,
        )  # fmt: skip
        axes.vlines(rates, low, high, color=colour, lw=1.1)
        axes.plot(rates, values, "o", ms=3.5, color=colour)
        if curve.is_measured and words.has_prediction(curve):
            predicted = _column(curve, "predicted")
            axes.plot(rates, predicted, "x", ms=5, color=colour, label=f"{named}, predicted")
    axes.axhline(curve.clean, color=colour, lw=1, ls=":")
    axes.set_xscale("log")
    axes.set_xlabel(f"rate of faults, {curve.parameter}")
    axes.set_ylabel(f"{curve.metric} (mean over chips)")
    return axes


def picture(curves: Sequence[CurveRecord]) -> str:
    """Curves in one figure, as inline SVG."""
    with figure_of(7.4, 4.4) as (figure, axes):
        axes.set_prop_cycle(color=_COLOURS)
        for curve in curves:
            draw(curve, axes)
        axes.grid(True)
        axes.legend(loc="best")
        return svg(figure)


def accepted(curves: Sequence[CurveRecord]) -> str | None:
    """The share of chips that reach the target against the rate, as inline SVG; None without."""
    shown = [c for c in curves if c.is_measured and c.points[0]["accepted"] is not None]
    if not shown:
        return None
    with figure_of(7.4, 3.4) as (figure, axes):
        axes.set_prop_cycle(color=_COLOURS)
        for curve in shown:
            facts = [p["accepted"] for p in curve.points]
            value, low, high = (
                np.array([f[end] for f in facts if f is not None])
                for end in ("value", "low", "high")
            )
            level = words.value_text(curve, facts[0]["level"]) if facts[0] else ""
            bound = "≤" if curve.lower_is_better else "≥"
            named = f"{visible(words.title(curve))[:_LABEL].lstrip('_')}, {bound} {level}"
            rates = _column(curve, "rate")
            (line,) = axes.plot(rates, value, "o-", ms=3.5, lw=1.6, label=named)
            axes.fill_between(rates, low, high, color=line.get_color(), alpha=0.15, lw=0)
        axes.set_xscale("log")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(f"rate of faults, {shown[0].parameter}")
        axes.set_ylabel("share of chips")
        axes.grid(True)
        axes.legend(loc="best")
        return svg(figure)


def _column(curve: CurveRecord, name: str) -> NDArray[np.float64]:
    found = [point[name] for point in curve.points]  # type: ignore[literal-required]
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)
