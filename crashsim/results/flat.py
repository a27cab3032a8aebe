"""A record's numbers as one flat dict of floats, as trackers of experiments (MLflow, W&B) take."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from crashsim.results.curve.curve_record import CurveRecord
from crashsim.results.record import Record

_OTHER = re.compile(r"[^A-Za-z0-9_\-./ ]")  # than MLflow takes in the name of a metric


def numbers_of_score(record: Record) -> dict[str, float]:
    """Each method's number for each quantity over all inputs and outputs, with its interval.

    Named ``method/quantity``, and ``.low`` and ``.high`` of its interval. What is infinite or no
    number is left out.
    """
    found: dict[str, float | None] = {}
    for method, quantity in record.estimates.of:
        estimate = record.find(method, quantity)
        if estimate is not None:
            name = f"{method}/{quantity}"
            found |= {name: estimate.value, f"{name}.low": estimate.low}
            found[f"{name}.high"] = estimate.high
    return _finite(found)


def numbers_of_curve(curve: CurveRecord) -> dict[str, float]:
    """The curve's metric at each rate, with its interval, and without faults.

    Named ``metric/rate``, as ``accuracy/0.001``, with ``.low`` and ``.high``; and
    ``metric/clean``.
    """
    found: dict[str, float | None] = {f"{curve.metric}/clean": curve.clean}
    for point in curve.points:
        name = f"{curve.metric}/{point['rate']:.6g}"
        found |= {name: point["value"], f"{name}.low": point["low"], f"{name}.high": point["high"]}
    return _finite(found)


def _finite(found: dict[str, float | None]) -> dict[str, float]:
    return dict(_usable(found))


def _usable(found: dict[str, float | None]) -> Iterator[tuple[str, float]]:
    for name, value in found.items():
        if value is not None and math.isfinite(value):
            yield _OTHER.sub("_", name), float(value)
