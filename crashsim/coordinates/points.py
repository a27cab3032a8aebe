"""Points in the space of fault coordinates, and how they are sampled.

A point is a vector e of N fault coordinates. Where few things crash at once, almost all of it is
zero, so a block of points is stored as a base point and the list of changes to it; where much
changes, as all coordinates. Each fault of a sampled block is stored in the way that suits it.

Randomness: block number j of a seed is drawn from its own random numbers
(``crashsim.coordinates.streams``), so a sample depends on the seed and its number alone:
not on batch size, device, worker count, or where a run stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arguments import shown
from crashsim.arrays import Floats, Integers
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import ArgumentError
from crashsim.faults import Fault, check_drawable
from crashsim.model.sites import Site

MAX_BLOCK = 1024  # samples in a block
MAX_CHANGES = 2**22  # changed coordinates in a block, about: bounds its memory
LISTED = 0.1  # probability of a change up to which changes are listed rather than written out
_HITS, _COORDINATES = 2**15, 2**17  # drawn at once: small enough for the cache
_FAR = 2.0**40  # expected gap from which gaps are cut short


@dataclass(frozen=True)
class Placement:
    """A fault at a site: coordinates ``start`` to ``stop`` of the space."""

    site: Site
    fault: Fault
    start: int
    stop: int

    def __hash__(self) -> int:
        return self.start  # placements of a space differ in it, and it takes the least time

    @property
    def size(self) -> int:
        return self.stop - self.start


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

    def dense(self) -> Floats:
        """(S, N) coordinates."""
        e = np.repeat(self.base[None], self.count, axis=0)
        for change in self.changes:
            if isinstance(change, Written):
                e[:, change.start : change.stop] = change.e
            else:
                e[change.rows(), change.columns + change.start] = change.values
        return e


def samples_per_block(placements: Sequence[Placement]) -> int:
    """Samples in one block: a function of the faults alone, so that samples never depend on more.

    1,024, or fewer where that many samples would hold too many changes to keep in memory.
    """
    changes = sum(p.size * (p.fault.rate if p.fault.is_bernoulli else 1.0) for p in placements)
    return max(1, min(MAX_BLOCK, int(MAX_CHANGES / max(changes, 1.0))))


def check_seed(seed: object) -> int:
    """The seed as an int, or ArgumentError."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ArgumentError(f"seed={shown(seed)} is not an integer from 0 to 2^64 - 1")
    return int(seed)


def sample_block(placements: Sequence[Placement], seed: int, block: int) -> Points:
    """One block of independent samples of all fault coordinates.

    The law is exact up to the rounding of double-precision numbers, whatever the probabilities.
    Rare Bernoulli coordinates are drawn by skipping geometric gaps, at the cost of one random
    number per crash; common ones at the cost of a random byte each. Normal coordinates are all
    drawn.
    """
    check_drawable((p.fault for p in placements), "sampling")
    rng = generator(seed, Stream.MONTE_CARLO, block)
    count = samples_per_block(placements)
    changes: list[Listed | Written] = []
    for p in placements:
        if not p.fault.is_bernoulli:
            e: NDArray[Any] = rng.normal(0.0, p.fault.rate, (count, p.size))
            changes.append(Written(p.start, p.stop, e))
        elif p.fault.rate > LISTED:
            e = _common(rng, p.fault.rate, count * p.size).reshape(count, p.size)
            changes.append(Written(p.start, p.stop, e))
        else:
            edges, columns = _rare(rng, p.fault.rate, count, p.size)
            changes.append(Listed(p.start, p.stop, edges, columns, 1.0))
    return Points.of(count, np.zeros(placements[-1].stop), changes)


def sample_points(placements: Sequence[Placement], seed: int, count: int) -> Points:
    """The first ``count`` samples of a seed, the same that Monte Carlo draws first."""
    parts: list[Points] = []
    while (drawn := sum(part.count for part in parts)) < count:
        block = sample_block(placements, seed, len(parts))
        parts.append(block.part(0, min(block.count, count - drawn)))
    return join(parts)


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


def _rare(
    rng: np.random.Generator, p: float, count: int, size: int
) -> tuple[NDArray[np.int64], Integers]:
    """Independent Bernoulli(p) trials (count, size): edges and columns of the successes.

    Between successes lie ``floor(E / -log(1 - p))`` failures with E standard exponential: at least
    k of them with probability ``exp(k log(1 - p)) = (1 - p)^k``, which is the geometric law.
    """
    trials = count * size
    edges = np.zeros(count + 1, dtype=np.int64)
    small = np.int32 if size < 2**31 else np.int64
    if p == 0 or size == 0:
        return edges, np.empty(0, dtype=small)
    scale = min(-1 / math.log1p(-p), 1e300)
    columns: Integers = np.empty(_enough(trials * p), dtype=small)
    most = min(_HITS, len(columns))
    drawn, whole = np.empty(most), np.empty(most, dtype=np.int64)
    position, found, row = -1, 0, 0  # the last success, their number, and the row it lies in
    while position < trials:
        step = min(most, _enough((trials - position) * p))
        gaps = rng.standard_exponential(out=drawn[:step])
        gaps *= scale
        if scale > _FAR:  # gaps beyond the end, whatever their size: their sum stays in int64
            np.minimum(gaps, trials, out=gaps)
        hits = whole[:step]
        np.copyto(hits, gaps, casting="unsafe")  # rounds down
        hits += 1
        hits[0] += position
        np.cumsum(hits, out=hits)
        position = int(hits[-1])
        hits = hits[: np.searchsorted(hits, trials)]
        last = min(position // size, count)  # rows before this one are complete
        ends = np.searchsorted(hits, size * np.arange(row + 1, last + 1))
        edges[row + 1 : last + 1] = found + ends
        inside = np.diff(ends, prepend=0, append=len(hits))
        hits -= np.repeat(size * np.arange(row, last + 1), inside)
        if found + len(hits) > len(columns):
            columns = np.concatenate([columns, np.empty_like(columns)])
        columns[found : found + len(hits)] = hits
        found, row = found + len(hits), last
    return edges, columns[:found]


def _enough(expected: float) -> int:
    """More than so many expected successes will hardly ever be."""
    return int(expected + 6 * math.sqrt(expected)) + 16


def _common(rng: np.random.Generator, p: float, trials: int) -> NDArray[np.uint8]:
    """Independent Bernoulli(p) trials (n,), 1 for a success.

    A random byte below ``floor(256 p)`` is a success, and so is an independent rare event whose
    probability makes up for what is missing. Where successes are likelier than failures (for which
    that could not be rare), failures are drawn.
    """
    if p > 0.5:
        return _common(rng, 1 - p, trials) ^ np.uint8(1)
    level = int(256 * p)
    found = np.empty(trials, dtype=np.uint8)
    for start in range(0, trials, _COORDINATES):
        part = found[start : start + _COORDINATES]
        words = np.asarray(rng.bit_generator.random_raw(-(-len(part) // 8)), dtype="<u8")
        np.less(words.view(np.uint8)[: len(part)], level, out=part.view(np.bool_))
    _, others = _rare(rng, (p - level / 256) / (1 - level / 256), 1, trials)
    found[others] = 1
    return found
