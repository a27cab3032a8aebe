"""Class changes where outputs are many: the margins of each input's nearest rivals.

Where a gradient of every output costs too much, this question needs few: the class that an input
changes to is nearly always one of those that come close to the predicted one without faults.
"""

from __future__ import annotations

import numpy as np

from crashsim.analytic.first_order import SURROGATE, tail_probability
from crashsim.analytic.gains import Gains, kept_bytes
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.metrics import predicted_class
from crashsim.results.estimates import Estimates, deterministic
from crashsim.space import FaultSpace

RIVALS = 3  # of each input


def nearest_margins(space: FaultSpace, memory: int) -> FactoredSurrogate:
    """The margins of the nearest rivals over the predicted class, (B, rivals), at the mean point.

    Of every other output where there are no more than three.

    Args:
        space: whose coordinates are Bernoulli or normal, and independent; of two outputs or more.
        memory: bytes that gains may take, about.

    Raises:
        NotApplicableError: the output has no derivative in any coordinate.
    """
    clean = space.clean()
    rows, top = np.arange(space.B), predicted_class(clean)
    behind = clean[rows, top][:, None] - clean
    behind[rows, top] = np.inf
    rivals = np.argsort(behind, axis=1, kind="stable")[:, : min(RIVALS, space.K - 1)]
    readouts = np.zeros((*rivals.shape, space.K))
    np.put_along_axis(readouts, rivals[..., None], 1.0, axis=-1)
    readouts[rows, :, top] = -1.0
    gains = Gains.of(space, "mean", memory, readouts)
    shift = gains.shift - gains.sums.mean - behind[rows[:, None], rivals]
    return FactoredSurrogate.of(gains, shift)


def nearest_rivals(margins: FactoredSurrogate) -> Estimates:
    """``nearest-rivals``: P(class changes) to the rivals of (B, rivals) margins, summed."""
    changes = tail_probability("saddlepoint", margins, np.asarray(0.0), side="upper")
    note = f"{SURROGATE}; sum over the {margins.shape[1]} rivals that are nearest without faults"
    union = np.minimum(changes.sum(1), 1.0)
    return deterministic("nearest-rivals", "class-change", "estimate", union, note=note)


def margins_at_most(space: FaultSpace) -> int:
    """The number of combinations of outputs whose derivatives are taken, of each input its own."""
    return min(RIVALS, space.K - 1)


def held_bytes(space: FaultSpace) -> float:
    """What the slopes of one input take: as they are made, and as they are read."""
    return 2 * kept_bytes(space, margins_at_most(space)) / space.B
