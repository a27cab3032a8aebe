"""What a block of points changes at each site, and how changed activations are computed.

A point differs from its base in few coordinates, which are listed, or in many, and then all of them
are written out. Where faults are rare, nothing of size (samples x coordinates) is ever built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crashsim.coordinates.drawing import LISTED
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Listed, Points, Written, is_no_fault
from crashsim.faults.words.word_fault import BitSteps, WordFault, WordTable
from crashsim.model.sites.site import Site

# Up to this share of struck units, reading and writing them one by one is faster than a mask.
SCATTERED = 0.05
# In a linear layer, a weight gathered for a crash costs about four times as much as one in a matrix
# product, and the lists of crashes cost something too: up to these shares crashes are followed.
RARE_NEURONS = LISTED
RARE_WEIGHTS = 1 / 32
LOOKED_UP = 2**20  # bits of a parameter, of which no more are written out


@dataclass(frozen=True)
class Changes:
    """What S points change at one placement.

    Attributes:
        placement: the fault and its site.
        count: number of points S.
        found: the changes, or all coordinates.
        base: (size,) the coordinates that are not changed, groups of neurons written out as the
            units that die together; None where all are zero.
        sparse: whether changes are rare enough to be made one by one.
        like: a tensor of the device and number type to compute with.
    """

    placement: Placement
    count: int
    found: Listed | Written
    base: Tensor | None
    sparse: bool
    like: Tensor

    @property
    def is_single(self) -> bool:
        """Whether no more than one coordinate changes per point, on average."""
        return isinstance(self.found, Listed) and len(self.found.columns) <= self.count

    @property
    def mean_number(self) -> float:
        """How many coordinates change per point, on average."""
        if isinstance(self.found, Listed):
            return len(self.found.columns) / max(self.count, 1)
        return float(self.found.e.shape[1])

    def part(self, start: int, stop: int) -> Changes:
        """Those of points ``start`` to ``stop``."""
        return replace(self, count=stop - start, found=self.found.part(start, stop))

    def among(self, points: NDArray[np.int64]) -> Changes:
        """Those of some points, in any order."""
        return replace(self, count=len(points), found=self.found.among(points))

    @cached_property
    def _list(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edges, rows, units and values, groups of neurons written out."""
        assert isinstance(self.found, Listed)
        device = self.like.device
        edges = torch.from_numpy(self.found.edges).to(device)
        units = torch.from_numpy(np.ascontiguousarray(self.found.columns)).to(device)
        values = torch.as_tensor(self.found.values, dtype=self.like.dtype, device=device)
        rows = torch.repeat_interleave(
            torch.arange(self.count, device=device, dtype=units.dtype),
            edges.diff(),
            output_size=len(units),
        )
        size = self._group_size
        if size == 1:
            return edges, rows, units, values
        units = units[:, None] * size + torch.arange(size, device=device, dtype=units.dtype)
        inside = units < self.placement.units  # the last group may be short
        rows = rows[:, None].expand_as(units)[inside]
        if values.dim():
            values = values[:, None].expand_as(units)[inside]
        every = torch.arange(self.count + 1, device=device, dtype=rows.dtype)
        edges = torch.searchsorted(rows, every)
        return edges, rows, units[inside], values

    @property
    def edges(self) -> Tensor:
        """(S + 1,) where each point's changes begin, and where the last one's end."""
        return self._list[0]

    @property
    def rows(self) -> Tensor:
        """(n,) the point of each change, in order."""
        return self._list[1]

    @property
    def units(self) -> Tensor:
        """(n,) the coordinate of each change."""
        return self._list[2]

    @property
    def values(self) -> Tensor:
        """(n,) the coordinates' new values, or () the one that all take."""
        return self._list[3]

    def quotients(self, divisor: int) -> Tensor:
        """(n,) the changed coordinates divided by a number, rounded down."""
        assert isinstance(self.found, Listed)
        # numpy divides integers several times as fast as torch.
        return torch.from_numpy(self.found.columns // divisor).to(self.like.device)

    def differences(self) -> Tensor:
        """(n,) or () by how much each coordinate differs from the base."""
        return self.values if self.base is None else self.values - self.base[self.units]

    @cached_property
    def words(self) -> StruckWords | None:
        """The struck words, where several struck bits of one act together; else None."""
        fault = self.placement.fault
        if not isinstance(fault, WordFault) or fault.adds_up or self.base is not None:
            return None
        rows, columns, values = self.found.listed()
        struck = values != 0
        found = fault.hits(rows[struck], columns[struck] - self.found.start, self.placement.shape)
        return StruckWords(*(torch.from_numpy(part).to(self.like.device) for part in found))

    def by_weight(
        self, steps: Tensor | BitSteps | WordTable, number: int, row: int
    ) -> WeightChanges:
        """What changes of weights add to them; the changes of one weight's bits may be several.

        Args:
            steps: (size,) the displacement of each coordinate; or the weights' words.
            number: of weights.
            row: number of weights in a row.
        """
        if isinstance(steps, WordTable):
            assert self.words is not None
            samples, weights, masks = self.words
            taken = steps.struck(weights, masks) - steps.values.index_select(0, weights)
            return WeightChanges(samples, weights // row, weights, taken)
        each = self.placement.size // number  # coordinates of a weight
        return WeightChanges(
            self.rows,
            self.quotients(row * each),
            self.quotients(each) if each > 1 else self.units,
            self.differences() * steps.index_select(0, self.units),
        )

    def dense(self) -> Tensor:
        """(S, size) all coordinates."""
        if isinstance(self.found, Written):
            e = torch.from_numpy(self.found.e).to(self.like.device)
            return self._by_unit(e).to(self.like.dtype)
        width = self.placement.units if self._group_size > 1 else self.placement.size
        base = self.like.new_zeros(width) if self.base is None else self.base
        e = base.repeat(self.count, 1)
        where = (self.rows * width + self.units).long()
        e.view(-1).index_copy_(0, where, self.values.expand(len(where)))
        return e

    def _by_unit(self, e: Tensor) -> Tensor:
        """Coordinates (S, n) as those of the units (S, size)."""
        size = self._group_size
        return e if size == 1 else e.repeat_interleave(size, 1)[:, : self.placement.units]

    @property
    def _is_whole(self) -> bool:
        """Whether every change sets its coordinate to 1."""
        values = self.found.values if isinstance(self.found, Listed) else None
        return isinstance(values, float) and values == 1

    @property
    def _is_crash(self) -> bool:
        return self.placement.fault.zeroes

    @cached_property
    def _group_size(self) -> int:
        return _group_size(self.placement)

    def _places(self, batch: int, size: int) -> Tensor:
        """Where the changes lie in (S, batch, size) values, in order; kept for further calls."""
        if (batch, size) not in self._known_places:
            first = self.rows * (batch * size) + self.units
            each = size * torch.arange(batch, device=first.device)
            where = (first[:, None] + each).view(-1) if batch > 1 else first.long()
            self._known_places.clear()
            self._known_places[batch, size] = where
        return self._known_places[batch, size]

    @cached_property
    def _known_places(self) -> dict[tuple[int, int], Tensor]:
        return {}

    def _kept(self) -> Tensor:
        """(S, size) 1 - e."""
        if isinstance(self.found, Written) and self.found.e.dtype == np.uint8:
            e = torch.from_numpy(self.found.e).to(self.like.device)
            return self._by_unit(1 - e).to(self.like.dtype)  # bytes take the least time
        return self.dense().neg_().add_(1)

    def apply_to_all(self, value: Tensor) -> Tensor:
        """The faulty values (S, b, n) of activations (b, n), the same for all points."""
        if not self._is_crash or (self.base is None and self.sparse):
            return self.apply(value.repeat(self.count, 1, 1))
        kept = self._kept()
        if len(value) == 1:
            return kept.mul_(value)[:, None]
        return value * kept[:, None]

    def apply(self, value: Tensor, owned: bool = True) -> Tensor:
        """The faulty value of (S, b, n) activations, contiguous; overwritten only if ``owned``."""
        fault, shape = self.placement.fault, self.placement.shape
        count, batch, size = value.shape
        if self.words is not None:
            return self._strike_words(self.words, value if owned else value.clone())
        if self.base is None and self.sparse and is_elementwise(self.placement):
            value = value if owned else value.clone()
            flat, where = value.view(-1), self._places(batch, size)
            if self._is_crash and self._is_whole:
                flat.index_fill_(0, where, 0.0)
                return value
            old = flat.index_select(0, where)
            e = self.values.expand(len(self.units))[:, None].expand(-1, batch).reshape(-1)
            struck = torch.addcmul(old, e, fault.displacement(old))
            flat.index_copy_(0, where, struck.to(flat.dtype))  # which may be of fewer bits
            return value
        if self._is_crash:
            kept = self._kept()[:, None]
            if owned:
                return value.mul_(kept)
            return kept.mul_(value) if batch == 1 else value * kept
        # Where groups are written out as units, they are not to be written out again.
        perturb = fault.perturb_units if self._group_size > 1 else fault.perturb
        faulty = perturb(value.view(count, batch, *shape), self.dense()[:, None], shape)
        return faulty.reshape(value.shape)

    def _strike_words(self, words: StruckWords, value: Tensor) -> Tensor:
        """The faulty value of (S, b, n) activations, overwritten."""
        fault = self.placement.fault
        assert isinstance(fault, WordFault)
        _, batch, size = value.shape
        each = size * torch.arange(batch, device=value.device)
        where = (words.rows * (batch * size) + words.units)[:, None] + each
        flat = value.view(-1)
        old = flat.index_select(0, where.view(-1)).view(-1, batch)
        flat.index_copy_(0, where.view(-1), fault.struck_alone(old, words.masks[:, None]).view(-1))
        return value


class WeightChanges(NamedTuple):
    """Changes (n,) of weights.

    Attributes:
        samples: which sample's.
        rows, weights: which weight, and which row it is in.
        taken: by how much it changes.
    """

    samples: Tensor
    rows: Tensor
    weights: Tensor
    taken: Tensor


class StruckWords(NamedTuple):
    """The struck words of S samples, each once: sample, unit, and mask of its struck bits, (n,)."""

    rows: Tensor
    units: Tensor
    masks: Tensor


def is_elementwise(placement: Placement) -> bool:
    """Whether the fault acts on each unit by its own coordinate, as it does on a lone number."""
    return placement.fault.is_elementwise


def steps_of(placement: Placement, value: Tensor) -> Tensor | BitSteps | WordTable:
    """What a fault of a parameter adds: (size,) of each coordinate alone, looked up for many bits;
    or the words it strikes, where what several coordinates do to one does not add up."""
    fault = placement.fault
    if isinstance(fault, WordFault) and fault.adds_up and placement.size > LOOKED_UP:
        return BitSteps.of(fault, value)
    return written_steps_of(placement, value)


def written_steps_of(placement: Placement, value: Tensor) -> Tensor | WordTable:
    """The same with all steps written out."""
    fault = placement.fault
    if isinstance(fault, WordFault) and not fault.adds_up:
        return fault.table(value)
    return fault.displacement(value).reshape(-1)


def _group_size(placement: Placement) -> int:
    """Number of consecutive units whose common coordinate is written out for each of them."""
    fault = placement.fault
    known = fault.zeroes or fault.is_elementwise
    return fault.group_size(placement.shape) if known else 1


def is_rare(placement: Placement, limit: float) -> bool:
    """Whether at most this share of the placement's coordinates is expected to be struck."""
    return placement.fault.change_probability <= limit


def split(
    points: Points, placements: Sequence[Placement], device: torch.device, dtype: torch.dtype
) -> list[Changes]:
    """The changes of each placement, in order."""
    like = torch.empty(0, device=device, dtype=dtype)
    found = []
    for p, change in zip(placements, changes_by_placement(points, placements), strict=True):
        base = points.base[p.start : p.stop]
        at_base = None
        if not is_no_fault(base):
            by_unit = p.fault.by_unit(base, p.shape) if _group_size(p) > 1 else base
            at_base = torch.from_numpy(by_unit).to(like)
        few = isinstance(change, Listed) and len(change.columns) <= points.count
        rare = isinstance(change, Listed) and is_rare(p, SCATTERED)
        found.append(Changes(p, points.count, change, at_base, rare or few, like))
    return found


def changes_by_placement(points: Points, placements: Sequence[Placement]) -> list[Listed | Written]:
    """The changes of each placement's coordinates."""
    spans = [(p.start, p.stop) for p in placements]
    if [(c.start, c.stop) for c in points.changes] == spans:
        return list(points.changes)
    rows, columns, values = points.rows, points.columns, points.values
    stops = np.array([p.stop for p in placements])
    owner = np.searchsorted(stops, columns, side="right").astype(np.uint16)
    order = np.argsort(owner, kind="stable")  # rows stay sorted within a placement
    rows, columns, values = rows[order], columns[order], values[order]
    limits = np.searchsorted(owner[order], np.arange(len(placements) + 1))
    found: list[Listed | Written] = []
    for p, first, last in zip(placements, limits[:-1], limits[1:], strict=True):
        edges = np.searchsorted(rows[first:last], np.arange(points.count + 1))
        units = columns[first:last] - p.start
        found.append(Listed(p.start, p.stop, edges, units, values[first:last]))
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
    if any(change.placement.tied for change in changes):
        return _strike_steps(moved, site, changes, count).to(value.dtype).movedim(0, site.axis)
    rows = moved.reshape(count, -1, site.size)  # steps that are folded into the batch unfolded
    rows = rows.contiguous()
    owned = owned or rows.data_ptr() != value.data_ptr()
    for change in changes:
        rows = change.apply(rows, owned).contiguous()
        owned = True
    return rows.to(value.dtype).reshape(moved.shape).movedim(0, site.axis)


def _strike_steps(moved: Tensor, site: Site, changes: Sequence[Changes], count: int) -> Tensor:
    """The same of (S b, ...) values of many steps, in each of which the same neurons fail."""
    rows = moved.reshape(count, -1, *site.shape)
    for change in changes:
        place = change.placement
        steps = place.by_step(rows, site)
        struck = change.apply(steps.reshape(count, -1, place.units).contiguous(), owned=False)
        rows = place.in_window(place.together(struck, site, rows), rows, site)
    return rows.reshape(moved.shape)


def strike_all(value: Tensor, site: Site, changes: Sequence[Changes], count: int) -> Tensor:
    """A site's value under faults, with (S b) rows, from the (b) rows that all samples share."""
    moved = value.movedim(site.axis, 0)
    if any(change.placement.tied for change in changes):
        several = moved.repeat(count, *[1] * (moved.dim() - 1))
        return _strike_steps(several, site, changes, count).to(value.dtype).movedim(0, site.axis)
    rows = changes[0].apply_to_all(moved.reshape(-1, site.size)).contiguous()
    for change in changes[1:]:
        rows = change.apply(rows).contiguous()
    return rows.to(value.dtype).reshape(count * len(moved), *moved.shape[1:]).movedim(0, site.axis)
