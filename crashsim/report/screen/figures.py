"""The figures of a score that were asked for, each with its interval and where it comes from."""

from __future__ import annotations

import math

from crashsim.report.tables import number
from crashsim.results import chips
from crashsim.results.estimate import Estimate
from crashsim.results.numbers import (
    interval_numbers,
    percents,
    samples_needed,
    says_little,
)
from crashsim.results.record import Record
from crashsim.results.verdict import best

TITLES = ("figure", "no faults", "with faults", "interval", "method")
_METRICS = 4  # over chips, the first
_NAMED = 4  # outputs that were asked for by number, the first


def figures(score: Record) -> list[tuple[str, ...]]:
    """Rows of ``TITLES``: metrics over chips, events, and how far outputs move."""
    found: list[tuple[str, ...]] = []
    if score.chips is not None:
        found += [(*row, "over chips") for row in chips.figures(score.chips, _METRICS)]
    for name, quantity in _events(score):
        estimate = best(score, quantity)
        if estimate is not None:
            found.append((name, "0%", *_shown(estimate), _method(estimate)))
    for k in score.named_outputs[:_NAMED]:
        estimate = best(score, "tail", k)
        if estimate is not None:
            name = f"output {k} moves by {score.epsilon:g} or more"
            found.append((name, "0%", *_shown(estimate), _method(estimate)))
    variance = best(score, "variance")
    if variance is not None:
        found.append(
            (_moved(score), "0", *_root(variance), _method(variance)),
        )
    return found


def _events(score: Record) -> list[tuple[str, str]]:
    which = _only(score) if score.outputs == 1 else "some output"
    known = chips.metrics_on_more(score.chips, score.inputs["count"])
    named = []
    if not {"sdc-1", "class-change"} & known:
        named.append(("the predicted class changes", "class-change"))
    if "due" not in known:
        named.append((f"{which} is infinite or NaN", "not-finite"))
    if score.epsilon is not None:
        named.append((f"{which} moves by {score.epsilon:g} or more", "tail"))
    return named


def _moved(score: Record) -> str:
    which = _only(score) if score.outputs == 1 else f"all {score.outputs} outputs"
    return f"std of {which}, in {'its' if score.of_loss else 'their'} units"


def _only(score: Record) -> str:
    """The only output."""
    return "the loss" if score.of_loss else "the output"


def _method(estimate: Estimate) -> str:
    return (
        estimate.method
        if estimate.kind in (estimate.method, "statistical")
        else (f"{estimate.method} ({estimate.kind})")
    )


def _has_ends(estimate: Estimate) -> bool:
    return estimate.kind != "exact" and estimate.low is not None and estimate.high is not None


def _shown(estimate: Estimate) -> tuple[str, str]:
    """A probability and its interval."""
    if not _has_ends(estimate):
        return percents(estimate.value, estimate.value, estimate.value)[0], ""
    assert estimate.low is not None
    assert estimate.high is not None
    value, low, high = percents(estimate.value, estimate.low, estimate.high)
    return value, f"[{low}, {high}]"


def _root(estimate: Estimate) -> tuple[str, str]:
    """The square root of a variance and of its interval."""
    value = math.sqrt(max(estimate.value, 0.0))
    if not _has_ends(estimate):
        return number(value), ""
    assert estimate.low is not None
    assert estimate.high is not None
    low, high = (math.sqrt(max(end, 0.0)) for end in (estimate.low, estimate.high))
    shown, *ends = interval_numbers(value, low, high)
    return shown, f"[{ends[0]}, {ends[1]}]"


def wide(score: Record) -> list[str]:
    """Which figures are hardly known, and about how many samples would tell more."""
    told = []
    if score.chips is not None:
        told += chips.wide(score.chips)
    for name, quantity in (*_events(score), (_moved(score), "variance")):
        found = best(score, quantity)
        if found is None or found.kind != "statistical" or found.low is None:
            continue
        high = math.inf if found.high is None else found.high
        if not says_little(found.low, high, is_probability=quantity != "variance"):
            continue
        more = samples_needed(score.samples, found.value, found.low, high)
        many = "more samples" if more is None else f"about {more:,} samples (--samples {more})"
        told.append(f"{name}: the interval says little; {many} would tell more")
    return told
