"""Faulty parameters of many samples, stacked: one pass of ``torch.vmap`` serves them all.

A sample on its own costs the calls of every layer, whatever their size. Stacked, it costs the
numbers of its struck parameters; what does not depend on any fault is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Points
from crashsim.faults.words.word_fault import WordTable
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.site_changes import Changes, written_steps_of
from crashsim.model.graph.traceable import make_traceable
from crashsim.model.inputs import Inputs
from crashsim.model.recurrence import Mappable

_SCALARS = 2**22  # numbers in flight: few enough for the cache
# In numbers written for a sample: what its own pass through a small model costs, and a change that
# is patched into it.
_PASS, _PATCH = 2**16, 16


class StackedWeights:
    """The model as a function of the struck parameters of S samples.

    Args:
        faulty: the model and its faults.
        scalars: numbers in flight for a sample of one input, its weights left aside.

    Raises:
        UntraceableError: the model cannot be copied.
    """

    def __init__(self, faulty: FaultyModel, scalars: int) -> None:
        self._faulty, self._scalars = faulty.with_own_twins(), scalars
        make_traceable(self._faulty.model.module)  # whose layers can be mapped
        self._placements = [p for p in faulty.placements if p.site.kind == "parameter"]
        names = [p.site.module for p in self._placements]
        self._several = {name for name in names if names.count(name) > 1}
        self._steps = {
            p: written_steps_of(p, faulty.model.tensors[p.site.module])
            for p in self._placements
            if p.site.module not in self._several
        }

    def most(self, inputs: Inputs) -> int:
        """How many samples at most at a time."""
        return samples_together(sum(p.size for p in self._placements), self._scalars, len(inputs))

    def run(self, inputs: Inputs, points: Points, changes: Mapping[Placement, Changes]) -> Tensor:
        """Outputs (S, b, K) of b inputs at S points.

        Args:
            inputs: the examples.
            points: the samples.
            changes: what they change.
        """
        faulty, tensors = self._faulty, self._faulty.model.tensors

        def one(e: Tensor, weights: dict[str, Tensor]) -> Tensor:
            if self._several:
                perturbed = faulty.perturbed_weights(e)
                weights = {**weights, **{name: perturbed[name] for name in self._several}}
            return faulty.run(inputs, e[None, None], {**tensors, **weights})[0]

        coordinates = faulty.coordinates if self._several else faulty.neuron_coordinates
        with Mappable():
            out: Tensor = torch.vmap(one)(coordinates(points), self._weights(changes))
        return out

    def _weights(self, changes: Mapping[Placement, Changes]) -> dict[str, Tensor]:
        """(S, ...) each parameter that one fault strikes."""
        found = {}
        for p, steps in self._steps.items():
            value, words = self._faulty.model.tensors[p.site.module], changes[p].words
            if isinstance(steps, WordTable) and words is not None:
                flat = steps.values.repeat(changes[p].count, 1)
                flat[words.rows, words.units] = steps.struck(words.units, words.masks)
                found[p.site.module] = flat.view(-1, *value.shape)
                continue
            e = changes[p].dense()
            if isinstance(steps, WordTable):
                found[p.site.module] = p.fault.perturb(value, e, p.shape)
                continue
            bits = p.size // value.numel()
            if bits == 1:
                flat = torch.addcmul(value.reshape(-1), e, steps)
            else:  # several coordinates act on one weight: their changes add up
                flat = value.reshape(-1) + (e * steps).unflatten(1, (-1, bits)).sum(-1)
            found[p.site.module] = flat.view(-1, *value.shape)
        return found


def samples_together(weights: int, scalars: int, inputs: int) -> int:
    """How many samples share a pass.

    Args:
        weights: coordinates of the struck parameters.
        scalars: numbers in flight for a sample of one input, its weights left aside.
        inputs: how many there are.
    """
    return max(1, _SCALARS // (4 * weights + scalars * inputs))


def is_worth_stacking(
    placements: Sequence[Placement], changes: Mapping[Placement, Changes] | None
) -> bool:
    """Whether writing out the struck parameters costs less than patching them.

    Args:
        placements: the faults.
        changes: of the points at hand; None for those that Monte Carlo samples.
    """
    struck = sum(p.size for p in placements if p.site.kind == "parameter")
    return struck <= _PASS + _PATCH * number_of_struck(placements, changes)


def number_of_struck(
    placements: Sequence[Placement], changes: Mapping[Placement, Changes] | None
) -> float:
    """How many coordinates of parameters a sample changes, on average; arguments as above."""
    struck = [p for p in placements if p.site.kind == "parameter"]
    if changes is None:
        return sum(p.size * p.fault.change_probability for p in struck)
    return sum(changes[p].mean_number for p in struck)
