"""All pairs of a fault and an example, in rows (parts of the network) and strata; drawn by number.

No list of pairs is kept: how many there are of each stratum, placement and example, and each is
found again by counting. Pairs of a stratum are drawn without replacement, in an order that the seed
decides: the first n of them are the same whatever is drawn later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crashsim.coordinates.parts import Parts
from crashsim.coordinates.streams import Stream, generator
from crashsim.sampling.single_faults.prediction import COUNT, Prediction

_SHUFFLED = 2**20  # pairs up to which all are put into an order
_AT_ONCE = 2**12  # draws of more

Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Some pairs.

    Attributes:
        placement: (n,) the number of the fault's placement.
        column: (n,) its coordinate, counted from the placement's first.
        example: (n,).
    """

    placement: Whole
    column: Whole
    example: Whole

    def __len__(self) -> int:
        return len(self.column)


@dataclass(frozen=True, eq=False)
class Population:
    """The strata of all pairs.

    Attributes:
        parts: the rows.
        prediction: of the strata.
        signs: (B,) whether a hit adds to what is asked (1) or lowers it (-1): such examples have
            strata of their own.
        keys: (H,) in order: the row times the number of strata, plus the stratum.
        edges: (H + 1,) where each one's entries begin.
        cells: (n, 2) placement and example of each entry.
        counts: (n,) pairs of an entry.
    """

    parts: Parts
    prediction: Prediction
    signs: Whole
    keys: Whole
    edges: Whole
    cells: Whole
    counts: Whole

    @classmethod
    def of(cls, parts: Parts, prediction: Prediction, signs: Whole) -> Population:
        """Counts all pairs, a placement and an example at a time."""
        keys, cells, counts = [], [], []
        for number, example, of_pairs in _each(parts, prediction, signs):
            own, count = np.unique(of_pairs, return_counts=True)
            keys.append(own)
            counts.append(count)
            cells.append(np.broadcast_to([number, example], (len(own), 2)))
        flat = np.concatenate(keys)
        order = np.argsort(flat, kind="stable")
        distinct, first = np.unique(flat[order], return_index=True)
        return cls(
            parts,
            prediction,
            signs,
            distinct,
            np.append(first, len(flat)),
            np.concatenate(cells)[order],
            np.concatenate(counts)[order].astype(np.int64),
        )

    @property
    def sizes(self) -> Whole:
        """(H,) pairs of each stratum."""
        found: Whole = np.add.reduceat(self.counts, self.edges[:-1])
        return found

    def of_row(self, row: int) -> tuple[slice, Whole, Whole]:
        """The strata of a row: which they are, their codes by the prediction, and their signs."""
        count = 2 * COUNT
        low, high = np.searchsorted(self.keys, [row * count, (row + 1) * count])
        sign, codes = np.divmod(self.keys[low:high] - row * count, COUNT)
        return slice(int(low), int(high)), codes, 1 - 2 * sign

    def draw(self, seed: int, stratum: int, start: int, stop: int) -> tuple[Whole, Whole]:
        """The draws ``start`` to ``stop`` of a stratum: entries, and numbers within them."""
        ranks = _order(seed, stratum, int(self.sizes[stratum]), stop)[start:stop]
        low, high = self.edges[stratum], self.edges[stratum + 1]
        ends = np.cumsum(self.counts[low:high])
        entry = np.searchsorted(ends, ranks, side="right")
        return low + entry, ranks - (ends - self.counts[low:high])[entry]

    def find(self, strata: Whole, entries: Whole, numbers: Whole) -> Pairs:
        """The pairs of some draws.

        Args:
            strata, entries, numbers: (n,) of each draw, as ``draw`` returns them.
        """
        columns = np.empty(len(entries), dtype=np.int64)
        cells = self.cells[entries]
        places = cells[:, 0] * self.prediction.space.B + cells[:, 1]
        for place in np.unique(places).tolist():
            mine = np.flatnonzero(places == place)
            number, example = divmod(place, self.prediction.space.B)
            of_pairs = _keys(self.parts, self.prediction, self.signs, number, example)
            order = np.argsort(of_pairs, kind="stable")
            first = np.searchsorted(of_pairs[order], self.keys[strata[mine]])
            columns[mine] = order[first + numbers[mine]]
        return Pairs(cells[:, 0], columns, cells[:, 1])


def _each(parts: Parts, prediction: Prediction, signs: Whole) -> Iterator[tuple[int, int, Whole]]:
    for number in range(len(parts.placements)):
        for example in range(prediction.space.B):
            yield number, example, _keys(parts, prediction, signs, number, example)


def _keys(parts: Parts, prediction: Prediction, signs: Whole, number: int, example: int) -> Whole:
    """(size,) row and stratum of each fault of a placement, on one example."""
    rows = parts.of_placement(number).astype(np.int64)
    lowers = int(signs[example] < 0)
    codes = prediction.codes(number, example)
    found: Whole = (2 * rows + lowers) * COUNT + codes
    return found


def _order(seed: int, stratum: int, size: int, count: int) -> Whole:
    """The first so many of a stratum's pairs, in the order in which they are drawn."""
    rng = generator(seed, Stream.VULNERABILITY, stratum)
    if size <= _SHUFFLED:
        return rng.permutation(size)[:count]
    found: Whole = np.empty(0, dtype=np.int64)
    while len(found) < count:  # a draw of what was drawn before is none
        both = np.concatenate([found, rng.integers(size, size=_AT_ONCE)])
        first = np.sort(np.unique(both, return_index=True)[1])
        found = both[first]
    return found[:count]


def joined(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of some one after the other."""
    return Pairs(
        np.concatenate([p.placement for p in parts]),
        np.concatenate([p.column for p in parts]),
        np.concatenate([p.example for p in parts]),
    )
