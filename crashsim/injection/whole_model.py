"""Samples that run through the whole model: many in one pass, or one after the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Points
from crashsim.injection.batches import Run
from crashsim.injection.faulty_model import FaultyModel, strike_step
from crashsim.injection.inplace import returns_new
from crashsim.injection.site_changes import Changes, strike, strike_all
from crashsim.injection.weights.patched import PatchedWeights
from crashsim.model.inputs import Inputs
from crashsim.model.sites.site import Action, Site, StepAction, perturbing


@contextmanager
def many_samples(
    faulty: FaultyModel, inputs: Inputs, changes: Mapping[Placement, Changes]
) -> Iterator[tuple[Run, int]]:
    """Neurons alone are struck, those that change; many samples share a pass.

    Args:
        faulty: a model that keeps the order of its examples, without faults of parameters.
        inputs: some examples.
        changes: what the points change.
    """
    model = faulty.model.module
    part: dict[Site, list[Changes]] = {}
    units: dict[Site, list[Tensor]] = {}
    count = 1

    def act(site: Site) -> Action:
        owned = site.function is None and returns_new(model.get_submodule(site.module))

        def strike_examples(value: Tensor) -> Tensor:
            site.by_example(value, count * len(inputs))
            return strike(value, site, part[site], count, owned)

        return strike_examples

    def act_inside(site: Site) -> StepAction:
        return lambda h, direction, step: strike_step(
            faulty.struck[site], units[site], count, h, direction, step
        )

    def run(start: int, stop: int) -> Tensor:
        nonlocal count
        count = stop - start
        struck = {}
        here = {p: change.part(start, stop) for p, change in changes.items()}  # for all calls
        for site, placed in faulty.struck.items():
            part[site] = [here[p] for p in placed]
            if site.is_inside:
                units[site] = [change.dense()[:, None] for change in part[site]]
            if site.kind == "input":
                index = inputs.site_names.index(site.module)
                struck[index] = strike_all(inputs.tensors[index], site, part[site], count)
        return faulty.model.outputs(inputs.repeat_but(count, struck))

    inner = [site for site in faulty.struck if site.kind != "input"]
    actions = {site: act(site) for site in inner if not site.is_inside}
    inside = {site: act_inside(site) for site in inner if site.is_inside}
    with perturbing(model, actions, inside):
        yield run, sys.maxsize


@contextmanager
def plain_samples(faulty: FaultyModel, inputs: Inputs, points: Points) -> Iterator[tuple[Run, int]]:
    """Nothing is taken for granted; samples share a pass where the model keeps their order.

    Args:
        faulty: any model, without faults of parameters.
        inputs: some examples.
        points: the samples.
    """

    def run(start: int, stop: int) -> Tensor:
        e = faulty.neuron_coordinates(points.part(start, stop))[:, None]
        return faulty.run(inputs, e, faulty.model.tensors)

    yield run, sys.maxsize if faulty.keeps_order else 1


@contextmanager
def patched_samples(
    faulty: FaultyModel, inputs: Inputs, points: Points, weights: PatchedWeights
) -> Iterator[tuple[Run, int]]:
    """Nothing is taken for granted; faulty parameters are patched, one sample at a time.

    Args:
        faulty: any model.
        inputs: some examples.
        points: the samples.
        weights: theirs.
    """

    def run(start: int, stop: int) -> Tensor:
        found = []
        none = None if faulty.struck else faulty.neuron_coordinates(points.part(0, 1))[:, None]
        with faulty.model.holding(weights.tensors):
            for number in range(start, stop):
                e = none
                if e is None:
                    e = faulty.neuron_coordinates(points.part(number, number + 1))[:, None]
                weights.apply(number)
                found.append(faulty.run(inputs, e, weights.tensors))
                weights.restore()
        return torch.cat(found)

    yield run, sys.maxsize
