"""No fault and single faults exactly, two or more sampled.

Where faults are so rare that most samples would hold none or one, those cases are summed exactly
with N forward passes, and samples are drawn given that at least two coordinates struck (stratified
sampling with exact strata). Where p > 1/2 it is rare to be spared, which counts as a strike here.

A coordinate with probability p owns a stretch ``-log(1 - p)`` of a line on which strikes fall as a
Poisson process; so the first strike that is not the last, the second, and those after it are drawn
by inversion, each at the cost of a strike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crashsim.arrays import Floats, Integers
from crashsim.coordinates.drawing import MAX_BLOCK
from crashsim.coordinates.placement import moments_of
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import ArgumentError
from crashsim.space import FaultSpace

_SMALLEST = 1e-300  # that may be divided by


@dataclass(frozen=True)
class StrikeLaw:
    """No strike and single ones, with their probabilities, and the law of two or more.

    Attributes:
        weights: (A,) probabilities: of no strike, then of each single one.
        points: (A,) where they lie.
        rest: probability of two or more strikes.
    """

    weights: Floats
    points: Points
    rest: float
    _p: Floats  # at most 1/2, of the coordinates that can strike
    _columns: Integers  # which they are

    def chances(self, n: int) -> Floats:
        """(n,) probability that each of the space's n coordinates strikes, given two or more."""
        none = np.log1p(-self._p)
        others = -np.expm1(none.sum() - none)  # P(some other coordinate strikes)
        found = np.zeros(n)
        found[self._columns] = np.minimum(self._p * others / self.rest, 1.0)
        return found

    def sample_block(self, seed: int, block: int, stream: Stream | None = None) -> Points:
        """1,024 independent samples, given two or more faults; of ``seed`` and ``block`` alone."""
        rng = generator(seed, Stream.FEW_FAULTS if stream is None else stream, block)
        line = np.cumsum(-np.log1p(-self._p))  # where each coordinate's stretch ends
        end, last = float(line[-1]), len(line) - 1
        later = -np.expm1(-(end - line))  # P(some later coordinate strikes)
        law = np.cumsum(np.exp(-np.concatenate([[0.0], line[:-1]])) * self._p * later)
        first = np.searchsorted(law, rng.random(MAX_BLOCK) * law[-1], side="right")
        first = np.minimum(first, last - 1)
        # The next strike comes before the end: a truncated exponential distance along the line.
        distance = -np.log1p(-rng.random(MAX_BLOCK) * later[first])
        at = np.minimum(np.searchsorted(line, line[first] + distance, side="right"), last)
        row = np.arange(MAX_BLOCK)
        rows, struck = [row, row], [first, at]
        while len(row):
            reached = line[at] + rng.exponential(size=len(row))
            row, reached = row[reached < end], reached[reached < end]
            at = np.searchsorted(line, reached, side="right")
            rows.append(row)
            struck.append(at)
        every = np.concatenate(rows)
        order = np.argsort(every, kind="stable")
        columns = self._columns[np.concatenate(struck)[order]]
        base = self.points.base
        return Points(MAX_BLOCK, base, every[order], columns, 1.0 - base[columns])


@dataclass(frozen=True)
class FewFaults(StrikeLaw):
    """The outcomes with no fault or one, and the law of the others.

    Attributes:
        deltas: (A, B, K) Delta with no strike, then with each single one.
    """

    deltas: Floats


def probability_of_two(p: Floats) -> float:
    """P(at least two of independent coordinates strike), without cancellation.

    Args:
        p: (N,) probabilities, at most 1/2.
    """
    line = np.cumsum(-np.log1p(-p))
    before = np.concatenate([[0.0], line[:-1]])
    later = -np.expm1(-(line[-1] - line))
    return max(float((np.exp(-before) * p * later).sum()), _SMALLEST)


def few_strike(space: FaultSpace, most: float) -> bool:
    """Whether two strikes or more have a smaller probability than ``most``, though two may strike.

    A strike is of a coordinate at 0 or 1, whichever is the less likely; there is none of others, or
    of those that depend on each other. Takes a placement at a time: a space may be vast.
    """
    if space.counts or not all(p.fault.is_binary for p in space.placements):
        return False
    several, line, odds = 0, 0.0, 0.0
    for placement in space.placements:
        mean, times = moments_of(placement).mean, 1
        if mean.strides == (0,):  # all alike
            mean, times = mean[:1], len(mean)
        p = np.minimum(mean, 1 - mean)
        several += times * int(np.count_nonzero(p))
        line -= times * float(np.log1p(-p).sum())
        odds += times * float((p / (1 - p)).sum())
    return several >= 2 and 1 - np.exp(-line) * (1 + odds) < most


def usual_state(space: FaultSpace) -> tuple[Floats, Floats] | None:
    """(N,) each coordinate's likelier value, and how likely the other is.

    None unless all are 0 or 1, independently of each other.
    """
    if space.counts or not all(p.fault.is_binary for p in space.placements):
        return None
    p = space.mean_point
    return (p > 0.5).astype(np.float64), np.minimum(p, 1 - p)


def strike_law(space: FaultSpace) -> StrikeLaw:
    """How likely no strike is, each single one, and more.

    Raises:
        ArgumentError: a coordinate takes other values than 0 and 1; or fewer than two are random.
    """
    usual = usual_state(space)
    if usual is None or (usual[1] > 0).sum() < 2:
        raise ArgumentError(
            "few_exact=True: needs two or more coordinates that are struck or not, by chance and "
            "independently of each other; leave it out"
        )
    base, p = usual
    columns = np.flatnonzero(p)
    p = p[columns]
    singles = np.arange(1, len(columns) + 1)
    points = Points(len(columns) + 1, base, singles, columns, 1 - base[columns])
    none = np.exp(np.log1p(-p).sum())
    weights = np.concatenate([[none], none * p / (1 - p)])
    return StrikeLaw(weights, points, probability_of_two(p), p, columns)


def few_faults(space: FaultSpace) -> FewFaults:
    """Evaluates the usual state and every single strike: N forward passes.

    Raises:
        ArgumentError: as ``strike_law``.
    """
    law = strike_law(space)
    base, columns = law.points.base, law._columns
    deltas = np.zeros((len(columns) + 1, space.B, space.K))
    deltas[0] = space.outcomes(Points.at(base))[0] - space.clean()
    struck = base.copy()
    struck[columns] = 1 - base[columns]
    for found, outputs in space.single_outcomes(base, struck):
        deltas[np.searchsorted(columns, found) + 1] = outputs - space.clean()
    return FewFaults(law.weights, law.points, law.rest, law._p, columns, deltas)
