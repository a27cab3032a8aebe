"""A sample of single faults, where all of them are too many: the large ones more often.

Three in four coordinates are chosen in proportion to their shares of the variance by the gradient,
a half of them to the squares of these, so that those on which much rests are all among the sample.
The others, and all where there is no gradient, are chosen from each layer and bit alike: they meet
what the gradient does not foresee. A sum over all coordinates is the mean of ``term_i / q_i``, with
the probability q_i of a choice (Hansen and Hurwitz 1943).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crashsim.analytic.shares import SharesByValue
from crashsim.arrays import Floats
from crashsim.coordinates.placement import Placement, moments_at, moments_of
from crashsim.coordinates.streams import Stream, generator
from crashsim.injection.slopes import Values
from crashsim.space import FaultSpace

_EVENLY = 4  # one in so many choices is by layer and bit


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


def choose(
    space: FaultSpace, shares: SharesByValue | None, count: int, seed: int, block: int = 0
) -> Chosen:
    """Chooses ``count`` coordinates; of the seed and the block alone.

    Args:
        space: of whose coordinates.
        shares: of the variance, by the gradient; None without.
        count: how many.
        seed, block: of the choice; each use has a block of its own.
    """
    rng = generator(seed, Stream.SINGLE_FAULTS, block)
    layers = _LayersAndBits(space)
    evenly = count if shares is None else -(-count // _EVENLY)
    columns = layers.choose(*_levels(rng, evenly))
    chances = layers.chances(columns)
    if shares is not None:
        law = _ByShare(shares)
        columns = np.concatenate([columns, law.choose(*_levels(rng, count - evenly))])
        part = evenly / count
        chances = part * layers.chances(columns) + (1 - part) * law.chances(columns)
    return Chosen(columns, chances, *moments_at(space.placements, columns))


def _levels(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Two independent levels of each choice, of which the first are spread evenly.

    So spread over a law, a sample varies less than an independent one.
    """
    return (np.arange(count) + rng.random(count)) / count, rng.random(count)


def _owned(
    placements: Sequence[Placement], columns: NDArray[np.int64]
) -> Iterator[tuple[Placement, NDArray[np.bool_]]]:
    """Each placement of some coordinates, and which of them are its."""
    owners = np.searchsorted([p.stop for p in placements], columns, side="right")
    for number in np.unique(owners):
        yield placements[number], owners == number


class _LayersAndBits:
    """Every layer and bit with the same chance, and every coordinate of these."""

    def __init__(self, space: FaultSpace) -> None:
        self._values = [v for v in space.slopes.values if np.any(v.placement.fault.variance)]
        strata = [
            (v.placement.start + bit, v.bits, v.size) for v in self._values for bit in range(v.bits)
        ]
        self._start, self._step, self._size = np.array(strata, dtype=np.int64).T

    def choose(self, levels: Floats, within: Floats) -> NDArray[np.int64]:
        last = len(self._size) - 1
        chosen = np.minimum((levels * (last + 1)).astype(np.int64), last)
        number = (within * self._size[chosen]).astype(np.int64)
        columns: NDArray[np.int64] = self._start[chosen] + self._step[chosen] * number
        return columns

    def chances(self, columns: NDArray[np.int64]) -> Floats:
        found = np.zeros(len(columns))
        sizes = {v.placement: v.size for v in self._values}
        for p, mine in _owned(list(sizes), columns):
            found[mine] = 1.0 / (len(self._size) * sizes[p])
        return found


class _ByShare:
    """Half in proportion to the share of the variance, half to that of the value squared."""

    def __init__(self, shares: SharesByValue) -> None:
        self._values = shares.values
        each = np.concatenate([s * w for s, w in zip(shares.squares, shares.second, strict=True)])
        each /= each.sum()
        self._law = 0.5 * each + 0.5 * each**2 / (each**2).sum()
        self._ends = np.cumsum([v.size for v in shares.values])

    def choose(self, levels: Floats, within: Floats) -> NDArray[np.int64]:
        line = np.cumsum(self._law)
        place = np.searchsorted(line, levels * line[-1], side="right")
        place = np.minimum(place, len(line) - 1)
        owners = np.searchsorted(self._ends, place, side="right")
        columns = np.empty(len(levels), np.int64)
        for number in np.unique(owners):
            v, mine = self._values[number], owners == number
            unit = place[mine] - (self._ends[number] - v.size)
            sums = np.cumsum(_weights(v, unit), axis=1)
            bit = (within[mine, None] * sums[:, -1:] >= sums[:, :-1]).sum(1)
            columns[mine] = v.placement.start + unit * v.bits + bit
        return columns

    def chances(self, columns: NDArray[np.int64]) -> Floats:
        found = np.zeros(len(columns))
        numbers = {v.placement: number for number, v in enumerate(self._values)}
        for p, mine in _owned(list(numbers), columns):
            v = self._values[numbers[p]]
            unit, bit = np.divmod(columns[mine] - p.start, v.bits)
            weights = _weights(v, unit)
            total = weights.sum(1)
            share = weights[np.arange(len(unit)), bit] / np.where(total > 0, total, 1.0)
            found[mine] = self._law[self._ends[numbers[p]] - v.size + unit] * share
        return found


def _weights(v: Values, unit: NDArray[np.int64]) -> Floats:
    """(n, bits) how much of a value's share is due to each of its coordinates, up to a factor."""
    k2 = moments_of(v.placement).k2.reshape(v.size, v.bits)[unit]
    found: Floats = k2 * v.displacements_of(unit) ** 2
    return found
