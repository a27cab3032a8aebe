"""Whether a network, or the median of several, meets its target: by Monte Carlo on fresh inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from crashsim_theory import median_failure

from crashsim.arrays import Floats
from crashsim.errors import Interrupted
from crashsim.protection.replicas import simulate_vote
from crashsim.sampling.intervals import proportion_interval
from crashsim.sampling.monte_carlo import MonteCarlo, monte_carlo
from crashsim.space import FaultSpace


@dataclass(frozen=True)
class Verification:
    """Monte Carlo on fresh inputs with a fresh seed.

    Attributes:
        failure, low, high: P(some output of the vote moves by epsilon or more), averaged over
            inputs, with its interval.
        confidence: of the interval.
        samples: networks (or groups of replicas) drawn.
        seed: of the faults.
        how: ``simulation`` of the network or the vote, or ``binomial``: the exact law of the vote
            from the single network's measured limits.
        met: the upper limit is at most delta, after all samples that were asked for.
    """

    failure: float
    low: float
    high: float
    confidence: float
    samples: int
    seed: int
    how: Literal["simulation", "binomial"]
    met: bool


def vote_failure(replicas: int, upper: Floats, lower: Floats) -> float:
    """P(the median of R copies moves some output too far), averaged over inputs.

    Args:
        replicas: R, odd.
        upper, lower: (B, K), P(Delta >= epsilon) and P(Delta <= -epsilon) of one copy.
    """
    total = 0.0
    for row_up, row_down in zip(upper, lower, strict=True):
        pairs = zip(np.clip(row_up, 0, 1), np.clip(row_down, 0, 1), strict=True)
        total += min(1.0, sum(median_failure(replicas, float(u), float(d)) for u, d in pairs))
    return total / len(upper)


def verify(
    space: FaultSpace,
    epsilon: float,
    delta: float,
    replicas: int,
    seed: int,
    confidence: float = 0.95,
    samples: int = 400_000,
) -> Verification:
    """Measures the failure probability of a network, or of the median of several.

    One network is measured until its interval decides, with four times as many samples each time;
    look j spends ``alpha / (j (j + 1))`` of the error probability ``alpha``.

    For replicas there are two ways, each with half of the error probability, and the lower limit
    of the two counts: simulate votes, or measure one copy and apply the exact binomial law to its
    limits (the only way where delta is small).

    Raises:
        Interrupted: Ctrl-C; its ``partial`` is the verification with the samples that were drawn,
            which meets no target, however few failed.
    """
    wanted = min(samples, max(5_000, math.ceil(min(20 / delta, samples))))
    if replicas == 1:
        return _until_decided(space, epsilon, delta, seed, confidence, wanted, samples)
    half = 1 - (1 - confidence) / 2
    other = (seed + 500_000) % 2**64
    trials = max(2, min(wanted, samples // replicas))
    simulated = simulate_vote(space, replicas, epsilon, trials=trials, seed=seed, confidence=half)
    pooled = simulated.pooled
    by_vote = Verification(
        float(pooled.value), float(pooled.low), float(pooled.high), confidence, trials, seed,
        "simulation", bool(pooled.high <= delta),
    )  # fmt: skip
    if by_vote.met:
        return by_vote
    try:
        value, limit = _binomial_limit(space, epsilon, replicas, other, half, wanted)
    except KeyboardInterrupt as stop:
        raise Interrupted("interrupted; partial holds the simulated votes", by_vote) from stop
    if limit >= by_vote.high:
        return by_vote
    return Verification(value, 0.0, limit, confidence, wanted, other, "binomial", limit <= delta)


def _until_decided(
    space: FaultSpace,
    epsilon: float,
    delta: float,
    seed: int,
    confidence: float,
    samples: int,
    most: int,
) -> Verification:
    """Measures one network until its interval lies on one side of delta, or ``most`` are drawn."""
    look = 1
    while True:
        spent = 1 - (1 - confidence) / (look * (look + 1))
        try:
            sampled = monte_carlo(
                space, epsilon=epsilon, samples=samples, seed=seed, confidence=spent
            )
        except Interrupted as stop:
            cut = replace(_of_one(stop.partial, delta, spent, seed), met=False)
            raise Interrupted(str(stop), cut) from stop
        found = _of_one(sampled, delta, spent, seed)
        if found.met or found.low > delta or samples >= most:
            return found
        look, samples = look + 1, min(4 * samples, most)


def _of_one(sampled: MonteCarlo, delta: float, confidence: float, seed: int) -> Verification:
    """What samples of a single network say."""
    names = ("tail", "all", "all")
    tail = next(e for e in sampled.estimates if (e.quantity, e.input, e.output) == names)
    low, high = tail.low or 0.0, 1.0 if tail.high is None else tail.high
    return Verification(
        tail.value, low, high, confidence, sampled.samples, seed, "simulation", high <= delta
    )


def _binomial_limit(
    space: FaultSpace, epsilon: float, replicas: int, seed: int, confidence: float, samples: int
) -> tuple[float, float]:
    """Estimate and upper limit of the vote's failure from one copy's counts.

    Every count's Clopper-Pearson limit holds at once (Bonferroni over 2 B K of them).
    """
    sampled = monte_carlo(space, epsilon=epsilon, samples=samples, seed=seed)
    n = len(sampled.kept)
    alpha = (1 - confidence) / (2 * space.B * space.K)
    counts = [(sampled.kept >= epsilon).sum(0), (sampled.kept <= -epsilon).sum(0)]
    limits = [proportion_interval(c, n, 2 * alpha).high for c in counts]
    value = vote_failure(replicas, counts[0] / n, counts[1] / n)
    return value, vote_failure(replicas, limits[0], limits[1])
