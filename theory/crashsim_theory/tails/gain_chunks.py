"""Gains of Bernoulli fault coordinates, factored and in chunks: for more than fit in one array.

A linear surrogate L = shift + sum_c e_c g_c of millions of coordinates needs no array of R x N
gains. A fault that changes value i (a weight, a neuron's output) has a gain that is a product: what
a unit of displacement of the value does to the output, times the displacement. The bits of a stored
word share the first factor, so a chunk keeps one number for each value and row, and each bit's
displacement once for all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from crashsim_theory.arrays import Array, as_array, as_probability
from crashsim_theory.errors import TheoryError
from crashsim_theory.tails.surrogate import LinearSurrogate

_BLOCK = 2**16  # values of which float64 copies are alive at once


@dataclass(frozen=True, eq=False)
class GainChunk:
    """Gains of some independent Bernoulli coordinates in R linear surrogates.

    Coordinate (i, b) has gain ``gains[r, i] * displacements[i, b]`` in surrogate r.

    Attributes:
        gains: (R, n) float32 or float64: the change of each surrogate per unit of displacement of
            value i.
        displacements: (n,), or (n, bits) for values with several coordinates each; float32 or
            float64.
        p: the coordinates' probabilities; broadcasts with ``displacements``.

    Raises:
        TheoryError: shapes that do not fit, numbers that are not finite, or p outside [0, 1].
    """

    gains: Any
    displacements: Any
    p: Any

    def __post_init__(self) -> None:
        gains = _as_floats("gains", self.gains)
        moved, p = _as_floats("displacements", self.displacements), as_probability("p", self.p)
        if gains.ndim != 2:
            raise TheoryError("gains.shape", gains.shape, "give (surrogates, values)")
        if moved.ndim not in (1, 2) or len(moved) != gains.shape[1]:
            remedy = f"give ({gains.shape[1]},) or ({gains.shape[1]}, bits), as gains has values"
            raise TheoryError("displacements.shape", moved.shape, remedy)
        try:
            np.broadcast_to(p, moved.shape)
        except ValueError:
            remedy = f"must broadcast with the displacements' {moved.shape}"
            raise TheoryError("p.shape", p.shape, remedy) from None
        for name, value in (("gains", gains), ("displacements", moved), ("p", p)):
            object.__setattr__(self, name, value)

    @property
    def rows(self) -> int:
        """The number of surrogates R."""
        return int(self.gains.shape[0])

    @property
    def size(self) -> int:
        """The number of coordinates."""
        return int(self.displacements.size)

    def blocks(self, values: int = _BLOCK) -> Iterator[GainChunk]:
        """The same coordinates in chunks of at most so many values, without copies."""
        if len(self.displacements) <= values:
            yield self
            return
        p = self.p if self.p.ndim == 0 else np.broadcast_to(self.p, self.displacements.shape)
        for start in range(0, len(self.displacements), values):
            part = slice(start, start + values)
            yield _unchecked(
                self.gains[:, part], self.displacements[part], p[part] if p.ndim else p
            )

    def of_row(self, row: int) -> GainChunk:
        """The same coordinates in one of the surrogates, without copies."""
        return _unchecked(self.gains[row : row + 1], self.displacements, self.p)


def _as_floats(argument: str, value: Any) -> Any:
    """An array of finite numbers, in single precision where it is."""
    array = np.asarray(value)
    if array.dtype != np.float32:
        return as_array(argument, value)
    if not np.all(np.isfinite(array)):
        raise TheoryError(argument, value, "every entry must be finite")
    return array


def _unchecked(gains: Any, displacements: Array, p: Array) -> GainChunk:
    """A part of a chunk that was checked as a whole."""
    found = object.__new__(GainChunk)
    for name, value in (("gains", gains), ("displacements", displacements), ("p", p)):
        object.__setattr__(found, name, value)
    return found


def mean_of_chunks(chunks: Iterable[GainChunk]) -> Array:
    """sum_c p_c g_c of every surrogate, (R,): E (L - shift).

    Args:
        chunks: of the same R surrogates, read once, one after the other.

    Raises:
        TheoryError: no chunk, or chunks of different numbers of surrogates.
    """
    return _contracted(chunks, power=1)


def variance_of_chunks(chunks: Iterable[GainChunk]) -> Array:
    """sum_c p_c (1 - p_c) g_c^2 of every surrogate, (R,): Var L. Arguments as of the mean."""
    return _contracted(chunks, power=2)


def _contracted(chunks: Iterable[GainChunk], power: int) -> Array:
    total: Array | None = None
    for chunk in chunks:
        if total is None:
            total = np.zeros(chunk.rows)
        elif len(total) != chunk.rows:
            remedy = f"every chunk must have {len(total)} surrogates, as the first"
            raise TheoryError("chunks", chunk.rows, remedy)
        for block in chunk.blocks():
            spread = block.p if power == 1 else block.p * (1 - block.p)
            weights = spread * block.displacements.astype(np.float64) ** power
            weights = weights.reshape(len(block.displacements), -1).sum(1)
            total += block.gains.astype(np.float64) ** power @ weights
    if total is None:
        raise TheoryError("chunks", (), "give at least one chunk of coordinates")
    return total


def chunk_of(surrogate: LinearSurrogate) -> GainChunk:
    """The Bernoulli coordinates of a dense surrogate as one chunk of its flattened leading axes."""
    gains = surrogate.bernoulli_gains
    count = gains.shape[-1]
    rows = surrogate.shift.size
    return GainChunk(gains.reshape(rows, count), np.ones(count), surrogate.coordinates.p)
