"""Certificates: proved upper bounds on P(readout . Delta >= eps), without sampling.

1. Every pre-activation is bounded by linear forms in the crash indicators (`crown`), and so,
   outside exceptional events of total probability B, by an interval (`tails.quantiles`).
2. With these intervals the output is bounded by a linear form U: P <= P(U >= eps) + B, where
   P(U >= eps) is bounded by integer dynamic programming (`tails.exact`).
3. Only what happens together with U >= eps matters. Given U and the intervals of one pass, the next
   pass counts P(U >= eps and z outside the interval), which is much smaller at equal width: so its
   intervals are much narrower. Exceptions of all passes are added.
4. The budget B is chosen in a few rounds to be a small share of the final bound.

Every step rounds outward; the result is a proof for the network in real arithmetic with the given
floating-point weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crashsim_theory.activations import Activation
from crashsim_theory.arrays import Array, ArrayLike, as_array
from crashsim_theory.errors import TheoryError
from crashsim_theory.networks import AffineMap, CrashFaults, Network, Sum, WindowMaximum
from crashsim_theory.proofs.crown import Intervals, MaskedNetwork
from crashsim_theory.tails.coordinates import Bernoulli, Coordinates
from crashsim_theory.tails.exact import sum_tail, sum_tail_above
from crashsim_theory.tails.quantiles import LinearForms, RareEvent, expected, upper_quantile
from crashsim_theory.tails.surrogate import LinearSurrogate, Side

ROW_BLOCK = 1024
MOST_KEPT = 4_000_000  # entries of linear forms kept for anchors
COARSE_CELLS = 16_000


@dataclass(frozen=True, eq=False)
class Envelope:
    """readout . Delta <= surrogate, unless an exception of probability <= exceptions occurs.

    The exceptions count only where surrogate >= eps or an earlier surrogate of the same proof did.

    Attributes:
        surrogate: U as a linear surrogate in the crash coordinates.
        tail: proved upper bound on P(U >= eps).
        exceptions: proved upper bound on the probability of the exceptional events.
    """

    surrogate: LinearSurrogate
    tail: float
    exceptions: float

    @property
    def probability(self) -> float:
        return min(1.0, math.nextafter(self.tail + self.exceptions, math.inf))


@dataclass(frozen=True, eq=False)
class Certificate:
    """A proof that P(readout . Delta beyond eps) <= probability.

    Attributes:
        probability: the proved bound, at most 1 (then it says nothing).
        eps, side: the question.
        envelopes: one for each tail that was bounded.
    """

    probability: float
    eps: float
    side: Side
    envelopes: tuple[Envelope, ...]


def certify(
    network: Network,
    x: ArrayLike,
    faults: CrashFaults,
    eps: float,
    readout: ArrayLike | int = 0,
    side: Side = "both",
    *,
    passes: int = 3,
    rounds: int = 4,
    cells: int | None = None,
) -> Certificate:
    """A proved upper bound on P(readout . Delta >= eps), <= -eps, or both, under crash faults.

    Args:
        network: compiled layers.
        x: one input.
        faults: crash coordinates at any set of sites, groups included.
        eps: threshold for the change of the output, >= 0 for side="both".
        readout: an output's index, or coefficients (K,) of a combination of outputs.
        side: "upper", "lower" or "both" (the sum of the two).
        passes: relaxations per round; each narrows the intervals further.
        rounds: choices of the exception budget tried.
        cells: of the final dynamic programming, see linear_exact.

    Raises:
        TheoryError: an unknown side, or an input or readout of the wrong length.
    """
    if side not in ("upper", "lower", "both"):
        raise TheoryError("side", side, 'choose "upper", "lower" or "both"')
    masked = masked_network(network, x, faults)
    c = _readout(network, readout)
    if side == "both" and eps <= 0:
        return Certificate(1.0, float(eps), side, ())
    signs = {"upper": (1.0,), "lower": (-1.0,), "both": (1.0, -1.0)}[side]
    envelopes = []
    for sign in signs:
        clean_low = -float(_clean_upper(masked, -sign * c))
        threshold = math.nextafter(eps + clean_low, -math.inf)
        found = _Proof(masked, sign * c, threshold, clean_low, passes).best(rounds, cells)
        envelopes.append(found)
    total = math.fsum(envelope.probability for envelope in envelopes)
    if len(envelopes) > 1:
        total = math.nextafter(total, math.inf)
    return Certificate(min(1.0, total), float(eps), side, tuple(envelopes))


def certify_class(
    network: Network,
    x: ArrayLike,
    faults: CrashFaults,
    *,
    passes: int = 3,
    rounds: int = 4,
) -> Certificate:
    """A proved upper bound on P(the predicted class changes): the union over rivals' margins.

    The class changes when F_rival - F_top >= 0 for some rival; ties count as changes.
    """
    masked = masked_network(network, x, faults)
    clean = (masked.clean_low[-1] + masked.clean_high[-1]) / 2
    top = int(np.argmax(clean))
    envelopes = []
    for rival in range(len(clean)):
        if rival != top:
            c = np.zeros(len(clean))
            c[rival], c[top] = 1.0, -1.0
            envelopes.append(_Proof(masked, c, 0.0, 0.0, passes).best(rounds, None))
    total = math.fsum(e.probability for e in envelopes) * (1 + 1e-15 * len(envelopes))
    return Certificate(min(1.0, total), 0.0, "upper", tuple(envelopes))


def certify_linear(
    network: Network,
    x: ArrayLike,
    faults: CrashFaults,
    eps: float,
    readout: ArrayLike | int = 0,
    *,
    cells: int | None = None,
) -> tuple[float, float]:
    """(low, high) with low <= P(|readout . Delta| >= eps) <= high, proved.

    As tight as rounding and the cells allow where nothing after the crashes is nonlinear: the
    linear forms above and below the output are then the output itself.

    Args:
        network: compiled layers.
        x: one input.
        faults: crash coordinates at any set of sites, groups included.
        eps: threshold for the change of the output.
        readout: an output's index, or coefficients (K,) of a combination of outputs.
        cells: of the dynamic programming, see linear_exact.

    Raises:
        TheoryError: an input or readout of the wrong length.
    """
    masked = masked_network(network, x, faults)
    c = _readout(network, readout)
    if eps <= 0:
        return 1.0, 1.0
    intervals, last, p = _first_intervals(masked), len(network.nodes) - 1, faults.p
    lows, highs = [], []
    for sign in (1.0, -1.0):
        rows = sign * c[np.newaxis]
        above = masked.upper(rows, last, intervals, after_crash=True)
        below = masked.upper(-rows, last, intervals, after_crash=True)
        least, most = -_clean_upper(masked, -rows[0]), _clean_upper(masked, rows[0])
        threshold = math.nextafter(eps + least, -math.inf)
        highs.append(sum_tail_above(p, above.gains[0], float(above.constant[0]), threshold, cells))
        threshold = math.nextafter(eps + most, math.inf)
        lows.append(sum_tail(p, -below.gains[0], -float(below.constant[0]), threshold, cells)[0])
    low, high = (math.fsum(ends) for ends in (lows, highs))
    return max(0.0, math.nextafter(low, -math.inf)), min(1.0, math.nextafter(high, math.inf))


def masked_network(network: Network, x: ArrayLike, faults: CrashFaults) -> MaskedNetwork:
    """The network at input x with its faults, checked."""
    values = as_array("x", x).reshape(-1)
    if values.size != network.nodes[0].size:
        raise TheoryError("x.shape", np.shape(x), f"give {network.nodes[0].size} values: one input")
    for site in faults.members:
        if site not in network.sites:
            raise TheoryError("site", site, f"choose one of {list(network.sites)}")
    return MaskedNetwork(network, faults, x=values)


def _readout(network: Network, readout: ArrayLike | int) -> Array:
    if isinstance(readout, int):
        if not 0 <= readout < network.output_size:
            raise TheoryError("readout", readout, f"outputs are 0 to {network.output_size - 1}")
        unit = np.zeros(network.output_size)
        unit[readout] = 1.0
        return unit
    c = as_array("readout", readout).reshape(-1)
    if len(c) != network.output_size:
        raise TheoryError(
            "readout", readout, f"give one coefficient per output: {network.output_size}"
        )
    return c


def _clean_upper(masked: MaskedNetwork, c: Array) -> float:
    """Upper end of c . F(0)."""
    low, high = masked.clean_low[-1], masked.clean_high[-1]
    value = np.maximum(c, 0) @ high + np.minimum(c, 0) @ low
    size = np.abs(c) @ np.maximum(np.abs(low), np.abs(high))
    return float(value + (len(c) + 8) * 2.0**-52 * size)


class _Proof:
    """Bounds P(c . F >= threshold) for one readout c."""

    def __init__(
        self, masked: MaskedNetwork, c: Array, threshold: float, origin: float, passes: int
    ) -> None:
        self.masked = masked
        self.c = c[np.newaxis]
        self.threshold = threshold
        self.origin = origin  # subtracted from U to express it as a bound on Delta
        self.passes = passes
        self.p = masked.faults.p
        self.tight = _tight_nodes(masked)
        self.events = sum(2 * masked.network.nodes[index].size for index in self.tight)

    def best(self, rounds: int, cells: int | None) -> Envelope:
        """The best envelope over a few exception budgets, each a share of the bound before."""
        if not self.tight:
            return self._envelope(self._output(_first_intervals(self.masked)), 0.0, cells)
        best: Envelope | None = None
        budget = 1e-8
        for _ in range(rounds):
            envelope = self._attempt(budget)
            if best is None or envelope.probability < best.probability:
                best = envelope
            share = min(max(0.1 * envelope.tail, 1e-30), 1e-1)
            if 0.3 < share / budget < 3:
                break
            budget = share
        assert best is not None
        tail = self._tail(best.surrogate, cells)
        return Envelope(best.surrogate, min(tail, best.tail), best.exceptions)

    def _attempt(self, budget: float) -> Envelope:
        """The best envelope after 1, 2, ... passes, with the exceptions spent until then."""
        log_eta = math.log(budget / (self.passes * self.events))
        event = RareEvent.certain(len(self.p))
        intervals = _first_intervals(self.masked)
        envelopes = []
        for done in range(1, self.passes + 1):
            intervals = self._narrow(intervals, event, log_eta)
            forms = self._output(intervals)
            spent = math.exp(log_eta) * done * self.events * (1 + 1e-12)
            envelopes.append(self._envelope(forms, spent, COARSE_CELLS))
            event = self._event(forms)
        return min(envelopes, key=lambda envelope: envelope.tail + envelope.exceptions)

    def _narrow(self, before: Intervals, event: RareEvent, log_eta: float) -> Intervals:
        """Intervals, node by node, that hold outside exceptions together with `event`."""
        masked = self.masked
        tilted = event.tilted(self.p) if event.tilt else self.p
        after = before.copy(tilted)
        for index in range(1, len(masked.network.nodes)):
            if not masked.random[index]:
                continue
            low, high = masked.interval_step(after, index)
            low, high = np.maximum(low, before.low[index]), np.minimum(high, before.high[index])
            reference = (low + high) / 2
            if index in self.tight:
                size = masked.network.nodes[index].size
                for start in range(0, size, ROW_BLOCK):
                    block = slice(start, min(start + ROW_BLOCK, size))
                    rows = _unit_rows(block, size)
                    above = masked.upper(rows, index, after)
                    below = masked.upper(-rows, index, after)
                    top = upper_quantile(above, self.p, event, log_eta)
                    bottom = -upper_quantile(below, self.p, event, log_eta)
                    low[block] = np.maximum(low[block], bottom)
                    high[block] = np.minimum(high[block], top)
                    centre = (expected(above, tilted) - expected(below, tilted)) / 2
                    reference[block] = centre
                    if size <= ROW_BLOCK and above.gains.size <= MOST_KEPT:
                        after.forms[index] = (above, below)
            # An empty interval means that the event cannot happen here: any point will do.
            high = np.maximum(high, low)
            after.low[index], after.high[index] = low, high
            after.reference[index] = np.clip(reference, low, high)
        return after

    def _output(self, intervals: Intervals) -> LinearForms:
        last = len(self.masked.network.nodes) - 1
        return self.masked.upper(self.c, last, intervals, after_crash=True)

    def _event(self, forms: LinearForms) -> RareEvent:
        gap = math.nextafter(self.threshold - float(forms.constant[0]), -math.inf)
        surrogate = LinearSurrogate(0.0, forms.gains[0], Coordinates([Bernoulli(self.p)]))
        tilt = float(surrogate.tilt(gap))
        if not math.isfinite(tilt) or tilt <= 0:
            largest = float(np.max(np.abs(forms.gains))) or 1.0
            tilt = 0.0 if tilt <= 0 else 50.0 / largest
        return RareEvent(forms.gains[0], gap, tilt)

    def _envelope(self, forms: LinearForms, spent: float, cells: int | None) -> Envelope:
        shift = math.nextafter(float(forms.constant[0]) - self.origin, math.inf)
        surrogate = LinearSurrogate(shift, forms.gains[0], Coordinates([Bernoulli(self.p)]))
        return Envelope(surrogate, self._tail(surrogate, cells), spent)

    def _tail(self, surrogate: LinearSurrogate, cells: int | None) -> float:
        eps = math.nextafter(self.threshold - self.origin, -math.inf)
        return sum_tail_above(self.p, surrogate.gains, float(surrogate.shift), eps, cells)


def _first_intervals(masked: MaskedNetwork) -> Intervals:
    """By interval arithmetic alone, without exceptions."""
    middle = [(a + b) / 2 for a, b in zip(masked.clean_low, masked.clean_high, strict=True)]
    start = Intervals(list(masked.clean_low), list(masked.clean_high), middle, masked.faults.p)
    for index in range(1, len(masked.network.nodes)):
        if masked.random[index]:
            start.low[index], start.high[index] = masked.interval_step(start, index)
    return start


def _tight_nodes(masked: MaskedNetwork) -> list[int]:
    """Affine nodes and sums whose interval matters: inputs of activations, maxima, and masks."""
    nodes = masked.network.nodes
    wanted = {
        parent
        for node in nodes
        if isinstance(node.operation, Activation | WindowMaximum)
        for parent in node.parents
    }
    wanted |= {index for index in range(len(nodes)) if masked.members[index]}
    return [
        index
        for index in sorted(wanted)
        if masked.random[index] and isinstance(nodes[index].operation, AffineMap | Sum)
    ]


def _unit_rows(block: slice, size: int) -> Array:
    rows = np.zeros((block.stop - block.start, size))
    rows[np.arange(len(rows)), np.arange(block.start, block.stop)] = 1.0
    return rows
