"""No fault and single faults exactly, two or more sampled.

Where faults are so rare that most samples would hold none or one, those cases are summed exactly
with N forward passes, and samples are drawn given that at least two coordinates struck (stratified
sampling with exact strata). A coordinate with probability p owns a stretch ``-log(1 - p)`` of a
line on which strikes fall as a Poisson process; so the first strike that is not the last, the
second, and those after it are drawn by inversion, each at the cost of a strike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crashsim.errors import ArgumentError
from crashsim.points import MAX_BLOCK, Floats, Integers, Points, generator
from crashsim.space import FaultSpace

_STREAM = 2**61  # Philox blocks that no plain Monte Carlo run reaches
_SMALLEST = 1e-300  # that may be divided by


@dataclass(frozen=True)
class FewFaults:
    """The outcomes with no fault or one, and the law of the others.

    Attributes:
        weights: (A,) probabilities: of no fault, then of each single one.
        points: (A,) where they lie.
        deltas: (A, B, K) Delta there.
        rest: probability of two or more.
    """

    weights: Floats
    points: Points
    deltas: Floats
    rest: float
    _p: Floats  # of the coordinates that can strike
    _columns: Integers  # which they are

    def sample_block(self, seed: int, block: int) -> Points:
        """1,024 independent samples, given two or more faults; of ``seed`` and ``block`` alone."""
        rng = generator(seed, _STREAM + block)
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
        return Points(MAX_BLOCK, base, every[order], columns, np.ones(len(every)))


def probability_of_two(p: Floats) -> float:
    """P(at least two of independent Bernoulli(p_i) coordinates strike), without cancellation."""
    if (p >= 1).any():
        return 1.0
    line = np.cumsum(-np.log1p(-p))
    before = np.concatenate([[0.0], line[:-1]])
    later = -np.expm1(-(line[-1] - line))
    return max(float((np.exp(-before) * p * later).sum()), _SMALLEST)


def probabilities(space: FaultSpace) -> Floats | None:
    """(N,) of each coordinate's strike; None where some are no Bernoulli variables."""
    if not all(p.fault.is_bernoulli for p in space.placements):
        return None
    return space.mean_point


def few_faults(space: FaultSpace) -> FewFaults:
    """Evaluates every single fault: N forward passes.

    Raises:
        ArgumentError: a coordinate is not Bernoulli, or strikes for certain; or fewer than two can
            strike.
    """
    p = probabilities(space)
    if p is None or (p >= 1).any() or (p > 0).sum() < 2:
        raise ArgumentError(
            "few_exact=True: needs two or more faults that strike with a probability below 1; "
            "leave it out"
        )
    columns = np.flatnonzero(p)
    deltas = np.zeros((len(columns) + 1, space.B, space.K))
    for found, outputs in space.single_changes(np.zeros(space.N), (p > 0).astype(float)):
        deltas[np.searchsorted(columns, found) + 1] = outputs - space.clean()
    p = p[columns]
    singles = np.arange(1, len(deltas))
    points = Points(len(deltas), np.zeros(space.N), singles, columns, np.ones(len(columns)))
    none = np.exp(np.log1p(-p).sum())
    weights = np.concatenate([[none], none * p / (1 - p)])
    return FewFaults(weights, points, deltas, probability_of_two(p), p, columns)
