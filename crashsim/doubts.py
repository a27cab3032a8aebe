"""What gives reason to doubt a score: warnings that follow from the numbers themselves."""

from __future__ import annotations

import numpy as np

from crashsim.agreement import Agreement
from crashsim.montecarlo import MonteCarlo

_THEORY_OFF = 0.5  # share of theory's values inside Monte Carlo's intervals below which we warn
_MATERIAL = 0.1  # error, of the variance or in standard deviations, that is worth a warning


def doubts_of(
    agreement: list[Agreement], sampled: MonteCarlo | None, epsilon: float | None
) -> list[str]:
    """Warnings that follow from the numbers themselves."""
    found = []
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
        total = next(
            e
            for e in sampled.estimates
            if (e.quantity, e.input, e.output) == ("tail", "all", "all")
        )
        if total.value * (total.worth or sampled.samples) < 10:
            found.append(
                f"samples={sampled.samples}: fewer than 10 samples moved an output by "
                f"epsilon={epsilon:g}, so Monte Carlo's tail is an upper limit more than a value; "
                "ask for more samples, or rely on saddlepoint and chernoff"
            )
    return found
