"""The oracle: exact answers for small circuits, by summing over every pattern of faults.

Delta is the difference of two rounded outputs, of weights that stand for decimal numbers. Outcomes
that lie within that rounding of a threshold count as reaching it; what they hold is told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from crashsim.analytic.first_order import double_precision
from crashsim.analytic.rounding import resolution_of, rounding_of
from crashsim.arguments import number
from crashsim.arrays import Floats
from crashsim.coordinates.counts import Count
from crashsim.coordinates.placement import Faults, Placement
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError
from crashsim.faults.checks import STRONGEST
from crashsim.metrics import CLASS_CHANGE, AskedMetrics, Metric, predicted_class
from crashsim.model.inputs import BatchAxis, ModelInputs
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.model.twins.resetting import Reset
from crashsim.noticing import notice
from crashsim.results.estimate import Interval, Values
from crashsim.results.estimates import Estimates, estimates_of
from crashsim.space import FaultSpace

MAX_COORDINATES = 20
_SLOWER = 6  # coordinates fewer where every outcome takes a forward pass of its own
_SMALLEST = 5e-324
_OVERFLOWS = 1e4  # change of an output from which a type of fewer bits may not hold some number
_MATERIAL = 1e-3  # share of a tail within rounding of epsilon that is worth a warning
_MAX_VALUES = 2**28  # numbers held at once: 2 GiB
_MAX_STRUCK = 24  # logarithm to base 2 of the struck coordinates of all patterns together
_FEW = 64  # coordinates to choose or leave out, up to which choices are counted as integers


@dataclass(frozen=True)
class ExactDistribution:
    """The law of Delta: every outcome with its probability.

    Attributes:
        clean: (B, K), F(0).
        deltas: (S, B, K), Delta for each of the S = 2^N fault patterns; pattern j strikes the
            coordinates that are set bits of j. Coordinates of k values make k outcomes each, of
            which the first coordinate's change fastest. Of coordinates of which exactly k are
            struck, the choices follow each other as those of ``itertools.combinations``.
        probabilities: (S,).
        rounding: (B, K) what rounding may have done to a Delta.
        resolution: relative precision to which an epsilon can be told from an outcome.
    """

    clean: Floats
    deltas: Floats
    probabilities: Floats
    rounding: Floats | float = 0.0
    resolution: float = 0.0

    def _expect(self, values: NDArray[Any]) -> Floats:
        """Expectation of (2^N, ...) values, by outcome."""
        expected: Floats = np.tensordot(self.probabilities, values, 1)
        return expected

    @property
    def mean(self) -> Floats:
        """E Delta, (B, K)."""
        return self._expect(self.deltas)

    @property
    def covariance(self) -> Floats:
        """Cov Delta across outputs, (B, K, K)."""
        centred = self.deltas - self.mean
        products: Floats = np.einsum("s,sbk,sbl->bkl", self.probabilities, centred, centred)
        return products

    @property
    def variance(self) -> Floats:
        """Var Delta, (B, K)."""
        centred = self.deltas - self.mean
        return self._expect(centred**2)

    def tail(self, epsilon: float) -> Floats:
        """P(|Delta| >= epsilon), (B, K); what is within rounding of epsilon counts."""
        number("epsilon", epsilon, "a number >= 0 in the units of the outputs", least=0)
        return self._expect(self._reaches(epsilon, -1))

    def any_tail(self, epsilon: float) -> Floats:
        """P(some output moves by epsilon or more), (B,); within rounding counts."""
        number("epsilon", epsilon, "a number >= 0 in the units of the outputs", least=0)
        return self._expect(np.any(self._reaches(epsilon, -1), axis=2))

    def _reaches(self, epsilon: float, sign: int) -> NDArray[np.bool_]:
        """(2^N, B, K) which outcomes reach epsilon: at most (sign -1) or surely (1)."""
        # No fault, no change: epsilon = 0 apart, that outcome is known without rounding.
        room = np.maximum(self.rounding, self.resolution * epsilon)
        level = np.maximum(epsilon + sign * room, min(epsilon, _SMALLEST))
        reaches: NDArray[np.bool_] = np.abs(self.deltas) >= level
        reaches |= self._lost[:, :, None]
        return reaches

    @cached_property
    def _lost(self) -> NDArray[np.bool_]:
        """(2^N, B) which outcomes have outputs that are not finite."""
        return np.logical_not(np.isfinite(self.deltas).all(2))

    @property
    def not_finite(self) -> Floats:
        """P(some output is infinite or NaN), (B,)."""
        return self._expect(self._lost)

    @property
    def class_change(self) -> Floats:
        """P(the predicted class, the first largest output, changes), (B,)."""
        return self.average(CLASS_CHANGE)

    def average(self, metric: Metric, targets: Any = None) -> Floats:
        """Probability of an event or expectation of a mean (``crashsim.metrics``), (B,).

        Args:
            metric: the metric.
            targets: (B, ...) what it compares the outputs with, if anything.

        Raises:
            ArgumentError: the metric's function fails, or returns something else.
        """
        return self._average(metric, AskedMetrics.of((), targets, self.clean))

    def _average(self, metric: Metric, asked: AskedMetrics) -> Floats:
        return self._expect(asked.values(metric, self.clean + self.deltas, self.clean))

    def estimates(
        self, epsilon: float | None = None, asked: AskedMetrics | None = None
    ) -> Estimates:
        """All of it as estimates of kind ``exact``.

        Args:
            epsilon: also P(|Delta| >= epsilon).
            asked: metrics of one's own, each with an estimate of its name.
        """
        found = self._moments() if (np.abs(self.deltas) <= STRONGEST).all() else Estimates()
        if self._lost.any():
            lost = self.not_finite
            found += estimates_of(
                "exact", "not-finite", "exact", per_input=Values(lost), pooled=Values(lost.mean())
            )
        if epsilon is not None:
            found += self._tails(epsilon)
        if self.clean.shape[1] > 1:
            found += self._changes()
        asked = asked or AskedMetrics()
        for metric in asked.metrics:
            average = self._average(metric, asked)
            pooled = Values(average.mean())
            found += estimates_of(
                "exact", metric.name, "exact", per_input=Values(average), pooled=pooled
            )
        return found

    def _moments(self) -> Estimates:
        mean, variance = self.mean, self.variance
        return estimates_of(
            "exact", "mean", "exact", per_input=Values(mean), pooled=Values(mean.mean(0))
        ) + estimates_of(
            "exact",
            "variance",
            "exact",
            per_input=Values(variance),
            pooled=Values(variance.mean(0)),
            total=Values(variance.mean(0).sum()),
        )

    def _changes(self) -> Estimates:
        change, note = self.class_change, None
        lead, room = self._leads()
        least, most = self._expect(lead < -room), self._expect(lead <= room)
        per_input: Values = Values(change)
        pooled: Values = Values(change.mean())
        if (least < most).any():
            note = "classes within rounding of each other: the first of them is the predicted one"
            per_input = Interval(change, least, most)
            pooled = Interval(change.mean(), least.mean(), most.mean())
        # Outputs that are the same number (of dead neurons, say) have a first; others only seem to.
        unsure = self._expect((np.abs(lead) <= room) & (lead != 0))
        if (unsure > np.maximum(_MATERIAL * change, _MATERIAL**2)).any():
            notice(
                f"exact: with a probability of up to {unsure.max():.2g} two classes lie within "
                "rounding of each other, so which is predicted is decided by rounding; low and "
                "high are the class changes without these outcomes and with them",
                stacklevel=4,
            )
        return estimates_of(
            "exact", "class-change", "exact", per_input=per_input, pooled=pooled, note=note
        )

    def _leads(self) -> tuple[Floats, Floats]:
        """(2^N, B) by how much the predicted class leads, and (B,) what rounding does to that."""
        rows, top = np.arange(len(self.clean)), predicted_class(self.clean)
        outputs = self.clean + self.deltas
        own = outputs[:, rows, top]
        outputs[:, rows, top] = -np.inf
        with np.errstate(invalid="ignore"):
            lead: Floats = own - outputs.max(2)
        lead[self._lost] = -np.inf
        return lead, 2 * np.broadcast_to(self.rounding, self.clean.shape).max(1)

    def _tails(self, epsilon: float) -> Estimates:
        tail, total, note = self.tail(epsilon), self.any_tail(epsilon).mean(), None
        per_input: Values = Values(tail)
        pooled: Values = Values(tail.mean(0))
        whole: Values = Values(total)
        surely = self._reaches(epsilon, 1)
        least = self._expect(surely)
        unsure = tail - least
        if (unsure > 0).any():
            note = "outcomes within rounding of epsilon count as reaching it"
            if (unsure > _MATERIAL * tail).any():
                notice(
                    f"exact: outcomes with a probability of up to {unsure.max():.2g} lie within "
                    f"rounding of epsilon={epsilon:g}; they count as reaching it, and low is the "
                    "tail without them: choose epsilon between two outcomes",
                    stacklevel=4,
                )
            per_input = Interval(tail, least, tail)
            pooled = Interval(tail.mean(0), least.mean(0), tail.mean(0))
            whole = Interval(total, self._expect(np.any(surely, axis=2)).mean(), total)
        return estimates_of(
            "exact",
            "tail",
            "exact",
            per_input=per_input,
            pooled=pooled,
            total=whole,
            level=epsilon,
            note=note,
        )


def enumerate_exact(
    model: nn.Module,
    inputs: ModelInputs,
    faults: Faults,
    sites: str = "hidden",
    *,
    readout: str | int | None = None,
    reset: Reset | None = None,
    batch_axis: BatchAxis = 0,
    steps_axis: StepsAxis | None = None,
) -> ExactDistribution:
    """The exact law of Delta by evaluating all fault patterns, 2^N or so, in double precision.

    Args:
        model: any module that ``FaultSpace`` accepts.
        inputs: (B, ...), or several, as ``FaultSpace`` takes them.
        faults: faults whose coordinates take few values (all but the Gaussian ones).
        sites, readout, reset, batch_axis, steps_axis: see ``FaultSpace``.

    Raises:
        ArgumentError: more than 2^20 outcomes (20 coordinates that strike or do not), or a law
            with a continuum of outcomes.
    """
    space = FaultSpace(
        model,
        inputs,
        faults,
        sites,
        readout=readout,
        reset=reset,
        batch_axis=batch_axis,
        steps_axis=steps_axis,
    )
    return enumerate_space(space)


def can_enumerate(space: FaultSpace, limit: int = MAX_COORDINATES) -> bool:
    """Whether the space has few enough outcomes to sum over them all."""
    if space.runs_alone:
        limit -= _SLOWER
    struck = sum(count.struck for count in space.counts)
    if struck and _bits(space) + math.log2(struck) > _MAX_STRUCK:
        return False
    return limit >= _bits(space) and _MAX_VALUES * 2.0 ** -_bits(space) >= space.B * space.K


def outcomes_of(space: FaultSpace) -> float:
    """The number of outcomes; infinite for a continuum, and beyond the largest float."""
    bits = _bits(space)
    return 2.0**bits if bits < 1023 else math.inf


def _bits(space: FaultSpace) -> float:
    """The logarithm to base 2 of the number of outcomes; infinite for a continuum."""
    values = [
        (p.size, np.inf if p.fault.atoms is None else len(p.fault.atoms[0]))
        for p in space.placements
        if p.count is None
    ]
    bits = float(sum(size * np.log2(count) for size, count in values))
    return bits + sum(_log2_comb(count) for count in space.counts)


def _log2_comb(count: Count) -> float:
    """The logarithm to base 2 of the number of choices, whose digits may be very many."""
    n, k = count.size, count.struck
    if min(k, n - k) <= _FEW:
        return math.log2(count.patterns)
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def enumerate_space(space: FaultSpace) -> ExactDistribution:
    """``enumerate_exact`` for a FaultSpace; the same conditions and errors."""
    continuous = [p for p in space.placements if p.fault.atoms is None]
    if continuous:
        fault = continuous[0].fault
        raise ArgumentError(
            f"faults: {fault} has a continuum of outcomes (its law is {fault.law.name}); "
            "enumeration needs faults that strike or do not, or take few values"
        )
    if not can_enumerate(space):
        most = MAX_COORDINATES - (_SLOWER if space.runs_alone else 0)
        raise ArgumentError(
            f"sites: {space.N} fault coordinates on {space.B} inputs with {space.K} outputs give "
            f"2^{_bits(space):.3g} patterns, too many to enumerate; at most {most} coordinates "
            "(choose fewer sites or inputs)"
        )
    given, space = space, double_precision(space)
    points, probabilities = _outcomes(space)
    deltas = space.outcomes(points) - space.clean()
    if space is not given and not (np.abs(deltas) <= _OVERFLOWS).all():
        own = given.outcomes(points)  # where numbers overflow that double precision would hold
        if not np.isfinite(own).all():
            space, deltas = given, own - given.clean()
    rounding, resolution = rounding_of(space), resolution_of(space)
    return ExactDistribution(space.clean(), deltas, probabilities, rounding, resolution)


def _outcomes(space: FaultSpace) -> tuple[Points, Floats]:
    """Every pattern of coordinates, and its probability (S,)."""
    if not space.counts:
        e, probabilities = _independent_outcomes(space)
        struck, places = np.nonzero(e)
        return Points(len(e), np.zeros(space.N), struck, places, e[struck, places]), probabilities
    independent = [(i, *_atoms(p, i)) for p in space.placements for i in _independent(p)]
    choices = [count.every() for count in space.counts]
    sizes = [len(values) for _, values, _ in independent] + [len(every) for every in choices]
    number = every_number = np.arange(math.prod(sizes))
    probabilities = np.ones(len(number))
    rows, columns, values = [], [], []
    for i, atoms, chances in independent:
        number, which = np.divmod(number, len(atoms))
        probabilities *= chances[which]
        changed = np.flatnonzero(atoms[which])
        rows.append(changed)
        columns.append(np.full(len(changed), i))
        values.append(atoms[which[changed]])
    for count, every in zip(space.counts, choices, strict=True):
        number, which = np.divmod(number, len(every))
        probabilities /= len(every)
        rows.append(np.repeat(every_number, count.struck))
        columns.append((every[which] + count.start).reshape(-1))
        values.append(np.ones(len(rows[-1])))
    place = np.lexsort((np.concatenate(columns), np.concatenate(rows)))
    row, column, value = (np.concatenate(parts)[place] for parts in (rows, columns, values))
    return Points(len(every_number), np.zeros(space.N), row, column, value), probabilities


def _independent_outcomes(space: FaultSpace) -> tuple[Floats, Floats]:
    """Every pattern of independent coordinates (S, N), and its probability (S,)."""
    atoms = [_atoms(p, i) for p in space.placements for i in range(p.start, p.stop)]
    sizes = [len(values) for values, _ in atoms]
    number = np.arange(math.prod(sizes))
    e, chances = np.empty((2, len(number), len(sizes)))
    for i, (values, probabilities) in enumerate(atoms):
        number, which = np.divmod(number, sizes[i])
        e[:, i], chances[:, i] = values[which], probabilities[which]
    return e, np.prod(chances, axis=1)


def _independent(placement: Placement) -> range:
    """The coordinates of a placement that depend on no others."""
    return range(placement.start, placement.start if placement.count else placement.stop)


def _atoms(placement: Placement, coordinate: int) -> tuple[Floats, Floats]:
    """The values that a coordinate takes and their probabilities, each (k,)."""
    assert placement.fault.atoms is not None
    values, probabilities = placement.fault.atoms
    if placement.fault.is_varied:
        own = coordinate - placement.start
        return values[:, own], probabilities[:, own]
    return values, probabilities
