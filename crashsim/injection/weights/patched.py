"""Faulty parameters, one sample at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arrays import Floats
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Points
from crashsim.injection.faulty_model import FaultyModel

_ALIGNED = 64  # bytes, so that each parameter begins where fast kernels want it to


class PatchedWeights:
    """Parameters at a base point, patched for one sample at a time and put back afterwards.

    All of them lie in one stretch of memory: a sample takes three operations, and the time of its
    changes, however many layers they are in.

    Args:
        faulty: whose parameters.
        points: the samples.

    Attributes:
        tensors: all tensors of the model, to be computed with: those of the sample that was
            applied last.
    """

    def __init__(self, faulty: FaultyModel, points: Points) -> None:
        self._faulty, self._points = faulty, points
        own = faulty.model.tensors
        placed = [p for p in faulty.placements if p.site.kind == "parameter"]
        at_base = faulty.perturbed_weights(faulty.coordinates(Points.at(points.base))[0])
        # Where several faults strike one parameter, each acts on what the one before it left.
        names = [p.site.module for p in placed]
        several = sorted({name for name in names if names.count(name) > 1})
        self._stretches = [
            _Stretch.of({name: at_base[name] for name in alike})
            for alike in _alike({name: at_base[name] for name in at_base if name not in several})
        ]
        self._several = {
            name: at_base[name].clone(memory_format=torch.contiguous_format) for name in several
        }
        self._clean = {name: tensor.clone() for name, tensor in self._several.items()}
        alone = [p for p in placed if p.site.module not in several]
        self._patches = [
            _Patches.of(
                points, [p for p in alone if p.site.module in stretch.tensors], stretch, own
            )
            for stretch in self._stretches
        ]
        patched = (stretch.tensors for stretch in self._stretches)
        self.tensors: dict[str, Tensor] = {**own, **self._several}
        for tensors in patched:
            self.tensors |= tensors

    def apply(self, number: int) -> None:
        """Makes the tensors those of a sample."""
        if self._several:
            e = self._faulty.coordinates(self._points.part(number, number + 1))[0]
            changed = self._faulty.perturbed_weights(e)
            for name, tensor in self._several.items():
                tensor.copy_(changed[name])
        for stretch, patches in zip(self._stretches, self._patches, strict=True):
            patches.apply(stretch.flat, number)

    def restore(self) -> None:
        """Takes back what was applied last."""
        for stretch, patches in zip(self._stretches, self._patches, strict=True):
            patches.restore(stretch.flat)
        for name, tensor in self._several.items():
            tensor.copy_(self._clean[name])


@dataclass(frozen=True)
class _Stretch:
    """Parameters one after the other in memory, in rows, whatever the user's layout.

    Attributes:
        flat: (n,) all of them, with gaps.
        starts: where each begins.
        tensors: views of them.
    """

    flat: Tensor
    starts: dict[str, int]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> _Stretch:
        like = next(iter(tensors.values()))
        step = max(1, _ALIGNED // like.element_size())
        starts, end = {}, 0
        for name, tensor in tensors.items():
            starts[name] = end
            end += -(-tensor.numel() // step) * step
        flat = like.new_zeros(end)
        views = {}
        for name, tensor in tensors.items():
            part = flat[starts[name] : starts[name] + tensor.numel()]
            part.copy_(tensor.reshape(-1))
            views[name] = part.view(tensor.shape)
        return cls(flat, starts, views)


class _Patches:
    """What each sample changes in a stretch of memory.

    Args:
        edges: (S + 1,) where each sample's changes begin.
        where: (n,) places in the stretch, those of one sample together.
        change: (n,) what is added there.
    """

    def __init__(self, edges: NDArray[np.int64], where: Tensor, change: Tensor) -> None:
        self._edges, self._where, self._change = edges.tolist(), where, change
        self._undo: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        points: Points,
        placed: list[Placement],
        stretch: _Stretch,
        tensors: Mapping[str, Tensor],
    ) -> _Patches:
        """Those of some placements, each of which alone strikes a parameter of the stretch."""
        rows, where, change = [], [], []
        for p in placed:
            row, columns, values = _changes_at(points, p)
            value, flat = tensors[p.site.module], stretch.flat
            steps = p.fault.displacement(value).reshape(-1)
            # Several coordinates may act on one weight (its bits): their changes add up.
            units = columns // (p.size // value.numel()) + stretch.starts[p.site.module]
            local = torch.from_numpy(columns).to(flat.device)
            off = torch.from_numpy(values - points.base[p.start + columns]).to(flat)
            rows.append(row)
            where.append(torch.from_numpy(units).to(flat.device))
            change.append(off * steps.index_select(0, local).to(flat))
        row = np.concatenate(rows)
        edges = np.searchsorted(np.sort(row, kind="stable"), np.arange(points.count + 1))
        places, added = torch.cat(where), torch.cat(change)
        if len(placed) > 1:
            small = row.astype(np.uint16) if points.count < 2**16 else row
            order = torch.from_numpy(np.argsort(small, kind="stable")).to(places.device)
            places, added = places.index_select(0, order), added.index_select(0, order)
        return cls(edges, places, added)

    def apply(self, flat: Tensor, number: int) -> None:
        part = slice(self._edges[number], self._edges[number + 1])
        where = self._where[part]
        self._undo = where, flat.index_select(0, where)
        flat.index_add_(0, where, self._change[part])

    def restore(self, flat: Tensor) -> None:
        if self._undo is not None:
            flat.index_copy_(0, *self._undo)
            self._undo = None


def _changes_at(
    points: Points, p: Placement
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Rows, coordinates counted from the placement's first, and values of its changes."""
    own = [c for c in points.changes if (c.start, c.stop) == (p.start, p.stop)]
    if own:
        rows, columns, values = own[0].listed()
    else:
        rows, columns, values = points.rows, points.columns, points.values
        ours = (columns >= p.start) & (columns < p.stop)
        rows, columns, values = rows[ours], columns[ours], values[ours]
    return np.asarray(rows, np.int64), np.asarray(columns, np.int64) - p.start, values


def _alike(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of tensors of one number type on one device."""
    found: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, tensor in tensors.items():
        found.setdefault((tensor.dtype, tensor.device), []).append(name)
    return list(found.values())
