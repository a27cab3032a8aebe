"""Estimate: a number, what it is, and how sure we are of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.results.schema import Number

Kind = Literal["exact", "proof", "bound", "statistical", "estimate"]
Quantity = Literal["mean", "variance", "tail", "class-change", "not-finite", "quantile"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One number of a score.

    Attributes:
        method: the name of what computed it (``crashsim.scoring.methods.METHODS``, or one's own).
        quantity: ``mean`` of Delta, ``variance`` of Delta, ``tail`` = P(|Delta| >= epsilon),
            ``class-change`` = P(the predicted class changes, or an output is not finite),
            ``not-finite`` = P(an output is infinite or NaN), ``quantile`` of |Delta|; or the name
            of a metric of one's own (``crashsim.metrics``).
        input: index of the input, or ``"all"``: the average over inputs.
        output: index of the output; ``"all"``: the sum over outputs (variance), any output
            (tail), or not specific to an output (class-change).
        value: the number itself.
        low, high: an interval, or None where the kind has none.
        kind: ``exact`` (no error but rounding); ``proof`` (a rigorous bound); ``bound`` (a bound
            under the assumption in ``note``); ``statistical`` (an interval with a confidence);
            ``estimate`` (an approximation without a guarantee).
        confidence: of a statistical interval.
        level: the epsilon of a tail, or the probability of a quantile.
        note: the assumption of a bound, or what else must be known to read the number.
        worth: of a statistical estimate that does better than plain samples: how many of those
            would give the same standard error.
    """

    method: str
    quantity: str
    input: int | Literal["all"]
    output: int | Literal["all", "loss"]
    value: Number
    low: float | None
    high: float | None
    kind: Kind
    confidence: float | None = None
    level: float | None = None
    note: str | None = None
    worth: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        interval = ""
        if self.low is not None:  # JSON has no infinity: there, an open interval has no high end
            interval = f" [{self.low:.3g}, {math.inf if self.high is None else self.high:.3g}]"
        return f"{self.method} {self.quantity} = {self.value:.4g}{interval} ({self.kind})"


MOST_OUTPUTS = 64  # whose covariance is kept

# What the note says of an interval that rests on too few samples.
TOO_FEW = "few samples make up most of its spread: the interval may be too narrow"


@dataclass(frozen=True)
class Values:
    """Numbers of one shape, without intervals."""

    value: Floats

    def __getitem__(self, where: Any) -> Self:
        return self._each(lambda part: np.asarray(part[where]))

    def reshape(self, *shape: int) -> Self:
        return self._each(lambda part: part.reshape(shape))

    def _each(self, change: Callable[[Any], Any]) -> Self:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        there = {name: change(part) for name, part in parts.items() if part is not None}
        return replace(self, **there)


@dataclass(frozen=True)
class Interval(Values):
    """Numbers of one shape with their intervals.

    Attributes:
        low, high: the ends.
        worth: how many plain samples would do as well (NaN where that says nothing).
        enough: whether they rest on enough samples for the interval to be trusted (all, if None).
    """

    low: Floats
    high: Floats
    worth: Floats | None = None
    enough: NDArray[np.bool_] | None = None


def estimates_of(
    method: str,
    quantity: str,
    kind: Kind,
    *,
    per_input: Values | None = None,
    pooled: Values | None = None,
    total: Values | None = None,
    confidence: float | None = None,
    level: float | None = None,
    note: str | None = None,
) -> list[Estimate]:
    """The estimates of one method and quantity.

    Args:
        per_input: (B, K), or (B,) for what is not specific to an output.
        pooled: averaged over inputs, (K,), or () for what is not specific to an output.
        total: averaged over inputs, for output ``"all"``, ().
    """

    def make(where: int | Literal["all"], output: Any, values: Values, at: Any) -> Estimate:
        low = high = worth = None
        told = note
        if isinstance(values, Interval):
            low, high = float(values.low[at]), float(values.high[at])
            worth = math.nan if values.worth is None else float(values.worth[at])
            worth = worth if math.isfinite(worth) else None
            if values.enough is not None and not values.enough[at]:
                told = "; ".join(filter(None, (note, TOO_FEW)))
        value = float(values.value[at])
        return Estimate(
            method,
            quantity,
            where,
            output,
            value,
            low,
            high,
            kind,
            confidence=confidence,
            level=level,
            note=told,
            worth=worth,
        )

    found: list[Estimate] = []
    if per_input is not None:
        for at in np.ndindex(per_input.value.shape):
            output = at[1] if len(at) == 2 else "all"
            found.append(make(at[0], output, per_input, at))
    if pooled is not None:
        for at in np.ndindex(pooled.value.shape):
            found.append(make("all", at[0] if at else "all", pooled, at))
    if total is not None:
        found.append(make("all", "all", total, ()))
    return found


def deterministic(
    method: str,
    quantity: Quantity,
    kind: Kind,
    values: Floats,
    *,
    level: float | None = None,
    note: str | None = None,
) -> list[Estimate]:
    """Estimates without intervals from (B, K) or (B,) values, pooled by averaging over inputs.

    The pooled variance over all outputs is the sum over outputs; the pooled tail over all outputs
    is the union bound over outputs.
    """
    pooled = values.mean(0)
    total = None
    if values.ndim == 2 and quantity == "variance":
        total = Values(np.asarray(pooled.sum()))
    elif values.ndim == 2 and quantity == "tail":
        total = Values(np.asarray(np.minimum(values.sum(1), 1.0).mean()))
        if values.shape[1] > 1 and kind == "exact":
            total = None  # a union of exact tails is no longer exact
    found = estimates_of(
        method,
        quantity,
        kind,
        per_input=Values(values),
        pooled=Values(pooled),
        level=level,
        note=note,
    )
    if quantity == "tail":
        note = "; ".join(filter(None, (note, "summed over outputs")))
    return found + estimates_of(method, quantity, kind, total=total, level=level, note=note)


def values_of(
    estimates: Sequence[Estimate],
    method: str,
    quantity: str,
    field: str = "value",
    shape: tuple[int, ...] | None = None,
) -> Floats | None:
    """A field of the per-input estimates of a method and quantity as (B, K), or (B, 1).

    None where there are none; NaN where a single one is missing or has no interval. The shape is
    the smallest that holds them, if not given.
    """
    chosen = [
        e
        for e in estimates
        if e.method == method and e.quantity == quantity and isinstance(e.input, int)
    ]
    if not chosen:
        return None
    outputs = [e.output if isinstance(e.output, int) else 0 for e in chosen]
    rows = [int(e.input) for e in chosen]
    table = np.full(shape or (max(rows) + 1, max(outputs) + 1), np.nan)
    for e, row, column in zip(chosen, rows, outputs, strict=True):
        number = getattr(e, field)
        table[row, column] = np.nan if number is None else number
    return table


@dataclass(frozen=True)
class Answer:
    """A question and its answer.

    Attributes:
        question: in words.
        value: the number; None where no number answers.
        method, kind: where it comes from.
        note: the reason, where there is no number, or what must be known to read it.
    """

    question: str
    value: float | None
    method: str
    kind: Kind
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
