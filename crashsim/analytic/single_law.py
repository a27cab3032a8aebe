"""The law of the sum of single-fault changes: tails and class changes without further passes.

With D_i the change that fault i alone makes, Delta is close to sum_i e_i D_i where faults rarely
meet. The law of that sum is sampled, which takes no pass of the network: all outputs jointly, so
that it also says how often the predicted class changes. A network of spikes, whose output jumps,
is served better so than by an expansion about the mean.
"""

from __future__ import annotations

import numpy as np

from crashsim.analytic.rounding import least_reaching
from crashsim.arrays import Floats
from crashsim.coordinates.drawing import sample_points
from crashsim.errors import NotApplicableError
from crashsim.metrics import predicted_class
from crashsim.results.estimates import Estimates, deterministic
from crashsim.space import FaultSpace

SAMPLES = 2**14
_FEWEST = 10  # samples in which something happens, for its probability to be told
_AT_ONCE = 2**24  # values of sums computed together
_NOTE = f"of the sum of single-fault changes, in {SAMPLES:,} samples"


def single_law(space: FaultSpace, epsilon: float | None, seed: int) -> Estimates:
    """P(|Delta| >= epsilon) and P(class changes), of the sum of single-fault changes.

    Exact to first order in the probability of a fault, but for what the samples leave: about 1% of
    a probability of 0.5, 10% of one of 0.006.

    Args:
        space: of faults that strike or do not.
        epsilon: of the tails; without it, class changes alone.
        seed: of the samples; they are the faults that Monte Carlo strikes first.

    Raises:
        NotApplicableError: other faults, or nothing happens often enough to be told.
    """
    if not all(p.fault.is_binary for p in space.placements):
        raise NotApplicableError("for faults that strike or do not")
    changes = np.zeros((space.N, space.B, space.K))
    for columns, outputs in space.single_changes(np.zeros(space.N), np.ones(space.N)):
        changes[columns] = outputs - space.clean()
    changed, moved = _counts(space, changes, epsilon, seed)
    found = Estimates()
    if space.K > 1 and changed.sum() >= _FEWEST:
        shares = changed / SAMPLES
        found += deterministic("single-law", "class-change", "estimate", shares, note=_NOTE)
    if epsilon is not None and moved.sum() >= _FEWEST:
        shares = moved / SAMPLES
        found += deterministic("single-law", "tail", "estimate", shares, level=epsilon, note=_NOTE)
    if not found:
        raise NotApplicableError(f"too rare for its {SAMPLES:,} samples, or nothing to count")
    return found


def _counts(
    space: FaultSpace, changes: Floats, epsilon: float | None, seed: int
) -> tuple[Floats, Floats]:
    """How often the class changes (B,), and an output moves by epsilon (B, K)."""
    clean = space.clean()
    usual = predicted_class(clean)
    reach = np.inf if epsilon is None else least_reaching(space, epsilon)
    changed, moved = np.zeros(space.B), np.zeros((space.B, space.K))
    gains = changes.reshape(space.N, -1)
    step = max(1, _AT_ONCE // (space.N + gains.shape[1]))
    points = sample_points(space.placements, seed, SAMPLES)
    for start in range(0, SAMPLES, step):
        e = points.part(start, min(start + step, SAMPLES)).dense()
        delta = (e @ gains).reshape(-1, space.B, space.K)
        changed += (predicted_class(clean + delta) != usual).sum(0)
        moved += (np.abs(delta) >= reach).sum(0)
    return changed, moved
