"""What gives reason to doubt a score: warnings that follow from the numbers themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from crashsim.results.agreement import Agreement
from crashsim.results.contradictions import Contradiction
from crashsim.results.estimate import Estimate
from crashsim.results.estimates import Estimates
from crashsim.sampling.monte_carlo import MonteCarlo
from crashsim.scoring.method import Method
from crashsim.scoring.methods import METHODS

_THEORY_OFF = 0.5  # share of theory's values inside Monte Carlo's intervals below which we warn
_ROUNDED = 0.01  # share of epsilon that the outputs' rounding may be
_MATERIAL = 0.1  # error, of the variance or in standard deviations, that is worth a warning


def doubts_of(
    estimates: Iterable[Estimate],
    agreement: list[Agreement],
    refuted: Sequence[Contradiction],
    sampled: MonteCarlo | None,
    epsilon: float | None,
    rounding: float = 0.0,
    methods: Sequence[Method] = METHODS,
) -> list[str]:
    """Warnings that follow from the numbers themselves.

    Args:
        estimates: of all methods.
        agreement: of theory with Monte Carlo.
        refuted: what contradicts each other.
        sampled: Monte Carlo's result, if it ran.
        epsilon: of the tails.
        rounding: what rounding does to an output in the model's own precision.
        methods: that the estimates may be of.
    """
    estimates, found = Estimates() + estimates, []
    of_spread = 1.0  # the mean's size in standard deviations
    if sampled is not None and sampled.variance.max() > 0:
        of_spread = float(np.abs(sampled.mean).sum() / np.sqrt(sampled.variance).sum())
    for a in agreement:
        linear = a.method in ("mean-point-taylor", "mean-point-single")
        error = (a.relative_error or 0) * (of_spread if a.quantity == "mean" else 1.0)
        off = a.inside < _THEORY_OFF and error > _MATERIAL
        if linear and off and (a.relative_error or 0) > (a.noise or 0):
            found.append(
                f"{a.method} {a.quantity}: only {a.inside:.0%} of its values lie in Monte Carlo's "
                f"intervals (relative error {a.relative_error:.0%}): the network is too curved for "
                "first-order theory at these faults; trust Monte Carlo"
            )
    if sampled is not None and epsilon is not None and sampled.variance.max() > 0:
        total = sampled.estimates.find("monte-carlo", "tail")
        assert total is not None
        if total.value * (total.worth or sampled.samples) < 10:
            found.append(
                f"samples={sampled.samples}: fewer than 10 samples moved an output by "
                f"epsilon={epsilon:g}, so Monte Carlo's tail is an upper limit more than a value; "
                f"ask for more samples{_instead(estimates, refuted, methods)}"
            )
    if epsilon is not None and rounding > _ROUNDED * epsilon:
        found.append(
            f"epsilon={epsilon:g}: the outputs are so large that the model rounds them by some "
            f"{rounding:.1g}, so which changes reach epsilon depends on rounding; take their "
            "offset away, or give the model in double precision"
        )
    return found


def _instead(
    estimates: Estimates, refuted: Sequence[Contradiction], methods: Sequence[Method]
) -> str:
    """Which methods of the score say more, if any that is not refuted does."""
    at_hand = {method for method, quantity in estimates.of if quantity == "tail"}
    at_hand -= {method for c in refuted for method in c.doubted}
    rare = sorted((m.rare, m.name) for m in methods if m.rare is not None)
    left = [name for _, name in rare if name in at_hand]
    return f", or rely on {' and '.join(left[:2])}" if left else ""
