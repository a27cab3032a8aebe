"""Which coordinates make up how much of the variance: by placement, and the largest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crashsim.analytic.gains import Gains
from crashsim.arrays import Floats
from crashsim.coordinates.placement import moments_of
from crashsim.injection.slopes import Values


@dataclass(frozen=True, eq=False)
class SharesByValue:
    """Shares of the variance, summed over outputs and averaged over inputs, of many coordinates.

    Attributes:
        values: what the coordinates of each placement move.
        squares: for each placement, (size,) squared slopes summed over inputs and outputs.
        second: for each placement, (size,) what these weigh in the variance.
    """

    values: Sequence[Values]
    squares: Sequence[Floats]
    second: Sequence[Floats]

    @classmethod
    def of(cls, gains: Gains) -> SharesByValue:
        """Of gains of every output."""
        return cls(gains.values, gains.sums.by_value, gains.sums.second)

    @cached_property
    def _sums(self) -> Floats:
        return np.array([s @ w for s, w in zip(self.squares, self.second, strict=True)])

    @cached_property
    def _total(self) -> float:
        return float(self._sums.sum()) or 1.0

    @property
    def is_any(self) -> bool:
        """Whether anything varies."""
        return bool(self._sums.sum() > 0)

    @property
    def by_placement(self) -> Floats:
        """(placements,) they sum to 1 unless nothing varies."""
        return np.asarray(self._sums / self._total)

    def leading(self, count: int) -> list[tuple[int, float]]:
        """The coordinates with the largest shares, and these, largest first."""
        found: list[tuple[float, int]] = []
        for v, squares, second in zip(self.values, self.squares, self.second, strict=True):
            each = squares * second
            # Only the values with the largest shares can have coordinates that do.
            few = _largest(each, count)
            k2 = moments_of(v.placement).k2.reshape(v.size, v.bits)[few]
            parts = squares[few, None] * k2 * v.displacements_of(few) ** 2 / self._total
            columns = v.placement.start + few[:, None] * v.bits + np.arange(v.bits)
            found += zip((-parts).ravel().tolist(), columns.ravel().tolist(), strict=True)
        return [(column, -share) for share, column in sorted(found)[:count]]


def _largest(sizes: Floats, count: int) -> NDArray[np.int64]:
    """The places of the largest, largest first; of equal ones, the first."""
    if len(sizes) > count:
        least = -np.partition(-sizes, count - 1)[count - 1]
        places = np.flatnonzero(sizes >= least)
    else:
        places = np.arange(len(sizes))
    found: NDArray[np.int64] = places[np.argsort(-sizes[places], kind="stable")[:count]]
    return found
