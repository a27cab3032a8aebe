"""What faults make of a value while a model trains: the coordinates of neurons that act often too.

A permanent fault of a neuron has one coordinate for each example of a pass, whichever calls and
time steps the neuron acts in. Whoever strikes says where coordinates come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from crashsim.coordinates.placement import Placement
from crashsim.errors import ModelError
from crashsim.faults import Fault
from crashsim.model.sites import Site

# The coordinates (rows, n) of a placement's faults, for a value of as many rows, and this n.
Coordinates = Callable[[Placement, Tensor, int], Tensor]


@dataclass(frozen=True)
class StruckCall:
    """A call of a module or function, and the faults of the neurons that act in it."""

    site: Site
    placements: list[Placement]

    @property
    def is_parameter(self) -> bool:
        return self.site.kind == "parameter"


def struck_value(
    value: Tensor, call: StruckCall, coordinates: Coordinates, inverse_scaling: bool = False
) -> Tensor:
    """The faulty value of a call.

    Args:
        value: (B, *shape), of which the shape need not be that of the first pass.
        call: the faults.
        coordinates: of each of them.
        inverse_scaling: divide by the mean factor that crashes leave.
    """
    shape = tuple(value.shape[1:])
    for placement in call.placements:
        p, site = _fitted(placement, call.site, shape)
        e = coordinates(placement, value, p.fault.coordinate_count(p.shape))
        struck = p.perturb(value[None], e.to(value)[None], site)
        kept = _kept(p.fault) if inverse_scaling else 1.0
        if kept != 1.0:
            struck = p.in_window(struck / kept, struck, site)
        value = struck[0]
    return value


def struck_step(
    h: Tensor,
    direction: int,
    step: int,
    call: StruckCall,
    coordinates: Coordinates,
    inverse_scaling: bool = False,
) -> Tensor:
    """The faulty output of a recurrent layer's step, before it is fed back.

    Args:
        h: (B, H) of one direction.
        direction, step: of the step.
        call, coordinates, inverse_scaling: as for ``struck_value``.

    Raises:
        ModelError: a transient fault would strike a step that the first pass did not have.
    """
    for p in call.placements:
        known = None if call.site.steps is None else call.site.shape[call.site.steps]
        if not p.tied and known is not None and step >= known:
            raise ModelError(
                f"model: {call.site.name!r} runs {step + 1} steps, and ran {known} in the first "
                "pass, which each have faults of their own; call the model with the longest "
                "sequence first"
            )
        e = coordinates(p, h, p.size).to(h)
        struck = p.perturb_step(h[None], p.by_unit(e)[None], direction, step)[0]
        is_struck = p.fault.window is None or p.fault.window[0] <= step < p.fault.window[1]
        kept = _kept(p.fault) if inverse_scaling and is_struck else 1.0
        h = struck if kept == 1.0 else struck / kept
    return h


def check_fits(placement: Placement, e: Tensor, value: Tensor, count: int) -> None:
    """Raises ModelError where the coordinates of a neuron do not fit another of its calls."""
    if tuple(e.shape) != (len(value), count):
        raise ModelError(
            f"model: {placement.site.name!r} runs on {len(value)} rows of {count} neurons after "
            f"{e.shape[0]} rows of {e.shape[1]} in the same pass, so a neuron that is dead for an "
            "example is not the same one in both; call it with the whole batch each time, or give "
            "the fault duration='transient'"
        )


def _kept(fault: Fault) -> float:
    """The mean factor that crashes leave; 1 where a fault is no crash, or all crash."""
    return (1 - fault.mean) or 1.0 if fault.zeroes else 1.0


def _fitted(placement: Placement, site: Site, shape: tuple[int, ...]) -> tuple[Placement, Site]:
    """The placement and the site for a value of this shape."""
    if shape == site.shape:
        return placement, site
    here = replace(site, shape=shape)
    return replace(placement, sites=(here,)), here
