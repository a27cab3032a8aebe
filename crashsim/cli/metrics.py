"""Metrics on a command line: which, to what width, and what chips are accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from crashsim.errors import ArgumentError

SMALL = 32  # inputs whose movement is looked at, unless --limit says


def read_numbers(option: str, texts: Sequence[str] | None) -> dict[str, float]:
    """``NAME=NUMBER`` of an option that may be repeated.

    Raises:
        ArgumentError: something else, or a name twice.
    """
    found: dict[str, float] = {}
    for text in texts or ():
        name, _, number = text.rpartition("=")
        value = _number(number)
        if not name or math.isnan(value):
            raise ArgumentError(f"{option}={text!r}; give NAME=NUMBER, such as accuracy=0.9")
        if name in found:
            raise ArgumentError(f"{option}={text!r}: {name} is there twice; give it once")
        found[name] = value
    return found


def read_widths(texts: Sequence[str] | None) -> float | dict[str, float] | None:
    """A relative width of variances, or of metrics by name.

    Raises:
        ArgumentError: as ``read_numbers``.
    """
    if not texts:
        return None
    if len(texts) == 1 and not math.isnan(value := _number(texts[0])):
        return value
    named = [text if "=" in text else f"variance={text}" for text in texts]
    return read_numbers("rel-width", named)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def labelled_examples(spec: str, limit: int | None, batch_axis: int, targets: str | None) -> Any:
    """The examples of a command: all, where they have targets and no limit is given.

    Args:
        spec: of the examples.
        limit: number of examples; None: as many as are useful.
        batch_axis: the axis of the arrays that is the batch.
        targets: a file of targets, or None.
    """
    from dataclasses import replace

    from crashsim.cli.reading import read_examples
    from crashsim.files.data import read_targets

    if targets is not None:
        every = read_examples(spec, None, batch_axis)
        chosen = read_examples(spec, limit, batch_axis) if limit else every
        return replace(chosen, targets=read_targets(targets, _count(every, batch_axis), limit))
    data = read_examples(spec, limit or SMALL, batch_axis)
    if limit is None and data.targets is not None:
        return read_examples(spec, None, batch_axis)
    return data


def _count(data: Any, batch_axis: int) -> int:
    tensors = data.inputs.values() if isinstance(data.inputs, dict) else [data.inputs]
    first = next(iter(tensors))
    return int(first.shape[batch_axis if first.dim() > batch_axis else 0])
