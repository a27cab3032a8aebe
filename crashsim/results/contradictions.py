"""Numbers of one score that cannot all be true.

Every estimate claims something of one number: an exact value, a proof and a bound name a set that
it lies in, a measured interval one that it lies in but for chance. Two claims of the same number
that have no point in common contradict each other. What a spiking chip measures is another number,
so it is compared (``crashsim.results.agreement``) but contradicts nothing; an estimate without a
guarantee claims no more than the order of magnitude, and only of averages over all inputs.

Chance is allowed for in the number of all comparisons with measured intervals (Bonferroni): these
are widened until one comparison or more of a score errs with a probability of ``CHANCE`` at most. A
bound under an assumption is held against the interval as it is shown beside it, where it is missed
by more than ``_MATERIAL``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal

from scipy.special import ndtri

from crashsim.metrics import RESERVED
from crashsim.results.estimate import TOO_FEW, Estimate, Kind
from crashsim.results.schema import Number

CHANCE = 0.01  # probability that a score whose claims all hold is told of a contradiction
_MATERIAL = 0.05  # by which a bound on an average must be missed, as a share of it
_MAGNITUDE = 10.0  # times by which an estimate without a guarantee may be off
_ROUNDED = 1e-9  # relative rounding of what is computed exactly
_FEW_HITS = 0.3  # of the value: an interval that begins below it rests on few hits
_ELSEWHERE = "hardware"  # a method that measures another number

Key = tuple[str, int | str, int | str, float | None]


@dataclass(frozen=True)
class Contradiction:
    """Two methods whose numbers of one quantity cannot both be true.

    Attributes:
        method, against: the methods. Where one is to blame, it is the first.
        kind, against_kind: what their numbers are.
        quantity, level: what they are of.
        input, output: where they are furthest apart, if possible on average over the inputs.
        low, high: what the first claims there (None: without an end).
        against_low, against_high: what the second claims.
        places: number of inputs and outputs (and averages) at which they contradict each other.
        outputs: the outputs among these, ``"all"`` for any of them.
        is_mutual: either may be the wrong one.
        note: the assumption of a bound.
    """

    method: str
    against: str
    kind: Kind
    against_kind: Kind
    quantity: str
    level: float | None
    input: int | Literal["all"]
    output: int | Literal["all", "loss"]
    low: float | None
    high: float | None
    against_low: float | None
    against_high: float | None
    places: int
    outputs: list[int | Literal["all", "loss"]]
    is_mutual: bool
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def doubted(self) -> tuple[str, ...]:
        """The methods whose numbers are in doubt."""
        return (self.method, self.against) if self.is_mutual else (self.method,)

    def __str__(self) -> str:
        """In a sentence."""
        where = "all inputs" if self.input == "all" else f"input {self.input}"
        if self.quantity != "class-change":
            where += ", any output" if self.output == "all" else f", output {self.output}"
        if self.places > 1:
            where += f", and {self.places - 1} more"
        ours = _shown(self.kind, self.low, self.high)
        theirs = _shown(self.against_kind, self.against_low, self.against_high)
        told = f"{where}: {ours} against {theirs}"
        if self.kind == "bound":
            return (
                f"{self.method} {self.quantity}: its bound is refuted by {self.against} ({told}): "
                f"what it assumes does not hold here ({self.note}); trust {self.against}"
            )
        if self.kind == "estimate":
            return (
                f"{self.method} {self.quantity}: its estimate is off by more than "
                f"{_MAGNITUDE:g} times ({told}); trust {self.against}"
            )
        if {self.kind, self.against_kind} == {"statistical"}:
            why = "one of them has not seen what the other has; ask for more samples"
        elif "statistical" in (self.kind, self.against_kind):
            why = "the samples have missed what matters, or rounding decides; trust neither"
        else:
            why = "one of them is wrong for this model; trust neither"
        both = f"{self.method} and {self.against} contradict each other"
        return f"{both} on {self.quantity} ({told}): {why}"


def contradictions(
    estimates: Iterable[Estimate],
    inputs: int,
    rounding: tuple[float, float] = (0.0, 0.0),
) -> list[Contradiction]:
    """All pairs of methods that contradict each other, a record for each quantity.

    Takes time in proportion to the number of estimates.

    Args:
        estimates: of one score.
        inputs: number of inputs B.
        rounding: what rounding may do to an output, where methods compute in double precision and
            where they compute in the model's own.
    """
    groups = _grouped(estimates, inputs)
    tested = sum(_measured(group) for group in groups.values())
    claims = {
        key: [_Claim.of(e, max(tested, 1), rounding) for e in group]
        for key, group in groups.items()
        if len(group) > 1 or key[0] == "tail"
    }
    found: dict[tuple[str, str, str, float | None], list[_Conflict]] = defaultdict(list)
    for conflict in _conflicts(claims):
        first, second = conflict.first.estimate, conflict.second.estimate
        found[first.method, second.method, first.quantity, first.level].append(conflict)
    return [_record(conflicts) for conflicts in found.values()]


def _grouped(estimates: Iterable[Estimate], inputs: int) -> dict[Key, list[Estimate]]:
    """What is claimed of each number that more than one method speaks of."""
    kept: list[Estimate] = []
    seen: dict[tuple[str, str], set[int]] = defaultdict(set)
    for e in estimates:
        if isinstance(e.input, int):
            seen[e.method, e.quantity].add(e.input)
        if e.method == _ELSEWHERE or math.isnan(e.value) or TOO_FEW in (e.note or ""):
            continue  # what says itself that it may be too narrow refutes nothing
        if e.kind != "estimate" or (e.input == "all" and e.quantity != "mean"):
            kept.append(e)
    groups: dict[Key, list[Estimate]] = defaultdict(list)
    for e in kept:
        # An average over some of the inputs is another number.
        some = 0 < len(seen[e.method, e.quantity]) < inputs
        if not (some and e.input == "all"):
            groups[e.quantity, e.input, e.output, e.level].append(e)
    return groups


def _measured(group: Sequence[Estimate]) -> int:
    """Comparisons with a measured interval."""
    measured = sum(e.kind == "statistical" for e in group)
    others = len(group) - measured
    return measured * others + measured * (measured - 1) // 2


@dataclass(frozen=True)
class _Claim:
    """What an estimate says of its number: that it lies between ``low`` and ``high``.

    Attributes:
        shown: (low, high) as the score shows them.
    """

    estimate: Estimate
    low: float
    high: float
    shown: tuple[float, float]

    @classmethod
    def of(cls, e: Estimate, tested: int, rounding: tuple[float, float]) -> _Claim:
        low = e.value if e.low is None else e.low
        high = math.inf if e.high is None and e.low is not None else e.high
        high = e.value if high is None else high
        if e.kind == "bound":
            low, high = (-e.value if e.quantity == "mean" else -math.inf), e.value
        elif e.kind == "estimate":
            low, high = e.value / _MAGNITUDE, e.value * _MAGNITUDE
        shown = (low, high)
        if e.kind == "statistical":
            low, high = _widened(e, low, high, tested)
        room = _room(e, low, high, rounding[e.kind == "statistical"])
        return cls(e, low - room, high + room, shown)


def _room(e: Estimate, low: float, high: float, rounding: float) -> float:
    """What rounding may have done to the ends of a claim."""
    below, above = (abs(end) if math.isfinite(end) else 0.0 for end in (low, high))
    size = max(below, above)
    room = _ROUNDED * size
    if e.kind == "proof" or e.quantity in ("tail", "class-change", "not-finite"):
        return room
    if e.quantity == "variance":
        return room + rounding * (rounding + 2 * math.sqrt(size))
    return room + rounding


def _widened(e: Estimate, low: float, high: float, tested: int) -> tuple[float, float]:
    """A measured interval that errs with ``CHANCE`` in this many comparisons.

    By its law: a mean's is normal, a variance's and a weighted probability's on the logarithm's
    scale, and the upper end of a probability that few hits speak for Poisson's.
    """
    alpha, least = 1 - (e.confidence or 0.95), CHANCE / tested
    if not least < alpha < 1:
        return low, high
    times = _times(least, alpha)
    below, above = e.value - times * (e.value - low), e.value + times * (high - e.value)
    # A metric of the user's own may be a probability or not: it gets the wider of both.
    is_own = e.quantity not in RESERVED
    if e.quantity == "mean" or (is_own and low < 0):
        return below, above
    if e.quantity == "variance" or e.method in ("importance-sampling", "word-importance"):
        if not 0 < e.value < math.inf or low <= 0:
            return 0.0, math.inf if e.quantity == "variance" else _few(e, high, least, alpha)
        return e.value * (low / e.value) ** times, e.value * min(high / e.value, 1e6) ** times
    if low < _FEW_HITS * e.value or e.value == 0:
        above = _few(e, high, least, alpha)
    elif e.value > 0:
        above = max(above, e.value * min(high / e.value, 1e6) ** times)
    return below if is_own else max(below, 0.0), above


@lru_cache(maxsize=64)
def _times(least: float, alpha: float) -> float:
    """How many times wider a normal interval of the smaller error probability is."""
    return float(ndtri(least / 2) / ndtri(alpha / 2))


def _few(e: Estimate, high: float, least: float, alpha: float) -> float:
    """Without hits, the upper end is where as few have the error probability left."""
    return e.value + (high - e.value) * math.log(least / 2) / math.log(alpha / 2)


@dataclass(frozen=True)
class _Conflict:
    """Two claims that exclude each other; ``first`` is to blame unless both may be."""

    first: _Claim
    second: _Claim
    is_mutual: bool

    @property
    def gap(self) -> float:
        """How far apart, relative to the larger number."""
        a, b = self.first.shown, self.second.shown
        ends = (a[0], b[1]) if a[0] > b[1] else (b[0], a[1])
        size = max(map(abs, ends))
        return (ends[0] - ends[1]) / size if 0 < size < math.inf else 1.0


def _conflicts(claims: Mapping[Key, list[_Claim]]) -> Iterator[_Conflict]:
    for group in claims.values():
        if len(group) > 1 and (_are_apart(group) or _has_bound(group)):
            yield from _among(group)
    # Some output moves at least as often as any one does.
    single: dict[tuple[int | str, float | None], _Claim] = {}
    for (quantity, where, output, level), group in claims.items():
        if quantity == "tail" and output != "all":
            for claim in group:
                known = single.get((where, level))
                if known is None or claim.low > known.low:
                    single[where, level] = claim
    for (quantity, where, output, level), group in claims.items():
        one = single.get((where, level))
        if quantity == "tail" and output == "all" and one is not None:
            for claim in group:
                if one.low > claim.high and not _is_same_sample(claim, one):
                    yield from _blamed(claim, one)


def _is_same_sample(a: _Claim, b: _Claim) -> bool:
    """Whether two numbers were measured together: their order is sure, their intervals are not."""
    return a.estimate.method == b.estimate.method and a.estimate.kind == "statistical"


def _are_apart(group: Sequence[_Claim]) -> bool:
    return max(claim.low for claim in group) > min(claim.high for claim in group)


def _has_bound(group: Sequence[_Claim]) -> bool:
    return any(claim.estimate.kind == "bound" for claim in group)


def _among(group: Sequence[_Claim]) -> Iterator[_Conflict]:
    for a, b in combinations(group, 2):
        if _are_apart((a, b)) or _is_missed(a, b) or _is_missed(b, a):
            yield from _blamed(a, b)


def _is_missed(bound: _Claim, other: _Claim) -> bool:
    """Whether a bound on an average lies below a measured interval as the score shows it."""
    e = bound.estimate
    if e.kind != "bound" or other.estimate.kind != "statistical" or e.input != "all":
        return False
    low, high = other.shown
    if e.quantity == "mean":
        low = max(low, -high)
    return low > bound.shown[1] * (1 + _MATERIAL)


def _blamed(a: _Claim, b: _Claim) -> Iterator[_Conflict]:
    """The conflict of two claims, if they are such as to contradict each other at all."""
    first, second = sorted((a, b), key=lambda claim: _TRUST[claim.estimate.kind])
    kinds = first.estimate.kind, second.estimate.kind
    if kinds[0] == "estimate" and kinds[1] in ("estimate", "bound"):
        return
    is_mutual = kinds[0] not in ("estimate", "bound") or kinds[1] in ("estimate", "bound")
    yield _Conflict(first, second, is_mutual)


_TRUST: dict[Kind, int] = {"estimate": 0, "bound": 1, "statistical": 2, "proof": 3, "exact": 4}


def _record(conflicts: Sequence[_Conflict]) -> Contradiction:
    """The conflicts of two methods on one quantity, as data."""
    pooled = [c for c in conflicts if c.first.estimate.input == "all"]
    worst = max(pooled or conflicts, key=lambda c: c.gap)
    first, second = worst.first.estimate, worst.second.estimate
    outputs = dict.fromkeys(
        claim.estimate.output for c in conflicts for claim in (c.first, c.second)
    )
    low, high = (None if math.isinf(end) else end for end in worst.first.shown)
    its_low, its_high = (None if math.isinf(end) else end for end in worst.second.shown)
    return Contradiction(
        first.method,
        second.method,
        first.kind,
        second.kind,
        first.quantity,
        first.level,
        first.input,
        first.output,
        low,
        high,
        its_low,
        its_high,
        places=len(conflicts),
        outputs=list(outputs),
        is_mutual=worst.is_mutual,
        note=first.note if first.kind == "bound" else None,
    )


def _shown(kind: Kind, low: Number | None, high: Number | None) -> str:
    """A claim as people write it."""
    if kind == "estimate" and low is not None:
        return f"about {_MAGNITUDE * low:.3g}"
    if low == high and low is not None:
        return f"{low:.4g}"
    if kind == "bound" and high is not None:
        return f"at most {high:.3g}"
    ends = ["-∞" if low is None else f"{low:.3g}", "∞" if high is None else f"{high:.3g}"]
    return f"[{', '.join(ends)}]"
