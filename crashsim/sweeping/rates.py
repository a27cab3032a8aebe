"""The rates of a curve, and a model's faults at each of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np

from crashsim.arguments import as_float, is_number, shown
from crashsim.coordinates.placement import Placement
from crashsim.errors import ArgumentError
from crashsim.faults import Fault, Rates
from crashsim.space import FaultSpace

MOST = 1000  # rates of a curve
_RANGE = re.compile(r"([^:]+):([^:]+):([^:]+)")
_ENDS = re.compile(r"([^:]+):([^:]+)")
_HOW = "give numbers such as [1e-4, 1e-3, 1e-2], or '1e-6:1e-2:9' for nine at equal ratios"


def read_rates(rates: Any) -> tuple[float, ...]:
    """The rates of a curve, the least first, each once.

    Args:
        rates: numbers; or a text: numbers with commas between, or ``LOW:HIGH:COUNT``, COUNT rates
            from LOW to HIGH at equal ratios.

    Raises:
        ArgumentError: no rates, or some that are not positive and finite.
    """
    given = _of_text(rates) if isinstance(rates, str) else rates
    if is_number(given):
        given = [given]
    try:
        if isinstance(given, bytes):
            raise TypeError
        listed = list(given)
    except TypeError:
        raise ArgumentError(f"rates={shown(rates)}; {_HOW}") from None
    found = {as_float(rate) if is_number(rate) else math.nan for rate in listed}
    if not found or not all(0 < rate < math.inf for rate in found):
        raise ArgumentError(
            f"rates={shown(rates)}: rates are above 0 (no faults at all are always told); {_HOW}"
        )
    if len(found) > MOST:
        raise ArgumentError(f"rates: {len(found)} of them; give at most {MOST}")
    return tuple(sorted(found))


def read_ends(rates: Any) -> tuple[float, float] | None:
    """The two rates of a text ``LOW:HIGH``, between which others are to be chosen; else None.

    Raises:
        ArgumentError: they are no rates, or do not rise.
    """
    match = _ENDS.fullmatch(rates.strip()) if isinstance(rates, str) else None
    if match is None:
        return None
    try:
        low, high = float(match[1]), float(match[2])
    except ValueError:
        raise ArgumentError(f"rates={rates!r}; {_HOW}") from None
    if not 0 < low < high < math.inf:
        raise ArgumentError(f"rates={rates!r}: give LOW:HIGH, two rates above 0 that rise")
    return low, high


def _of_text(text: str) -> list[float]:
    """The numbers of a text. Raises ArgumentError where it holds something else."""
    try:
        if match := _RANGE.fullmatch(text.strip()):
            low, high, count = float(match[1]), float(match[2]), int(match[3])
            if not (0 < low < high < math.inf and 2 <= count <= MOST):
                raise ValueError
            # By their logarithms, so that 1e-4 is one of 1e-6:1e-2:5 to the last bit.
            exponents = np.linspace(math.log10(low), math.log10(high), count)
            inner = [float(f"{10.0**e:.12g}") for e in exponents[1:-1]]
            return [low, *inner, high]
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"rates={text!r}; {_HOW}") from None


def largest_rate(space: FaultSpace) -> float:
    """The largest rate of the faults as they were given: the one that a curve's rates stand for."""
    return max(float(np.max(p.fault.rate, initial=0.0)) for p in space.placements)


def parameter_of(space: FaultSpace) -> str:
    """What the rate is: p, std, or the parameter of a law of the user's own.

    Raises:
        ArgumentError: faults of different parameters, or an exact number of them.
    """
    if space.counts:
        raise ArgumentError(
            "faults: count= strikes an exact number of coordinates, which no rate changes; give p="
        )
    names = sorted({p.fault.parameter for p in space.placements})
    if len(names) > 1:
        raise ArgumentError(
            f"faults: one rate cannot be {' and '.join(names)} at once; make a curve of each"
        )
    return names[0]


def at_rate(space: FaultSpace, rate: float) -> FaultSpace:
    """The space with its faults at another rate.

    Faults whose rates differ (of sites, or of each unit) keep their ratios: the largest of them
    becomes ``rate``.

    Raises:
        ArgumentError: a rate that the fault does not take.
    """
    base = largest_rate(space)
    return space.with_faults([_at_rate(p, rate, base) for p in space.placements])


def _at_rate(placement: Placement, rate: float, base: float) -> Fault:
    fault = placement.fault
    given = getattr(fault, fault.parameter)
    if isinstance(given, Rates):
        value: Any = Rates.of("rates", given.array * (rate / base) if base > 0 else given.array)
    else:
        value = rate if base == 0 or fault.rate == base else float(fault.rate) * (rate / base)
    changed: dict[str, Any] = {fault.parameter: value}
    try:
        return replace(fault, **changed)
    except ArgumentError as error:
        raise ArgumentError(f"rates: {rate:g}: {error}") from None
