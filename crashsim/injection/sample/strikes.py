"""What a sample strikes, as a table; and the point of the fault coordinates that a table is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crashsim.arguments import as_float, is_whole, shown
from crashsim.arrays import Floats
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError
from crashsim.model.checks import rounding_slack


@dataclass(frozen=True)
class Strike:
    """One coordinate that is not 0: what is struck, and how.

    Attributes:
        site: its name.
        index: in the site's shape (of one time step, where a neuron fails in all); of neurons that
            die together the number of their group, of a flipped bit the weight's index and the
            bit, the least significant first; of guarded words the number of the stored bit.
        fault: what the command line calls the fault.
        value: the coordinate e: 1 for a fault that strikes or does not.
        clean, faulty: of a weight: its value without the faults, and with all of them.
    """

    site: str
    index: tuple[int, ...]
    fault: str
    value: float
    clean: float | None = None
    faulty: float | None = None


def strikes_of(
    placements: Sequence[Placement], e: Floats, clean: dict[str, Tensor], faulty: dict[str, Tensor]
) -> tuple[Strike, ...]:
    """The coordinates e (N,) that are not 0, in order.

    Args:
        placements: whose coordinates they are.
        e: the point.
        clean, faulty: the struck weights by name.
    """
    found: list[Strike] = []
    for p in placements:
        values = e[p.start : p.stop]
        local = np.flatnonzero(values)
        if not len(local):
            continue
        indices = np.unravel_index(local, p.fault.coordinate_shape(p.shape))
        before: list[Any] = [None] * len(local)
        after = before
        if p.site.kind == "parameter" and not p.fault.is_guarded:
            word = tuple(torch.from_numpy(i) for i in indices[: len(p.shape)])
            before, after = (t[p.site.module][word].tolist() for t in (clean, faulty))
        rows = zip(*(i.tolist() for i in indices), strict=True)
        found += [
            Strike(p.site.name, row, p.fault.name, *rest)
            for row, *rest in zip(rows, values[local].tolist(), before, after, strict=True)
        ]
    return tuple(found)


def point_of(
    placements: Sequence[Placement], strikes: Iterable[Any], n: int
) -> tuple[Points, list[Any]]:
    """The point at which these strike, and the strikes as a list.

    Args:
        placements: the faults at their sites.
        strikes: each a ``Strike``, (site, index), or (site, index, value) with the coordinate's
            value, which a fault that takes several needs.
        n: number of coordinates.

    Raises:
        ArgumentError: no such site or index, one of them twice, or a value that cannot be.
    """
    try:
        given = list(strikes)
    except TypeError:
        raise ArgumentError(f"faults={shown(strikes)}: give a list of (site, index)") from None
    e = np.zeros(n)
    seen: set[int] = set()
    for strike in given:
        place, coordinate, value = _coordinate(placements, strike)
        if coordinate in seen:
            raise ArgumentError(f"faults: {place.site.name!r} is struck twice at {shown(strike)}")
        seen.add(coordinate)
        e[coordinate] = value
    columns = np.flatnonzero(e)
    rows = np.zeros(len(columns), dtype=np.int64)
    return Points(1, np.zeros(n), rows, columns, e[columns]), given


def _coordinate(placements: Sequence[Placement], strike: Any) -> tuple[Placement, int, float]:
    """The placement, coordinate and value of one strike."""
    fault = value = None
    if isinstance(strike, Strike):
        site, index, fault, value = strike.site, strike.index, strike.fault, strike.value
    elif isinstance(strike, tuple | list) and len(strike) in (2, 3):
        site, index, *rest = strike
        value = rest[0] if rest else None
    else:
        raise ArgumentError(f"faults: {shown(strike)}: give (site, index) or (site, index, value)")
    place = _placement(placements, site, fault)
    shape = place.fault.coordinate_shape(place.shape)
    at: Any = (index,) if is_whole(index) else index
    fits = isinstance(at, tuple | list) and len(at) == len(shape) and all(map(is_whole, at))
    if not fits or not all(0 <= i < most for i, most in zip(at, shape, strict=True)):
        raise ArgumentError(
            f"faults: index={shown(index)} at {site!r}: give {len(shape)} whole numbers below "
            f"{shape}"
        )
    local = int(np.ravel_multi_index(tuple(int(i) for i in at), shape)) if shape else 0
    return place, place.start + local, _value(place, local, value)


def _placement(placements: Sequence[Placement], site: Any, fault: str | None) -> Placement:
    """The placement at a site of this name."""
    here = [
        p
        for p in placements
        if site in (p.site.name, p.site.first_name, *(s.name for s in p.sites))
        and fault in (None, p.fault.name)
    ]
    exact = [p for p in here if p.site.name == site] or here
    if len(exact) == 1:
        return exact[0]
    if exact:
        raise ArgumentError(
            f"faults: {site!r} has several faults ({', '.join(p.fault.name for p in exact)}) or "
            "calls; give a Strike with the fault, or the call's name"
        )
    names = ", ".join(dict.fromkeys(repr(p.site.name) for p in placements))
    what = "" if fault is None else f" with {fault}"
    raise ArgumentError(f"faults: no site {site!r}{what} is struck; choose among {names}")


def _value(place: Placement, local: int, value: Any) -> float:
    """The value of a struck coordinate, which is the only one that its fault gives it, or given."""
    fault = place.fault
    if fault.changes is not None:
        values = fault.changes[0]
        values = values[:, local] if fault.is_varied else values
        known = sorted(set(values.tolist()) - {0.0})
        if value is None and len(known) == 1:
            return float(known[0])
        if value is not None and as_float(value) in known:
            return float(value)
        choices = f"one of {known}"
    else:
        if value is not None and math.isfinite(as_float(value)):
            return float(value)
        choices = "a finite number"
    raise ArgumentError(
        f"faults: {place.site.name!r}: value={shown(value)} of {fault.name}; give (site, index, "
        f"value) with {choices}"
    )


def check_same_weights(
    strikes: Iterable[Any], placements: Sequence[Placement], clean: dict[str, Tensor]
) -> None:
    """Raises ArgumentError where strikes were read off another model: weights differ."""
    names = {p.site.name: p for p in placements if p.site.kind == "parameter"}
    for strike in strikes:
        if not isinstance(strike, Strike) or strike.clean is None or strike.site not in names:
            continue
        place = names[strike.site]
        tensor = clean[place.site.module]
        here = float(tensor[strike.index[: len(place.shape)]])
        if abs(here - strike.clean) > 10 * rounding_slack(tensor.dtype) * max(abs(here), 1e-30):
            raise ArgumentError(
                f"faults: {strike.site!r} at {strike.index} was {strike.clean:g} where this was "
                f"saved, and is {here:g} in the model; give the model that it was saved of, or "
                "(site, index) alone"
            )
