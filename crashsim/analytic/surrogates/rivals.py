"""Class changes where outputs are many: the margins of each input's nearest rivals.

Where a gradient of every output costs too much, this question needs few: the class that an input
changes to is nearly always one of those that come close to the predicted one without faults.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from crashsim_theory.sums.tails import tails

from crashsim.analytic.first_order import SURROGATE
from crashsim.analytic.gains import Gains, kept_bytes
from crashsim.analytic.rounding import resolution_of
from crashsim.analytic.surrogates.counted import CountedGains
from crashsim.arrays import Floats
from crashsim.metrics import predicted_class
from crashsim.results.estimates import Estimates, deterministic
from crashsim.space import FaultSpace
from crashsim.working import worked

RIVALS = 3  # of each input


@dataclass(frozen=True, eq=False)
class NearestMargins:
    """The margins of each input's nearest rivals over its predicted class.

    Attributes:
        gains: of the margins, at the mean point.
        level: (B, rivals) the margins at the mean point.
        ties: (B, rivals) what is to be added to them: of equal outputs the first is predicted.
    """

    gains: Gains
    level: Floats
    ties: Floats

    def chances(self) -> Floats:
        """(B, rivals) P(the rival overtakes the class), by the exact law of the linear surrogate.

        Exact but for a lattice, and for gains that are told apart to a percent.
        """
        found, zero = np.zeros(self.level.shape), np.asarray(0.0)
        counted = CountedGains(self.gains.values)
        for inputs, r, slopes in self.gains.rows():
            for i, b in enumerate(range(inputs.start, inputs.stop)):
                worked(0.0)
                profile = counted.profile([None if s is None else s[i] for s in slopes])
                shift = float(self.level[b, r] + self.ties[b, r]) - profile.mean()
                found[b, r] = tails(replace(profile, shift=shift), zero, "upper")
        return found


def nearest_margins(space: FaultSpace) -> NearestMargins:
    """The margins of the nearest rivals, of every other output where there are no more than three.

    Args:
        space: whose coordinates are Bernoulli or normal, and independent; of two outputs or more.

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
    gains = Gains.of(space, "mean", 0, readouts)  # read once, so not kept
    level = gains.shift - behind[rows[:, None], rivals]
    room = 4 * resolution_of(space) * np.abs(clean).max(1, keepdims=True)
    return NearestMargins(gains, level, np.where(rivals < top[:, None], room, -room))


def nearest_rivals(margins: NearestMargins) -> Estimates:
    """``nearest-rivals``: P(class changes) to the rivals of (B, rivals) margins, summed."""
    chances = margins.chances()
    note = (
        f"exact law of {SURROGATE}; sum over the {chances.shape[1]} rivals that are nearest "
        "without faults"
    )
    union = np.minimum(chances.sum(1), 1.0)
    return deterministic("nearest-rivals", "class-change", "estimate", union, note=note)


def margins_at_most(space: FaultSpace) -> int:
    """The number of combinations of outputs whose derivatives are taken, of each input its own."""
    return min(RIVALS, space.K - 1)


def held_bytes(space: FaultSpace) -> float:
    """What the slopes of one input take: as they are made, and as they are read."""
    return 2 * kept_bytes(space, margins_at_most(space)) / space.B
