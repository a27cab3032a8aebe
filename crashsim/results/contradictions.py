"""Numbers of one score that cannot all be true.

Every estimate claims something of one number (``crashsim.results.claims``). Two claims of the same
number that have no point in common contradict each other. What a spiking chip measures is another
number, so it is compared (``crashsim.results.agreement``) but contradicts nothing.

Chance is allowed for in the number of all comparisons with measured intervals (Bonferroni): these
are widened until one comparison or more of a score errs with a small probability. Two are held
against the interval as it is shown beside them: a bound under an assumption, where it is missed by
more than ``_MATERIAL``, and weighted samples that leave out what plain ones have seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.results.claims import (
    MAGNITUDE,
    WEIGHTED,
    Claims,
    Indices,
    claims_of,
    output_name,
    widened,
)
from crashsim.results.estimate import Estimate, Kind
from crashsim.results.estimates import Estimates
from crashsim.results.schema import Number

_MATERIAL = 0.05  # by which a bound on an average must be missed, as a share of it
_LISTED = 1000  # outputs that a record names
_RARE = ("tail", "class-change")


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
        outputs: the outputs among these (the first 1,000), ``"all"`` for any of them.
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

    def of_loss(self) -> Contradiction:
        """The same, where the only output is the loss of each example."""
        return replace(self, output=self.output if self.output == "all" else "loss")

    @property
    def doubted(self) -> tuple[str, ...]:
        """The methods whose numbers are in doubt."""
        return (self.method, self.against) if self.is_mutual else (self.method,)

    def __str__(self) -> str:
        """In a sentence."""
        where = "all inputs" if self.input == "all" else f"input {self.input}"
        if self.quantity != "class-change":
            named = {"all": "any output", "loss": "the loss"}
            where += f", {named.get(str(self.output), f'output {self.output}')}"
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
                f"{MAGNITUDE:g} times ({told}); trust {self.against}"
            )
        if {self.kind, self.against_kind} == {"statistical"} and not self.is_mutual:
            why = (
                "there are ways to fail that the surrogate which guides its samples does not know; "
                f"trust {self.against}"
            )
        elif {self.kind, self.against_kind} == {"statistical"}:
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
    groups: dict[tuple[str, float | None], list[Claims]] = defaultdict(list)
    for claims in claims_of(Estimates() + estimates, inputs):
        groups[claims.quantity, claims.level].append(claims)
    tested = sum(_measured(group) for group in groups.values())
    found: dict[tuple[str, str, str, float | None], list[_Conflicts]] = defaultdict(list)
    for (quantity, level), shown in groups.items():
        group = [widened(claims, max(tested, 1), rounding) for claims in shown]
        conflicts = [*_among(group), *(_beyond_any(group) if quantity == "tail" else ())]
        for conflict in conflicts:
            found[conflict.first.method, conflict.second.method, quantity, level].append(conflict)
        for conflict in _unseen(shown) if quantity in _RARE else ():
            methods = {conflict.first.method, conflict.second.method}
            if not any({a, b} == methods and (q, x) == (quantity, level) for a, b, q, x in found):
                key = (conflict.first.method, conflict.second.method, quantity, level)
                found[key].append(conflict)
    return [_record(conflicts) for conflicts in found.values()]


def _unseen(group: Sequence[Claims]) -> Iterator[_Conflicts]:
    """Averages of weighted samples whose interval lies below that of plain ones, as shown.

    Samples that follow a surrogate do not meet the ways to fail that it does not know, and their
    interval cannot tell. So plain samples are believed as soon as the two 95% intervals have no
    point in common, which chance does to three in a thousand.
    """
    plain = [claims for claims in group if claims.method == "monte-carlo"]
    for a in group:
        for b in plain if a.method in WEIGHTED else ():
            in_a, in_b = _shared(a, b)
            one, other = a[in_a], b[in_b]
            below = one.pooled & (one.shown[1] < other.shown[0])
            if below.any():
                yield _Conflicts(one[below], other[below], is_mutual=False)


def _measured(group: Sequence[Claims]) -> int:
    """Comparisons with a measured interval."""
    total = 0
    for a, b in combinations(group, 2):
        if "statistical" in (a.kind, b.kind):
            total += len(_shared(a, b)[0])
    return total


def _shared(a: Claims, b: Claims) -> tuple[Indices, Indices]:
    """Where both speak of the same number: places in the one and in the other."""
    if len(a) == len(b) and (a.inputs == b.inputs).all() and (a.outputs == b.outputs).all():
        every = np.arange(len(a))
        return every, every
    width = int(max(a.outputs.max(), b.outputs.max())) + 3
    of_a, of_b = ((claims.inputs + 1) * width + claims.outputs + 2 for claims in (a, b))
    _, in_a, in_b = np.intersect1d(of_a, of_b, return_indices=True)
    return in_a, in_b


@dataclass(frozen=True)
class _Conflicts:
    """Claims (n,) of two methods that exclude each other, one by one.

    ``first`` is to blame unless both may be.
    """

    first: Claims
    second: Claims
    is_mutual: bool

    @property
    def gaps(self) -> Floats:
        """How far apart, relative to the larger number, (n,)."""
        (a_low, a_high), (b_low, b_high) = self.first.shown, self.second.shown
        above = a_low > b_high
        upper = np.where(above, a_low, b_low)
        lower = np.where(above, b_high, a_high)
        size = np.maximum(np.abs(upper), np.abs(lower))
        gaps: Floats = np.ones_like(size)
        known = (size > 0) & (size < math.inf)
        np.divide(upper - lower, size, out=gaps, where=known)
        return gaps


def _among(group: Sequence[Claims]) -> Iterator[_Conflicts]:
    """Claims of the same numbers that exclude each other."""
    for a, b in combinations(group, 2):
        in_a, in_b = _shared(a, b)
        if not len(in_a):
            continue
        one, other = a[in_a], b[in_b]
        apart = (one.low > other.high) | (other.low > one.high)
        apart |= _missed(one, other) | _missed(other, one)
        if apart.any():
            yield from _blamed(one[apart], other[apart])


def _beyond_any(group: Sequence[Claims]) -> Iterator[_Conflicts]:
    """Tails of a single output that are larger than those of any: it moves as often at least."""
    single = [claims[~claims.of_any] for claims in group]
    inputs = np.concatenate([claims.inputs for claims in single])
    low = np.concatenate([claims.low for claims in single])
    method = np.repeat(np.arange(len(single)), [len(claims) for claims in single])
    place = np.concatenate([np.arange(len(claims)) for claims in single])
    # Of each input, the one that surely moves most often.
    order = np.lexsort((-low, inputs))
    most = order[np.unique(inputs[order], return_index=True)[1]]
    for whole in group:
        of_any = whole[whole.of_any]
        _, at, here = np.intersect1d(of_any.inputs, inputs[most], return_indices=True)
        over = low[most[here]] > of_any.high[at]
        at, here = at[over], most[here[over]]
        for m in np.unique(method[here]):
            if single[m].method == whole.method and whole.kind == "statistical":
                continue  # measured together: their order is sure, their intervals are not
            some = method[here] == m
            yield from _blamed(of_any[at[some]], single[m][place[here[some]]])


def _missed(bound: Claims, other: Claims) -> NDArray[np.bool_]:
    """Where a bound on an average lies below a measured interval as the score shows it."""
    if bound.kind != "bound" or other.kind != "statistical":
        return np.zeros(len(bound), np.bool_)
    low, high = other.shown
    if bound.quantity == "mean":
        low = np.maximum(low, -high)
    missed: NDArray[np.bool_] = low > bound.shown[1] * (1 + _MATERIAL)
    return missed & bound.pooled


def _blamed(a: Claims, b: Claims) -> Iterator[_Conflicts]:
    """The conflict of two methods, if they are such as to contradict each other at all."""
    first, second = sorted((a, b), key=lambda claims: _TRUST[claims.kind])
    kinds = first.kind, second.kind
    if kinds[0] == "estimate" and kinds[1] in ("estimate", "bound"):
        return
    is_mutual = kinds[0] not in ("estimate", "bound") or kinds[1] in ("estimate", "bound")
    yield _Conflicts(first, second, is_mutual)


_TRUST: dict[Kind, int] = {"estimate": 0, "bound": 1, "statistical": 2, "proof": 3, "exact": 4}


def _record(conflicts: Sequence[_Conflicts]) -> Contradiction:
    """The conflicts of two methods on one quantity, as data."""
    # The one furthest apart, of averages over the inputs if there are any.
    pooled = any(c.first.pooled.any() for c in conflicts)
    gaps = [np.where(c.first.pooled | (not pooled), c.gaps, -1.0) for c in conflicts]
    number = int(np.argmax([gap.max() for gap in gaps]))
    worst, at = conflicts[number], int(gaps[number].argmax())
    first, second = worst.first, worst.second
    outputs = np.concatenate([claims.outputs for c in conflicts for claims in (c.first, c.second)])
    some = dict.fromkeys([int(first.outputs[at]), *(int(k) for k in np.unique(outputs)[:_LISTED])])
    row, output = first.place(at)
    low, high = (None if math.isinf(end[at]) else float(end[at]) for end in first.shown)
    its_low, its_high = (None if math.isinf(end[at]) else float(end[at]) for end in second.shown)
    return Contradiction(
        first.method,
        second.method,
        first.kind,
        second.kind,
        first.quantity,
        first.level,
        row,
        output,
        low,
        high,
        its_low,
        its_high,
        places=sum(len(c.first) for c in conflicts),
        outputs=[output_name(k) for k in some],
        is_mutual=worst.is_mutual,
        note=first.note if first.kind == "bound" else None,
    )


def _shown(kind: Kind, low: Number | None, high: Number | None) -> str:
    """A claim as people write it."""
    if kind == "estimate" and low is not None:
        return f"about {MAGNITUDE * low:.3g}"
    if low == high and low is not None:
        return f"{low:.4g}"
    if kind == "bound" and high is not None:
        return f"at most {high:.3g}"
    ends = ["-∞" if low is None else f"{low:.3g}", "∞" if high is None else f"{high:.3g}"]
    return f"[{', '.join(ends)}]"
