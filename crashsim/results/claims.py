"""What the estimates of a score claim: sets that their numbers lie in, as arrays.

An exact value, a proof and a bound name a set that the number lies in; a measured interval one that
it lies in but for chance; an estimate without a guarantee claims no more than the order of
magnitude, and only of averages over all inputs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from crashsim.arrays import Floats
from crashsim.metrics import RESERVED
from crashsim.results.estimate import TOO_FEW, Estimate, Kind
from crashsim.results.estimates import EstimateArray, Estimates, Part

CHANCE = 0.01  # probability that a score whose claims all hold is told of a contradiction
MAGNITUDE = 10.0  # times by which an estimate without a guarantee may be off
_ROUNDED = 1e-9  # relative rounding of what is computed exactly
_FEW_HITS = 0.3  # of the value: an interval that begins below it rests on few hits
WEIGHTED = ("importance-sampling", "word-importance")  # methods whose samples a surrogate guides
_ELSEWHERE = "hardware"  # a method that measures another number
_ALL, _LOSS = -1, -2  # among the numbers of inputs and outputs

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Claims:
    """What one method says of one quantity, of n inputs and outputs: that low <= number <= high.

    Attributes:
        method, quantity, kind, confidence, level, note: as ``Estimate``.
        inputs, outputs: (n,) which; -1 is ``"all"``.
        value: (n,) the numbers themselves.
        low, high: (n,) the ends, with room for rounding and, once ``widened``, for chance.
        shown: low and high as the score shows them, each (n,).
    """

    method: str
    quantity: str
    kind: Kind
    confidence: float | None
    level: float | None
    note: str | None
    inputs: Indices
    outputs: Indices
    value: Floats
    low: Floats
    high: Floats
    shown: tuple[Floats, Floats]

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, where: NDArray[np.bool_] | Indices) -> Self:
        names = ("inputs", "outputs", "value", "low", "high")
        some = {name: getattr(self, name)[where] for name in names}
        return replace(self, **some, shown=(self.shown[0][where], self.shown[1][where]))

    def place(self, at: int) -> tuple[int | Literal["all"], int | Literal["all", "loss"]]:
        """Input and output of the number at this place."""
        row, output = int(self.inputs[at]), int(self.outputs[at])
        return "all" if row == _ALL else row, output_name(output)

    @property
    def pooled(self) -> NDArray[np.bool_]:
        """(n,) whether they are averages over the inputs."""
        return np.asarray(self.inputs == _ALL)

    @property
    def of_any(self) -> NDArray[np.bool_]:
        """(n,) whether they are of all outputs together."""
        return np.asarray(self.outputs == _ALL)


def output_name(number: int) -> int | Literal["all", "loss"]:
    """An output as an estimate names it."""
    return "all" if number == _ALL else "loss" if number == _LOSS else number


def claims_of(estimates: Estimates, inputs: int) -> list[Claims]:
    """What is claimed of numbers that methods can contradict each other on.

    Args:
        estimates: of one score.
        inputs: number of inputs: an average over some of them is another number.
    """
    found = []
    for (method, quantity), parts in estimates.of.items():
        if method == _ELSEWHERE:
            continue
        some = 0 < Estimates(parts).inputs().get(method, 0) < inputs
        for claims in _read(parts):
            kept = ~np.isnan(claims.value)
            if some:
                kept &= ~claims.pooled
            if claims.kind == "estimate":
                kept &= claims.pooled if quantity != "mean" else False
            if kept.any():
                found.append(claims if kept.all() else claims[kept])
    return found


def _read(parts: Sequence[Part]) -> list[Claims]:
    """The claims of arrays, and of the single estimates that are alike together."""
    alike: dict[tuple[object, ...], list[Estimate]] = defaultdict(list)
    found = []
    for part in parts:
        if isinstance(part, EstimateArray):
            found.append(_of_array(part))
        elif TOO_FEW not in (part.note or ""):  # what may be too narrow refutes nothing
            alike[part.kind, part.confidence, part.level, part.note].append(part)
    return found + [_of_singles(group) for group in alike.values()]


def _of_array(array: EstimateArray) -> Claims:
    rows, columns = np.ones(1, np.int64) * _ALL, np.ones(1, np.int64) * _ALL
    if array.each_input:
        rows = np.arange(array.shape[0])
    if array.each_output:
        columns = array.columns
    made = _made(
        array.at(0),
        np.repeat(rows, len(columns)),
        np.tile(columns, len(rows)),
        array.value.ravel(),
        None if array.low is None else array.low.ravel(),
        None if array.high is None else array.high.ravel(),
        array.note,
    )
    return made if array.enough is None else made[np.asarray(array.enough).ravel()]


def _of_singles(group: Sequence[Estimate]) -> Claims:
    named = {"all": _ALL, "loss": _LOSS}
    rows = [_ALL if e.input == "all" else int(e.input) for e in group]
    columns = [named.get(str(e.output), e.output) for e in group]
    value = np.array([e.value for e in group], dtype=float)
    low, high = value, value
    low = np.array([e.value if e.low is None else e.low for e in group], dtype=float)
    high = np.array([_high(e) for e in group], dtype=float)
    return _made(group[0], np.array(rows), np.array(columns), value, low, high, group[0].note)


def _high(e: Estimate) -> float:
    if e.high is None:  # JSON has no infinity: there, an open interval has no high end
        return e.value if e.low is None else math.inf
    return e.high


def _made(
    first: Estimate,
    rows: Indices,
    columns: Indices,
    value: Floats,
    low: Floats | None,
    high: Floats | None,
    note: str | None,
) -> Claims:
    """Claims of which ``first`` is one, as the score shows them."""
    low, high = value if low is None else low, value if high is None else high
    if first.kind == "bound":
        low = -value if first.quantity == "mean" else np.full_like(value, -math.inf)
        high = value
    elif first.kind == "estimate":
        low, high = value / MAGNITUDE, value * MAGNITUDE
    return Claims(
        first.method,
        first.quantity,
        first.kind,
        first.confidence,
        first.level,
        note,
        rows,
        columns,
        value,
        low,
        high,
        (low, high),
    )


def widened(claims: Claims, tested: int, rounding: tuple[float, float]) -> Claims:
    """The claims with room for chance in this many comparisons, and for rounding.

    Args:
        claims: as shown.
        tested: comparisons with measured intervals, of which one or more errs with a probability
            of ``CHANCE`` at most (Bonferroni).
        rounding: what it may do to an output, where methods compute in double precision and where
            they compute in the model's own.
    """
    low, high = claims.shown
    is_measured = claims.kind == "statistical"
    if is_measured:
        low, high = _with_chance(claims, tested)
    room = _room(claims, low, high, rounding[is_measured])
    return replace(claims, low=low - room, high=high + room)


def _room(claims: Claims, low: Floats, high: Floats, rounding: float) -> Floats:
    """What rounding may have done to the ends of claims."""
    size = np.zeros_like(low)
    for end in (low, high):
        size = np.maximum(size, np.where(np.isfinite(end), np.abs(end), 0.0))
    room: Floats = _ROUNDED * size
    if claims.kind == "proof" or claims.quantity in ("tail", "class-change", "not-finite"):
        return room
    if claims.quantity == "variance":
        return room + rounding * (rounding + 2 * np.sqrt(size))
    return room + rounding


def _with_chance(claims: Claims, tested: int) -> tuple[Floats, Floats]:
    """Measured intervals that err with ``CHANCE`` in this many comparisons.

    By their law: a mean's is normal, a variance's and a weighted probability's on the logarithm's
    scale, and the upper end of a probability that few hits speak for Poisson's.
    """
    value, (low, high) = claims.value, claims.shown
    alpha, least = 1 - (claims.confidence or 0.95), CHANCE / tested
    if not least < alpha < 1:
        return low, high
    times = _times(least, alpha)
    with np.errstate(all="ignore"):  # of what is not taken, and of quantiles that are infinite
        # Without hits, the upper end is where as few have the error probability left.
        few = value + (high - value) * math.log(least / 2) / math.log(alpha / 2)
        below, above = value - times * (value - low), value + times * (high - value)
        by_factor = value * np.minimum(high / value, 1e6) ** times
        lower = value * (low / value) ** times
    if claims.quantity == "mean":
        return below, above
    is_own = claims.quantity not in RESERVED
    if claims.quantity == "variance" or claims.method in WEIGHTED:
        known = (value > 0) & (value < math.inf) & (low > 0)
        none = np.full_like(value, math.inf) if claims.quantity == "variance" else few
        lower, upper = np.where(known, lower, 0.0), np.where(known, by_factor, none)
    else:
        is_few = (low < _FEW_HITS * value) | (value == 0)
        upper = np.where(value > 0, np.fmax(above, by_factor), above)
        upper = np.where(is_few, few, upper)
        lower = below if is_own else np.maximum(below, 0.0)
    if is_own:  # it may be a probability or not: what is below zero is none
        return np.where(low < 0, below, lower), np.where(low < 0, above, upper)
    return lower, upper


@lru_cache(maxsize=64)
def _times(least: float, alpha: float) -> float:
    """How many times wider a normal interval of the smaller error probability is."""
    return float(ndtri(least / 2) / ndtri(alpha / 2))
