"""Few combinations of many outputs: which sites matter, and class changes to the nearest rivals.

Where a gradient of every output costs too much, two questions need few. The variance summed over
outputs is the mean over random signs r of the variance of r . Delta, so a few such combinations say
how much of it is due to each coordinate, whatever the number of outputs (Hutchinson, Communications
in Statistics 19, 1990). And the class that an input changes to is nearly always one of those that
come close to the predicted one without faults.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crashsim.analytic.factored_surrogate import FactoredSurrogate
from crashsim.analytic.gains import Gains, kept_bytes
from crashsim.analytic.shares import SharesByValue
from crashsim.coordinates.streams import Stream, generator
from crashsim.metrics import predicted_class
from crashsim.space import FaultSpace

SIGNS = 4  # random combinations that shares rest on
RIVALS = 3  # of each input


@dataclass(frozen=True, eq=False)
class FewOutputs:
    """What a few combinations of the outputs say at the mean point.

    Attributes:
        shares: of the variance summed over outputs, about.
        margins: (B, rivals) the nearest rivals over the predicted class, as linear surrogates,
            nearest first; None of a single output.
    """

    shares: SharesByValue
    margins: FactoredSurrogate | None

    @classmethod
    def of(cls, space: FaultSpace, memory: int, seed: int) -> FewOutputs:
        """From derivatives of a few combinations.

        Args:
            space: whose coordinates are Bernoulli or normal, and independent.
            memory: bytes that gains may take, about.
            seed: of the random signs.

        Raises:
            NotApplicableError: the output has no derivative in any coordinate.
        """
        rng = generator(seed, Stream.SIGNS)
        signs = rng.choice([-1.0, 1.0], size=(SIGNS, space.K))
        shares = SharesByValue.of(Gains.of(space, "mean", memory, signs))
        return cls(shares, nearest_margins(space, memory) if space.K > 1 else None)


def nearest_margins(space: FaultSpace, memory: int) -> FactoredSurrogate:
    """The margins of the nearest rivals over the predicted class, (B, rivals): of every other
    output where there are no more than three."""
    clean = space.clean()
    rows, top = np.arange(space.B), predicted_class(clean)
    behind = clean[rows, top][:, None] - clean
    behind[rows, top] = np.inf
    rivals = np.argsort(behind, axis=1, kind="stable")[:, : min(RIVALS, space.K - 1)]
    pairs = np.stack(np.broadcast_arrays(rivals, top[:, None]), -1)
    distinct, which = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
    readouts = np.zeros((len(distinct), space.K))
    readouts[np.arange(len(distinct)), distinct[:, 0]] = 1.0
    readouts[np.arange(len(distinct)), distinct[:, 1]] = -1.0
    gains = Gains.of(space, "mean", memory, readouts)
    which = which.reshape(rivals.shape)
    level = (gains.shift - gains.sums.mean)[rows[:, None], which]
    shift = level - behind[rows[:, None], rivals]
    inputs = np.broadcast_to(rows[:, None], rivals.shape)
    return FactoredSurrogate(gains, shift, inputs, np.eye(len(distinct))[which])


def combinations_at_most(space: FaultSpace) -> int:
    """The number of combinations whose derivatives are taken."""
    return SIGNS + (min(RIVALS * space.B, space.K * (space.K - 1)) if space.K > 1 else 0)


def held_bytes(space: FaultSpace) -> float:
    """What the slopes of one input take: as they are made, and as they are read."""
    return 2 * kept_bytes(space, combinations_at_most(space)) / space.B
