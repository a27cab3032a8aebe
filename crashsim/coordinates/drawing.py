"""Random points: blocks of independent samples of all fault coordinates.

Block number j of a seed is drawn from its own random numbers
(``crashsim.coordinates.streams``), so a sample depends on the seed and its number alone:
not on batch size, device, worker count, or where a run stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arrays import Floats, Integers
from crashsim.coordinates.counts import Count
from crashsim.coordinates.placement import Placement, counts_of
from crashsim.coordinates.points import Listed, Points, Written, join, no_fault
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import ArgumentError
from crashsim.faults import Fault, check_drawable

MAX_BLOCK = 1024  # samples in a block
MAX_CHANGES = 2**22  # changed coordinates in a block, about: bounds its memory
LISTED = 0.1  # probability of a change up to which changes are listed rather than written out
_HITS, _COORDINATES = 2**15, 2**17  # drawn at once: small enough for the cache
_SELDOM = 2.0**-40  # probability up to which trials are one class
_FAR = 2.0**40  # expected gap from which gaps are cut short


def samples_per_block(placements: Sequence[Placement]) -> int:
    """Samples in one block: a function of the faults alone, so that samples never depend on more.

    1,024, or fewer where that many samples would hold too many changes to keep in memory.
    """
    changes = sum(p.size * p.fault.change_probability for p in placements)
    return max(1, min(MAX_BLOCK, int(MAX_CHANGES / max(changes, 1.0))))


def sample_block(placements: Sequence[Placement], seed: int, block: int) -> Points:
    """One block of independent samples of all fault coordinates.

    The law is exact up to the rounding of double-precision numbers, whatever the probabilities.
    Coordinates that are rarely other than 0 are drawn by skipping geometric gaps, at the cost of
    one random number per change (two, where each coordinate has a probability of its own); those
    that are often 1 and else 0 at the cost of a random byte each. All others are drawn one by one,
    as their law says. Where exactly k coordinates are struck, these are chosen from a stream of
    their own.
    """
    check_drawable((p.fault for p in placements), "sampling")
    rng = generator(seed, Stream.MONTE_CARLO, block)
    count = samples_per_block(placements)
    if not counts_of(placements):
        return draw_points(rng, placements, count)
    chosen = _chosen(counts_of(placements), seed, block, count)
    changes = [
        _drawn(rng, p, count) if p.count is None else _struck(chosen[p.count], p, count)
        for p in placements
    ]
    return Points.of(count, no_fault(placements[-1].stop), changes)


def draw_points(rng: np.random.Generator, placements: Sequence[Placement], count: int) -> Points:
    """Independent samples of faults that strike independently.

    Args:
        rng: to draw from.
        placements: none of which strikes an exact number of coordinates.
        count: of samples.
    """
    changes = [_drawn(rng, p, count) for p in placements]
    return Points.of(count, no_fault(placements[-1].stop), changes)


def _drawn(rng: np.random.Generator, p: Placement, count: int) -> Listed | Written:
    """The coordinates of a fault that strikes each of them independently."""
    fault, often = p.fault, p.fault.change_probability
    if often <= LISTED:
        if isinstance(fault.change_probabilities, float):
            edges, columns = _rare(rng, often, count, p.size)
        else:
            p_each = np.asarray(fault.change_probabilities)
            edges, columns = unequal(rng, p_each, count, _classes(fault))
        return Listed(p.start, p.stop, edges, columns, fault.draw_changes(rng, columns))
    if not fault.is_binary:
        return Written(p.start, p.stop, fault.draw(rng, (count, p.size)))
    if isinstance(fault.change_probabilities, float):
        struck = _common(rng, often, count * p.size).reshape(count, p.size)
        return Written(p.start, p.stop, struck)
    struck = np.empty((count, p.size), dtype=np.uint8)
    for row in struck:
        np.less(rng.random(p.size), fault.change_probabilities, out=row.view(np.bool_))
    return Written(p.start, p.stop, struck)


def _chosen(
    counts: Sequence[Count], seed: int, block: int, samples: int
) -> dict[Count, NDArray[np.int64]]:
    """(samples, k) which coordinates are struck of those of which exactly k are."""
    rng = generator(seed, Stream.COUNTED, block)
    return {count: count.draw(rng, samples) + count.start for count in counts}


def _struck(chosen: NDArray[np.int64], p: Placement, count: int) -> Listed | Written:
    """Those of the chosen coordinates (samples, k) that are of one placement."""
    inside = (chosen >= p.start) & (chosen < p.stop)
    columns = chosen[inside] - p.start
    if p.fault.change_probability <= LISTED:
        edges = np.concatenate([[0], np.cumsum(inside.sum(1))])
        return Listed(p.start, p.stop, edges, columns, 1.0)
    struck = np.zeros((count, p.size), dtype=np.uint8)
    struck[np.nonzero(inside)[0], columns] = 1
    return Written(p.start, p.stop, struck)


def sample_points(placements: Sequence[Placement], seed: int, count: int) -> Points:
    """The first ``count`` samples of a seed, the same that Monte Carlo draws first."""
    parts: list[Points] = []
    while (drawn := sum(part.count for part in parts)) < count:
        block = sample_block(placements, seed, len(parts))
        parts.append(block.part(0, min(block.count, count - drawn)))
    return join(parts)


def draw_tensor(fault: Fault, shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    """Independent coordinates of a fault from a generator of torch, as training draws them.

    Args:
        fault: whose law can be drawn.
        shape: of the result, in float32 on the CPU.
        draws: whose state moves on.
    """
    check_rates(fault, shape[-1] if shape else 1)
    drawn = fault.draw_by_torch(shape, draws)
    if drawn is None:
        seed = int(torch.randint(2**63 - 1, (), generator=draws))
        drawn = torch.from_numpy(fault.draw(generator(seed, Stream.TRAINING), shape)).float()
    return drawn


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


def check_rates(fault: Fault, n: int) -> None:
    """Raises ArgumentError where a fault has rates of its own for another number of coordinates."""
    if fault.is_varied and np.size(fault.rate) != n:
        raise ArgumentError(
            f"faults: {type(fault).__name__}: has {np.size(fault.rate)} rates, and {n} values are "
            "struck (those of several steps, say); give one rate for all"
        )


Classes = list[tuple[Integers, float]]  # the coordinates of each, and their largest probability


def unequal(
    rng: np.random.Generator, p: Floats, count: int, classes: Classes
) -> tuple[NDArray[np.int64], Integers]:
    """Changes of coordinates (count, n) with probabilities of their own: edges and columns.

    They are taken in classes, of probabilities within a factor of two. Of each class's changes at
    its largest probability, each stays with the ratio of its own to that. Likely ones are drawn one
    by one.

    Args:
        rng: to draw from.
        p: (n,) the probabilities.
        count: of samples.
        classes: of the probabilities, as ``classes_of`` makes them.
    """
    rows: list[Integers] = []
    columns: list[Integers] = []
    for members, most in classes:
        if most > LISTED:
            row, place = np.nonzero(rng.random((count, len(members))) < p[members])
            column: Integers = members[place]
        else:
            edges, hits = _rare(rng, most, count, len(members))
            row, column = np.repeat(np.arange(count), np.diff(edges)), members[hits]
            kept = rng.random(len(column)) * most < p[column]
            row, column = row[kept], column[kept]
        rows.append(row)
        columns.append(column)
    if not rows:
        return np.zeros(count + 1, dtype=np.int64), np.empty(0, dtype=np.int64)
    places = np.concatenate(rows) * len(p) + np.concatenate(columns)
    places.sort()
    row, column = np.divmod(places, len(p))
    return np.searchsorted(row, np.arange(count + 1)), column


@lru_cache(maxsize=8)  # the same for every block
def _classes(fault: Fault) -> Classes:
    return classes_of(np.asarray(fault.change_probabilities))


def classes_of(p: Floats) -> Classes:
    """The coordinates of each class that can change, and their largest probability.

    Args:
        p: (n,) of each coordinate.
    """
    level = np.frexp(np.maximum(p, _SELDOM))[1]
    level = np.where(p > LISTED, 1, level)
    found = [np.flatnonzero((level == one) & (p > 0)) for one in np.unique(level)]
    return [(members, float(p[members].max())) for members in found if len(members)]


def _enough(expected: float) -> int:
    """The number of expected successes that is hardly ever exceeded."""
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
