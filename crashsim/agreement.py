"""Do theory and Monte Carlo agree? Input by input, and in how they rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crashsim.estimate import Estimate, values_of
from crashsim.points import Floats

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
    inside: float
    worst: float
    worst_at: tuple[int, int]
    ratio: float | None
    relative_error: float | None
    noise: float | None
    correlation: float | None
    rank_loss: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def agreements(estimates: Sequence[Estimate]) -> list[Agreement]:
    """Every method against ``monte-carlo``, for each quantity that both have."""
    pairs = dict.fromkeys((e.method, e.quantity) for e in estimates)
    found = []
    for quantity in ("mean", "variance", "tail", "class-change"):
        reference = values_of(estimates, "monte-carlo", quantity)
        if reference is None:
            continue
        low = values_of(estimates, "monte-carlo", quantity, "low")
        high = values_of(estimates, "monte-carlo", quantity, "high")
        assert low is not None
        assert high is not None
        for method, its_quantity in pairs:
            if its_quantity != quantity or method == "monte-carlo":
                continue
            values = values_of(estimates, method, quantity)
            kinds: set[str] = {
                e.kind for e in estimates if (e.method, e.quantity) == (method, quantity)
            }
            assert values is not None
            if kinds == {"statistical"}:
                own = [values_of(estimates, method, quantity, end) for end in ("low", "high")]
                widened = _widened(values, reference, low, high, own[0], own[1])
            else:
                widened = low, high
            found.append(_agreement(method, quantity, values, reference, *widened, kinds))
    return found


def rank_loss(first: Floats, second: Floats) -> float:
    """Share of pairs that two scores order differently; a tie in either counts as different.

    Args:
        first, second: (n,) scores of the same n >= 2 things.
    """
    order = np.sign(first[:, None] - first) * np.sign(second[:, None] - second)
    n = len(first)
    agreeing = (order > 0).sum() / 2
    return float(1 - agreeing / (n * (n - 1) / 2))


def correlation(first: Floats, second: Floats) -> float | None:
    """Pearson's correlation, or None where either does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _widened(
    values: Floats,
    reference: Floats,
    low: Floats,
    high: Floats,
    own_low: Floats | None,
    own_high: Floats | None,
) -> tuple[Floats, Floats]:
    """Monte Carlo's interval, widened by the other side's uncertainty (independent errors)."""
    if own_low is None or own_high is None:
        return low, high
    below = np.hypot(reference - low, own_high - values)
    above = np.hypot(high - reference, values - own_low)
    return reference - below, reference + above


def _agreement(
    method: str,
    quantity: str,
    values: Floats,
    reference: Floats,
    low: Floats,
    high: Floats,
    kinds: set[str],
) -> Agreement:
    is_bound = kinds <= {"bound", "proof"}
    size = np.abs(reference) if is_bound and quantity == "mean" else reference
    # Rounding must not decide: compare with a little room.
    room = 1e-9 * np.abs(values) + 1e-12
    if is_bound:
        smallest = np.maximum(np.maximum(low, -high), 0) if quantity == "mean" else low
        inside = values >= smallest - room
    else:
        inside = (low - room <= values) & (values <= high + room)
    # An interval of no or infinite width says nothing of how far out a value is.
    half = np.where(values >= reference, high - reference, reference - low)
    gap = np.where(is_bound, np.maximum(size - values, 0), np.abs(values - reference))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(gap <= room, 0.0, gap / half)
    distance = np.where(np.isfinite(distance), distance, 0.0)
    worst = np.unravel_index(int(distance.argmax()), distance.shape)
    total = np.abs(reference).sum()
    finite_half = np.where(np.isfinite(high - low), (high - low) / 2, 0.0)
    thin = max(1, values.size // _RANKED)
    flat_values, flat_reference = values.ravel()[::thin], size.ravel()[::thin]
    return Agreement(
        method=method,
        quantity=quantity,
        inside=float(inside.mean()),
        worst=float(distance[worst]),
        worst_at=(int(worst[0]), int(worst[1])),
        ratio=float(np.abs(values).sum() / total) if total > 0 else None,
        relative_error=float(np.abs(values - size).sum() / total) if total > 0 else None,
        noise=float(finite_half.sum() / total) if total > 0 else None,
        correlation=correlation(flat_values, flat_reference),
        rank_loss=rank_loss(flat_values, flat_reference) if flat_values.size > 1 else None,
    )
