"""Metrics: what is asked of the outputs, as an event or as a number for each sample and example.

A metric of one's own is a name and a function of arrays:

    >>> import crashsim
    >>> accuracy = crashsim.Event(
    ...     "accuracy", lambda outputs, clean, targets: outputs.argmax(-1) == targets
    ... )
    >>> score = crashsim.Mean("score", lambda outputs, clean, targets: outputs.max(-1))

Give them to ``score(..., targets=y, metrics=[accuracy, score])`` or ``monte_carlo``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arguments import as_float, shown
from crashsim.arrays import Floats
from crashsim.errors import ArgumentError

MOST = 1000  # metrics asked of one model
# Names of what is estimated unasked.
RESERVED = ("mean", "variance", "tail", "class-change", "not-finite", "quantile")

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
        _check(self.name, "happens", self.happens)


@dataclass(frozen=True)
class Mean:
    """A number for each example of each sample, such as a loss: its expectation is asked.

    Attributes:
        name: of the quantity, in tables and files.
        value: called as ``Event.happens``; returns finite numbers (S, B).
        low, high: what no number can be below or above; None where there is no such bound.
            With both, intervals allow for the largest deviation that no sample has shown.
    """

    name: str
    value: _Function
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        _check(self.name, "value", self.value)
        for end, bound in (("low", self.low), ("high", self.high)):
            if bound is not None and not np.isfinite(as_float(bound)):
                raise ArgumentError(f"{end}={shown(bound)}; give a finite number, or leave it out")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ArgumentError(f"low={self.low!r}, high={self.high!r}; give a low end below high")


Metric = Event | Mean


def _check(name: Any, argument: str, function: Any) -> None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ArgumentError(f"name={shown(name)}; give the metric a name that can be printed")
    if not callable(function):
        raise ArgumentError(
            f"{argument}={shown(function)}; give a function of outputs (S, B, K), clean (B, K) "
            "and targets"
        )


def predicted_class(outputs: Any) -> Any:
    """The class (...) that outputs (..., K) of numpy or torch predict: the first of the largest."""
    return outputs.argmax(-1)


def _changes_class(outputs: Floats, clean: Floats, targets: Targets) -> NDArray[np.bool_]:
    changed: NDArray[np.bool_] = predicted_class(outputs) != predicted_class(clean)
    changed |= _is_not_finite(outputs, clean, targets)
    return changed


def _is_not_finite(outputs: Floats, clean: Floats, targets: Targets) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.any(~np.isfinite(outputs), axis=-1)
    return found


CLASS_CHANGE = Event("class-change", _changes_class)
"""The predicted class is another one, or an output is infinite or NaN, so that there is none."""

NOT_FINITE = Event("not-finite", _is_not_finite)
"""An output is infinite or NaN: an error that shows itself (detected and unrecoverable, DUE)."""


@dataclass(frozen=True)
class AskedMetrics:
    """Metrics, with the targets that they compare outputs with.

    Attributes:
        metrics: in the order in which they were given.
        targets: (B, ...), or None.
    """

    metrics: tuple[Metric, ...] = ()
    targets: Targets = None

    @classmethod
    def of(cls, metrics: Iterable[Metric] | None, targets: Any, clean: Floats) -> AskedMetrics:
        """What a user asked for, tried on the clean outputs.

        Args:
            metrics: events and means.
            targets: anything that numpy makes an array of, a row for each example.
            clean: (B, K) outputs.

        Raises:
            ArgumentError: something else, a name twice or that of another quantity, or results of
                another shape or type than a metric has.
        """
        try:
            given = tuple(metrics or ())
        except TypeError:
            raise ArgumentError(f"metrics={shown(metrics)}; give a list of metrics") from None
        if len(given) > MOST:
            raise ArgumentError(f"metrics: {len(given)} of them; give at most {MOST}")
        for i, metric in enumerate(given):
            if not isinstance(metric, Event | Mean):
                raise ArgumentError(
                    f"metrics[{i}]={shown(metric)}; give a crashsim.Event or a crashsim.Mean"
                )
            if metric.name in RESERVED:
                raise ArgumentError(
                    f"metrics[{i}]: {metric.name!r} is a quantity of crashsim's own, which is "
                    "estimated unasked; choose another name, or leave it out"
                )
            if metric.name in [other.name for other in given[:i]]:
                raise ArgumentError(
                    f"metrics[{i}]: {metric.name!r} is there twice; give each a name of its own"
                )
        asked = cls(given, _targets(targets, len(clean)))
        for metric in given:
            asked.values(metric, np.stack([clean, clean]), clean)
        return asked

    def values(self, metric: Metric, outputs: Floats, clean: Floats) -> NDArray[Any]:
        """A metric of outputs (S, B, K): truth values or numbers, (S, B).

        Raises:
            ArgumentError: the metric's function fails, or returns something else.
        """
        is_event = isinstance(metric, Event)
        function = metric.happens if isinstance(metric, Event) else metric.value
        given = f"outputs {outputs.shape}, clean {clean.shape} and targets {self._shape}"
        try:
            result = function(_unwritable(outputs), _unwritable(clean), self.targets)
            found = np.asarray(result)
        except Exception as error:
            raise ArgumentError(
                f"metrics: {metric.name!r} raised {type(error).__name__}: {error}, given {given}"
            ) from error
        if np.ma.is_masked(result):
            raise ArgumentError(
                f"metrics: {metric.name!r} returned a masked array, given {given}; return "
                f"{'truth values' if is_event else 'numbers'} for all samples and inputs"
            )
        wanted, kinds = outputs.shape[:2], "b" if is_event else "fiub"
        if found.shape != wanted or found.dtype.kind not in kinds:
            raise ArgumentError(
                f"metrics: {metric.name!r} returned {found.dtype} of shape {found.shape}, given "
                f"{given}; return {'truth values' if is_event else 'numbers'} of shape {wanted}"
            )
        if isinstance(metric, Mean):
            found = found.astype(np.float64, copy=False)
            _check_range(metric, found)
        return found

    @property
    def _shape(self) -> str:
        return "None" if self.targets is None else str(self.targets.shape)


def _targets(targets: Any, rows: int) -> Targets:
    if targets is None:
        return None
    try:
        found = np.asarray(targets.detach().cpu() if hasattr(targets, "detach") else targets)
    except Exception as error:
        raise ArgumentError(f"targets: no array ({error}); give a row for each input") from error
    if found.ndim == 0 or len(found) != rows or found.dtype.kind == "O":
        raise ArgumentError(
            f"targets: {found.dtype} of shape {found.shape}; give a row for each of {rows} inputs"
        )
    return _unwritable(found)


def _unwritable(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, which a user's function can read alone."""
    seen = array.view()
    seen.flags.writeable = False
    return seen


def _check_range(metric: Mean, values: Floats) -> None:
    if not np.isfinite(values).all():
        raise ArgumentError(
            f"metrics: {metric.name!r} is not finite for some outputs; return finite numbers"
        )
    low = -np.inf if metric.low is None else metric.low
    high = np.inf if metric.high is None else metric.high
    if values.size and not (low <= values.min() and values.max() <= high):
        raise ArgumentError(
            f"metrics: {metric.name!r} takes values from {values.min():g} to {values.max():g}, "
            f"beyond its low={metric.low} and high={metric.high}; give bounds that hold"
        )
