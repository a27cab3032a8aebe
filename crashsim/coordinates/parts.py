"""Parts of a network, by which faults are told apart: layer, bit, field, channel, row, tile ...

A part is what coordinates have in common under all the names that are asked for: by
``("layer", "bit")``, bit 30 of the weights of ``fc.weight``. Every coordinate is in exactly one.
``crashsim.coordinates.part_names`` says which names there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Integers
from crashsim.coordinates.part_names import Codes, Key, Split, check_names, splits_of
from crashsim.coordinates.placement import Placement
from crashsim.errors import ArgumentError

_AT_ONCE = 2**20  # coordinates that are looked at together


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a space's coordinates.

    Attributes:
        placements: the faults at their sites.
        by: the names by which they are told apart.
        keys: of each part, in the order of the coordinates: what it is under each name.
        sizes: (parts,) number of coordinates.
    """

    placements: tuple[Placement, ...]
    by: tuple[str, ...]
    keys: tuple[tuple[Key, ...], ...]
    sizes: NDArray[np.int64]
    _known: tuple[tuple[Codes, Codes], ...]  # of each placement: codes in order, and their parts

    def __len__(self) -> int:
        return len(self.keys)

    def label(self, part: int) -> dict[str, Key]:
        """What a part is, by name."""
        return dict(zip(self.by, self.keys[part], strict=True))

    def of(self, columns: Integers) -> Codes:
        """(n,) the parts of some coordinates."""
        columns = np.asarray(columns, dtype=np.int64)
        found = np.empty(len(columns), dtype=np.int64)
        owners = np.searchsorted(self._stops, columns, side="right")
        for number in np.unique(owners).tolist():
            mine = owners == number
            found[mine] = self._parts(number, columns[mine] - self.placements[number].start)
        return found

    def of_placement(self, number: int) -> NDArray[np.int32]:
        """(size,) the parts of all coordinates of one placement, in order."""
        size = self.placements[number].size
        found = np.empty(size, dtype=np.int32)
        for low in range(0, size, _AT_ONCE):
            part = np.arange(low, min(low + _AT_ONCE, size))
            found[part] = self._parts(number, part)
        return found

    def coordinates(self, part: int) -> Codes:
        """(n,) the coordinates of a part, in order."""
        found = [
            p.start + np.flatnonzero(self.of_placement(number) == part)
            for number, p in enumerate(self.placements)
            if part in self._known[number][1]
        ]
        return np.concatenate(found)

    @cached_property
    def _stops(self) -> Codes:
        return np.array([p.stop for p in self.placements], dtype=np.int64)

    def _parts(self, number: int, local: Codes) -> Codes:
        codes, parts = self._known[number]
        joined = _joined(splits_of(self.placements[number], self.by), local)
        return parts[np.searchsorted(codes, joined)]


def parts_of(placements: Sequence[Placement], by: object) -> Parts:
    """The parts that the coordinates of some placements, those of a space, fall into.

    Args:
        placements: the faults at their sites, in the order of their coordinates.
        by: names of parts, of ``crashsim.coordinates.part_names``.

    Raises:
        ArgumentError: a name that is not known, or that none of the faults has parts of.
    """
    names = check_names(by)
    numbers: dict[tuple[Key, ...], int] = {}
    sizes: list[int] = []
    known = []
    for p in placements:
        splits = splits_of(p, names)
        codes, counts = _counted(splits, p.size)
        keys = [_keys(splits, int(code)) for code in codes]
        for key, count in zip(keys, counts.tolist(), strict=True):
            if key not in numbers:
                numbers[key] = len(sizes)
                sizes.append(0)
            sizes[numbers[key]] += count
        known.append((codes, np.array([numbers[key] for key in keys], dtype=np.int64)))
    for i, name in enumerate(names):
        if all(key[i] is None for key in numbers):
            raise ArgumentError(f"by: these faults have no {name}: {_why_not(name)}")
    return Parts(tuple(placements), names, tuple(numbers), np.array(sizes, np.int64), tuple(known))


def _why_not(name: str) -> str:
    if name in ("bit", "field"):
        return "they strike no single bits of words; leave it out, or give BitFlip(...)"
    if name == "step":
        return (
            "they are permanent, the same in all steps, or their sites have none; give "
            "duration='transient', or leave it out"
        )
    if name in ("row", "column") or "x" in name:
        return "they strike no single weights of a matrix; give sites='weights', or leave it out"
    return "one of them spans several; leave it out"


def _counted(splits: Sequence[Split], size: int) -> tuple[Codes, Codes]:
    """The codes of so many coordinates, in order, and how often each is there."""
    codes, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for low in range(0, size, _AT_ONCE):
        joined = _joined(splits, np.arange(low, min(low + _AT_ONCE, size)))
        own, of_own = np.unique(joined, return_counts=True)
        codes, back = np.unique(np.concatenate([codes, own]), return_inverse=True)
        counts = np.bincount(back, np.concatenate([counts, of_own])).astype(np.int64)
    return codes, counts


def _joined(splits: Sequence[Split], local: Codes) -> Codes:
    """One number for what all names say of each coordinate."""
    found = np.zeros(len(local), dtype=np.int64)
    for split in splits:
        found *= split.levels
        found += split.codes(local)
    return found


def _keys(splits: Sequence[Split], code: int) -> tuple[Key, ...]:
    """What a joined number stands for, under each name."""
    found: list[Key] = []
    for split in reversed(splits):
        code, own = divmod(code, split.levels)
        found.append(split.key(own))
    return tuple(reversed(found))
