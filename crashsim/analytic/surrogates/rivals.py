"""Class changes where outputs are many: the margins of each input's nearest rivals.

Where a gradient of every output costs too much, this question needs few: the class that an input
changes to is nearly always one of those that come close to the predicted one without faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from crashsim_theory import Contributions, chance_of_any
from crashsim_theory.sums.profile import Profile
from crashsim_theory.sums.tails import tails

from crashsim.analytic.first_order import SURROGATE
from crashsim.analytic.gains import Gains, kept_bytes
from crashsim.analytic.rounding import resolution_of
from crashsim.analytic.surrogates.counted import CountedGains
from crashsim.arrays import Floats
from crashsim.coordinates.streams import Stream, generator
from crashsim.metrics import predicted_class
from crashsim.results.estimates import Estimates, deterministic
from crashsim.space import FaultSpace
from crashsim.working import worked

RIVALS = 3  # of each input
MOST_DRAWN = 2**20  # coordinates that are drawn to see what rivals share


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
        found = np.zeros(self.level.shape)
        for b, profiles, _ in self._by_input():
            found[b] = _overtaking(profiles)
        return found

    def changes(self, seed: int = 0) -> Floats:
        """(B,) P(some rival overtakes the class): what several share is counted once.

        Rivals whose outputs lie beside each other, as those of pixels, overtake together. Among
        more than a million coordinates chances are added up: up to three times too much.

        Args:
            seed: of the draws of the surrogates that tell what they share.
        """
        found = np.zeros(len(self.level))
        for b, profiles, given in self._by_input():
            chances = _overtaking(profiles)
            if given is None:
                found[b] = min(float(chances.sum()), 1.0)
            else:
                found[b] = chance_of_any(
                    profiles, chances, given, generator(seed, Stream.NEAREST, b)
                )
        return found

    def _by_input(self) -> Iterator[tuple[int, list[Profile], Contributions | None]]:
        """Each input's margins, and what they are made of where all of that can be drawn."""
        counted = CountedGains(self.gains.values)
        for b, slopes in self.gains.each():
            found = counted.profiles(slopes)
            shift = self.level[b] + self.ties[b] - np.array([one.mean() for one in found])
            placed = [replace(one, shift=float(at)) for one, at in zip(found, shift, strict=True)]
            yield b, placed, counted.contributions(slopes, shift) if self.are_drawn else None

    @property
    def are_drawn(self) -> bool:
        """Whether coordinates are few enough to draw what rivals share."""
        return self.gains.space.N <= MOST_DRAWN


def _overtaking(profiles: list[Profile]) -> Floats:
    """(rivals,) P(L >= 0)."""
    found, zero = np.zeros(len(profiles)), np.asarray(0.0)
    for r, profile in enumerate(profiles):
        worked(0.0)
        found[r] = tails(profile, zero, "upper")
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


def nearest_rivals(margins: NearestMargins, seed: int = 0) -> Estimates:
    """``nearest-rivals``: P(class changes) to some of the rivals of (B, rivals) margins."""
    rivals = f"the {margins.level.shape[1]} rivals that are nearest without faults"
    way = "any of" if margins.are_drawn else "sum over"
    note = f"exact law of {SURROGATE}; {way} {rivals}"
    changes = margins.changes(seed)
    return deterministic("nearest-rivals", "class-change", "estimate", changes, note=note)


def margins_at_most(space: FaultSpace) -> int:
    """The number of combinations of outputs whose derivatives are taken, of each input its own."""
    return min(RIVALS, space.K - 1)


def held_bytes(space: FaultSpace) -> float:
    """What the slopes of one input take: as they are made, and as they are read."""
    return 2 * kept_bytes(space, margins_at_most(space)) / space.B
