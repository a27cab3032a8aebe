"""What a block of points changes at each site, and how changed activations are computed.

A point differs from its base in few coordinates. ``split`` sorts the changes of a block by
placement once, so that every chunk of samples finds its own by two binary searches, and nothing of
size (samples x coordinates) is ever built where faults are rare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from crashsim.faults import FAULTS, BitFlip, NeuronCrash
from crashsim.points import Placement, Points
from crashsim.sites import Site

# Up to this share of struck units, reading and writing them one by one is faster than a mask.
SCATTERED = 0.05
# In a linear layer, a weight gathered for a crash costs about four times as much as one in a matrix
# product, and the lists of crashes cost something too: up to these shares crashes are followed.
RARE_NEURONS = 0.1
RARE_WEIGHTS = 1 / 32


class Grid:
    """All coordinates of some samples at a time, shared by placements that are masked."""

    def __init__(self, points: Points, device: torch.device, dtype: torch.dtype) -> None:
        self._rows, self._columns, self._values, self._base = (
            torch.from_numpy(np.ascontiguousarray(array)).to(device)
            for array in (points.rows, points.columns, points.values, points.base)
        )
        self._values, self._base = self._values.to(dtype), self._base.to(dtype)
        self._span, self._e = (0, 0), self._values.new_empty(0, 0)

    def coordinates(self, start: int, stop: int) -> Tensor:
        """(S, N) of samples ``start`` to ``stop``, kept until others are asked for."""
        if self._span != (start, stop):
            edges = torch.searchsorted(self._rows, self._rows.new_tensor([start, stop])).tolist()
            cut = slice(*edges)
            self._e = self._base.repeat(stop - start, 1)
            where = (self._rows[cut] - start) * len(self._base) + self._columns[cut]
            self._e.view(-1).index_copy_(0, where, self._values[cut])
            self._span = start, stop
        return self._e


@dataclass(frozen=True)
class Changes:
    """What S points change at one placement.

    Attributes:
        placement: the fault and its site.
        count: number of points S.
        rows, units: (n,) the point and the coordinate of each change, sorted by row. Groups of
            neurons are written out as the units that die together.
        values: (n,) the coordinates' new values.
        base: (size,) the coordinates that are not changed, None where all are zero.
        sparse: whether changes are rare enough to be made one by one.
        grid: where to find the coordinates of samples from number ``first`` on, if they are not
            listed here.
    """

    placement: Placement
    count: int
    rows: Tensor
    units: Tensor
    values: Tensor
    base: Tensor | None
    sparse: bool
    grid: Grid | None = None
    first: int = 0

    @property
    def is_single(self) -> bool:
        """Whether no more than one coordinate changes per point, on average."""
        return self.grid is None and len(self.rows) <= self.count

    def part(self, start: int, stop: int) -> Changes:
        """Those of points ``start`` to ``stop``."""
        if self.grid is not None:
            return replace(self, count=stop - start, first=self.first + start)
        edges = torch.searchsorted(self.rows, self.rows.new_tensor([start, stop])).tolist()
        cut = slice(*edges)
        return replace(
            self,
            count=stop - start,
            rows=self.rows[cut] - start,
            units=self.units[cut],
            values=self.values[cut],
        )

    def differences(self) -> Tensor:
        """(n,) by how much each coordinate differs from the base."""
        return self.values if self.base is None else self.values - self.base[self.units]

    def dense(self) -> Tensor:
        """(S, size) all coordinates."""
        if self.grid is not None:
            p = self.placement
            e = self.grid.coordinates(self.first, self.first + self.count)[:, p.start : p.stop]
            if not isinstance(p.fault, NeuronCrash) or p.size == p.site.size:
                return e
            size = p.fault._group_size(p.site.shape)
            return e.repeat_interleave(size, dim=1)[:, : p.site.size]
        width = _width(self.placement)
        base = self.values.new_zeros(width) if self.base is None else self.base
        e = base.repeat(self.count, 1)
        e.view(-1).index_copy_(0, self.rows * width + self.units, self.values)
        return e

    def apply(self, value: Tensor) -> Tensor:
        """The faulty value of (S, b, n) activations, which may be overwritten."""
        fault, shape = self.placement.fault, self.placement.site.shape
        count, batch, size = value.shape
        if self.base is None and self.sparse and is_elementwise(self.placement):
            samples = self.rows[:, None] * batch + torch.arange(batch, device=value.device)
            where = (samples * size + self.units[:, None]).view(-1)
            flat = value.view(-1)
            old = flat.index_select(0, where)
            e = self.values[:, None].expand(-1, batch).reshape(-1)
            flat.index_copy_(0, where, torch.addcmul(old, e, fault.displacement(old)))
            return value
        e = self.dense()[:, None]
        if isinstance(fault, NeuronCrash) and is_elementwise(self.placement):
            return value.mul_(1 - e)
        faulty = fault.perturb(value.view(count, batch, *shape), e, shape)
        return faulty.reshape(value.shape)


def is_elementwise(placement: Placement) -> bool:
    """Whether the fault acts on each unit by its own coordinate, as it does on a lone number."""
    known = type(placement.fault) in FAULTS.values()
    return known and not isinstance(placement.fault, BitFlip)


def _width(placement: Placement) -> int:
    """Length of the coordinates, groups written out."""
    written_out = isinstance(placement.fault, NeuronCrash)
    return placement.site.size if written_out else placement.size


def is_rare(placement: Placement, limit: float) -> bool:
    """Whether at most this share of the placement's coordinates is expected to be struck."""
    return placement.fault.is_bernoulli and placement.fault.rate <= limit


def _is_masked(placement: Placement) -> bool:
    """Whether samples of the placement's neurons strike too many to be listed."""
    return placement.site.kind != "parameter" and not is_rare(placement, RARE_NEURONS)


def split(
    points: Points, placements: Sequence[Placement], device: torch.device, dtype: torch.dtype
) -> list[Changes]:
    """The changes of each placement, in order."""
    rows, columns, values = points.rows, points.columns, points.values
    if len(rows) > points.count and all(_is_masked(p) for p in placements):
        grid, none = Grid(points, device, dtype), torch.empty(0, dtype=torch.int64)
        return [Changes(p, points.count, none, none, none, None, False, grid) for p in placements]
    edges = np.array([0, len(rows)])
    if len(placements) > 1:
        stops = np.array([p.stop for p in placements])
        owner = np.searchsorted(stops, columns, side="right").astype(np.uint16)
        order = np.argsort(owner, kind="stable")  # rows stay sorted within a placement
        rows, columns, values = rows[order], columns[order], values[order]
        edges = np.searchsorted(owner[order], np.arange(len(placements) + 1))
    found = []
    for p, first, last in zip(placements, edges[:-1], edges[1:], strict=True):
        cut = slice(int(first), int(last))
        row, unit, value = rows[cut], columns[cut] - p.start, values[cut]
        base = points.base[p.start : p.stop]
        if isinstance(p.fault, NeuronCrash):
            base = p.fault.expand(base, p.site.shape)
            size = p.fault._group_size(p.site.shape)
            if size > 1:
                units = unit[:, None] * size + np.arange(size)
                inside = units < p.site.size  # the last group may be short
                row = np.broadcast_to(row[:, None], units.shape)[inside]
                value = np.broadcast_to(value[:, None], units.shape)[inside]
                unit = units[inside]
        found.append(
            Changes(
                p,
                points.count,
                torch.from_numpy(np.ascontiguousarray(row)).to(device),
                torch.from_numpy(np.ascontiguousarray(unit)).to(device),
                torch.from_numpy(np.ascontiguousarray(value)).to(device, dtype),
                torch.from_numpy(base).to(device, dtype) if np.count_nonzero(base) else None,
                is_rare(p, SCATTERED) or last - first <= points.count,
            )
        )
    return found


def strike(
    value: Tensor, site: Site, changes: Sequence[Changes], count: int, owned: bool = False
) -> Tensor:
    """A site's value under faults, one after the other.

    Args:
        value: the site's value, with (S b) rows, those of a sample together.
        site: where it comes from.
        changes: its faults.
        count: number of samples S.
        owned: nobody else reads the value, so that it may be overwritten.
    """
    moved = value.movedim(site.axis, 0)
    rows = moved.reshape(count, -1, math.prod(moved.shape[1:]))
    if not owned and rows.data_ptr() == value.data_ptr():
        rows = rows.clone()
    rows = rows.contiguous()
    for change in changes:
        rows = change.apply(rows).contiguous()
    return rows.reshape(moved.shape).movedim(0, site.axis)
