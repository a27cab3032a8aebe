"""A model under fault coordinates e, in one plain pass: what everything faster is compared with.

Each fault acts where it is placed: on the value of a site in the middle of the whole model, or on a
parameter before the model is called. Nothing is left out, reordered or shared between samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arrays import Floats
from crashsim.coordinates.placement import Placement, with_fault
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.faults import Fault, WordFault
from crashsim.model.checks import rounding_slack
from crashsim.model.inputs import Inputs
from crashsim.model.isolated_model import IsolatedModel
from crashsim.model.sites.site import Action, Site, StepAction, perturbing
from crashsim.working import worked

_STRUCK_APART = 4  # examples, to see whether the model keeps their order
_FEW_STRUCK = 8  # of their coordinates, where many would be too many
_HUGE = 1e6  # outputs from which each example's differences count by its own


def strike_step(
    placed: Sequence[Placement],
    units: Sequence[Tensor],
    count: int,
    h: Tensor,
    direction: int,
    step: int,
) -> Tensor:
    """A step's output of a recurrent layer, of S samples, before it is fed back.

    Args:
        placed: the faults of its units.
        units: the coordinates of each, (S, 1 or b, units).
        count: number of samples S.
        h: (S b, H).
        direction, step: of the step.
    """
    faulty = h.reshape(count, -1, h.shape[-1])
    for p, e in zip(placed, units, strict=True):
        faulty = p.perturb_step(faulty, e, direction, step)
    return faulty.to(h.dtype).reshape(h.shape)


def strike_value(
    placed: Sequence[Placement], units: Sequence[Tensor], batch: int, site: Site, value: Tensor
) -> Tensor:
    """A site's value of S samples, struck.

    Args:
        placed: the faults there.
        units: the coordinates of each, (S, 1 or b, size).
        batch: number of examples b.
        site: where it is.
        value: with S b rows for the examples of all samples.
    """
    count = units[0].shape[0]
    rows = site.by_example(value, count * batch)
    faulty = rows.reshape(count, batch, *site.shape)
    for p, e in zip(placed, units, strict=True):
        faulty = p.perturb(faulty, e, site)
    return faulty.to(value.dtype).reshape(rows.shape).movedim(0, site.axis)


class FaultyModel:
    """F(e): a model with faults at their places.

    Args:
        model: what runs.
        examples: inputs to try it with.
        placements: the faults at their sites, in the order of their coordinates.

    Attributes:
        model, examples, placements: as given.
        N, K: numbers of fault coordinates and of outputs.
        strikes_weights: whether a fault acts on a parameter.
        struck: the faults at each site of neurons or inputs, in each call that they act in.
    """

    def __init__(
        self, model: IsolatedModel, examples: Inputs, placements: Sequence[Placement]
    ) -> None:
        self.model, self.examples, self.placements = model, examples, list(placements)
        self.N = self.placements[-1].stop
        self.K: int = model.clean.shape[1]
        self.strikes_weights = any(p.site.kind == "parameter" for p in self.placements)
        self.struck: dict[Site, list[Placement]] = {}
        for p in self.placements:
            for site in p.sites if p.site.kind != "parameter" else ():
                self.struck.setdefault(site, []).append(p)

    def outputs(self, inputs: Inputs, points: Points) -> Floats:
        """F at each point, one pass after the other: (S, b, K) of b inputs."""
        parts = [inputs]
        if self.model.runs_alone:
            parts = [inputs.part(i, i + 1) for i in range(len(inputs))]
        found = []
        with self.model.at_work(), torch.no_grad():
            for number in range(points.count):
                point = points.part(number, number + 1)
                tensors = {**self.model.tensors, **self.weights_at(point)}
                e = self.neuron_coordinates(point)[:, None]
                passes = [self.run(part, e, tensors) for part in parts]
                found.append(torch.cat(passes, 1).double().cpu())
                worked(0.0)  # a check, or a point that is no sample
        outputs: Floats = torch.cat(found).numpy()
        return outputs

    def run(self, inputs: Inputs, e: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """A single pass of the whole model, differentiable in e.

        Args:
            inputs: b examples.
            e: (S, 1 or b, N) coordinates of S samples, of which those of neurons count.
            tensors: the model's parameters and buffers, faulty where parameters are.

        Returns:
            (S, b, K) outputs.
        """
        count, batch = e.shape[0], len(inputs)
        x = inputs.repeat(count)
        actions: dict[Site, Action] = {}
        inside: dict[Site, StepAction] = {}
        for site, placed in self.struck.items():
            own = [e[..., p.start : p.stop] for p in placed]
            act = partial(strike_value, placed, own, batch, site)
            if site.kind == "input":
                index = inputs.site_names.index(site.module)
                x = x.with_tensor(index, act(x.tensors[index]))
            elif site.is_inside:
                units = [p.by_unit(each) for p, each in zip(placed, own, strict=True)]
                inside[site] = partial(strike_step, placed, units, count)
            else:
                actions[site] = act
        struck = perturbing(self.model.module, actions, inside) if self.struck else nullcontext()
        with struck:
            output: Tensor = self.model.readout(self.model.raw(x, tensors), x.targets)
        return output.reshape(count, batch, -1)

    def perturbed_weights(self, e: Tensor) -> dict[str, Tensor]:
        """The struck parameters at a point e (N,), differentiable in e."""
        return self._perturbed(lambda p: e[p.start : p.stop])

    def weights_at(self, point: Points) -> dict[str, Tensor]:
        """The struck parameters at a single point, of which a placement at a time is written."""
        device, dtype = self.model.device, self.model.dtype

        def own(p: Placement) -> Tensor:
            e = torch.from_numpy(point.stretch(p.start, p.stop)[0]).to(device)
            # Bits stay bytes: eight of them make a weight.
            return e if isinstance(p.fault, WordFault) and e.dtype == torch.uint8 else e.to(dtype)

        return self._perturbed(own)

    def _perturbed(self, coordinates: Callable[[Placement], Tensor]) -> dict[str, Tensor]:
        changed: dict[str, Tensor] = {}
        for p in self.placements:
            if p.site.kind == "parameter":
                value = changed.get(p.site.module, self.model.tensors[p.site.module])
                changed[p.site.module] = p.fault.perturb(value, coordinates(p), p.site.shape)
        return changed

    def coordinates(self, points: Points) -> Tensor:
        """(S, N) all coordinates of points, as the model computes with them."""
        return torch.from_numpy(points.dense()).to(self.model.device, self.model.dtype)

    def neuron_coordinates(self, points: Points) -> Tensor:
        """The same for ``run`` alone: (S, 1) zeros where all faults strike parameters."""
        if all(p.site.kind == "parameter" for p in self.placements):
            return torch.zeros(points.count, 1, device=self.model.device, dtype=self.model.dtype)
        return self.coordinates(points)

    @cached_property
    def keeps_order(self) -> bool:
        """Whether the examples of a batch pass the sites in the order in which they are given.

        Else (a model may sort its batch by length) only what strikes all of a batch in the same
        way can be struck at all. Found by striking some examples each in its own way.
        """
        model = self.model
        if model.runs_alone or all(p.site.kind == "parameter" for p in self.placements):
            return True
        several = self.examples.spread(_STRUCK_APART).repeat(2)
        rng = generator(0, Stream.ORDER)
        draws = rng.random((1, len(several), self.N))
        # Faults that make outputs infinite or NaN show nothing where there are many of them.
        for share in (0.5, _FEW_STRUCK / self.N, 1 / self.N):
            found = self._keeps_order_of(several, draws < share)
            if found is not None:
                return found
        return False

    def _keeps_order_of(self, several: Inputs, struck: NDArray[np.bool_]) -> bool | None:
        """The same, seen with these coordinates struck; None where too few outputs are finite."""
        model = self.model
        e = torch.from_numpy(struck).to(model.device, model.dtype)
        with model.at_work(), torch.no_grad():
            try:
                together = self.run(several, e, model.tensors)[0]
                alone = [
                    self.run(several.part(i, i + 1), e[:, i : i + 1], model.tensors)[0]
                    for i in range(len(several))
                ]
            except Exception:  # the model need not take such values
                return True
        wanted = torch.cat(alone)
        finite = torch.isfinite(wanted)
        if 2 * int(finite.any(1).sum()) < len(wanted):
            return None
        size = torch.where(finite, wanted, 0.0).abs()
        slack = rounding_slack(model.dtype) * (size.amax(1) if size.max() > _HUGE else size.max())
        slack = slack.view(-1, 1)
        return bool((torch.where(finite, (together - wanted).abs(), 0.0) <= slack).all())

    def with_dtype(self, dtype: torch.dtype) -> FaultyModel:
        """The same in another floating-point type."""
        examples = self.examples.to(self.model.device, dtype)
        return FaultyModel(self.model.with_dtype(dtype), examples, self.placements)

    def with_faults(self, faults: Sequence[Fault]) -> FaultyModel:
        """The same with other faults of as many coordinates at its placements, in order."""
        placed = zip(self.placements, faults, strict=True)
        placements = [with_fault(p, fault) for p, fault in placed]
        return FaultyModel(self.model, self.examples, placements)

    def of_outputs(self, chosen: tuple[int, ...]) -> FaultyModel:
        """The same, of whose outputs these are read."""
        return FaultyModel(self.model.of_outputs(chosen), self.examples, self.placements)

    def with_own_twins(self) -> FaultyModel:
        """The same on modules of its own, which may be changed for good."""
        faulty = copy(self)
        faulty.model = self.model.with_own_twins()
        return faulty
