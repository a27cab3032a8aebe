"""Virtual chips with protection: a plan is judged by its residual faults and slopes, no inference.

The raw faults of a few hundred chips are drawn, those in bits that schemes store among them, and
decoded; what is left displaces values, and margins fall by that times their slopes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from crashsim.arrays import Floats
from crashsim.coordinates.drawing import draw_points
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Listed, Points, Written
from crashsim.coordinates.streams import Stream, generator
from crashsim.faults import Fault, WordFault
from crashsim.faults.guarded_units import GuardedUnits
from crashsim.model.twins.protected_module import ResidualLaw
from crashsim.protection.adviser.margins import Margins

_FEWEST, _MOST = 400, 2000  # chips that judge a plan, unless another number is asked for
_PRODUCTS = 2**24  # slopes that these gather, about
_AT_ONCE = 400  # chips drawn together

Ints = NDArray[np.int64]


def usual_chips(margins: Margins) -> int:
    """How many chips judge a plan: more where faults are few and the network is small."""
    placements = margins.space.placements
    struck = sum(p.size * p.fault.change_probability for p in placements)
    each = (1 + struck) * max(margins.clean.size, 1)
    return int(np.clip(_PRODUCTS / each, _FEWEST, _MOST)) // _FEWEST * _FEWEST


@dataclass(frozen=True, eq=False)
class VirtualChips:
    """Chips that slopes judge.

    Attributes:
        margins: of the examples.
        seed: the chips depend on it.
        chips: their number.
        set: another number, other chips.
    """

    margins: Margins
    seed: int
    chips: int
    set: int = 0

    def accuracies(self, residual: ResidualLaw | None) -> Floats:
        """(chips,) the share of right examples of each chip under residual faults.

        Args:
            residual: what protection leaves of faults; None: all.
        """
        placed = protected(self.margins.space.placements, residual)
        found = []
        for start in range(0, self.chips, _AT_ONCE):
            count = min(_AT_ONCE, self.chips - start)
            fall = np.zeros((count, self.margins.clean.size))
            for p, moves in zip(placed, self._moves(placed, start // _AT_ONCE, count), strict=True):
                fall += _times(moves, self.margins.slopes[self._number[p.site.name]])
            found.append(self.right(fall))
        return np.concatenate(found)

    def right(self, moved: Floats) -> Floats:
        """(chips,) the share of right examples, of margins (chips, E R) that are moved."""
        clean = self.margins.clean
        with np.errstate(invalid="ignore"):
            left = clean + moved.reshape(len(moved), *clean.shape)
            right = self.margins.steady + (left > 0).all(2).sum(1)
        # A weight that is no number makes every output one: no example is right.
        right = np.where(np.isnan(moved).any(1), 0, right)
        return np.asarray(right / self.margins.count)

    def drawn(self, placed: Sequence[Placement], block: int, count: int) -> Points:
        """The faults of a block of chips."""
        rng = generator(self.seed, Stream.PLANS, self.set * 2**20 + block)
        return draw_points(rng, placed, count)

    def _moves(
        self, placed: Sequence[Placement], block: int, count: int
    ) -> Iterator[sparse.csr_array]:
        """Of each placement, (chips, values) what each chip displaces."""
        points = self.drawn(placed, block, count)
        tensors = self.margins.space.tensors
        for p, change in zip(placed, points.changes, strict=True):
            value = tensors[p.site.module] if p.site.kind == "parameter" else None
            yield displaced(p, change, count, value)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {p.site.name: i for i, p in enumerate(self.margins.space.placements)}


def protected(placements: Sequence[Placement], residual: ResidualLaw | None) -> list[Placement]:
    """The same places with what protection leaves of their faults."""
    if residual is None:
        return list(placements)
    found, start = [], 0
    for p in placements:
        fault: Fault = residual(p.fault, p.site, p.shape)
        stop = start + fault.coordinate_count(p.shape)
        found.append(replace(p, fault=fault, start=start, stop=stop))
        start = stop
    return found


def displaced(
    p: Placement, change: Listed | Written, count: int, value: torch.Tensor | None
) -> sparse.csr_array:
    """(chips, values) what struck coordinates displace; of neurons, their coordinates."""
    rows, columns, values = change.listed()
    struck = values != 0
    rows, columns = rows[struck].astype(np.int64), columns[struck].astype(np.int64) - p.start
    if isinstance(p.fault, WordFault):
        assert value is not None
        table = p.fault.table(value.detach())
        rows, units, masks = p.fault.hits(rows, columns, p.shape)
        at = torch.from_numpy(units).to(value.device)
        new = table.struck(at, torch.from_numpy(masks).to(value.device))
        moved = (new.double() - table.values.index_select(0, at).double()).cpu().numpy()
        return sparse.csr_array((moved, (rows, units)), (count, value.numel()))
    if isinstance(p.fault, GuardedUnits):
        rows, columns, size = *p.fault.seen_struck(rows, columns), p.fault.units
    else:
        size = p.size
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), (count, size))


def _times(moves: sparse.csr_array, slopes: NDArray[np.float32]) -> Floats:
    """(chips, columns) moves times slopes."""
    if not moves.nnz:
        return np.zeros((moves.shape[0], slopes.shape[1]))
    used, columns = np.unique(moves.indices, return_inverse=True)
    data = moves.data.astype(np.float32)
    few = sparse.csr_array((data, columns, moves.indptr), (moves.shape[0], len(used)))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(few @ slopes[used], dtype=np.float64)
