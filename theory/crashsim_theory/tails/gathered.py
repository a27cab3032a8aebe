"""A dense surrogate's gains gathered in some hundred cells, for curves of many thresholds.

As in `compressed`, each gain is shared among two cells so that the sum of gains stays what it is:
Chernoff's bound on the cells bounds the surrogate's, and the variance grows by 5e-4 of itself at
most.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from crashsim_theory.arrays import Array
from crashsim_theory.tails.compressed import CompressedRows
from crashsim_theory.tails.surrogate import LinearSurrogate

_FEW = 2048  # coordinates that are cheap as they are
_RATES = 4  # different probabilities, of which each has cells of its own
_PER_OCTAVE, _OCTAVES = 16, 20  # cells; what is smaller lies between the last and 0


def gathered(surrogate: LinearSurrogate) -> LinearSurrogate:
    """The same surrogates for curves, to three digits or so; as they are where they are small."""
    coordinates = surrogate.coordinates
    few = surrogate.bernoulli_gains.shape[-1] <= _FEW
    if few or coordinates.others or len(np.unique(coordinates.p)) > _RATES:
        return surrogate
    return _Gathered(surrogate.shift, surrogate.gains, coordinates)


@dataclass(frozen=True, eq=False)
class _Gathered(LinearSurrogate):
    """A surrogate whose tails are taken of cells."""

    @property
    def negative(self) -> LinearSurrogate:
        return _Gathered(-self.shift, -self.gains, self.coordinates)

    @functools.cached_property
    def _rows(self) -> CompressedRows:
        count, p = self.shift.size, self.coordinates.p
        gains = self.bernoulli_gains.reshape(count, -1)
        cells, counts, rates = [], [], []
        for rate in np.unique(p).tolist():
            if 0 < rate < 1:
                each = [_cells_of(row) for row in gains[:, p == rate]]
                cells.append(np.stack([one[0] for one in each]))
                counts.append(np.stack([one[1] for one in each]))
                rates.append(np.full(cells[-1].shape[1], rate))
        shift = self.shift.reshape(-1) + gains[:, p == 1].sum(-1)
        normal = self.normal_variance.reshape(-1)
        if not rates:
            empty = np.zeros((count, 1))
            return CompressedRows(shift, empty, normal, np.full(1, 0.5), counts=empty)
        joined = np.concatenate(cells, 1), np.concatenate(counts, 1), np.concatenate(rates)
        return CompressedRows(shift, joined[0], normal, joined[2], counts=joined[1])


def _cells_of(gains: Array) -> tuple[Array, Array]:
    """Gains of the cells, positive ones first, and how many coordinates each holds."""
    number = _PER_OCTAVE * _OCTAVES
    ends = 2.0 ** (-np.arange(number + 1) / _PER_OCTAVE)
    ends[-1] = 0.0
    top = float(np.abs(gains).max())
    gains = gains[gains != 0]
    if not len(gains):
        return np.zeros(2 * number), np.zeros(2 * number)
    size = np.abs(gains) / top
    cell = np.searchsorted(-ends, -size, side="right") - 1  # ends[cell] >= size > ends[cell + 1]
    cell = np.clip(cell, 0, number - 1)
    share = (size - ends[cell + 1]) / (ends[cell] - ends[cell + 1])
    place = cell + (number + 1) * (gains < 0)
    found = np.zeros(2 * number + 2)
    found += np.bincount(place, share, len(found)) + np.bincount(place + 1, 1 - share, len(found))
    both = found.reshape(2, -1)[:, :-1]  # what the cell of 0 holds adds nothing
    return np.concatenate([top * ends[:-1], -top * ends[:-1]]), both.reshape(-1)
