"""Files of events: times and addresses, in an ``.npz``, or tonic's structured arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from crashsim_hardware import HardwareError, addresses_of, event_trains
from crashsim_hardware.events import steps_of

from crashsim.arrays import Floats
from crashsim.errors import ArgumentError, FileError
from crashsim.files.limits import check_size
from crashsim.files.stored_arrays import StoredArray, numpy_arrays

__all__ = ["holds_events", "load_events"]

_MOST_STEPS = 10_000  # of a recording whose number of steps is not said
_REMEDY = (
    "give an .npz of `times` and `addresses`, or of columns or a structured array with t, x and "
    "perhaps y and p; and `examples`, where there are several"
)
_TIMES = ("times", "t")


def holds_events(spec: str) -> bool:
    """Whether a file holds events, as its header says.

    Raises:
        FileError: a numpy file that is damaged.
    """
    if Path(spec).suffix not in (".npy", ".npz") or not Path(spec).is_file():
        return False
    with numpy_arrays(spec) as stored:
        if isinstance(stored, StoredArray):
            return _is_structured(stored)
        names = stored.keys()
        placed = "addresses" in names or "x" in names
        timed = any(name in names for name in _TIMES)
        return (timed and placed) or any(map(_is_structured, stored.values()))


def load_events(
    spec: str, shape: tuple[int, ...], *, steps: int | None, step: float, limit: int
) -> Floats:
    """The events of a file as trains (B, T, *shape).

    Args:
        spec: an ``.npz`` file with ``times`` (or ``t``), and ``addresses`` or ``x``, ``y``, ``p``;
            or a structured array with fields t, x, and perhaps y and p, as tonic gives them, alone
            as an ``.npy`` file or beside others. ``examples`` says which input each event is of.
        shape: of one input.
        steps: T; None: until the last event.
        step: length of a step in the unit of the times.
        limit: number of inputs to read, from the first.

    Raises:
        FileError: the file is damaged, or would take too much memory.
        ArgumentError: events outside of the shape or the steps.
    """
    if not 0.0 < step < math.inf:
        raise ArgumentError(f"event_step={step!r}: give a positive length of time")
    columns = _columns(spec)
    times = columns.pop("times")
    examples = columns.pop("examples", None)
    try:
        addresses = columns.get("addresses")
        if addresses is None:
            addresses = addresses_of(columns, shape)
        if steps is None:
            steps = _steps_until(spec, times, step)
        count = limit if examples is None or not len(examples) else int(np.max(examples)) + 1
        count = 1 if examples is None else min(limit, count)
        numbers = count * steps * math.prod(shape)
        check_size(f"inputs={spec!r}: {numbers:,} numbers", 8 * numbers, "give fewer steps")
        return event_trains(
            times, addresses, shape, steps, step=step, examples=examples, count=count
        )
    except HardwareError as error:
        raise ArgumentError(f"inputs={spec!r}: {error} (--steps, --event-step)") from error


def _steps_until(spec: str, times: Any, step: float) -> int:
    last = float(np.max(times, initial=0.0))
    latest = steps_of(np.max(times, initial=0), step)
    steps = int(latest) + 1 if math.isfinite(last) else _MOST_STEPS + 1
    if steps > _MOST_STEPS:
        raise ArgumentError(
            f"inputs={spec!r}: its events last for {last:g} units of time, more than {_MOST_STEPS} "
            f"steps of {step:g}; give --event-step, the length of a step in that unit (1000 for "
            "1 ms, where times are in microseconds), or --steps"
        )
    return steps


def _columns(spec: str) -> dict[str, Any]:
    """Times, addresses or x, y, p, and examples, as they are stored."""
    with numpy_arrays(spec) as stored:
        arrays = {"events": stored} if isinstance(stored, StoredArray) else dict(stored)
        found: dict[str, Any] = {}
        structured = [array for array in arrays.values() if _is_structured(array)]
        if len(structured) > 1:
            raise FileError(f"inputs={spec!r} holds several arrays of events; {_REMEDY}")
        for array in structured:
            table = array.first(None, array.dtype)
            found |= {name: table[name] for name in table.dtype.names or ()}
        for name, array in arrays.items():
            if not _is_structured(array):
                if array.dtype.kind not in "fiub" or not array.shape:
                    raise FileError(f"inputs={spec!r}: {name!r} holds no numbers; {_REMEDY}")
                found[name] = array.first(None, array.dtype.newbyteorder("="))
    times = next((found.pop(name) for name in _TIMES if name in found), None)
    if times is None or not ("addresses" in found or "x" in found):
        raise FileError(f"inputs={spec!r} holds no events; {_REMEDY}")
    return {**found, "times": times}


def _is_structured(array: StoredArray) -> bool:
    names = array.dtype.names or ()
    plain = all(array.dtype[name].kind in "fiub" for name in names)
    return "t" in names and "x" in names and plain and len(array.shape) == 1
