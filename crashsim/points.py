"""Points in the space of fault coordinates, and how they are sampled.

A point is a vector e of N fault coordinates. Almost all of a sampled point is zero (few things
crash at once), so a block of points is stored as a base point and the list of changes to it.

Randomness: block number j of a seed is drawn from its own Philox stream, so a sample depends on
the seed and its number alone: not on batch size, device, worker count, or where a run stopped.
The block number is the most significant word of Philox's 256-bit counter. (As the least
significant word, consecutive blocks would share all but four of their random numbers.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crashsim.errors import ArgumentError
from crashsim.faults import Fault
from crashsim.sites import Site

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_BLOCK = 1024  # samples in a block
MAX_CHANGES = 2**22  # changed coordinates in a block, about: bounds its memory


@dataclass(frozen=True)
class Placement:
    """A fault at a site: coordinates ``start`` to ``stop`` of the space."""

    site: Site
    fault: Fault
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Points:
    """``count`` points: ``base`` everywhere, but ``values`` at ``(rows, columns)``.

    Attributes:
        count: number of points S.
        base: (N,) coordinates shared by all points.
        rows, columns, values: the changes, sorted by row; values replace those of ``base``.
    """

    count: int
    base: Floats
    rows: Integers
    columns: Integers
    values: Floats

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

    def part(self, start: int, stop: int) -> Points:
        """Points ``start`` to ``stop``."""
        first, last = np.searchsorted(self.rows, [start, stop])
        cut = slice(int(first), int(last))
        rows = self.rows[cut] - start
        return Points(stop - start, self.base, rows, self.columns[cut], self.values[cut])

    def dense(self) -> Floats:
        """(S, N) coordinates."""
        e = np.repeat(self.base[None], self.count, axis=0)
        e[self.rows, self.columns] = self.values
        return e


def samples_per_block(placements: Sequence[Placement]) -> int:
    """Samples in one block: a function of the faults alone, so that samples never depend on more.

    1,024, or fewer where that many samples would hold too many changes to keep in memory.
    """
    changes = sum(p.size * (p.fault.rate if p.fault.is_bernoulli else 1.0) for p in placements)
    return max(1, min(MAX_BLOCK, int(MAX_CHANGES / max(changes, 1.0))))


def generator(seed: int, block: int) -> np.random.Generator:
    """The random stream of one block. Streams of different blocks never overlap."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, block]))


def check_seed(seed: object) -> int:
    """The seed as an int, or ArgumentError."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ArgumentError(f"seed={seed!r} is not an integer from 0 to 2^64 - 1")
    return int(seed)


def sample_block(placements: Sequence[Placement], seed: int, block: int) -> Points:
    """One block of independent samples of all fault coordinates.

    Bernoulli coordinates are drawn by skipping geometric gaps, which is exact and costs one random
    number per crash, not per site. Normal coordinates are all drawn.
    """
    rng = generator(seed, block)
    count = samples_per_block(placements)
    rows, columns, values = [], [], []
    for placement in placements:
        n = placement.size
        if placement.fault.is_bernoulli:
            hits = _bernoulli_hits(rng, placement.fault.rate, count * n)
            drawn = np.ones(len(hits))
        else:
            hits = np.arange(count * n, dtype=np.int64)
            drawn = rng.normal(0.0, placement.fault.rate, count * n)
        row = hits // n
        rows.append(row)
        columns.append(hits - row * n + placement.start)
        values.append(drawn)
    total = placements[-1].stop
    if len(placements) == 1:  # in order already
        return Points(count, np.zeros(total), rows[0], columns[0], values[0])
    all_rows = np.concatenate(rows)
    order = np.argsort(all_rows, kind="stable")
    return Points(
        count,
        np.zeros(total),
        all_rows[order],
        np.concatenate(columns)[order],
        np.concatenate(values)[order],
    )


def sample_points(placements: Sequence[Placement], seed: int, count: int) -> Points:
    """The first ``count`` samples of a seed, the same that Monte Carlo draws first."""
    parts: list[Points] = []
    while (drawn := sum(part.count for part in parts)) < count:
        block = sample_block(placements, seed, len(parts))
        parts.append(block.part(0, min(block.count, count - drawn)))
    starts = np.cumsum([0, *(part.count for part in parts)])
    return Points(
        count,
        parts[0].base,
        np.concatenate([part.rows + start for part, start in zip(parts, starts, strict=False)]),
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def _bernoulli_hits(rng: np.random.Generator, p: float, trials: int) -> Integers:
    """Sorted indices of the successes among ``trials`` independent Bernoulli(p) trials."""
    if p == 0 or trials == 0:
        return np.empty(0, dtype=np.int64)
    if p == 1:
        return np.arange(trials, dtype=np.int64)
    parts: list[Integers] = []
    position = -1
    while position < trials:
        expected = (trials - position) * p
        gaps = rng.geometric(p, size=int(expected + 4 * np.sqrt(expected)) + 8)
        # A gap beyond the end ends the block whatever its size; clipping keeps the sum in int64.
        hits = position + np.cumsum(np.minimum(gaps, trials + 1))
        parts.append(hits)
        position = int(hits[-1])
    found = np.concatenate(parts)
    return found[found < trials]
