"""Faulty parameters of many samples, stacked: one pass of ``torch.vmap`` serves them all.

A sample on its own costs the calls of every layer, whatever their size. Stacked, it costs the
numbers of its struck parameters; what does not depend on any fault is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crashsim.coordinates.placement import Placement
from crashsim.injection.recurrence import Mappable
from crashsim.injection.site_changes import Changes
from crashsim.injection.traceable import make_traceable
from crashsim.model.inputs import Inputs
from crashsim.model.twins.twin import PerThread

if TYPE_CHECKING:
    from crashsim.space import FaultSpace

_SCALARS = 2**22  # numbers in flight: few enough for the cache
# In numbers written for a sample: what its own pass through a small model costs, and a change that
# is patched into it.
_PASS, _PATCH = 2**16, 16


class StackedWeights:
    """The model as a function of the struck parameters of S samples.

    Args:
        space: whose model, faults and types count.

    Raises:
        NotTraceable: the model cannot be copied.
    """

    def __init__(self, space: FaultSpace) -> None:
        # A twin of our own, whose layers are such as can be mapped.
        self._space = copy(space)
        self._space._twins = PerThread(space._make_twin)
        make_traceable(self._space._twin.module)
        self._placements = [p for p in space.placements if p.site.kind == "parameter"]
        names = [p.site.module for p in self._placements]
        self._several = {name for name in names if names.count(name) > 1}
        self._steps = {
            p: p.fault.displacement(space.tensors[p.site.module]).reshape(-1)
            for p in self._placements
            if p.site.module not in self._several
        }

    def most(self, inputs: Inputs) -> int:
        """How many samples at most at a time."""
        written = 4 * sum(p.size for p in self._placements)
        return max(1, _SCALARS // (written + self._space._scalars * len(inputs)))

    def run(self, inputs: Inputs, e: Tensor, changes: Mapping[Placement, Changes]) -> Tensor:
        """Outputs (S, b, K) of b inputs.

        Args:
            inputs: the examples.
            e: (S, N) all coordinates; (S, 1) where faults strike parameters alone.
            changes: what the S points change.
        """
        space = self._space

        def one(e: Tensor, weights: dict[str, Tensor]) -> Tensor:
            if self._several:
                perturbed = space.perturbed_weights(e)
                weights = {**weights, **{name: perturbed[name] for name in self._several}}
            return space._run(inputs, e[None, None], {**space.tensors, **weights})[0]

        with Mappable():
            out: Tensor = torch.vmap(one)(e, self._weights(changes))
        return out

    @property
    def reads_all(self) -> bool:
        """Whether the coordinates of parameters are to be written out for ``run`` too."""
        return bool(self._several)

    def _weights(self, changes: Mapping[Placement, Changes]) -> dict[str, Tensor]:
        """(S, ...) each parameter that one fault strikes."""
        found = {}
        for p, steps in self._steps.items():
            value, e = self._space.tensors[p.site.module], changes[p].dense()
            bits = p.size // value.numel()
            if bits == 1:
                flat = torch.addcmul(value.reshape(-1), e, steps)
            else:  # several coordinates act on one weight: their changes add up
                flat = value.reshape(-1) + (e * steps).unflatten(1, (-1, bits)).sum(-1)
            found[p.site.module] = flat.view(-1, *value.shape)
        return found


def is_worth_stacking(
    placements: list[Placement], changes: Mapping[Placement, Changes] | None
) -> bool:
    """Whether stacking the struck parameters costs less than patching them.

    Args:
        placements: the faults.
        changes: of the points at hand; None for those that Monte Carlo samples.
    """
    struck = [p for p in placements if p.site.kind == "parameter"]
    patched = sum(p.size * p.fault.change_probability for p in struck)
    if changes is not None:
        patched = sum(changes[p].mean_number for p in struck)
    return sum(p.size for p in struck) <= _PASS + _PATCH * patched
