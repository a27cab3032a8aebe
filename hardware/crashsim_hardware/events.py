"""Events of cameras and cochleas as spike trains: times and addresses, counted step by step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import as_numbers, is_number, whole
from .errors import HardwareError
from .transforms import Shape

__all__ = ["addresses_of", "event_trains"]

Floats = NDArray[Any]

_POLARITIES = (-1, 0, 1)


def event_trains(
    times: Any,
    addresses: Any,
    shape: Shape,
    steps: int,
    *,
    step: float = 1.0,
    examples: Any = None,
    count: int | None = None,
) -> Floats:
    """Events as trains (B, T, *shape): how many each line has in each step.

    Parameters
    ----------
    times: (S,), not below 0; an event at time t is in the step floor(t / step), as decimal numbers
        have it: that at 0.3 is in step 3 of steps of 0.1.
    addresses: (S,) places in an input, counted in C order; or (S, d), an index along each axis of
        `shape`.
    shape: of one input.
    steps: T.
    step: length of a time step, in the unit of the times.
    examples: (S,) which of the B inputs each event is of, from 0; None: all of one.
    count: B; default up to the last that has an event. Events of later ones are left out.

    Raises HardwareError for events outside of the steps or of the shape.
    """
    steps = whole("steps", steps, 1, 2**31)
    if not is_number(step) or not 0.0 < step < math.inf:
        raise HardwareError(f"step must be a positive time, got {step!r:.80}")
    when = as_numbers("times", times)
    if when.ndim != 1 or not np.isfinite(when).all():
        raise HardwareError(f"times must be finite numbers (S,), got shape {when.shape}")
    where = _places(addresses, len(when), shape)
    which = np.zeros(len(when), np.int64) if examples is None else _whole("examples", examples)
    if which.shape != when.shape or (which < 0).any():
        raise HardwareError("examples must say a number from 0 for each event")
    if count is None:
        count = int(which.max(initial=0)) + 1
    kept = which < count
    when, where, which = when[kept], where[kept], which[kept]
    bins = steps_of(times, step)[kept]
    if len(bins) and (bins.min() < 0 or bins.max() >= steps):
        raise HardwareError(
            f"events are at times from {when.min():g} to {when.max():g}, and {steps} steps of "
            f"{step:g} end at {steps * step:g}; give more steps, or their length in the unit of "
            "the times (microseconds, in most recordings)"
        )
    size = math.prod(shape)
    flat = (which * steps + bins.astype(np.int64)) * size + where
    return np.bincount(flat, minlength=count * steps * size).reshape(count, steps, *shape) * 1.0


def steps_of(times: Any, step: float) -> Floats:
    """The step that each time is in, floor(t / step), of times that begin one within rounding.

    0.3 is not quite three times 0.1 in binary fractions; a time is in a step that it begins up to
    the rounding of its own format.
    """
    given = np.asarray(times)
    digits = np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps
    shares: Floats = given.astype(np.float64) / step
    nearest = np.rint(shares)
    begins = np.abs(shares - nearest) <= 2.0 * float(digits) * nearest
    found: Floats = np.where(begins, nearest, np.floor(shares))
    return found


def addresses_of(columns: dict[str, Any], shape: Shape) -> NDArray[np.int64]:
    """The place (S,) of events with x, y and a polarity p, as event cameras and tonic have them.

    columns: x, and perhaps y and p, (S,) each. p is 0 or 1, or -1 or 1, or a truth value.

    (n,) is indexed by x; (height, width) by y, x; (2, n) by p, x; (2, height, width) by p, y, x.
    With one channel instead of two both polarities count alike.

    Raises HardwareError for another shape, and for events outside of it.
    """
    x = _whole("x", columns["x"])
    y = None if columns.get("y") is None else _whole("y", columns["y"])
    flat_y = y is None or not y.any()
    channels = shape[0] if len(shape) > 1 and shape[0] in (1, 2) else None
    axes: list[NDArray[np.int64]] = (
        [] if channels is None else [_polarity(columns, len(x), channels)]
    )
    plain = len(shape) - len(axes)
    if plain == 2 and y is not None:
        axes += [y, x]
    elif plain == 1 and flat_y:
        axes += [x]
    else:
        named = "x" if y is None else "x and y"
        raise HardwareError(
            f"events with {named} do not say a place in inputs of shape {shape}; those of (n,), "
            "(channels, n), (height, width) and (channels, height, width), with one or two "
            "channels, can be placed; give `addresses` instead"
        )
    return _places(np.stack(axes, axis=1), len(x), shape)


def _polarity(columns: dict[str, Any], count: int, channels: int) -> NDArray[np.int64]:
    if channels == 1:
        return np.zeros(count, np.int64)
    if columns.get("p") is None:
        raise HardwareError("inputs have two channels, and the events no polarity p to choose one")
    polarity = _whole("p", columns["p"])
    if not np.isin(polarity, _POLARITIES).all():
        raise HardwareError("p must be 0 or 1, or -1 or 1")
    return np.maximum(polarity, 0)


def _places(addresses: Any, count: int, shape: Shape) -> NDArray[np.int64]:
    """Flat places (S,) in C order."""
    where = _whole("addresses", addresses)
    if where.ndim not in (1, 2) or len(where) != count:
        raise HardwareError(
            f"addresses must be (S,) or (S, d) for {count} times, got {where.shape}"
        )
    columns, extent = (where[:, None], (math.prod(shape),)) if where.ndim == 1 else (where, shape)
    if columns.shape[1] != len(extent):
        raise HardwareError(f"addresses of {columns.shape[1]} axes do not fit inputs of {shape}")
    if (columns < 0).any() or (columns >= np.array(extent)).any():
        raise HardwareError(
            f"addresses are from {columns.min(0).tolist()} to {columns.max(0).tolist()}, outside "
            f"of inputs of {shape}"
        )
    return np.asarray(np.ravel_multi_index(tuple(columns.T), extent), dtype=np.int64)


def _whole(name: str, values: Any) -> NDArray[np.int64]:
    array = as_numbers(name, values)
    found: NDArray[np.int64] = array.astype(np.int64)
    if not np.isfinite(array).all() or (found != array).any():
        raise HardwareError(f"{name} of events must be whole numbers")
    return found
