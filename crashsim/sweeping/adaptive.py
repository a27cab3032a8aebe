"""Adaptive rates: where a curve bends and where its target is missed, by a pilot of few chips.

The pilot's chips meet a coarse grid of rates. The rates of the curve are then laid at equal
distances along what the pilot shows, so that no part of the fall is stepped over and flat parts
cost little. The chips of the curve itself are drawn from other random numbers, so its rates are
fixed before any of them is: its intervals and its band hold as for rates that a user names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crashsim.arguments import as_float, is_number, shown
from crashsim.arrays import Floats
from crashsim.errors import ArgumentError
from crashsim.sweeping.rates import MOST, read_ends, read_rates

CHIPS = 32  # of a pilot
_RATES = 12  # of a curve, unless said
_PER_DECADE, _FEWEST, _COARSEST = 2, 5, 25  # rates of a pilot
_DIGITS = 3  # of a chosen rate
_FINE = 1000  # rates at which the way is measured
_OPEN = 2.0  # way over rates at which a pilot leaves a target open,
_BELOW, _BEYOND = 1.0, 1 / 3  # and so far by their logarithms below and beyond


@dataclass(frozen=True)
class Outline:
    """What a pilot shows of a curve.

    Attributes:
        rates: (P,) the least first.
        lost: (P,) by how much the metric is worse than without faults, on average over chips.
        failing: (P,) the share of chips that miss the target; None: there is no target.
        open: for each question of a target, (P,) how far beyond the limit a pilot's interval ends
            on either side, so that a rate is open where the first is above 0 and the second below.
    """

    rates: tuple[float, ...]
    lost: Floats
    failing: Floats | None
    open: Sequence[tuple[Floats, Floats]]


@dataclass(frozen=True)
class Span:
    """Rates between which some are to be chosen.

    Attributes:
        low, high: the ends, which are of the curve.
        count: of rates, the ends among them.
    """

    low: float
    high: float
    count: int

    @property
    def coarse(self) -> tuple[float, ...]:
        """The rates of a pilot, at equal ratios."""
        decades = math.log10(self.high / self.low)
        count = min(max(math.ceil(_PER_DECADE * decades) + 1, _FEWEST), _COARSEST)
        return tuple(np.geomspace(self.low, self.high, count).tolist())

    def chosen(self, outline: Outline) -> tuple[float, ...]:
        """The rates of the curve: at equal distances along what a pilot shows.

        The way from the lowest rate to the highest is 1 by the rates' logarithms, 1 by the loss, 1
        by the share of chips that miss the target, and 2 over the rates at which the pilot leaves
        open whether the target is met, and some beside: by the mean over chips, and by enough of
        them.
        """
        marks = np.linspace(math.log(self.low), math.log(self.high), _FINE)
        at = np.log(outline.rates)
        lost = np.maximum.accumulate(np.clip(np.nan_to_num(outline.lost, nan=np.inf), 0.0, 1e300))
        way = np.linspace(0.0, 1.0, _FINE)
        if lost[-1] > lost[0]:
            way = way + np.interp(marks, at, (lost - lost[0]) / (lost[-1] - lost[0]))
        if outline.failing is not None:
            way = way + np.interp(marks, at, np.maximum.accumulate(outline.failing))
        for above, below in outline.open:
            is_open = (np.interp(marks, at, above) > 0) & (np.interp(marks, at, below) < 0)
            if is_open.any():
                low, high = marks[is_open][[0, -1]]
                is_open = (marks >= low - _BELOW) & (marks <= high + _BEYOND)
                way = way + _OPEN * np.cumsum(is_open) / is_open.sum()
        inner = np.interp(np.linspace(way[0], way[-1], self.count)[1:-1], way, marks)
        found = {float(f"{rate:.{_DIGITS}g}") for rate in np.exp(inner)}
        return (self.low, *sorted(r for r in found if self.low < r < self.high), self.high)


def read_span(rates: Any, adaptive: bool | int) -> Span | None:
    """Between which rates some are to be chosen; None: all rates are given.

    Args:
        rates: as of ``read_rates``, or a text ``LOW:HIGH``, which asks for adaptive rates.
        adaptive: whether to choose rates between the least and the largest of those given; or how
            many. By default as many as are given, 12 if these are the ends alone.

    Raises:
        ArgumentError: no rates, fewer than two different ones, or no number of them.
    """
    is_counted = is_number(adaptive) and not isinstance(adaptive, bool)
    if not (isinstance(adaptive, bool | np.bool_) or is_counted):
        raise ArgumentError(f"adaptive={shown(adaptive)}; give True, False or a number of rates")
    ends = read_ends(rates)
    if ends is None and (not adaptive and not is_counted):
        return None
    given: Sequence[float] = read_rates(rates) if ends is None else ends
    if len(given) < 2:
        raise ArgumentError(f"rates={shown(rates)}: adaptive rates lie between two; give both ends")
    count = len(given) if len(given) > 2 else _RATES
    if is_counted:
        count = int(as_float(adaptive))
        if count != as_float(adaptive) or not 3 <= count <= MOST:
            raise ArgumentError(f"adaptive={shown(adaptive)}; give 3 to {MOST} rates")
    return Span(given[0], given[-1], count)
