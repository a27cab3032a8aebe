"""Neurons that no module computes: their outputs are what the next layer reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crashsim.model.inputs import Inputs
from crashsim.model.sites.inline import bends, between_layers
from crashsim.model.sites.names import (
    INPUT,
    SiteKey,
)
from crashsim.model.sites.neurons import is_torchs
from crashsim.model.sites.passes import (
    OTHERS,
    SiteValues,
    batch_axis,
    is_equal,
    real_leaves,
    watched_values,
    with_values,
)
from crashsim.model.sites.reuse import Feeders, Following, is_used_again
from crashsim.model.sites.site import Action, Site, listening


class _Inline(NamedTuple):
    """Neurons that no module computes: their sites, those that spike, and what was missed."""

    sites: Sequence[Site]
    spiking: Collection[Site]
    missed: Sequence[tuple[str, str]]


def inline_neurons(
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    sites: Sequence[Site],
    events: Sequence[SiteKey | str],
    neurons: Collection[str],
) -> _Inline:
    """What the model's own forward pass computes between its layers; see ``inline.py``."""
    modules = dict(model.named_modules())

    def is_known(path: str) -> bool:
        inner = any(path == n or path.startswith(f"{n}.") for n in neurons)
        return inner or is_torchs(modules[path])

    named = [event for event in events if not isinstance(event, str) or not is_known(event)]
    if all(isinstance(event, SiteKey) for event in named):
        return _Inline((), (), ())
    order = [event if isinstance(event, SiteKey) else None for event in named]
    layers = {site.module for site in sites if site.is_affine}
    read, tensors = _read_by(model, example, call, layers)
    found = between_layers(
        order,
        {site.key: site for site in sites},
        {site.key: site for site in read},
        partial(watched_values, model, example, call),
    )
    mine = [
        replace(site, steps=found.steps.get(site.module))
        for site in read
        if site.module in found.struck
    ]
    affine = [site for site in sites if site.is_affine]
    drives: list[dict[Site, Action]] = [
        {site: partial(_with_noise, scale=scale, seed=i) for i, site in enumerate(affine)}
        for scale in (0.0, 1.0, 3.0, 10.0)
    ]
    seen = [watched_values(model, example, call, drive, mine) for drive in drives]
    tied = _tied_inputs(mine, tensors, seen)

    def is_bent(names: tuple[str, str]) -> bool:
        """Whether what bends depends on the first layer, and is none of a mask, say."""
        source = [site for site in sites if site.name == names[0]]
        bent = [_bent(model, example, call, dict.fromkeys(source, o), is_known) for o in OTHERS]
        clean = _bent(model, example, call, {}, is_known)
        return any(len(b) != len(clean) or not all(map(is_equal, b, clean)) for b in bent)

    return _Inline(
        tied, [s for s in tied if s.module in found.spiking], [*filter(is_bent, found.missed)]
    )


def _bent(
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    actions: Mapping[Site, Action],
    is_known: Callable[[str], bool],
) -> list[Tensor]:
    """What functions that bend are given outside of known modules."""
    given: list[Tensor] = []

    def watch(path: str, function: object, args: tuple[Any, ...]) -> None:
        if bends(function) and not is_known(path):
            given.extend(leaf.clone() for leaf in real_leaves(args))

    with torch.no_grad(), listening(model, lambda *_: None) as listener:
        listener.watch = watch
        with_values(model, example, call, actions)
    return given


def _read_by(
    model: nn.Module, example: Inputs, call: Callable[..., Any], layers: Collection[str]
) -> tuple[list[Site], dict[SiteKey, tuple[int, Feeders]]]:
    """What layers read, as sites, and the memory of each with what it was last multiplied by."""

    def values(x: Inputs) -> tuple[SiteValues, dict[SiteKey, tuple[int, Feeders]]]:
        seen: SiteValues = {}
        fed: dict[SiteKey, tuple[int, Feeders]] = {}
        following = Following()

        def keep(key: SiteKey, value: Any) -> None:
            if key.function == INPUT and value.is_floating_point():
                seen[key] = value
                fed[key] = value.data_ptr(), following.feeders(value)

        with torch.no_grad(), following, listening(model, keep, inputs=layers):
            x.clone().call(call)
        return seen, fed

    (one, fed), (two, _) = values(example), values(example.repeat(2))
    found = []
    for key, value in two.items():
        axis = batch_axis(one[key], value) if key in one else None
        if axis is not None and fed[key][1]:
            shape = tuple(value.movedim(axis, 0).shape[1:])
            found.append(
                Site(
                    key.name,
                    "activation",
                    shape,
                    module=key.module,
                    function=INPUT,
                    call=key.call,
                    axis=axis,
                    units=key.name,
                )
            )
    return found, fed


def _with_noise(value: Tensor, scale: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(value.shape, generator=generator).to(value)
    return value + scale * (value.abs().max() + 1) * noise if scale else value


def _tied_inputs(
    sites: Sequence[Site],
    fed: Mapping[SiteKey, tuple[int, Feeders]],
    seen: Sequence[Mapping[Site, Tensor]],
) -> list[Site]:
    """What layers read, where several read the same neurons' outputs, in the same step or later.

    Args:
        sites: what they read.
        fed: the memory of each, and what it was last multiplied by.
        seen: their values in some passes with other values of the layers.
    """

    def is_same(one: Site, other: Site) -> bool:
        if fed[one.key][0] == fed[other.key][0]:
            return True
        pairs = [(values.get(one), values.get(other)) for values in seen]
        return all(a is not None and b is not None and is_equal(a, b) for a, b in pairs)

    groups: list[list[Site]] = []
    for site in sites:
        feeders = fed[site.key][1]
        for group in groups:
            beside = [s for s in group if fed[s.key][1] == feeders]  # in the same step
            later = any(is_used_again(fed[s.key][1], feeders) for s in group)
            same = all(is_same(s, site) for s in beside) if beside else later
            if site.shape == group[0].shape and same:
                group.append(site)
                break
        else:
            groups.append([site])
    first = {site: group[0].name for group in groups for site in group}
    return [replace(site, units=first[site]) for site in sites]


def with_inputs(sites: Sequence[Site], read: Sequence[Site]) -> list[Site]:
    """The sites, each layer's input before its output."""
    before = {site.key: site for site in read}
    found = []
    for site in sites:
        mine = before.get(SiteKey(site.module, INPUT, site.call))
        if mine is not None and site.function is None:
            found.append(mine)
        found.append(site)
    return found
