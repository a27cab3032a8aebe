"""Do theory and Monte Carlo agree? Input by input, and in how they rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.errors import ArgumentError
from crashsim.results.estimate import Estimate, Kind
from crashsim.results.estimates import Estimates, values_of
from crashsim.results.schema import Number

_RANKED = 3000  # values whose pairs are compared; more are thinned evenly


@dataclass(frozen=True)
class Agreement:
    """One method against Monte Carlo, over all inputs and outputs.

    Attributes:
        method, quantity: what is compared.
        inside: share of values inside Monte Carlo's interval (for a bound: not below it; for a
            measurement: inside the interval of the difference).
        worst: the largest distance from Monte Carlo's value, in half-widths of its interval.
        worst_at: (input, output) of the worst.
        ratio: sum of the values over the sum of Monte Carlo's, of magnitudes for the mean.
        relative_error: |value - Monte Carlo| summed, over |Monte Carlo| summed.
        noise: Monte Carlo's own half-width, summed likewise: what cannot be told from agreement.
        correlation: Pearson's, between the values; None where either does not vary.
        rank_loss: share of pairs that the two order differently (ties count as different).
    """

    method: str
    quantity: str
    inside: Number
    worst: Number
    worst_at: tuple[int, int]
    ratio: float | None
    relative_error: float | None
    noise: float | None
    correlation: float | None
    rank_loss: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def agreements(estimates: Iterable[Estimate]) -> list[Agreement]:
    """Every method against ``monte-carlo``, for each quantity that both have."""
    estimates = Estimates() + estimates
    found = []
    for quantity in ("mean", "variance", "tail", "class-change"):
        reference = values_of(estimates, "monte-carlo", quantity)
        if reference is None:
            continue
        ours = _Column.read(estimates, "monte-carlo", quantity, reference.shape)
        for (method, its_quantity), parts in estimates.of.items():
            if its_quantity != quantity or method == "monte-carlo":
                continue
            kinds = {part.kind for part in parts}
            theirs = _Column.read(estimates, method, quantity, reference.shape)
            compared = np.isfinite(theirs.value) & ~np.isnan(ours.value)
            if not compared.any():
                continue  # a bound beyond the largest number agrees with everything
            found.append(_agreement(method, quantity, kinds, theirs, ours))
    return found


def rank_loss(first: Floats, second: Floats) -> float:
    """Share of pairs that two scores order differently; a tie in either counts as different.

    Args:
        first, second: (n,) scores of the same n >= 2 things.

    Raises:
        ArgumentError: no two lists of as many numbers.
    """
    first, second = _scores("first", first), _scores("second", second)
    if len(first) != len(second):
        raise ArgumentError(f"second: {len(second)} scores for {len(first)} things; give one each")
    n = len(first)
    agreeing = ((first[:, None] > first) & (second[:, None] > second)).sum()
    return float(1 - agreeing / (n * (n - 1) / 2))


def _scores(argument: str, values: Any) -> Floats:
    """Two or more numbers."""
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        found = np.zeros(())
    if found.ndim != 1 or len(found) < 2 or np.isnan(found).any():
        raise ArgumentError(f"{argument}={values!r}; give a list of two or more numbers")
    return found


def correlation(first: Floats, second: Floats) -> float | None:
    """Pearson's correlation, or None where either does not vary (measurably)."""
    if len(first) < 2:
        return None
    with np.errstate(all="ignore"):  # squares that are too small or too large for a double
        found = float(np.corrcoef(first, second)[0, 1])
    return found if np.isfinite(found) else None


@dataclass(frozen=True)
class _Column:
    """Values (B, K) with their intervals; NaN where there are none."""

    value: Floats
    low: Floats
    high: Floats

    @classmethod
    def read(
        cls, estimates: Estimates, method: str, quantity: str, shape: tuple[int, ...]
    ) -> _Column:
        fields = (
            values_of(estimates, method, quantity, field, shape)
            for field in ("value", "low", "high")
        )
        return cls(*(np.full(shape, np.nan) if f is None else f for f in fields))

    def at(self, where: NDArray[np.bool_]) -> _Column:
        return _Column(self.value[where], self.low[where], self.high[where])


def _over(part: Any, total: Any) -> float | None:
    """Their ratio; None where there is none that a number can hold."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found = float(np.divide(part, total))
    return found if np.isfinite(found) else None


def _agreement(
    method: str, quantity: str, kinds: set[Kind], theirs: _Column, ours: _Column
) -> Agreement:
    where = np.isfinite(theirs.value) & ~np.isnan(ours.value)
    places = np.argwhere(where)
    theirs, ours = theirs.at(where), ours.at(where)
    values, reference = theirs.value, ours.value
    low, high = ours.low, ours.high
    if kinds == {"bound"} and quantity == "mean":  # a bound of |E Delta|
        reference = np.abs(reference)
        low, high = np.maximum(np.maximum(low, -high), 0), np.maximum(high, -low)
    if kinds == {"statistical"}:  # both sides are uncertain, independently
        below, above = reference - low, high - reference
        low = reference - np.hypot(below, theirs.high - values)
        high = reference + np.hypot(above, values - theirs.low)
    room = 1e-9 * np.abs(values) + 1e-12  # rounding must not decide
    if kinds == {"bound"}:
        inside, gap = values >= low - room, np.maximum(reference - values, 0)
    elif kinds == {"proof"}:  # the two intervals must meet
        inside = (theirs.low <= high + room) & (low - room <= theirs.high)
        gap = np.maximum(np.maximum(theirs.low - reference, reference - theirs.high), 0)
    else:
        inside = (low - room <= values) & (values <= high + room)
        gap = np.abs(values - reference)
    # An interval of no or infinite width says nothing of how far out a value is.
    half = np.where(values >= reference, high - reference, reference - low)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(gap <= room, 0.0, gap / half)
    distance = np.where(np.isfinite(distance), distance, 0.0)
    worst = int(distance.argmax())
    total = np.abs(reference).sum()
    noise = np.where(np.isfinite(ours.high - ours.low), (ours.high - ours.low) / 2, 0.0).sum()
    thin = slice(None, None, max(1, values.size // _RANKED))
    return Agreement(
        method=method,
        quantity=quantity,
        inside=float(inside.mean()),
        worst=float(distance[worst]),
        worst_at=(int(places[worst, 0]), int(places[worst, 1])),
        ratio=_over(np.abs(values).sum(), total),
        relative_error=_over(np.abs(values - reference).sum(), total),
        noise=_over(noise, total),
        correlation=correlation(values[thin], reference[thin]),
        rank_loss=rank_loss(values[thin], reference[thin]) if values.size > 1 else None,
    )
