"""Faulty parameters, one sample at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.faults.words.upsets import WordTable
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.site_changes import steps_of


class PatchedWeights:
    """Parameters at a base point, patched for one sample at a time and put back afterwards.

    A sample changes few weights, so patching costs the number of changes, not of weights.

    Args:
        faulty: whose parameters.
        base: (N,) the point that samples are close to.
    """

    def __init__(self, faulty: FaultyModel, base: Floats) -> None:
        tensors = faulty.model.tensors
        self._placements = [p for p in faulty.placements if p.site.kind == "parameter"]
        self._base = base
        at_base = faulty.perturbed_weights(faulty.coordinates(Points.at(base))[0])
        # In rows, whatever the user's layout (channels last, say): coordinates count that way.
        self._work = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in at_base.items()
        }
        self._tensors = {**tensors, **self._work}
        self._steps = {p: steps_of(p, tensors[p.site.module]) for p in self._placements}
        # Where several faults strike one parameter, each acts on what the one before it left; and
        # of words that are struck already, further bits act on what these are then.
        names = [p.site.module for p in self._placements]
        again = {
            p.site.module
            for p, steps in self._steps.items()
            if isinstance(steps, WordTable) and base[p.start : p.stop].any()
        }
        self._stacked = sorted({name for name in names if names.count(name) > 1} | again)
        self._faulty = faulty
        self._undo: list[tuple[Tensor, Tensor | slice, Tensor]] = []

    def apply(self, point: Points) -> dict[str, Tensor]:
        """All tensors of the model at a single point."""
        if self._stacked:
            changed = self._faulty.perturbed_weights(self._faulty.coordinates(point)[0])
            for name in self._stacked:
                flat = self._work[name].view(-1)
                self._undo.append((flat, slice(None), flat.clone()))
                flat.copy_(changed[name].reshape(-1))
        for p in self._placements:
            if p.site.module in self._stacked:
                continue
            ours = (point.columns >= p.start) & (point.columns < p.stop)
            columns = point.columns[ours]
            steps = self._steps[p]
            flat = self._work[p.site.module].view(-1)
            if isinstance(steps, WordTable):
                struck = columns[point.values[ours] != 0] - p.start
                _, *found = steps.fault.hits(np.zeros_like(struck), struck, p.shape)
                units, masks = (torch.from_numpy(part).to(flat.device) for part in found)
                self._undo.append((flat, units, flat[units]))
                flat[units] = steps.struck(units, masks)
                continue
            change = point.values[ours] - self._base[columns]
            local = torch.from_numpy(columns - p.start).to(steps.device)
            # Several coordinates may act on one weight (its bits): their changes add up.
            units = local // (p.size // flat.numel())
            self._undo.append((flat, units, flat[units]))
            flat.index_add_(0, units, torch.from_numpy(change).to(steps) * steps[local])
        return self._tensors

    def restore(self) -> None:
        """Takes back what was applied last."""
        for flat, units, values in reversed(self._undo):
            flat[units] = values
        self._undo.clear()
