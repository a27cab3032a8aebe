"""Metrics that are asked of a model, with the targets that they compare its outputs with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arguments import shown
from crashsim.arrays import Floats
from crashsim.errors import ArgumentError
from crashsim.metrics.classes import not_finite
from crashsim.metrics.metric import Event, Mean, OfSums, Targets
from crashsim.metrics.named import metric_of

MOST = 1000  # metrics asked of one model
# Names of what is estimated unasked.
RESERVED = ("mean", "variance", "tail", "class-change", "not-finite", "quantile")

Metric = Event | Mean | OfSums


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
    def of(
        cls,
        metrics: Iterable[Any] | None,
        targets: Any,
        clean: Floats,
        shape: Sequence[int] | None = None,
    ) -> AskedMetrics:
        """What a user asked for, tried on the clean outputs.

        Args:
            metrics: names, events and means, and functions of (outputs, targets); see
                ``crashsim.metrics.named``.
            targets: anything that numpy makes an array of, a row for each example.
            clean: (B, K) outputs.
            shape: of one example's outputs before they were flattened, (K,) if not given.

        Raises:
            ArgumentError: something else, a name twice or that of another quantity, or results of
                another shape or type than a metric has.
        """
        try:
            given = [metrics] if isinstance(metrics, str) else list(metrics or ())
        except TypeError:
            raise ArgumentError(f"metrics={shown(metrics)}; give a list of metrics") from None
        if len(given) > MOST:
            raise ArgumentError(f"metrics: {len(given)} of them; give at most {MOST}")
        shape = clean.shape[1:] if shape is None else shape
        rows = read_targets(targets, len(clean))
        made: list[Metric] = []
        for i, each in enumerate(given):
            metric = metric_of(each, clean, shape, rows)
            if metric.name in RESERVED and not isinstance(each, str):
                raise ArgumentError(
                    f"metrics[{i}]: {metric.name!r} is a quantity of crashsim's own, which is "
                    "estimated unasked; choose another name, or leave it out"
                )
            if metric.name in [other.name for other in made]:
                raise ArgumentError(
                    f"metrics[{i}]: {metric.name!r} is there twice; give each a name of its own"
                )
            made.append(metric)
        asked = cls(tuple(made), rows)
        if made:
            asked.columns(np.stack([clean, clean]), clean)
        return asked

    def at(self, targets: Targets) -> AskedMetrics:
        """The same metrics for other examples."""
        return replace(self, targets=targets)

    @property
    def widths(self) -> tuple[int, ...]:
        """How many numbers of each example each metric adds up."""
        return tuple(m.columns if isinstance(m, OfSums) else 1 for m in self.metrics)

    def columns(self, outputs: Floats, clean: Floats) -> Floats:
        """(S, B, D) what the metrics add up over examples, one after the other.

        Raises:
            ArgumentError: as ``values``.
        """
        found = np.empty((*outputs.shape[:2], sum(self.widths)))
        start = 0
        for metric, width in zip(self.metrics, self.widths, strict=True):
            values = self.values(metric, outputs, clean)
            found[..., start : start + width] = values if values.ndim == 3 else values[..., None]
            start += width
        return found

    def of_sums(self, sums: Floats, examples: int) -> Floats:
        """(n, M) the metrics of n chips, from sums (n, D) over so many examples."""
        found, start = [], 0
        for metric, width in zip(self.metrics, self.widths, strict=True):
            own = sums[:, start : start + width]
            found.append(metric.of(own) if isinstance(metric, OfSums) else own[:, 0] / examples)
            start += width
        return np.stack(found, axis=1) if found else np.zeros((len(sums), 0))

    def values(self, metric: Metric, outputs: Floats, clean: Floats) -> NDArray[Any]:
        """A metric of outputs (S, B, K): truth values or numbers (S, B), or parts (S, B, D).

        Raises:
            ArgumentError: the metric's function fails, or returns something else.
        """
        is_event = isinstance(metric, Event)
        function = _function_of(metric)
        given = f"outputs {outputs.shape}, clean {clean.shape} and targets {self._shape}"
        try:
            result = function(_unwritable(outputs), _unwritable(clean), self.targets)
            found = np.asarray(result)
        except ArgumentError as error:
            raise ArgumentError(f"metrics: {metric.name!r}: {error}") from None
        except Exception as error:
            raise ArgumentError(
                f"metrics: {metric.name!r} raised {type(error).__name__}: {error}, given {given}"
            ) from error
        if np.ma.is_masked(result):
            raise ArgumentError(
                f"metrics: {metric.name!r} returned a masked array, given {given}; return "
                f"{'truth values' if is_event else 'numbers'} for all samples and inputs"
            )
        wanted: tuple[int, ...] = outputs.shape[:2]
        if isinstance(metric, OfSums):
            wanted = (*wanted, metric.columns)
        if found.shape != wanted or found.dtype.kind not in ("b" if is_event else "fiub"):
            raise ArgumentError(
                f"metrics: {metric.name!r} returned {found.dtype} of shape {found.shape}, given "
                f"{given}; return {'truth values' if is_event else 'numbers'} of shape {wanted}"
            )
        if isinstance(metric, Mean):
            found = found.astype(np.float64, copy=False)
            _check_range(metric, found, outputs)
        return found

    @property
    def _shape(self) -> str:
        return "None" if self.targets is None else str(self.targets.shape)


def _function_of(metric: Metric) -> Any:
    if isinstance(metric, Event):
        return metric.happens
    return metric.value if isinstance(metric, Mean) else metric.parts


def read_targets(targets: Any, rows: int) -> Targets:
    """Targets as an array with a row for each input; ArgumentError where they are none."""
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


def _check_range(metric: Mean, values: Floats, outputs: Floats) -> None:
    """Of outputs that are not finite, a value may be what it wants."""
    finite = np.isfinite(values)
    if not finite.all():
        lost = not_finite(outputs)
        if lost is None or (~finite & ~lost).any():
            raise ArgumentError(
                f"metrics: {metric.name!r} is not finite for some outputs; return finite numbers"
            )
        values = values[finite]
    low = -np.inf if metric.low is None else metric.low
    high = np.inf if metric.high is None else metric.high
    if values.size and not (low <= values.min() and values.max() <= high):
        raise ArgumentError(
            f"metrics: {metric.name!r} takes values from {values.min():g} to {values.max():g}, "
            f"beyond its low={metric.low} and high={metric.high}; give bounds that hold"
        )
