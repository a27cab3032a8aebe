"""A score as one self-contained HTML file."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from crashsim.report import chip, tables
from crashsim.report.text import footer
from crashsim.results import chips as metrics_over_chips
from crashsim.results.numbers import percent, share
from crashsim.results.record import Record
from crashsim.results.schema import ChipFacts
from crashsim.results.verdict import best, describe_faults, verdict
from crashsim.visible import visible

_DRAWN = 24  # formulas


def to_html(score: Record) -> str:
    """The report: no network, no script, pictures inline."""
    from crashsim.report import plots

    about = {name: method.about for name, method in score.method_facts.items()}
    formulas = [
        {
            "method": method,
            "description": about.get(method, ""),
            # A file may hold any number of them, and each takes a while to draw.
            "picture": plots.formula(text["latex"]) if method in about and i < _DRAWN else None,
            "text": text["text"],
        }
        for i, (method, text) in enumerate(score.formulas.items())
    ]
    return page(
        "template.html",
        score=score,
        verdict=verdict(score),
        asked=describe_faults(score),
        headline=_headline(score),
        chips=metrics_over_chips,
        columns=tables.columns(score),
        rows=tables.rows(score),
        worths=tables.worths(score),
        descriptions=about,
        legend=tables.legend(score),
        marks=tables.MARKS,
        number=tables.number,
        share=share,
        formulas=formulas,
        footer=footer(score),
        curves=plots.tail_curves(score),
        histogram=plots.histogram(score),
        scatter=plots.scatter(score),
        shares=plots.shares(score),
        chip=score.hardware and _chip(score.hardware),
    )


def page(template: str, **values: Any) -> str:
    """A template of this folder with values, which are escaped unless they are marked up."""
    folder = resources.files("crashsim.report")
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = folder.joinpath(template).read_text()
    style = Markup(folder.joinpath("style.css").read_text())
    return environment.from_string(source).render(style=style, **values)


def _shown(value: Any) -> Any:
    """Words with escapes for what cannot be seen; pictures, which are marked up, as they are."""
    is_words = isinstance(value, str) and not isinstance(value, Markup)
    return visible(value, lines=True) if is_words else value


def _chip(facts: ChipFacts) -> dict[str, Any]:
    from crashsim.report import plots

    return {
        "sentence": chip.sentence(facts),
        "rows": chip.rows(facts),
        "device": facts["device"],
        "raster": plots.raster(facts),
        "rates": plots.rates(facts),
    }


def _headline(score: Record) -> list[dict[str, str]]:
    """The few numbers at the top: label, value, and where it comes from."""
    found = [] if score.chips is None else [metrics_over_chips.card(score.chips)]
    for label, quantity in (
        ("predicted class changes", "class-change"),
        (f"some output moves by {score.epsilon or 0:g}", "tail"),
        ("Var Δ, all outputs", "variance"),
    ):
        estimate = best(score, quantity)
        if estimate is None:
            continue
        show = tables.number if quantity == "variance" else percent
        source = f"{estimate.method} ({estimate.kind})"
        if estimate.low is not None and estimate.high is not None and estimate.kind != "exact":
            source = (
                f"{estimate.method}, {percent(estimate.confidence or 0)} interval "
                f"{show(estimate.low)} to {show(estimate.high)}"
            )
        found.append({"label": label, "value": show(estimate.value), "source": source})
    return found
