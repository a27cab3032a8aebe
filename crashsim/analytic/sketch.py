"""First order of very many outputs (maps, tokens, classes), from a few random sums of them.

The gradient of every output costs a backward pass each. What is asked of all outputs together, the
total variance and which coordinates it comes from, does not need them: a sum of the outputs with
random signs z has the variance z' C z, whose mean over z is the trace of C, the total variance
(Hutchinson, Communications in Statistics B 19, 1990). So ``PROBES`` backward passes serve, whatever
the number of outputs. E Delta needs none: around the mean point it is F(m) - F(0).
"""

from __future__ import annotations

import numpy as np
from crashsim_theory import derive
from scipy.special import stdtrit

from crashsim.analytic.first_order import Analysis
from crashsim.analytic.gains import Gains
from crashsim.analytic.shares import SharesByValue
from crashsim.arrays import Floats
from crashsim.coordinates.streams import Stream, generator
from crashsim.results.estimate import Interval
from crashsim.results.estimates import deterministic, estimates_of
from crashsim.space import FaultSpace

PROBES = 16  # random sums of outputs
_METHOD = "mean-point-taylor"


def sketched_mean_point_taylor(
    space: FaultSpace, analysis: Analysis, *, memory: int, seed: int, confidence: float
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

    Raises:
        NotApplicableError: the output has no derivative in any coordinate.
    """
    signs = generator(seed, Stream.OUTPUT_SIGNS).choice([-1.0, 1.0], size=(PROBES, space.K))
    gains = Gains.of(space, "mean", memory, signs)
    formula = derive(order=1, point="mean")
    analysis.formulas[_METHOD] = {"text": formula.text(), "latex": formula.latex()}
    analysis.by_value = SharesByValue.of(gains)
    analysis.source = _METHOD
    each = gains.sums.variance  # (B, PROBES)
    analysis.estimates += deterministic(_METHOD, "mean", "estimate", gains.shift_of_outputs)
    analysis.estimates += estimates_of(
        _METHOD,
        "variance",
        "estimate",
        per_input=_over_probes(each, confidence),
        pooled=_over_probes(each.mean(0), confidence),
        confidence=confidence,
        note=f"interval over {PROBES} random sums of the {space.K} outputs",
    )


def _over_probes(values: Floats, confidence: float) -> Interval:
    """The mean of what the probes say, (..., PROBES), with Student's interval; never below 0."""
    mean = np.asarray(values.mean(-1))
    error = values.std(-1, ddof=1) / np.sqrt(PROBES)
    half = stdtrit(PROBES - 1, 0.5 + confidence / 2) * error
    return Interval(mean, np.maximum(mean - half, 0.0), mean + half)
