"""Which estimates a file lists one by one, and what it says of those that it leaves out.

A network with many outputs has so many numbers that a file of them all serves nobody: beyond
``MOST`` of them, each array is told by its largest numbers and a summary. All of it goes into an
``.npz`` file where that is asked for.
"""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from crashsim.results.estimate import Estimate
from crashsim.results.estimates import EstimateArray, Estimates
from crashsim.results.json_reading import finite
from crashsim.results.schema import Number

MOST = 20_000  # estimates that are listed, all of them
_LARGEST = 100  # of an array, where they are not


class LeftOut(TypedDict):
    """The numbers of one method and quantity of which the largest alone are listed.

    ``averaged``: over the inputs; else of each input. The quartiles leave out what is not finite.
    """

    method: str
    quantity: str
    level: NotRequired[float | None]
    averaged: bool
    count: int
    listed: int
    min: Number
    median: Number
    mean: Number
    max: Number


def listed(estimates: Estimates) -> tuple[list[Estimate], list[LeftOut]]:
    """The estimates that a file lists, in their order, and what it leaves out."""
    if len(estimates) <= MOST:
        return list(estimates), []
    found: list[Estimate] = []
    left_out: list[LeftOut] = []
    for part in estimates.parts:
        if isinstance(part, Estimate):
            found.append(part)
        elif len(part) <= 2 * _LARGEST:
            found += map(part.at, range(len(part)))
        else:
            largest = np.argsort(-np.abs(part.value.ravel()), kind="stable")[:_LARGEST]
            found += map(part.at, sorted(int(i) for i in largest))
            left_out.append(_summary(part))
    return found, left_out


def _summary(array: EstimateArray) -> LeftOut:
    values = array.value[np.isfinite(array.value)]
    ends = (np.min, np.median, np.mean, np.max)
    least, median, mean, most = (float(f(values)) if values.size else np.nan for f in ends)
    return {
        "method": array.method,
        "quantity": array.quantity,
        "level": array.level,
        "averaged": not array.each_input,
        "count": len(array),
        "listed": _LARGEST,
        "min": least,
        "median": median,
        "mean": mean,
        "max": most,
    }


def as_npz(estimates: Estimates) -> bytes:
    """All numbers that are kept as arrays, as an ``.npz`` file.

    Its entry ``index`` is a JSON text: a list with, for each array, its ``name``, method, quantity,
    kind, level, confidence, note and axes (``input``, ``output``). The entries ``NAME.value``, and
    where there are such ``NAME.low``, ``NAME.high``, ``NAME.worth``, ``NAME.enough`` and
    ``NAME.outputs`` (which outputs the columns are, if not all) are the numbers. Single estimates
    are in the score's JSON alone.
    """
    index: list[dict[str, Any]] = []
    entries: dict[str, Any] = {}
    for number, array in enumerate(estimates.arrays):
        name = f"{number:03d}.{array.method}.{array.quantity}"
        axes = ["input"] * array.each_input + ["output"] * array.each_output
        facts: dict[str, Any] = {"name": name, "axes": axes}
        for field in ("method", "quantity", "kind", "level", "confidence", "note"):
            facts[field] = getattr(array, field)
        index.append(facts)
        for field in ("value", "low", "high", "worth", "enough", "outputs"):
            numbers = getattr(array, field)
            if numbers is not None:
                entries[f"{name}.{field}"] = np.asarray(numbers)
    buffer = BytesIO()
    np.savez_compressed(buffer, index=np.array(json.dumps(finite(index))), **entries)
    return buffer.getvalue()
