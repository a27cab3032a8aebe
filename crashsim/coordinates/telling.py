"""Says in words what faults strike: in how many steps, which positions, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crashsim.coordinates.placement import Placement
from crashsim.model.sites.site import Site

_SHOWN = 4  # names in a line


def told_struck(placements: Sequence[Placement]) -> list[str]:
    """A line for each set of neurons that act more than once, and one for all with positions."""
    lines = []
    for p in placements:
        if p.site.kind != "parameter" and (line := _line(p)):
            lines.append(f"{p.site.name} ({p.fault.name}): {line}")
    if names := _names(p.site.name for p in placements if _has_positions(p)):
        lines.append(
            f"positions: each of {names} is a unit of its own; no axis is known to be time "
            "(steps_axis= says which is; group='feature' takes a feature in all positions)"
        )
    return lines


def _has_positions(p: Placement) -> bool:
    """Whether units of one value may be those of several steps, for all that is known."""
    acts_once = p.site.kind != "parameter" and p.acts_once and p.site.steps is None
    return acts_once and len(p.site.shape) > 1 and p.size == p.units


def _line(p: Placement) -> str | None:
    site, units = p.site, f"{p.size:,} coordinates"
    steps = sum(1 if s.steps is None else s.shape[s.steps] for s in p.sites)
    if p.fault.is_of_features and p.tied:
        return f"{units}, a feature in all of its positions each"
    if p.fault.window is not None:
        return f"{units}, each in steps {p.fault.window[0]} to {p.fault.window[1] - 1}"
    if p.tied or len(p.sites) > 1:
        return f"{units}, each in all {steps} {'steps' if p.tied else 'calls'}"
    if site.steps is not None:
        return f"{units}, drawn anew in each of {steps} steps"
    return None


def left_out(available: Sequence[Site], placements: Sequence[Placement]) -> list[str]:
    """What ``hidden`` leaves out, and how it is struck too: one line for each reason."""
    struck = {site for p in placements for site in p.sites}
    lines = []
    for role, why in (
        ("guard", "guards, which pass on another activation's output"),
        ("output", "output neurons, which no weight multiplies"),
    ):
        of_role = (s for s in available if s.role == role and s.kind == "activation" and s.is_read)
        names = _names(s.first_name for s in of_role if s not in struck)
        if names:
            lines.append(f"left out: {names} ({why}); name them in sites to strike them, too")
    return lines


def _names(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
