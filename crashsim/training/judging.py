"""Failure probability of a network by theory, and the number of copies that a target needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from crashsim_theory import balance, published_replicas, theorem_tail
from torch import nn

from crashsim.analytic.first_order import Analysis, mean_point_single, mean_point_taylor
from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.space import FaultSpace
from crashsim.training.verification import vote_failure

SAFETY = 2.0  # theory may be wrong by this factor, either way
_SINGLE_PASSES = 2**18  # forward passes up to which single faults are tried one by one


@dataclass(frozen=True)
class Judgement:
    """How likely a network fails, by theory.

    Attributes:
        failure: estimated probability that one network fails (a bound, in the paper's way).
        replicas: copies that suffice even where theory promises too much, None if no number up to
            the limit does.
        facts: q, delta_0 and the like.
        fewest: copies that suffice if theory promises too little; None as for ``replicas``.
    """

    failure: float
    replicas: int | None
    facts: dict[str, float]
    fewest: int | None = None

    @property
    def worth_trying(self) -> list[int]:
        """Numbers of copies that may suffice, the fewest first: only measuring tells which does."""
        if self.fewest is None:
            return []
        return list(range(self.fewest, (self.replicas or self.fewest) + 1, 2))


def judge(space: FaultSpace, epsilon: float, delta: float, most: int) -> Judgement:
    """Judges by saddlepoint tails of the linear surrogate, and the exact law of the median.

    Args:
        space: in double precision.
        epsilon, delta: the target.
        most: replicas.
    """
    surrogate = _analysed(space).surrogate
    assert surrogate is not None
    upper = surrogate.saddlepoint(epsilon, "upper")
    lower = surrogate.saddlepoint(epsilon, "lower")
    one = vote_failure(1, upper, lower)
    failures = {r: vote_failure(r, upper, lower) for r in range(1, most + 1, 2)}
    surely = next((r for r, failure in failures.items() if failure * SAFETY <= delta), None)
    perhaps = next((r for r, failure in failures.items() if failure <= delta * SAFETY), None)
    return Judgement(one, surely, {"shift": float(np.abs(surrogate.mean).max())}, perhaps)


def judge_as_paper(model: nn.Module, space: FaultSpace, epsilon: float, delta: float) -> Judgement:
    """Judges by the main theorem of arXiv 1902.01686 and its rule for replicas."""
    surrogate = _analysed(space).surrogate
    assert surrogate is not None
    q = min(balance(w) for w in _hidden_weights(model))
    p = float(space.mean_point.mean())
    curvature = _curvature(space, p)
    failures, crowded, bent = [], [], []
    for b in range(space.B):
        k = int(surrogate.variance[b].argmax())
        tail = theorem_tail(
            abs(float(surrogate.mean[b, k])), float(surrogate.variance[b, k]), epsilon,
            n=space.N, p=p, q=max(q, 1e-6), curvature=float(curvature[b, k]),
        )  # fmt: skip
        failures.append(min(1.0, space.K * tail.probability))
        crowded.append(tail.delta_0)
        bent.append(curvature[b, k] * tail.alpha**2 / 2)
    failure = float(np.mean(failures))
    count = published_replicas(delta) if failure < 1 / 3 else None
    if failure <= delta:
        count = 1
    facts = {"q": q, "delta_0": float(np.mean(crowded)), "remainder": float(np.mean(bent))}
    return Judgement(failure, count, facts, count)


def _analysed(space: FaultSpace) -> Analysis:
    analysis = Analysis()
    mean_point_taylor(space, analysis)
    if 2 * space.N * space.B <= _SINGLE_PASSES:
        mean_point_single(space, analysis)
    return analysis


def _curvature(space: FaultSpace, p: float) -> Floats:
    """n^2 |F_ij| along the direction where all neurons crash alike, (B, K): an estimate.

    From F(m) = F(0) + m . dF(0) + curvature p^2 / 2.
    """
    m = space.mean_point
    linear = np.empty((space.B, space.K))
    for part, gradient in space.gradients(np.zeros(space.N)):
        linear[part] = gradient @ m
    shift = space.outputs(Points.at(m))[0] - space.clean()
    found: Floats = 2 * np.abs(shift - linear) / p**2
    return found


def _hidden_weights(model: nn.Module) -> list[Floats]:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return [layer.weight.detach().double().numpy() for layer in layers[:-1]]
