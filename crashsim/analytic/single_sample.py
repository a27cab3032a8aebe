"""A sample of single faults, where all of them are too many: the large ones more often.

A coordinate is chosen with probability q_i, a half of it proportional to its share of the variance
by the gradient, a half to that of its value squared, so that few coordinates on which much rests
are all among the sample. Without a gradient every layer and bit has the same chance, and so has
every coordinate of these. A sum over all coordinates is then the mean of ``term_i / q_i``
(Hansen and Hurwitz 1943).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crashsim.analytic.shares import SharesByValue
from crashsim.arrays import Floats
from crashsim.coordinates.placement import moments_of
from crashsim.coordinates.streams import Stream, generator
from crashsim.space import FaultSpace


@dataclass(frozen=True)
class Chosen:
    """Coordinates that were chosen, some of them several times.

    Attributes:
        columns: (m,) which.
        chances: (m,) q of each.
        mean, k2: (m,) moments of each.
    """

    columns: NDArray[np.int64]
    chances: Floats
    mean: Floats
    k2: Floats


def choose(space: FaultSpace, shares: SharesByValue | None, count: int, seed: int) -> Chosen:
    """Chooses ``count`` coordinates; of the seed alone.

    Args:
        space: of whose coordinates.
        shares: of the variance, by the gradient; None without.
        count: how many.
        seed: of the choice.
    """
    rng = generator(seed, Stream.SINGLE_FAULTS)
    # Spread evenly over the law, a systematic sample varies less than an independent one.
    levels = (np.arange(count) + rng.random(count)) / count
    within = rng.random(count)
    if shares is None:
        columns, chances = _by_layer_and_bit(space, levels, within)
    else:
        columns, chances = _by_share(shares, levels, within)
    mean, k2 = np.empty((2, count))
    stops = np.array([p.stop for p in space.placements])
    owners = np.searchsorted(stops, columns, side="right")
    for number in np.unique(owners):
        p, mine = space.placements[number], owners == number
        moments = moments_of(p)
        mean[mine] = moments.mean[columns[mine] - p.start]
        k2[mine] = moments.k2[columns[mine] - p.start]
    return Chosen(columns, chances, mean, k2)


def _by_layer_and_bit(
    space: FaultSpace, levels: Floats, within: Floats
) -> tuple[NDArray[np.int64], Floats]:
    strata = [
        (v.placement.start + bit, v.bits, v.size)
        for v in space.slopes.values
        for bit in range(v.bits)
        if np.any(np.asarray(v.placement.fault.variance) > 0)
    ]
    start, step, size = np.array(strata, dtype=np.int64).T
    chosen = np.minimum((levels * len(strata)).astype(np.int64), len(strata) - 1)
    number = (within * size[chosen]).astype(np.int64)
    return start[chosen] + step[chosen] * number, 1.0 / (len(strata) * size[chosen])


def _by_share(
    shares: SharesByValue, levels: Floats, within: Floats
) -> tuple[NDArray[np.int64], Floats]:
    each = np.concatenate([s * w for s, w in zip(shares.squares, shares.second, strict=True)])
    each /= each.sum()
    law = 0.5 * each + 0.5 * each**2 / (each**2).sum()
    line = np.cumsum(law)
    place = np.minimum(np.searchsorted(line, levels * line[-1], side="right"), len(line) - 1)
    ends = np.cumsum([v.size for v in shares.values])
    owners = np.searchsorted(ends, place, side="right")
    columns, chances = np.empty(len(levels), np.int64), np.empty(len(levels))
    for number in np.unique(owners):
        v, mine = shares.values[number], owners == number
        unit = place[mine] - (ends[number] - v.size)
        k2 = moments_of(v.placement).k2.reshape(v.size, v.bits)[unit]
        weights = k2 * v.displacements_of(unit) ** 2
        sums = np.cumsum(weights, axis=1)
        bit = (within[mine, None] * sums[:, -1:] >= sums[:, :-1]).sum(1)
        share = weights[np.arange(len(unit)), bit] / sums[:, -1]
        columns[mine] = v.placement.start + unit * v.bits + bit
        chances[mine] = law[place[mine]] * share
    return columns, chances
