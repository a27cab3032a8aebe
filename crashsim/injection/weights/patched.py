"""Faulty parameters, one sample at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arrays import Floats
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Listed, Points, is_no_fault
from crashsim.faults.words.word_fault import BitSteps, WordTable
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.site_changes import steps_of

_ALIGNED = 64  # bytes, so that each parameter begins where fast kernels want it to


class PatchedWeights:
    """Parameters at a base point, patched for one sample at a time and put back afterwards.

    All of them lie in one stretch of memory: a sample takes three operations, and the time of its
    changes, however many layers they are in. What is set up once serves all samples that share the
    base point, some at a time.

    Args:
        faulty: whose parameters.
        base: (N,) the point.

    Attributes:
        tensors: all tensors of the model, to be computed with: those of the sample that was
            applied last.
    """

    def __init__(self, faulty: FaultyModel, base: Floats) -> None:
        self._faulty = faulty
        # A copy: whose array it is may change it. None for zeros, which are the rule.
        self._base = None if is_no_fault(base) else base.copy()
        self._is_applied = False
        own = faulty.model.tensors
        placed = [p for p in faulty.placements if p.site.kind == "parameter"]
        at_base: Mapping[str, Tensor] = {p.site.module: own[p.site.module] for p in placed}
        if not is_no_fault(base):
            at_base = faulty.weights_at(Points.at(base))
        steps = {p: steps_of(p, own[p.site.module]) for p in placed}
        # Where several faults strike one parameter, each acts on what the one before it left; and
        # of words that are struck already, further bits act on what these are then.
        names = [p.site.module for p in placed]
        again = {
            p.site.module
            for p in placed
            if isinstance(steps[p], WordTable) and not is_no_fault(base[p.start : p.stop])
        }
        several = sorted({name for name in names if names.count(name) > 1} | again)
        self._stretches = [
            _Stretch.of({name: at_base[name] for name in alike})
            for alike in _alike({name: at_base[name] for name in at_base if name not in several})
        ]
        self._several = {
            name: at_base[name].clone(memory_format=torch.contiguous_format) for name in several
        }
        self._clean = {name: tensor.clone() for name, tensor in self._several.items()}
        self.tensors: dict[str, Tensor] = {**own, **self._several}
        for stretch in self._stretches:
            self.tensors |= stretch.tensors
        self._steps = [
            {p: steps[p] for p in placed if p.site.module in stretch.tensors}
            for stretch in self._stretches
        ]
        self._points = Points.at(base)
        self._patches: list[list[_Patches]] = [[] for _ in self._stretches]

    def serves(self, base: Floats) -> bool:
        """Whether it is set up at this point, and whole: an interrupt may have left a sample in."""
        if self._is_applied:
            return False
        return is_no_fault(base) if self._base is None else np.array_equal(base, self._base)

    def take(self, points: Points) -> None:
        """Makes these the samples that ``apply`` counts; their base is the one it is set up at."""
        self._points, self._patches = points, []
        for stretch, steps in zip(self._stretches, self._steps, strict=True):
            words = {p: table for p, table in steps.items() if isinstance(table, WordTable)}
            rest = {p: each for p, each in steps.items() if not isinstance(each, WordTable)}
            found = [_changed_words(points, words, stretch)] if words else []
            found += [_added(points, rest, stretch)] if rest else []
            self._patches.append(found)

    def apply(self, number: int) -> None:
        """Makes the tensors those of a sample."""
        self._is_applied = True
        if self._several:
            changed = self._faulty.weights_at(self._points.part(number, number + 1))
            for name, tensor in self._several.items():
                tensor.copy_(changed[name])
        for stretch, found in zip(self._stretches, self._patches, strict=True):
            for patches in found:
                patches.apply(stretch.flat, number)

    def restore(self) -> None:
        """Takes back what was applied last."""
        for stretch, found in zip(self._stretches, self._patches, strict=True):
            for patches in found:
                patches.restore(stretch.flat)
        for name, tensor in self._several.items():
            tensor.copy_(self._clean[name])
        self._is_applied = False


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
        edges: (S + 1,) where each sample's changes begin, and where the last one's end.
        where: (n,) the place of each change in the stretch.
        numbers: (n,) what is added there, or what is put there.
        adds: whether they are added: several may then act on one place.
    """

    def __init__(
        self, edges: NDArray[np.int64], where: Tensor, numbers: Tensor, adds: bool
    ) -> None:
        self._edges = edges.tolist()
        self._where, self._numbers, self._adds = where, numbers, adds
        self._undo: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of_rows(
        cls, count: int, rows: NDArray[np.int64], where: Tensor, numbers: Tensor, adds: bool
    ) -> _Patches:
        """With the sample of each change, (n,), in any order."""
        if (np.diff(rows) < 0).any():  # the changes of a sample together
            small = rows.astype(np.uint16) if count < 2**16 else rows
            order = np.argsort(small, kind="stable")
            rows, there = rows[order], torch.from_numpy(order).to(where.device)
            where, numbers = where.index_select(0, there), numbers.index_select(0, there)
        return cls(np.searchsorted(rows, np.arange(count + 1)), where, numbers, adds)

    def apply(self, flat: Tensor, number: int) -> None:
        part = slice(self._edges[number], self._edges[number + 1])
        where, numbers = self._where[part], self._numbers[part]
        self._undo = where, flat.index_select(0, where)
        if self._adds:
            flat.index_add_(0, where, numbers)
        else:
            flat.index_copy_(0, where, numbers)

    def restore(self, flat: Tensor) -> None:
        if self._undo is not None:
            flat.index_copy_(0, *self._undo)
            self._undo = None


def _added(
    points: Points, steps: Mapping[Placement, Tensor | BitSteps], stretch: _Stretch
) -> _Patches:
    """The changes of faults whose coordinates each add something of their own."""
    flat, found = stretch.flat, [_differences(points, p) for p in steps]
    edges = [each for each, _, _ in found]
    starts = _starts(edges)
    total = sum(int(each[-1]) for each in edges)
    where = np.empty(total, dtype=np.int64)
    numbers = flat.new_empty(total)
    for at, (p, step) in enumerate(steps.items()):
        own, columns, values = found[at]
        # A sample's changes together, those of each placement in their order.
        place = np.repeat(starts[:, at] - own[:-1], np.diff(own)) + np.arange(own[-1])
        # Several coordinates may act on one weight (its bits): their changes add up.
        where[place] = columns // (p.size // p.site.size) + stretch.starts[p.site.module]
        taken = step.index_select(0, torch.from_numpy(columns).to(flat.device)).to(flat)
        off = values if isinstance(values, float) else torch.from_numpy(values).to(flat)
        numbers[torch.from_numpy(place).to(flat.device)] = taken * off
    ends = np.append(starts[:, 0], total)
    return _Patches(ends, torch.from_numpy(where).to(flat.device), numbers, True)


def _starts(edges: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """(S, P) where the changes of each sample and placement begin, a sample's together."""
    counts = np.stack([np.diff(each) for each in edges], axis=1)
    ends = np.cumsum(counts).reshape(counts.shape)
    found: NDArray[np.int64] = ends - counts
    return found


def _changed_words(
    points: Points, tables: Mapping[Placement, WordTable], stretch: _Stretch
) -> _Patches:
    """The changes of faults whose coordinates act on a word together."""
    rows, where, numbers, flat = [], [], [], stretch.flat
    for p, table in tables.items():
        row, columns, values = _changes_at(points, p)
        struck = values != 0
        row, *found = table.fault.hits(row[struck], columns[struck], p.shape)
        units, masks = (torch.from_numpy(part).to(flat.device) for part in found)
        rows.append(row)
        where.append(units + stretch.starts[p.site.module])
        numbers.append(table.struck(units, masks).to(flat))
    every = np.concatenate(rows), torch.cat(where), torch.cat(numbers)
    return _Patches.of_rows(points.count, *every, adds=False)


def _differences(
    points: Points, p: Placement
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats | float]:
    """Edges (S + 1,) and columns (n,) of its changes, and by how much they differ from the base:
    (n,), or all by the same."""
    own = [c for c in points.changes if (c.start, c.stop) == (p.start, p.stop)]
    base, one = points.base[p.start : p.stop], own[0] if own else None
    if isinstance(one, Listed) and isinstance(one.values, float) and is_no_fault(base):
        return one.edges, np.asarray(one.columns, np.int64), one.values
    rows, columns, values = _changes_at(points, p)
    edges = np.searchsorted(rows, np.arange(points.count + 1))
    return edges, columns, values - base[columns]


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
