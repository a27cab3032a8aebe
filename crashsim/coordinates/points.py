"""Points in the space of fault coordinates.

A point is a vector e of N fault coordinates. Where few things crash at once, almost all of it is
zero, so a block of points is stored as a base point and the list of changes to it; where much
changes, as all coordinates. Each fault of a sampled block is stored in the way that suits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats, Integers


@dataclass(frozen=True)
class Listed:
    """The changes of S points at coordinates ``start`` to ``stop``, one by one.

    Attributes:
        start, stop: the coordinates.
        edges: (S + 1,) where each point's changes begin, and where the last one's end.
        columns: (n,) the changed coordinates, counted from ``start``.
        values: (n,) their new values, or the one that all of them take.
    """

    start: int
    stop: int
    edges: NDArray[np.int64]
    columns: Integers
    values: Floats | float

    def part(self, start: int, stop: int) -> Listed:
        first, last = self.edges[start], self.edges[stop]
        values = self.values if isinstance(self.values, float) else self.values[first:last]
        edges = self.edges[start : stop + 1] - first
        return Listed(self.start, self.stop, edges, self.columns[first:last], values)

    def among(self, points: NDArray[np.int64]) -> Listed:
        """Those of some points, in any order."""
        first, counts = self.edges[points], np.diff(self.edges)[points]
        edges = np.concatenate([[0], np.cumsum(counts)])
        where = np.repeat(first - edges[:-1], counts) + np.arange(edges[-1])
        values = self.values if isinstance(self.values, float) else self.values[where]
        return Listed(self.start, self.stop, edges, self.columns[where], values)

    def rows(self) -> NDArray[np.int64]:
        """(n,) the point of each change."""
        return np.repeat(np.arange(len(self.edges) - 1), np.diff(self.edges))

    def listed(self) -> tuple[Integers, Integers, Floats]:
        values = np.broadcast_to(np.asarray(self.values), self.columns.shape)
        return self.rows(), self.columns.astype(np.int64) + self.start, values


@dataclass(frozen=True)
class Written:
    """All coordinates ``start`` to ``stop`` of S points.

    Attributes:
        start, stop: the coordinates.
        e: (S, stop - start) their values: bytes of 0 and 1, or floating-point numbers.
    """

    start: int
    stop: int
    e: NDArray[Any]

    def part(self, start: int, stop: int) -> Written:
        return Written(self.start, self.stop, self.e[start:stop])

    def among(self, points: NDArray[np.int64]) -> Written:
        """Those of some points, in any order."""
        return Written(self.start, self.stop, self.e[points])

    def listed(self) -> tuple[Integers, Integers, Floats]:
        rows, columns = np.divmod(np.arange(self.e.size), max(self.stop - self.start, 1))
        if self.e.dtype == np.uint8:
            struck = self.e.ravel() != 0
            rows, columns = rows[struck], columns[struck]
        return rows, columns + self.start, self.e[rows, columns].astype(np.float64)


def no_fault(n: int) -> Floats:
    """(n,) the point at which nothing is struck: read-only zeros that take no memory."""
    return np.broadcast_to(np.zeros(()), (n,))


def is_no_fault(point: Floats) -> bool:
    """Whether nothing is struck at a point, or in a stretch of one."""
    return not (point[:1] if point.strides == (0,) else point).any()


class Points:
    """``count`` points: ``base`` everywhere, but ``values`` at ``(rows, columns)``.

    Args:
        count: number of points S.
        base: (N,) coordinates shared by all points.
        rows, columns, values: the changes, sorted by row; values replace those of ``base``.
    """

    def __init__(
        self, count: int, base: Floats, rows: Integers, columns: Integers, values: Floats
    ) -> None:
        edges = np.searchsorted(rows, np.arange(count + 1))
        self.count, self.base = count, base
        self.changes: tuple[Listed | Written, ...] = (Listed(0, len(base), edges, columns, values),)

    @classmethod
    def of(cls, count: int, base: Floats, changes: Sequence[Listed | Written]) -> Points:
        """Points from changes at stretches of coordinates that share none."""
        points = cls.__new__(cls)
        points.count, points.base, points.changes = count, base, tuple(changes)
        return points

    @classmethod
    def at(cls, base: Floats) -> Points:
        """The single point ``base``."""
        none = np.empty(0, dtype=np.int64)
        return cls(1, base, none, none, np.empty(0))

    @classmethod
    def one_at_a_time(cls, base: Floats, columns: Integers, values: Floats) -> Points:
        """One point for each of ``columns``: ``base`` with that coordinate set to its value."""
        n = len(columns)
        return cls(n, base, np.arange(n, dtype=np.int64), columns, values)

    @cached_property
    def _all(self) -> tuple[Integers, Integers, Floats]:
        """Rows, columns and values of all changes, sorted by row."""
        if len(self.changes) == 1:
            return self.changes[0].listed()
        rows, columns, values = (
            np.concatenate(parts)
            for parts in zip(*(change.listed() for change in self.changes), strict=True)
        )
        order = np.argsort(rows, kind="stable")
        return rows[order], columns[order], values[order]

    @property
    def rows(self) -> Integers:
        """(n,) the point of each change, in order."""
        return self._all[0]

    @property
    def columns(self) -> Integers:
        """(n,) the coordinate of each change."""
        return self._all[1]

    @property
    def values(self) -> Floats:
        """(n,) the value of each changed coordinate."""
        return self._all[2]

    def part(self, start: int, stop: int) -> Points:
        """Points ``start`` to ``stop``."""
        return Points.of(stop - start, self.base, [c.part(start, stop) for c in self.changes])

    def stretch(self, start: int, stop: int) -> NDArray[np.float64] | NDArray[np.uint8]:
        """(S, stop - start) the coordinates of a stretch: bytes, where they are 0 and 1 alone."""
        rows, columns, values = self.rows, self.columns, self.values
        ours = (columns >= start) & (columns < stop)
        base, values = self.base[start:stop], values[ours]
        whole = is_no_fault(base) and bool(((values == 0) | (values == 1)).all())
        e = np.zeros((self.count, stop - start), np.uint8 if whole else np.float64)
        if not whole:
            e += base
        e[rows[ours], columns[ours] - start] = values
        return e

    def dense(self) -> Floats:
        """(S, N) coordinates."""
        e = np.repeat(self.base[None], self.count, axis=0)
        for change in self.changes:
            if isinstance(change, Written):
                e[:, change.start : change.stop] = change.e
            else:
                e[change.rows(), change.columns + change.start] = change.values
        return e


def join(parts: Sequence[Points]) -> Points:
    """The points of some samples one after the other; their base is that of the first."""
    if len(parts) == 1:
        return parts[0]
    changes: list[Listed | Written] = []
    for same in zip(*(part.changes for part in parts), strict=True):
        first = same[0]
        if isinstance(first, Written):
            e = np.concatenate([c.e for c in same if isinstance(c, Written)])
            changes.append(Written(first.start, first.stop, e))
            continue
        listed = [c for c in same if isinstance(c, Listed)]
        ends = np.cumsum([0, *(len(c.columns) for c in listed)])
        edges = [c.edges[:-1] + end for c, end in zip(listed, ends, strict=False)]
        values = first.values
        if not isinstance(values, float):
            values = np.concatenate([c.values for c in listed])
        changes.append(
            Listed(
                first.start,
                first.stop,
                np.concatenate([*edges, ends[-1:]]),
                np.concatenate([c.columns for c in listed]),
                values,
            )
        )
    return Points.of(sum(part.count for part in parts), parts[0].base, changes)
