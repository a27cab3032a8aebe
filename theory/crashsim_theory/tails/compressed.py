"""Cumulants of surrogates with millions of coordinates: gains gathered in a few thousand cells.

Each gain lies between two neighbours of a geometric grid and is shared among them so that the sum
of gains stays what it is. log(1 - p + p e^(t g)) is convex in g, so what a cell's ends weigh is
never less than what the gain did: K(t) of the cells is at least that of the gains, and Chernoff's
bound on them bounds the surrogate. The variance grows by 3e-5 of itself at most.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit

from crashsim_theory.arrays import Array
from crashsim_theory.tails.gain_chunks import GainChunk
from crashsim_theory.tails.rows import Rows, chunks, log_mgf_terms

PER_OCTAVE = 64  # cells of the grid
OCTAVES = 26  # below the largest gain; what is smaller lies between the last cell and 0
_CELLS = PER_OCTAVE * OCTAVES
_RATIO = 2.0 ** (-1 / PER_OCTAVE)
_BLOCK = 2**15  # coordinates looked at together: small enough for the cache


@dataclass(frozen=True)
class CompressedRows(Rows):
    """Surrogates whose Bernoulli coordinates stand in cells, each with a number of them.

    Attributes:
        counts: (R, cells) how many coordinates each cell holds, in fractions.
    """

    counts: Array = field(kw_only=True)

    @property
    def negative(self) -> CompressedRows:
        return CompressedRows(
            -self.shift, -self.gains, self.normal_variance, self.p, counts=self.counts
        )

    @functools.cached_property
    def _maximum(self) -> tuple[Array, Array]:
        up = np.where(self.gains > 0, self.counts, 0.0)
        top = self.shift + (up * self.gains).sum(-1)
        log_p, log_q = np.log(self.p), np.log1p(-self.p)
        log_atom = up @ log_p + np.where(self.gains < 0, self.counts, 0.0) @ log_q
        unbounded = self.normal_variance > 0
        return np.where(unbounded, np.inf, top), np.where(unbounded, -np.inf, log_atom)

    @functools.cached_property
    def lowest(self) -> Array:
        bottom = self.shift + (np.where(self.gains < 0, self.counts, 0.0) * self.gains).sum(-1)
        return np.where(self.normal_variance > 0, -np.inf, bottom)

    def log_mgf(self, rows: Any, t: Array) -> Array:
        result = np.empty(len(t))
        for part in chunks(len(t), self.p.size):
            at, row = t[part], rows[part]
            terms = log_mgf_terms(self.p, at[:, np.newaxis] * self.gains[row])
            normal = self.normal_variance[row] * at * at / 2
            result[part] = self.shift[row] * at + (self.counts[row] * terms).sum(-1) + normal
        return result

    def moments(self, rows: Any, t: Array) -> tuple[Array, Array, Array]:
        result = np.empty((3, len(t)))
        for part in chunks(len(t), self.p.size):
            at, row = t[part], rows[part]
            g, v = self.gains[row], self.normal_variance[row]
            tilted = expit(at[:, np.newaxis] * g + self.logit)
            weighted = self.counts[row] * tilted * g
            result[0, part] = self.shift[row] + weighted.sum(-1) + v * at
            spread = weighted * (1 - tilted) * g
            result[1, part] = spread.sum(-1) + v
            result[2, part] = (spread * (1 - 2 * tilted) * g).sum(-1)
        return result[0], result[1], result[2]


def compress(
    shift: Array,
    groups: Iterable[GainChunk],
    normal_variance: Array | None = None,
    tell: Callable[[], None] = lambda: None,
) -> CompressedRows:
    """The rows of R surrogates with these Bernoulli coordinates.

    Args:
        shift: (R,) of each.
        groups: chunks of the R surrogates, each with a single p.
        normal_variance: (R,) that normal coordinates contribute.
        tell: is called whenever some are gathered.
    """
    groups = [group for group in groups if float(group.p) > 0]
    sure = np.zeros(len(shift))
    for group in groups:
        if float(group.p) == 1:
            sure += _summed(group)
    classes: dict[float, list[GainChunk]] = {}
    for group in groups:
        if float(group.p) < 1:
            classes.setdefault(float(group.p), []).append(group)
    gains, counts, p = [], [], []
    for chance, members in classes.items():
        tops = np.max([_largest(member) for member in members], axis=0)
        gains.append(tops[:, np.newaxis] * _grid())
        counts.append(np.stack([_counted(members, r, top, tell) for r, top in enumerate(tops)]))
        p.append(np.full(2 * _CELLS, chance))
    spread = np.zeros(len(shift)) if normal_variance is None else normal_variance
    if not p:
        empty = np.zeros((len(shift), 1))
        return CompressedRows(shift + sure, empty, spread, np.full(1, 0.5), counts=empty)
    joined = np.concatenate(gains, 1), np.concatenate(counts, 1), np.concatenate(p)
    return CompressedRows(shift + sure, joined[0], spread, joined[2], counts=joined[1])


def _grid() -> Array:
    """(2 cells,) the cells' gains, relative to the largest: positive ones, then negative."""
    sizes = _RATIO ** np.arange(_CELLS)
    return np.concatenate([sizes, -sizes])


def _moved(group: GainChunk) -> Array:
    return np.asarray(group.displacements).reshape(len(group.displacements), -1)


def _summed(group: GainChunk) -> Array:
    return np.asarray(group.gains @ _moved(group).sum(1, dtype=np.float64), dtype=np.float64)


def _largest(group: GainChunk) -> Array:
    """(R,) the largest size of a gain."""
    reach = np.abs(_moved(group)).max(1).astype(np.float64)
    return np.asarray((np.abs(group.gains) * reach).max(1), dtype=np.float64)


def _counted(members: list[GainChunk], row: int, top: float, tell: Callable[[], None]) -> Array:
    """(2 cells,) how many coordinates of one surrogate each cell holds."""
    found = np.zeros(2 * (_CELLS + 1))  # with the cells of 0, which hold what is next to nothing
    if top == 0:
        return np.zeros(2 * _CELLS)
    for member in members:
        tell()
        moved = _moved(member)
        for low in range(0, len(moved), _BLOCK):
            d = moved[low : low + _BLOCK]
            g = member.gains[row, low : low + _BLOCK].astype(np.float64) / top
            for place, weight in _shared(g[:, np.newaxis] * d):
                found += np.bincount(place, weight, len(found))
    return np.delete(found, [_CELLS, 2 * _CELLS + 1])


def _shared(g: Array) -> Iterator[tuple[Any, Array]]:
    """The two neighbouring cells of each gain, relative to the largest, and their shares."""
    g = g.reshape(-1)
    g = g[g != 0]
    size = np.abs(g)
    with np.errstate(under="ignore"):
        cell = np.floor(-PER_OCTAVE * np.log2(size)).clip(0, _CELLS - 1).astype(np.int64)
    upper = _UPPER[cell]
    share = ((size - _LOWER[cell]) / (upper - _LOWER[cell])).clip(0.0, 1.0)
    place = np.where(g < 0, cell + _CELLS + 1, cell)
    yield place, share
    yield place + 1, 1 - share


_UPPER = _RATIO ** np.arange(_CELLS)
_LOWER = np.append(_UPPER[1:], 0.0)
