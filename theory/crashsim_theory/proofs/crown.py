"""Backward linear relaxation of a network in its crash indicators (CROWN with masks).

For crash indicators b in {0, 1}^C, every node's value is bounded by a linear form in b:
value <= constant + gains . b, as long as each earlier node stays in its interval [l, u].

* A crash multiplies a neuron's output a in [l, u] by 1 - b: a - u b <= (1 - b) a <= a - l b. Where
  a is the same for all b (nothing crashes before it), the two coincide.
* An activation is replaced by a line above or below it on the interval of its input (`relaxation`),
  or by a linear form in b that is exact where nothing crashes (`Anchor`), whichever is better.
* A maximum over a window is at least its likeliest member and at most the largest upper end.

The relaxation is that of Zhang et al. 2018 (CROWN); the mask is new. Rounding: every dot product of
n floating-point terms is within (n + 2) u of its terms' absolute sum (Higham 2002, section 3.1), so
these absolute sums, with bounds on the values they multiply, are added up as `slack` and the
constant is moved outward by it. A bound thus holds for the network in real arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crashsim_theory.activations import Activation
from crashsim_theory.arrays import Array
from crashsim_theory.networks import (
    AffineMap,
    CrashFaults,
    Network,
    Operation,
    Sum,
    WindowMaximum,
    apply,
)
from crashsim_theory.proofs.relaxation import Lines, lines
from crashsim_theory.tails.quantiles import LinearForms

UNIT = 2.0**-53


@dataclass(frozen=True, eq=False)
class Anchor:
    """A linear form in b on one side of an activation, exact where nothing crashes.

    If z <= u_0 + sum g_j b_j and phi' lies in [s, S], s >= 0, then phi(z) <= phi(u_0) +
    sum (S max(g_j, 0) + s min(g_j, 0)) b_j; likewise below. A line pays for the whole interval of z
    even when nothing is hit; an anchor does not: better where crashes are few and local.

    Attributes:
        chosen: for which neurons it is better than the line, (n,).
        offset: (n,); zero where not chosen.
        gains: (n, C); zero where not chosen.
    """

    chosen: Any
    offset: Array
    gains: Array


@dataclass(frozen=True, eq=False)
class Relaxed:
    """How one activation is bounded: by lines in z, or by anchors in b where these are better."""

    line: Lines
    upper: Anchor | None
    lower: Anchor | None


@dataclass
class Intervals:
    """[low, high] of every node's value before its own crashes, and how to relax tightly there.

    Attributes:
        low, high: for each node, (n,); they hold while the events the caller counts do not occur.
        reference: where each node's value is expected, (n,): relaxations are best there.
        forms: for some nodes, linear forms above the value and above its negative.
        typical: crash probabilities under which relaxations should be best, (C,).
        relaxed: filled in by the relaxation: each activation's bounds.
    """

    low: list[Array]
    high: list[Array]
    reference: list[Array]
    typical: Array
    forms: dict[int, tuple[LinearForms, LinearForms]] = field(default_factory=dict)
    relaxed: dict[int, Relaxed] = field(default_factory=dict)

    def copy(self, typical: Array) -> Intervals:
        """The same intervals, with relaxations to be chosen anew for `typical` crashes."""
        return Intervals(list(self.low), list(self.high), list(self.reference), typical)


@dataclass(frozen=True, eq=False)
class MaskedNetwork:
    """A network at one input with its crash faults, ready for relaxation.

    Attributes:
        members: for each node, the coordinate ids of its neurons, once per fault that strikes it.
        random: for each node, whether its value depends on earlier crashes at all.
        clean_low, clean_high: each node's value without faults, rounded outward.
    """

    network: Network
    faults: CrashFaults
    members: list[list[Any]] = field(init=False)
    random: list[bool] = field(init=False)
    clean_low: list[Array] = field(init=False)
    clean_high: list[Array] = field(init=False)
    x: Any = None

    def __post_init__(self) -> None:
        network = self.network
        nodes = range(len(network.nodes))
        members = [self.faults.members_at(network, index) for index in nodes]
        random: list[bool] = []
        low: list[Array] = []
        high: list[Array] = []
        x = np.asarray(self.x, dtype=np.float64).reshape(-1)
        for node in network.nodes:
            parents = node.parents
            random.append(any(random[i] or members[i] for i in parents))
            bounds = [(low[i], high[i]) for i in parents]
            lo, hi = propagate(node.operation, bounds) if parents else (x, x)
            low.append(lo)
            high.append(hi)
        for name, value in (
            ("members", members),
            ("random", random),
            ("clean_low", low),
            ("clean_high", high),
        ):
            object.__setattr__(self, name, value)

    def hull(self, intervals: Intervals, index: int) -> tuple[Array, Array]:
        """[low, high] of node `index` after its own crashes: 0 joins where a neuron may crash."""
        low, high = intervals.low[index], intervals.high[index]
        for ids in self.members[index]:
            low = np.where(ids >= 0, np.minimum(low, 0.0), low)
            high = np.where(ids >= 0, np.maximum(high, 0.0), high)
        return low, high

    def interval_step(self, intervals: Intervals, index: int) -> tuple[Array, Array]:
        """[low, high] of node `index` by interval arithmetic from its parents."""
        node = self.network.nodes[index]
        return propagate(node.operation, [self.hull(intervals, i) for i in node.parents])

    def upper(
        self, rows: Array, index: int, intervals: Intervals, after_crash: bool = False
    ) -> LinearForms:
        """Linear forms above rows . (value of node `index`), rows (r, n).

        The value is that before the node's own crashes, or after them with `after_crash`.
        """
        pending: dict[int, Array] = {index: np.asarray(rows, dtype=np.float64)}
        total = _Accumulator(len(rows), len(self.faults.p))
        for at in range(index, -1, -1):
            coefficients = pending.pop(at, None)
            if coefficients is None:
                continue
            positive, negative = np.maximum(coefficients, 0), np.minimum(coefficients, 0)
            low, high = intervals.low[at], intervals.high[at]
            if at != index or after_crash:
                self._crash(total, at, positive, negative, low, high)
            if not self.random[at]:
                total.add(positive, high)
                total.add(negative, low)
                continue
            self._operation_step(total, pending, at, coefficients, intervals)
        return total.forms()

    def _crash(
        self, total: _Accumulator, at: int, pos: Array, neg: Array, low: Array, high: Array
    ) -> None:
        if len(self.members[at]) > 1:
            # Two faults strike the same neurons: only the interval of what is left is kept simple.
            reach_low, reach_high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        else:
            reach_low, reach_high = low, high
        for ids in self.members[at]:
            struck = np.flatnonzero(ids >= 0)
            gains = -(pos[:, struck] * reach_low[struck] + neg[:, struck] * reach_high[struck])
            total.add_gains(gains, ids[struck])

    def _operation_step(
        self,
        total: _Accumulator,
        pending: dict[int, Array],
        at: int,
        coefficients: Array,
        intervals: Intervals,
    ) -> None:
        node = self.network.nodes[at]
        reach = np.maximum(np.abs(intervals.low[at]), np.abs(intervals.high[at]))
        total.slacken(np.abs(coefficients), reach, 8)
        pos, neg = np.maximum(coefficients, 0), np.minimum(coefficients, 0)
        operation, first = node.operation, node.parents[0]
        if isinstance(operation, AffineMap):
            total.add(coefficients, operation.bias)
            low, high = self.hull(intervals, first)
            magnitudes = operation.absolute.linear(np.maximum(np.abs(low), np.abs(high)))
            total.slacken(np.abs(coefficients), magnitudes, coefficients.shape[1] + 8)
            _join(pending, first, operation.adjoint(coefficients))
        elif isinstance(operation, Sum):
            for parent in node.parents:
                _join(pending, parent, coefficients)
        elif isinstance(operation, Activation):
            self._activation_step(total, pending, at, pos, neg, intervals)
        elif isinstance(operation, WindowMaximum):
            self._maximum_step(total, pending, first, pos, neg, intervals, operation)

    def _activation_step(
        self,
        total: _Accumulator,
        pending: dict[int, Array],
        at: int,
        pos: Array,
        neg: Array,
        intervals: Intervals,
    ) -> None:
        first = self.network.nodes[at].parents[0]
        relaxed = intervals.relaxed.get(at)
        if relaxed is None:
            relaxed = intervals.relaxed[at] = self._relax(at, intervals)
        for anchor, coefficients in ((relaxed.upper, pos), (relaxed.lower, neg)):
            if anchor is not None:
                total.add(coefficients * anchor.chosen, anchor.offset)
                total.add_products(coefficients * anchor.chosen, anchor.gains)
        if relaxed.upper is not None:
            pos = np.where(relaxed.upper.chosen, 0.0, pos)
        if relaxed.lower is not None:
            neg = np.where(relaxed.lower.chosen, 0.0, neg)
        line = relaxed.line
        total.add(pos, line.upper_offset)
        total.add(neg, line.lower_offset)
        low, high = self.hull(intervals, first)
        steep = np.maximum(np.abs(line.upper_slope), np.abs(line.lower_slope))
        reach = steep * np.maximum(np.abs(low), np.abs(high))
        total.slacken(np.abs(pos) + np.abs(neg), reach, 8)
        _join(pending, first, pos * line.upper_slope + neg * line.lower_slope)

    def _relax(self, at: int, intervals: Intervals) -> Relaxed:
        """Lines for an activation, and anchors where they are better for typical crashes."""
        phi, first = self.network.nodes[at].operation, self.network.nodes[at].parents[0]
        assert isinstance(phi, Activation)
        low, high = self.hull(intervals, first)
        reference = intervals.reference[first]
        line = lines(phi, low, high, reference)
        forms = intervals.forms.get(first)
        if forms is None or self.members[first]:
            return Relaxed(line, None, None)
        above, below = forms
        p, at_reference = intervals.typical, np.clip(reference, low, high)
        flattest, steepest = phi.slope_range(low, high)
        sides = []
        for form, sign, slope, offset in (
            (above, 1.0, line.upper_slope, line.upper_offset),
            (below, -1.0, line.lower_slope, line.lower_offset),
        ):
            start = sign * form.constant
            gains = np.where(form.gains > 0, steepest[:, None], flattest[:, None]) * form.gains
            inside = (low <= start) & (start <= high) & (flattest >= 0)
            here = np.clip(start, low, high)
            clean = phi.range(here, here)[1 if sign > 0 else 0]
            better = sign * clean + gains @ p < sign * (slope * at_reference + offset)
            chosen = inside & better
            kept = np.where(chosen[:, None], sign * gains, 0.0)
            sides.append(Anchor(chosen, np.where(chosen, clean, 0.0), kept))
        return Relaxed(line, *sides)

    def _maximum_step(
        self,
        total: _Accumulator,
        pending: dict[int, Array],
        parent: int,
        pos: Array,
        neg: Array,
        intervals: Intervals,
        operation: WindowMaximum,
    ) -> None:
        low, high = self.hull(intervals, parent)
        windows = operation.windows
        expected = np.clip(intervals.reference[parent], low, high)
        best = windows[np.arange(len(windows)), expected[windows].argmax(1)]
        others = np.where(windows == best[:, None], -np.inf, high[windows]).max(1)
        dominant = low[best] >= others
        # Above: the dominant member itself if no other can exceed it, else the largest upper end.
        through = np.where(dominant, pos, 0.0) + neg
        total.add(np.where(dominant, 0.0, pos), high[windows].max(1))
        back = np.zeros((len(pos), len(low)))
        np.add.at(back.T, best, through.T)
        shared = np.bincount(best, minlength=len(low)).max()
        total.slacken(np.abs(through), np.maximum(np.abs(low), np.abs(high))[best], int(shared) + 8)
        _join(pending, parent, back)


class _Accumulator:
    """Sums constant, gains and the slack for their rounding."""

    def __init__(self, rows: int, coordinates: int) -> None:
        self.constant, self.magnitude = np.zeros(rows), np.zeros(rows)
        self.slack = np.zeros(rows)
        self.gains = np.zeros((rows, coordinates))
        self.additions = 0

    def add(self, coefficients: Array, values: Array) -> None:
        self.constant += coefficients @ values
        absolute = np.abs(coefficients) @ np.abs(values)
        self.magnitude += absolute
        self.slack += (len(values) + 8) * UNIT * absolute
        self.additions += 1

    def slacken(self, coefficients: Array, values: Array, roundings: int) -> None:
        """Account for `roundings` relative roundings of each of coefficients * values."""
        self.slack += roundings * UNIT * (coefficients @ values)

    def add_gains(self, gains: Array, ids: Any) -> None:
        if len(np.unique(ids)) == len(ids):
            self.gains[:, ids] += gains
        else:
            np.add.at(self.gains.T, ids, gains.T)
        self.slack += (len(ids) + 8) * UNIT * np.abs(gains).sum(1)
        self.magnitude += np.abs(gains).sum(1)
        self.additions += 1

    def add_products(self, coefficients: Array, gains: Array) -> None:
        """Add coefficients @ gains to the gains."""
        self.gains += coefficients @ gains
        absolute = np.abs(coefficients) @ np.abs(gains).sum(1)
        self.slack += (len(gains) + 16) * UNIT * absolute
        self.magnitude += absolute
        self.additions += 1

    def forms(self) -> LinearForms:
        slack = self.slack + (self.additions + 8) * UNIT * self.magnitude
        constant = self.constant + slack * (1 + 1e-6)
        return LinearForms(np.nextafter(constant, np.inf), self.gains)


def propagate(operation: Operation, bounds: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Interval arithmetic for one operation on parents' [low, high] (..., n), rounded outward."""
    low, high = bounds[0]
    if isinstance(operation, AffineMap):
        middle, radius = (low + high) / 2, (high - low) / 2
        size = np.abs(middle) + radius
        magnitude = operation.absolute.linear(size) + np.abs(operation.bias)
        spread = operation.absolute.linear(radius) + (low.shape[-1] + 8) * UNIT * magnitude
        centre, spread = operation(middle), spread * (1 + 1e-6)
        return centre - spread, centre + spread
    if isinstance(operation, Activation):
        return operation.range(low, high)
    if isinstance(operation, Sum):
        lows, highs = (np.asarray(sum(pair[i] for pair in bounds)) for i in (0, 1))
        error = 4 * UNIT * sum(np.abs(a) for pair in bounds for a in pair)
        return lows - error, highs + error
    return apply(operation, [low]), apply(operation, [high])


def _join(pending: dict[int, Array], parent: int, coefficients: Array) -> None:
    pending[parent] = pending[parent] + coefficients if parent in pending else coefficients
