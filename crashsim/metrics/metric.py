"""A metric: an event or a number for each example of each sample, or what their sums amount to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arguments import as_float, shown
from crashsim.arrays import Floats
from crashsim.errors import ArgumentError

Targets = NDArray[Any] | None
_Function = Callable[[Floats, Floats, Targets], Any]


@dataclass(frozen=True)
class Event:
    """Something that happens or not, to each example of each sample: its probability is asked.

    Attributes:
        name: of the quantity, in tables and files.
        happens: called with outputs under faults (S, B, K), clean outputs (B, K), and targets
            (B, ...) or None, for any number of samples S; returns truth values (S, B). It must not
            depend on anything else, nor look across samples: they come in batches of any size.
    """

    name: str
    happens: _Function

    def __post_init__(self) -> None:
        check_name(self.name)
        check_function("happens", self.happens)


@dataclass(frozen=True)
class Mean:
    """A number for each example of each sample, such as a loss: its expectation is asked.

    Attributes:
        name: of the quantity, in tables and files.
        value: called as ``Event.happens``; returns finite numbers (S, B), for finite outputs.
        low, high: what no number can be below or above; None where there is no such bound.
            With both, intervals allow for the largest deviation that no sample has shown.
    """

    name: str
    value: _Function
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_function("value", self.value)
        for end, bound in (("low", self.low), ("high", self.high)):
            if bound is not None and not np.isfinite(as_float(bound)):
                raise ArgumentError(f"{end}={shown(bound)}; give a finite number, or leave it out")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ArgumentError(f"low={self.low!r}, high={self.high!r}; give a low end below high")


@dataclass(frozen=True)
class OfSums:
    """A number for each chip that follows from sums over its examples, such as perplexity.

    Attributes:
        name: of the quantity, in tables and files.
        parts: called as ``Event.happens``; returns numbers (S, B, D).
        columns: D.
        of: called with the sums (n, D) over the examples of n chips; returns numbers (n,).
        low, high: what no number can be below or above; None where there is no such bound.
    """

    name: str
    parts: _Function
    columns: int
    of: Callable[[Floats], Floats]
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)


def bounds_of(metric: Event | Mean | OfSums) -> tuple[float, float]:
    """What a metric's value lies between; infinite where it has no bound."""
    if isinstance(metric, Event):
        return 0.0, 1.0
    low = -np.inf if metric.low is None else float(metric.low)
    return low, np.inf if metric.high is None else float(metric.high)


def check_name(name: Any) -> None:
    """Raises ArgumentError for what is no name."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ArgumentError(f"name={shown(name)}; give the metric a name that can be printed")


def check_function(argument: str, function: Any) -> None:
    """Raises ArgumentError for what cannot be called."""
    if not callable(function):
        raise ArgumentError(
            f"{argument}={shown(function)}; give a function of outputs (S, B, K), clean (B, K) "
            "and targets"
        )
