"""What can be protected alone: groups of coordinates, what they cost, and how much harm they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.coordinates.parts import Parts, parts_of
from crashsim.coordinates.placement import Placement
from crashsim.faults import WordFault
from crashsim.protection.adviser.margins import Margins
from crashsim.protection.schemes import ClipActivations, Cost, Part, Scheme
from crashsim.space import FaultSpace

_VALUES = 2**20  # gains at once
_TOGETHER = 2  # bits of a word that are protected together, where they can be chosen one by one

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of coordinates of the unprotected faults: parts of the network, or each by itself.

    Attributes:
        space: of the faults.
        parts: which coordinates belong together; None: each is a group.
        macs: multiply-accumulates with which each site's values are computed, by site.
    """

    space: FaultSpace
    parts: Parts | None
    macs: dict[str, float]

    @classmethod
    def of(cls, space: FaultSpace, by: Sequence[str] | None, macs: dict[str, float]) -> Groups:
        """Groups by names of parts, as of ``crashsim.coordinates.part_names``.

        Raises:
            ArgumentError: there are no such parts.
        """
        return cls(space, None if by is None else parts_of(space.placements, by), macs)

    def __len__(self) -> int:
        return self.space.N if self.parts is None else len(self.parts)

    def of_placement(self, number: int) -> Ints:
        """(size,) the group of each coordinate of a placement."""
        p = self.space.placements[number]
        if self.parts is None:
            return np.arange(p.start, p.stop)
        return self.parts.of_placement(number).astype(np.int64)

    @property
    def typical(self) -> tuple[float, int]:
        """The mean probability of a fault, and about how many bits of a word share a group or are
        chosen together; 1 of neurons."""
        placements = self.space.placements
        p = sum(p.fault.change_probability * p.size for p in placements) / self.space.N
        bits = max(max(_bits(p) for p in placements), 1)
        splits = self.parts is None or not {"bit", "field", "word"}.isdisjoint(self.parts.by)
        return p, min(bits, _TOGETHER) if splits else bits

    @cached_property
    def _sites(self) -> list[Ints]:
        """Of each placement, (size,) the groups."""
        return [self.of_placement(i) for i in range(len(self.space.placements))]

    def coordinates(self, chosen: NDArray[np.bool_]) -> dict[str, Ints]:
        """The coordinates of some groups (groups,) at each site, counted from its first."""
        found = {}
        for p, groups in zip(self.space.placements, self._sites, strict=True):
            local = np.flatnonzero(chosen[groups])
            if len(local):
                found[p.site.name] = local
        return found

    def costs(self, scheme: Scheme) -> Floats:
        """(groups,) the overhead of a scheme at each group by itself; without rounding to blocks.

        Infinite where it protects nothing of it.
        """
        total = np.zeros(len(self))
        there = np.zeros(len(self), dtype=np.bool_)
        for p, groups in zip(self.space.placements, self._sites, strict=True):
            if not scheme.applies(p.site):
                continue
            sizes = np.bincount(groups, minlength=len(self)) if self.parts is not None else None
            if sizes is None:
                each = self.overhead(self._cost_of(scheme, p, p.size)) / p.size
                total[groups] += each
                there[groups] = True
                continue
            for g in np.flatnonzero(sizes).tolist():
                total[g] += self.overhead(self._cost_of(scheme, p, int(sizes[g])))
                there[g] = True
        return np.where(there, total, np.inf)

    def cost(self, scheme: Scheme, coordinates: dict[str, Ints]) -> dict[str, Cost]:
        """The cost of a scheme for these coordinates, by site."""
        found = {}
        for p in self.space.placements:
            local = coordinates.get(p.site.name)
            if local is not None and len(local):
                words = len(np.unique(local // _bits(p))) if _bits(p) else 0
                found[p.site.name] = self._cost_of(scheme, p, len(local), words)
        return found

    def _cost_of(self, scheme: Scheme, p: Placement, count: int, words: int | None = None) -> Cost:
        if bits := _bits(p):
            whole = min(p.units, count) if words is None else words
            rows = p.shape[0] if len(p.shape) > 1 else 1
            return scheme.cost(Part(bits=count, words=whole, groups=min(rows, count // bits + 1)))
        macs = self.macs.get(p.site.name, 0.0) * count / p.size
        return scheme.cost(Part(units=count * p.units // p.size, macs=macs))

    def cost_of_whole(self, scheme: Scheme) -> list[Cost]:
        """The costs of a scheme for the whole network."""
        if isinstance(scheme, ClipActivations):
            sites = [s for s in self.space.available_sites if s.kind == "activation"]
            sites = [s for s in sites if s.role != "guard"]
            ranges = sum(s.shape[0] if scheme.per == "channel" else 1 for s in sites if s.shape)
            return [scheme.cost(Part(units=sum(s.size for s in sites), groups=ranges))]
        there = [p for p in self.space.placements if scheme.applies(p.site)]
        return [self._cost_of(scheme, p, p.size) for p in there]

    def share(self, chosen: NDArray[np.bool_]) -> float:
        """The share of the coordinates that some groups (groups,) are."""
        count = sum(len(local) for local in self.coordinates(chosen).values())
        return count / self.space.N

    def overhead(self, cost: Cost) -> float:
        """A cost as a share of what the network has: of its struck bits, and of its operations."""
        bits = sum(p.size for p in self.space.placements if _bits(p))
        share = cost.bits / bits if bits else 0.0
        return share + (cost.macs / self.macs["all"] if self.macs.get("all") else 0.0)


def _bits(p: Placement) -> int:
    """Coordinates of a word; 0 where neurons are struck."""
    return len(p.fault.masks) if isinstance(p.fault, WordFault) else 0


@dataclass(frozen=True, eq=False)
class Harm:
    """How much harm each coordinate's fault does, to first order, by placement: one measure of it.

    Attributes:
        faults: (size,) of each placement: what is gained where the fault is taken away.
        zeros: (size,) what is lost again where its word, or neuron, becomes 0 in its place.
    """

    faults: tuple[Floats, ...]
    zeros: tuple[Floats, ...]

    @classmethod
    def measures(cls, margins: Margins) -> list[Harm]:
        """Three sums over the margins of the examples that are right, by their linear prediction.

        With z = gain / margin of a fault: of z^2, at most 1, what it adds to the margins' variance,
        which is what counts where many faults act together; the same with each margin weighed by
        how much its chance to fall grows with its variance; and of how many margins it takes all,
        z >= 1, as where faults are so rare that each acts alone.
        """
        sums: list[list[Floats]] = [[] for _ in range(6)]
        right = (margins.clean > 0).all(axis=1, keepdims=True)
        columns = np.flatnonzero(np.broadcast_to(right, margins.clean.shape).reshape(-1))
        clean = margins.clean.reshape(-1)[columns]
        weights = _weights(margins, columns, clean)
        placed = zip(margins.space.placements, margins.slopes, strict=True)
        for number, (p, slopes) in enumerate(placed):
            chance = np.broadcast_to(
                np.asarray(p.fault.change_probabilities, dtype=np.float64), p.size
            )
            relative = (slopes[:, columns] / -clean).astype(np.float32)
            if not isinstance(p.fault, WordFault):
                found = [
                    chance * part for part in _taken(relative, np.ones((len(slopes), 1)), weights)
                ]
                zeros = found
            else:
                moves = margins.moves(number)
                value = margins.space.tensors[p.site.module].detach().reshape(-1, 1)
                zero = _taken(relative, -value.double().cpu().numpy(), weights)
                found = [chance * part for part in _taken(relative, moves, weights)]
                zeros = [chance * np.repeat(part, moves.shape[1]) for part in zero]
            for into, part in zip(sums, (*found, *zeros), strict=True):
                into.append(part)
        return [cls(tuple(sums[i]), tuple(sums[3 + i])) for i in range(3)]

    def by_group(self, groups: Groups, zeroed: bool = False) -> Floats:
        """(groups,) summed."""
        found = np.zeros(len(groups))
        for number, harm in enumerate(self.zeros if zeroed else self.faults):
            if groups.parts is None:
                found[groups.of_placement(number)] = harm
            else:
                found += np.bincount(groups.of_placement(number), harm, len(groups))
        return found


def _weights(margins: Margins, columns: Ints, clean: Floats) -> NDArray[np.float32]:
    """(C,) how much the chance that each margin falls grows with its variance, at most 1.

    Of a normal margin u standard deviations from 0 that is u^3 phi(u) / 2 times the relative
    growth; the largest is taken for 1.
    """
    variance = np.zeros(len(columns))
    placed = zip(margins.space.placements, margins.slopes, strict=True)
    for number, (p, slopes) in enumerate(placed):
        second = np.broadcast_to(np.asarray(p.fault.change_probabilities), p.size)
        if isinstance(p.fault, WordFault):
            moves = margins.moves(number)
            with np.errstate(over="ignore", invalid="ignore"):
                second = (second.reshape(moves.shape) * np.nan_to_num(moves**2)).sum(1)
        with np.errstate(over="ignore", invalid="ignore"):
            variance += np.nan_to_num(second @ slopes[:, columns].astype(np.float64) ** 2)
    u = clean / np.sqrt(np.maximum(variance, 1e-300))
    found = u**3 * np.exp(-(u**2) / 2)
    return np.asarray(found / max(found.max(initial=0.0), 1e-300), dtype=np.float32)


def _taken(
    relative: NDArray[np.float32], moves: Floats, weights: NDArray[np.float32]
) -> tuple[Floats, Floats, Floats]:
    """Sums over margins of faults (values, bits), flat: squares, weighed ones, margins they take.

    Args:
        relative: (values, margins) by which share of each margin a value's unit step lowers it.
        moves: (values, bits) what each fault moves its value by.
        weights: (margins,) of squares.
    """
    found = np.zeros((3, *moves.shape))
    step = max(1, _VALUES // max(relative.shape[1], 1))
    for low in range(0, len(moves), step):
        rows = slice(low, low + step)
        for bit in range(moves.shape[1]):
            move = moves[rows, bit, None].astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                z = np.nan_to_num(relative[rows] * move, nan=1.0)
                found[2, rows, bit] = (z >= 1).sum(1)
                np.square(z, out=z)
                np.minimum(z, 1.0, out=z)
            found[0, rows, bit], found[1, rows, bit] = z.sum(1), z @ weights
    squares, weighed, taken = found.reshape(3, -1)
    return squares, weighed, taken
