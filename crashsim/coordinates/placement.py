"""Faults at the sites of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from crashsim_theory import Moments
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arguments import as_float, shown
from crashsim.arrays import Floats
from crashsim.coordinates.counts import Count
from crashsim.coordinates.stored_faults import as_stored
from crashsim.errors import ArgumentError, NotApplicableError, SiteError
from crashsim.faults import (
    BernoulliFault,
    Fault,
    Rates,
    WordFault,
    check_fault,
    counted,
    faults_by_site,
)
from crashsim.faults.checks import STRONGEST
from crashsim.model.sites.site import Site, select_sites
from crashsim.model.twins.protected_module import ResidualLaw

DEPENDENT = (
    "for faults that strike independently of each other; of an exact number of them (count=), one "
    "excludes another"
)

Faults = Fault | Mapping[str, Fault]


@dataclass(frozen=True)
class Placement:
    """A fault of the same neurons or weights: coordinates ``start`` to ``stop`` of the space.

    A permanent fault strikes the same neurons in every step: in each call of their module, and in
    each step of a value that holds many.

    Attributes:
        sites: the calls in which the neurons are struck; one of weights, inputs, and what runs
            once.
        fault: what strikes.
        start, stop: the coordinates.
        count: of how many coordinates, these among them, exactly how many are struck; None where
            each is struck on its own. ``fault`` then has the probability of each.
        tied: the axes of a value in all of whose positions a coordinate acts: that of the steps,
            for a permanent fault; all but the features, for a fault of those.
    """

    sites: tuple[Site, ...]
    fault: Fault
    start: int
    stop: int
    count: Count | None = None

    def __hash__(self) -> int:
        return self.start  # placements of a space differ in it, and it takes the least time

    @property
    def site(self) -> Site:
        """The first call."""
        return self.sites[0]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.stop - self.start

    @cached_property
    def tied(self) -> tuple[int, ...]:
        steps = self.site.steps
        if not self.fault.is_of_features:
            return () if steps is None or self.fault.duration == "transient" else (steps,)
        kept = {self.site.features, steps if self.fault.duration == "transient" else None}
        return tuple(axis for axis in range(len(self.site.shape)) if axis not in kept)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of what the coordinates strike: that of a step, where steps are tied."""
        return tuple(n for axis, n in enumerate(self.site.shape) if axis not in self.tied)

    @cached_property
    def units(self) -> int:
        """Number of neurons or weights."""
        return math.prod(self.shape)

    @property
    def steps(self) -> int:
        """Number of time steps or calls in which the same neurons are."""
        if self.site.steps is None:
            return len(self.sites)
        if self.site.steps not in self.tied:
            return 1
        return sum(1 if s.steps is None else s.shape[s.steps] for s in self.sites)

    @property
    def acts_once(self) -> bool:
        """Whether each coordinate acts in a single call, on a value of one step."""
        return len(self.sites) == 1 and not self.tied and not self.site.is_inside

    @property
    def _places(self) -> tuple[list[int], list[int]]:
        """Where the tied axes are in values (S, b, *site.shape), and where they come to front."""
        return [2 + axis for axis in self.tied], [2 + i for i in range(len(self.tied))]

    def by_step(self, rows: Tensor, site: Site) -> Tensor:
        """(S, b T, *shape) values of T positions, one after the other.

        Args:
            rows: (S, b, *site.shape).
            site: one of ``sites``.
        """
        if not self.tied:
            return rows
        moved = rows.movedim(*self._places)
        return moved.reshape(moved.shape[0], -1, *self.shape)

    def together(self, rows: Tensor, site: Site, like: Tensor) -> Tensor:
        """The inverse of ``by_step``, of the shape of ``like``."""
        if not self.tied:
            return rows.reshape(like.shape)
        positions = [site.shape[axis] for axis in self.tied]
        moved = rows.reshape(like.shape[0], -1, *positions, *self.shape)
        there, front = self._places
        return moved.movedim(front, there)

    @property
    def _window(self) -> tuple[int, int] | None:
        """The steps of a call in which the fault acts; None for all.

        Of calls of one step each, those in the window are the sites.
        """
        steps = self.site.steps
        one_by_one = steps is not None and self.site.shape[steps] == 1
        return None if one_by_one else self.fault.window

    def acts_in(self, step: int) -> bool:
        """Whether the fault acts in this step of a call."""
        return self._window is None or self._window[0] <= step < self._window[1]

    def in_window(self, struck: Tensor, clean: Tensor, site: Site) -> Tensor:
        """Values (S, b, *site.shape) that are struck in the fault's window, and clean outside."""
        if self._window is None or site.steps is None or site.steps not in self.tied:
            return struck
        start, stop = self._window
        at = torch.arange(site.shape[site.steps], device=struck.device)
        shape = [1] * struck.dim()
        shape[2 + site.steps] = -1
        return torch.where(((at >= start) & (at < stop)).view(shape), struck, clean)

    def perturb(self, value: Tensor, e: Tensor, site: Site) -> Tensor:
        """The faulty value of a call, differentiable in the coordinates.

        Args:
            value: (S, b, *site.shape), the clean value.
            e: (S, 1 or b, size).
            site: one of ``sites``.
        """
        if not self.tied:
            return self.fault.perturb(value, e, self.shape)
        there, front = self._places
        for _ in self.tied:
            e = e[:, :, None]
        struck = self.fault.perturb(value.movedim(there, front), e, self.shape)
        return self.in_window(struck.movedim(front, there), value, site)

    def perturb_step(self, h: Tensor, e: Tensor, direction: int, step: int) -> Tensor:
        """The faulty output of a recurrent layer's step, before it is fed back.

        Args:
            h: (S, b, H) of one direction.
            e: (S, 1 or b, units) the coordinates written out for each unit, as in ``by_unit``.
            direction: 0, or 1 for the layer's way back.
            step: number of the step.
        """
        if not self.acts_in(step):
            return h
        first = direction * h.shape[-1] + (0 if self.tied else step * self.site.shape[-1])
        if isinstance(self.fault, WordFault):
            each = len(self.fault.masks)
            struck = e[..., first * each : (first + h.shape[-1]) * each]
            return self.fault.perturb(h, struck, (h.shape[-1],))
        struck = e[..., first : first + h.shape[-1]]
        return self.fault.perturb_units(h, struck, (h.shape[-1],))

    def by_unit(self, e: Tensor) -> Tensor:
        """Coordinates (..., size) written out for each unit (..., units)."""
        size = self.fault.group_size(self.shape)
        return e if size == 1 else e.repeat_interleave(size, -1)[..., : self.units]


def patterns_of(faults: Faults, sites: str) -> list[str]:
    """The names and globs that faults are given for; "hidden" is "weights" for faults of those."""
    given = faults if isinstance(faults, Mapping) else {sites: faults}
    return [
        "weights"
        if name == "hidden" and isinstance(fault, Fault) and fault.strikes == "weights"
        else name
        for name, fault in given.items()
        if isinstance(name, str)
    ]


def place(
    faults: Faults,
    sites: str,
    available: list[Site],
    dtype: torch.dtype = torch.float32,
    residual: ResidualLaw | None = None,
) -> list[Placement]:
    """Faults at their sites, sites in order of execution within each name.

    Args:
        faults: to place.
        sites: that a single fault strikes.
        available: the model's.
        dtype: of the numbers that it stores.
        residual: what protection leaves of a fault; None: nothing is protected.
    """
    placements: list[Placement] = []
    start = 0
    for pattern, fault in faults_by_site(faults, sites).items():
        placed: list[Placement] = []
        for calls in _same_neurons(select_sites(available, pattern, fault.strikes), fault):
            if 0 in calls[0].shape:
                raise SiteError(
                    f"sites={pattern!r}: {calls[0].name!r} is empty; choose other sites"
                )
            if fault.is_of_features and calls[0].features is None:
                raise SiteError(
                    f"sites={pattern!r}: no linear or convolutional layer shows which axis of "
                    f"{calls[0].name!r} {calls[0].shape} holds the features; give group='unit', or "
                    "other sites"
                )
            one = Placement(calls, as_stored(fault, calls[0], dtype), start, start)
            if residual is not None:
                one = replace(one, fault=residual(one.fault, one.site, one.shape))
            stop = start + one.fault.coordinate_count(one.shape)
            placed.append(replace(one, stop=stop))
            start = stop
        placements += [_settled(p) for p in _counted(placed, fault)]
    _check_reach([site for p in placements for site in p.sites], available)
    return placements


def _counted(placed: list[Placement], fault: Fault) -> list[Placement]:
    """The placements of one fault, which say with which others an exact number is struck.

    Raises:
        ArgumentError: there are fewer coordinates than are to be struck.
    """
    if not isinstance(fault, BernoulliFault) or fault.count is None:
        return placed
    is_per_site = fault.per == "site"
    found = []
    for group in [[p] for p in placed] if is_per_site else [placed]:
        count = Count(fault.count, group[0].start, group[-1].stop, is_per_site)
        if count.struck > count.size:
            names = ", ".join(repr(p.site.name) for p in group[:5])
            raise ArgumentError(
                f"{type(fault).__name__}: count={fault.count}: there are {count.size} to strike at "
                f"{names}; give at most as many"
            )
        share: dict[str, Any] = {"p": count.share, "count": None, "per": "all"}
        found += [replace(p, fault=replace(p.fault, **share), count=count) for p in group]
    return found


def _settled(placement: Placement) -> Placement:
    """The placement with the rates that its fault has there."""
    fault = placement.fault.at(placement.site, placement.shape)
    if fault is not placement.fault:
        check_fault(fault)
    return replace(placement, fault=fault)


def with_fault(placement: Placement, fault: Fault) -> Placement:
    """The placement with another fault, of as many coordinates.

    Raises:
        ArgumentError: one of the two strikes an exact number of coordinates.
    """
    if placement.count is not None or counted(fault):
        raise ArgumentError(
            f"faults: {fault}: with_faults changes faults that strike independently, and count= "
            "ties those of several sites; make a new FaultSpace"
        )
    check_fault(fault)
    return _settled(replace(placement, fault=fault))


def counts_of(placements: Sequence[Placement]) -> tuple[Count, ...]:
    """The groups of coordinates of which an exact number is struck, in order."""
    return tuple(dict.fromkeys(p.count for p in placements if p.count is not None))


def check_independent(placements: Sequence[Placement], what: str) -> None:
    """Raises NotApplicableError where coordinates depend on each other.

    Args:
        placements: to check.
        what: what is for independent coordinates, as the message begins.
    """
    if counts_of(placements):
        raise NotApplicableError(f"{what} {DEPENDENT}")


def _same_neurons(sites: Sequence[Site], fault: Fault) -> list[tuple[Site, ...]]:
    """The calls that a fault's coordinates share: those of the same neurons, if it is permanent.

    Raises:
        SiteError: a window leaves none of the steps, or counts steps of several calls.
    """
    if fault.duration == "transient":
        return [(site,) for site in sites]
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.units or site.name, []).append(site)
    if fault.window is None:
        return [tuple(group) for group in groups.values()]
    start, stop = fault.window
    found = []
    for group in groups.values():
        steps = group[0].steps
        if len(group) > 1:
            if steps is not None and any(site.shape[steps] > 1 for site in group):
                raise SiteError(
                    f"{type(fault).__name__}: window={fault.window}: {group[0].name!r} runs in "
                    f"{len(group)} calls of several steps, so that it is not clear which steps "
                    "these are; call it once, or step by step, or leave the window out"
                )
            group = group[start:stop]
        elif steps is None or start >= group[0].shape[steps]:
            group = []
        if group:
            found.append(tuple(group))
    if not found:
        names = ", ".join(repr(name) for name in list(groups)[:5])
        raise SiteError(
            f"{type(fault).__name__}: window={fault.window}: {names} run in no such steps; leave "
            "the window out, or give steps that the model has"
        )
    return found


def _check_reach(struck: list[Site], available: list[Site]) -> None:
    """Raises SiteError where no fault can change the output: the answer would always be zero."""
    if any(site.is_read for site in struck):
        return
    names = ", ".join(repr(site.name) for site in struck[:5])
    others = [repr(s.name) for s in available if s.kind != "parameter" and s.is_read]
    more = f" and {len(others) - 20} more" if len(others) > 20 else ""
    raise SiteError(
        f"sites: the output does not depend on {names}, so faults there change nothing (as found "
        f"with the first input); choose among: {', '.join(others[:20]) or 'none'}{more}"
    )


def check_strength(placements: list[Placement], dtype: torch.dtype) -> None:
    """Raises ArgumentError for a fault of numbers that the model or their moments cannot hold."""
    most = min(torch.finfo(dtype).max, STRONGEST)
    for fault in {p.fault for p in placements}:
        for field in fields(fault):
            value = getattr(fault, field.name)
            size = value.array if isinstance(value, Rates) else as_float(value)
            if np.any(np.abs(size) > most):
                raise ArgumentError(
                    f"{type(fault).__name__}: {field.name}={shown(value)} is too large for "
                    f"{dtype}; give at most {most:.2g}"
                )


def check_acts_once(placement: Placement) -> None:
    """Raises NotApplicableError where the same neurons are struck in many steps or calls."""
    if not placement.acts_once:
        raise NotApplicableError(
            f"for neurons that act once in a forward pass; those of {placement.site.name!r} act in "
            "many steps"
        )


def strikes_singly(placement: Placement) -> bool:
    """Whether each coordinate is a crash of one unit or weight: 0 or 1, and 1 zeroes it alone."""
    fault = placement.fault
    return fault.zeroes and fault.is_binary and fault.group_size(placement.shape) == 1


def moments_of(placement: Placement) -> Moments:
    """Moments of the placement's coordinates, each (size,), without memory where all are alike."""
    fault = placement.fault
    found = fault.law.moments(**fault.law_parameters)
    return Moments(
        *(np.broadcast_to(k, placement.size) for k in (found.mean, found.k2, found.k3, found.k4))
    )


def moments_at(
    placements: Sequence[Placement], columns: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Mean and variance of some coordinates, each (n,)."""
    mean, k2 = np.empty((2, len(columns)))
    owners = np.searchsorted([p.stop for p in placements], columns, side="right")
    for number in np.unique(owners):
        p, mine = placements[number], owners == number
        moments = moments_of(p)
        mean[mine] = moments.mean[columns[mine] - p.start]
        k2[mine] = moments.k2[columns[mine] - p.start]
    return mean, k2


def nodes_of(placement: Placement) -> tuple[Floats, Floats]:
    """Quadrature nodes and weights of the placement's coordinates, each (nodes, size)."""
    fault = placement.fault
    nodes, weights = fault.law.nodes(**fault.law_parameters)
    shape = (len(nodes), placement.size)
    return (
        np.broadcast_to(nodes.reshape(len(nodes), -1), shape),
        np.broadcast_to(weights.reshape(len(weights), -1), shape),
    )
