"""First order of very many outputs (maps, tokens, classes), from a few random sums of them.

The gradient of every output costs a backward pass each. What is asked of all outputs together, the
total variance and which coordinates it comes from, does not need them: a sum of the outputs with
random signs z has the variance z' C z, whose mean over z is the trace of C, the total variance
(Hutchinson, Communications in Statistics B 19, 1990). So a few backward passes serve, whatever the
number of outputs. E Delta needs none: around the mean point it is F(m) - F(0).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from crashsim_theory import derive
from scipy.special import stdtrit

from crashsim.analytic.first_order import Analysis
from crashsim.analytic.gains import KEPT, Gains
from crashsim.analytic.shares import SharesByValue
from crashsim.analytic.weighing import BLOCK, seconds, weighed_bytes, zeros_of
from crashsim.arrays import Floats
from crashsim.coordinates.streams import Stream, generator
from crashsim.results.estimate import Interval, Values
from crashsim.results.estimates import Estimates, deterministic, estimates_of
from crashsim.space import FaultSpace
from crashsim.working import worked

PROBES = 16  # random sums of outputs, at most
FEWEST = 4  # the same where a pass takes long
_METHOD = "mean-point-taylor"


def sketched_mean_point_taylor(
    space: FaultSpace,
    analysis: Analysis,
    *,
    memory: int,
    seed: int,
    confidence: float,
    probes: int = PROBES,
    named: Sequence[int] = (),
) -> None:
    """``mean-point-taylor`` of very many outputs: each mean, the total variance, and the shares.

    The variance is of all outputs together, with Student's interval over the random sums. Also sets
    the analysis' shares by value, and no linear surrogate.

    Args:
        space: of independent faults, in the model's own precision.
        analysis: to which it adds.
        memory: in bytes, for gains.
        seed: of the random signs.
        confidence: of the interval.
        probes: number of random sums.
        named: outputs that also get variances of their own, at a backward pass each.

    Raises:
        NotApplicableError: the output has no derivative in any coordinate.
    """
    signs = generator(seed, Stream.OUTPUT_SIGNS).choice([-1.0, 1.0], size=(probes, space.K))
    together = probes_together(space.slopes.size, memory, probes)
    parts = _parts(space, signs, together)
    formula = derive(order=1, point="mean")
    analysis.formulas[_METHOD] = {"text": formula.text(), "latex": formula.latex()}
    each, analysis.by_value = _variances(parts)  # (B, probes)
    analysis.source = _METHOD
    analysis.estimates += deterministic(_METHOD, "mean", "estimate", parts[0].shift_of_outputs)
    analysis.estimates += estimates_of(
        _METHOD,
        "variance",
        "estimate",
        per_input=_over_probes(each, confidence),
        pooled=_over_probes(each.mean(0), confidence),
        confidence=confidence,
        note=f"interval over {probes} random sums of the {space.K} outputs",
    )
    if named:
        analysis.estimates += _of_named(space, named, together)


def _parts(space: FaultSpace, readouts: Floats, together: int) -> list[Gains]:
    """Gains of some combinations of outputs (R, K): read once, so not kept; a few at a time, where
    even one input's take much memory."""
    starts = range(0, len(readouts), together)
    return [Gains.of(space, "mean", 0, readouts[low : low + together]) for low in starts]


def _of_named(space: FaultSpace, named: Sequence[int], together: int) -> Estimates:
    """The variances of some outputs."""
    outputs = np.unique(np.asarray(named, np.int64))
    rows = np.zeros((len(outputs), space.K))
    rows[np.arange(len(outputs)), outputs] = 1.0
    each = np.concatenate([g.sums.variance for g in _parts(space, rows, together)], axis=1)
    return estimates_of(
        _METHOD,
        "variance",
        "estimate",
        per_input=Values(each),
        pooled=Values(each.mean(0)),
        outputs=outputs,
    )


def probes_together(values: int, memory: int, probes: int) -> int:
    """How many random sums of an input's outputs have their slopes by so many values at a time."""
    room = KEPT * memory - weighed_bytes(values)
    return int(min(max(room // (4.0 * values), 1), probes))


def _variances(parts: Sequence[Gains]) -> tuple[Floats, SharesByValue]:
    """(B, probes) of the random sums, and the shares of all: nothing else that gains are read
    for, which takes several times as long."""
    values = parts[0].values
    second, squares = zeros_of(values), zeros_of(values)
    for number, block, weights in seconds(values):
        worked(0.0)
        second[number][block] = weights
    variances = []
    for part in parts:
        variance = np.zeros((part.space.B, part.count))
        for inputs, row, slopes in part.rows():
            for weights, square, slope in zip(second, squares, slopes, strict=True):
                if slope is None:
                    continue
                for low in range(0, len(weights), BLOCK):
                    worked(0.0)
                    block = slice(low, low + BLOCK)
                    g = slope[:, block].astype(np.float64)
                    g *= g
                    variance[inputs, row] += g @ weights[block]
                    square[block] += g.sum(0)
        variances.append(variance)
    return np.concatenate(variances, axis=1), SharesByValue(values, squares, second)


def _over_probes(values: Floats, confidence: float) -> Interval:
    """The mean of what the probes say, (..., probes), with Student's interval; never below 0."""
    mean, probes = np.asarray(values.mean(-1)), values.shape[-1]
    error = values.std(-1, ddof=1) / np.sqrt(probes)
    half = stdtrit(probes - 1, 0.5 + confidence / 2) * error
    return Interval(mean, np.maximum(mean - half, 0.0), mean + half)
