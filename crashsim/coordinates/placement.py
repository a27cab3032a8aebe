"""Faults at the sites of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from crashsim_theory import Moments

from crashsim.arguments import as_float, shown
from crashsim.arrays import Floats
from crashsim.coordinates.stored_faults import as_stored
from crashsim.errors import ArgumentError, SiteError
from crashsim.faults import Fault, faults_by_site
from crashsim.faults.checks import STRONGEST
from crashsim.model.sites import Site, select_sites

Faults = Fault | Mapping[str, Fault]


@dataclass(frozen=True)
class Placement:
    """A fault at a site: coordinates ``start`` to ``stop`` of the space."""

    site: Site
    fault: Fault
    start: int
    stop: int

    def __hash__(self) -> int:
        return self.start  # placements of a space differ in it, and it takes the least time

    @property
    def size(self) -> int:
        return self.stop - self.start


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


def place(faults: Faults, sites: str, available: list[Site]) -> list[Placement]:
    """Faults at their sites, sites in order of execution within each name."""
    placements: list[Placement] = []
    start = 0
    for pattern, fault in faults_by_site(faults, sites).items():
        for site in select_sites(available, pattern, fault.strikes):
            if 0 in site.shape:
                raise SiteError(f"sites={pattern!r}: {site.name!r} is empty; choose other sites")
            struck = as_stored(fault, site)
            stop = start + struck.coordinate_count(site.shape)
            placements.append(Placement(site, struck, start, stop))
            start = stop
    _check_reach([p.site for p in placements], available)
    return placements


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
            if abs(as_float(value)) > most:
                raise ArgumentError(
                    f"{type(fault).__name__}: {field.name}={shown(value)} is too large for "
                    f"{dtype}; give at most {most:.2g}"
                )


def strikes_singly(placement: Placement) -> bool:
    """Whether each coordinate is a crash of one unit or weight: 0 or 1, and 1 zeroes it alone."""
    fault = placement.fault
    return fault.zeroes and fault.is_binary and fault.group_size(placement.site.shape) == 1


def moments_of(placement: Placement) -> Moments:
    """Moments of the placement's coordinates, each (size,)."""
    fault = placement.fault
    found = fault.law.moments(**fault.law_parameters)
    return Moments(
        *(np.full(placement.size, k) for k in (found.mean, found.k2, found.k3, found.k4))
    )


def nodes_of(placement: Placement) -> tuple[Floats, Floats]:
    """Quadrature nodes and weights of the placement's coordinates, each (nodes, size)."""
    fault = placement.fault
    nodes, weights = fault.law.nodes(**fault.law_parameters)
    shape = (len(nodes), placement.size)
    return (
        np.broadcast_to(nodes.reshape(len(nodes), -1), shape),
        np.broadcast_to(weights.reshape(len(weights), -1), shape),
    )
