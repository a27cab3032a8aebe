"""What faults make of a value while a model trains: the coordinates of neurons that act often too.

A permanent fault of a neuron has one coordinate for each example of a pass, whichever calls and
time steps the neuron acts in. Whoever strikes says where coordinates come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from crashsim.coordinates.placement import Placement
from crashsim.errors import ModelError
from crashsim.model.sites.site import Site

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
        kept = _kept(p) if inverse_scaling else None
        if kept is not None:
            for axis in p.tied:
                kept = kept.unsqueeze(axis)
            struck = p.in_window(struck / kept.to(struck), struck, site)
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
        kept = _kept(p) if inverse_scaling and p.acts_in(step) else None
        if kept is not None:
            first = direction * h.shape[-1] + (0 if p.tied else step * p.shape[-1])
            struck = struck / kept.reshape(-1)[first : first + h.shape[-1]].to(struck)
        h = struck
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


def _kept(placement: Placement) -> Tensor | None:
    """(*shape) how often each unit survives; 1 for those that never do, which stay 0.

    None where a fault is not a crash.
    """
    fault, shape = placement.fault, placement.shape
    if not fault.zeroes:
        return None
    kept = 1 - np.broadcast_to(fault.mean, fault.coordinate_count(shape))
    kept = np.where(kept > 0, kept, 1.0)
    return torch.from_numpy(fault.by_unit(kept, shape)).reshape(shape)


def _fitted(placement: Placement, site: Site, shape: tuple[int, ...]) -> tuple[Placement, Site]:
    """The placement and the site for a value of this shape."""
    if shape == site.shape:
        return placement, site
    here = replace(site, shape=shape)
    return replace(placement, sites=(here,)), here
