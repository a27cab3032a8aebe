"""What a score says of the model, the faults and the versions behind its numbers, as plain data."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import cast

import numpy as np

from crashsim.analytic import first_order
from crashsim.coordinates.placement import Placement
from crashsim.results.schema import CoordinateFacts, FaultFacts, ModelFacts, SiteFacts
from crashsim.space import FaultSpace

_TOP = 20  # fault coordinates listed by their share of the variance


def describe_model(space: FaultSpace, names: Mapping[str, str]) -> ModelFacts:
    facts: ModelFacts = {
        "name": names.get("model") or type(space.model).__name__,
        "class": type(space.model).__name__,
        "parameters": sum(p.numel() for p in space.model.parameters()),
        "dtype": str(space.dtype).removeprefix("torch."),
    }
    if space.readout.name:
        facts["readout"] = space.readout.name
    return facts


def describe_fault(placement: Placement) -> FaultFacts:
    facts = {**placement.fault.facts(), "site": placement.site.name}
    if (count := placement.count) is not None:
        facts["count"] = count.struck
        facts["of"] = count.size
    return cast(FaultFacts, facts)


def describe_sites(space: FaultSpace, analysis: first_order.Analysis) -> list[SiteFacts]:
    shares = analysis.shares
    found: list[SiteFacts] = []
    for p in space.placements:
        facts: SiteFacts = {
            "name": p.site.name,
            "kind": p.site.kind,
            "shape": list(p.shape),
            "fault": p.fault.name,
            "coordinates": p.size,
            "share": None if shares is None else float(shares[p.start : p.stop].sum()),
        }
        if p.steps > 1:
            facts["steps"] = p.steps
        found.append(facts)
    return found


def leading_coordinates(space: FaultSpace, analysis: first_order.Analysis) -> list[CoordinateFacts]:
    """The coordinates with the largest shares of the variance, largest first."""
    shares = analysis.shares
    if shares is None:
        return []
    found: list[CoordinateFacts] = []
    for i in np.argsort(-shares, kind="stable")[:_TOP]:
        p = next(p for p in space.placements if p.start <= i < p.stop)
        local = int(i) - p.start
        exact_index = p.size == p.units and len(p.shape) > 0
        index = np.unravel_index(local, p.shape) if exact_index else (local,)
        found.append(
            {"site": p.site.name, "index": [int(j) for j in index], "share": float(shares[i])}
        )
    return found


def versions() -> dict[str, str]:
    packages = ("crashsim", "torch", "numpy", "scipy", "sympy", "brian2")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
