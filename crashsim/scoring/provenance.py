"""What a score says of the model, the faults and the versions behind its numbers, as plain data."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
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
    if space.loss is not None:
        facts["loss"] = space.loss
    return facts


def describe_fault(placement: Placement) -> FaultFacts:
    facts = {**placement.fault.facts(), "site": placement.site.name}
    if (count := placement.count) is not None:
        facts["count"] = count.struck
        facts["of"] = count.size
    return cast(FaultFacts, facts)


def describe_sites(space: FaultSpace, analysis: first_order.Analysis) -> list[SiteFacts]:
    """Each struck site, with its share of the variance."""
    shares: list[float | None] = [None] * len(space.placements)
    if analysis.by_value is not None:
        shares = list(analysis.by_value.by_placement.tolist())
    elif analysis.shares is not None:
        shares = [float(analysis.shares[p.start : p.stop].sum()) for p in space.placements]
    return [describe_placed(p, share) for p, share in zip(space.placements, shares, strict=True)]


def describe_placed(placement: Placement, share: float | None = None) -> SiteFacts:
    """A struck site, with its share of the variance."""
    facts: SiteFacts = {
        "name": placement.site.name,
        "kind": placement.site.kind,
        "shape": list(placement.shape),
        "fault": placement.fault.name,
        "coordinates": placement.size,
        "share": share,
    }
    if placement.steps > 1:
        facts["steps"] = placement.steps
    return facts


def leading_coordinates(space: FaultSpace, analysis: first_order.Analysis) -> list[CoordinateFacts]:
    """The coordinates with the largest shares of the variance, largest first."""
    if analysis.by_value is not None:
        leading = analysis.by_value.leading(_TOP)
    elif analysis.shares is not None:
        order = np.argsort(-analysis.shares, kind="stable")[:_TOP]
        leading = [(int(i), float(analysis.shares[i])) for i in order]
    else:
        return []
    starts = np.array([p.start for p in space.placements])
    found: list[CoordinateFacts] = []
    for column, share in leading:
        p = space.placements[int(np.searchsorted(starts, column, side="right")) - 1]
        found.append(_named(p, column - p.start, share))
    return found


def _named(p: Placement, local: int, share: float) -> CoordinateFacts:
    """A coordinate by its index, as samples name what is struck (``Strike``).

    Of a unit its index in the site; of a flipped bit the weight's index and the bit; of a group of
    units its number.
    """
    index = np.unravel_index(local, p.fault.coordinate_shape(p.shape) or (1,))
    return {"site": p.site.name, "index": [int(i) for i in index], "share": share}


def versions() -> dict[str, str]:
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    packages = ("crashsim", "torch", "numpy", "scipy", "sympy", "brian2")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = _version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _version(package: str) -> str:
    """As ``metadata.version`` says, which would parse the whole description of each package."""
    installed = metadata.distribution(package)
    head = (installed.read_text("METADATA") or "").partition("\n\n")[0]
    lines = (line.partition(":") for line in head.splitlines())
    found = next((value.strip() for name, _, value in lines if name == "Version"), None)
    return found or installed.version
