"""Replicas: how many independent copies, with the median as output, reach a failure probability."""

from __future__ import annotations

import math

from scipy.special import betainc

from crashsim_theory.arrays import is_number
from crashsim_theory.errors import TheoryError

PUBLISHED_LIMIT = (1 - math.sqrt(2 / 3)) / 2
"""The published rule holds up to this delta_1 = 0.0918: there 4 d (1 - d) = 1/3."""

MOST = 100_001


def median_failure(
    replicas: int, delta_upper: float, delta_lower: float = 0.0, outputs: int = 1
) -> float:
    """P(the median of R independent replicas fails), a union over outputs; exact for one output.

    With R = 2m + 1, delta+ = P(Delta >= eps) and delta- = P(Delta <= -eps) of one replica:
    I_{delta+}(m + 1, m + 1) + I_{delta-}(m + 1, m + 1), I the regularised incomplete beta function:
    the median lies beyond eps just when at least m + 1 replicas do.

    Raises:
        TheoryError: an even number of replicas, or probabilities outside [0, 1].
    """
    if not is_number(replicas) or replicas < 1 or replicas % 2 != 1:
        raise TheoryError("replicas", replicas, "the median needs an odd number of replicas")
    _check_sides(delta_upper, delta_lower)
    if not is_number(outputs) or outputs < 1:
        raise TheoryError("outputs", outputs, "give their number, at least 1")
    m = (replicas - 1) // 2
    tails = betainc(m + 1, m + 1, delta_upper) + betainc(m + 1, m + 1, delta_lower)
    return min(1.0, outputs * float(tails))


def replicas_needed(
    target: float, delta_upper: float, delta_lower: float = 0.0, outputs: int = 1
) -> int:
    """The smallest odd R for which `median_failure` is at most target.

    Raises:
        TheoryError: one replica fails on one side with probability >= 1/2: the median never helps.
    """
    _check_target(target)
    _check_sides(delta_upper, delta_lower)
    if max(delta_upper, delta_lower) >= 0.5:
        worst = max(delta_upper, delta_lower)
        raise TheoryError("delta", worst, "below 1/2 is needed for the median to help: train more")

    def enough(m: int) -> bool:
        return median_failure(2 * m + 1, delta_upper, delta_lower, outputs) <= target

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST:
            raise TheoryError("target", target, f"needs more than {MOST} replicas")
    low = -1 if enough(0) else high // 2 if high > 1 else 0
    if low == -1:
        return 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return 2 * high + 1


def _check_target(target: float) -> None:
    if not is_number(target) or not 0 < target < 1:
        raise TheoryError("target", target, "lies strictly between 0 and 1")


def _check_sides(delta_upper: float, delta_lower: float) -> None:
    for name, value in (("delta_upper", delta_upper), ("delta_lower", delta_lower)):
        if not is_number(value) or not 0 <= value <= 1:
            raise TheoryError(name, value, "a probability lies between 0 and 1")


def published_replicas(target: float) -> int:
    """The rule of the paper's published code: the smallest odd R >= 2 log(1/target) / log 3.

    Warning: offered for delta_1 < 1/3 but valid only for delta_1 <= PUBLISHED_LIMIT = 0.0918. At
    delta_1 = 1/3 and target 1e-6 it gives 27 replicas, which fail with probability 3.6e-2. Use
    `replicas_needed`.
    """
    _check_target(target)
    found = math.ceil(-2 * math.log(target) / math.log(3))
    return found if found % 2 else found + 1
