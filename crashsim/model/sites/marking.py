"""Marks sites with what a model's passes show of them: units, roles, whether they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crashsim.model.inputs import Inputs
from crashsim.model.nested import leaves
from crashsim.model.sites.names import INPUT, SiteKey, item_name
from crashsim.model.sites.neurons import Neurons, multiplied
from crashsim.model.sites.passes import (
    LOOKED_AT,
    OTHERS,
    is_equal,
    real_leaves,
    with_values,
)
from crashsim.model.sites.reuse import Feeders, Following, is_used_again
from crashsim.model.sites.site import Action, Role, Site, listening
from crashsim.model.twins.protected_module import Limiter


def marked_units(
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    sites: Sequence[Site],
    stateful: Collection[str],
) -> list[Site]:
    """The sites with the first call of the same neurons, for modules that run several times.

    Args:
        stateful: modules that keep a state, and so are the same neurons in every call.
    """
    if not any(site.call for site in sites):
        return list(sites)
    feeders: dict[SiteKey, Feeders] = {}
    following = Following()

    def keep(key: SiteKey, value: Any) -> None:
        feeders[key] = following.feeders(value)

    with torch.no_grad(), following, listening(model, keep):
        example.clone().call(call)
    groups: dict[tuple[str, str | None], list[list[Site]]] = {}
    told = []
    for site in sites:
        if site.kind in ("input", "parameter") or site.function == INPUT:
            told.append(site)
            continue
        known = groups.setdefault((site.module, site.function), [])
        now = feeders.get(site.key, {})
        for group in known:
            first = group[0]
            # Two calls behind the same use of the weights, as the gates of a step, are others.
            before = [feeders.get(other.key, {}) for other in group]
            if site.module in stateful:  # which may be given the states of several layers
                same = not all(one and now and one.keys().isdisjoint(now) for one in before)
            else:
                same = all(is_used_again(one, now) for one in before)
            if same and site.steps == first.steps and _of_a_step(site) == _of_a_step(first):
                group.append(site)
                told.append(replace(site, units=first.name))
                break
        else:
            known.append([site])
            told.append(replace(site, units=site.name))
    return told


def _of_a_step(site: Site) -> tuple[int, ...]:
    """The shape of a site's values in one step: a layer may run through more of them in a call."""
    return tuple(n for axis, n in enumerate(site.shape) if axis != site.steps)


def marked_roles(
    model: nn.Module,
    given: Inputs,
    call: Callable[..., Any],
    sites: Sequence[Site],
    neurons: Mapping[str, Neurons],
) -> list[Site]:
    """The sites with the roles of activations: output neurons and guards told apart."""
    some = given.part(0, LOOKED_AT)
    roles: dict[Site, Role] = dict.fromkeys(_guards(model, some, call, sites), "guard")
    example = given.part(0, 1)
    spiking = {path for path, n in neurons.items() if n.behaviour == "spiking"}
    if spiking:
        clean = multiplied(lambda: with_values(model, example, call, {}))
        for path in spiking:
            ours = [s for s in sites if s.module == path and s.kind == "activation"]
            for site in ours:
                roles.pop(site, None)  # silent neurons behind silent neurons are no guards
            more: dict[Site, Action] = dict.fromkeys(ours, _more_spikes)
            changed = multiplied(partial(with_values, model, example, call, more))
            if len(clean) == len(changed) and all(map(is_equal, clean, changed)):
                roles |= dict.fromkeys(ours, "output")
    return [replace(site, role=roles.get(site, site.role)) for site in sites]


def marked_spikes(
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    sites: Sequence[Site],
    spiking: Mapping[str, str | None],
    inline: Collection[Site],
) -> list[Site]:
    """The sites, each marked with whether spikes depend on its value: it is changed to see.

    Args:
        spiking: by path, modules that emit spikes, and which of what they return these are.
        inline: layers that read spikes which no module emits.
    """
    if not spiking and not inline:
        return list(sites)
    readers = {site.module for site in inline}

    def spikes(actions: Mapping[Site, Action]) -> list[Tensor]:
        seen: list[Tensor] = []

        def keep(module: nn.Module, __: Any, output: Any, item: str | None) -> None:
            found = [leaf for names, leaf in leaves(output) if item_name(module, names) == item]
            seen.extend(leaf.clone() for leaf in real_leaves(found)[:1])

        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.extend(leaf.clone() for leaf in real_leaves(args)[:1])

        with ExitStack() as stack, torch.no_grad():
            for path in readers:  # likewise
                module = model.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(read).remove)
            for path, item in spiking.items():  # before faults strike what they return
                hook = partial(keep, item=item)
                stack.callback(model.get_submodule(path).register_forward_hook(hook).remove)
            with_values(model, example, call, actions)
        return seen

    clean = spikes({})
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.units or site.name, []).append(site)
    found: set[Site] = set()
    for group in groups.values():
        for other in OTHERS:
            try:
                changed = spikes(dict.fromkeys(group, other))
            except Exception:  # a value that makes the model fail is read
                changed = []
            if len(changed) != len(clean) or not all(map(is_equal, clean, changed)):
                found.update(group)
                break
    return [replace(site, acts_on_spikes=site in found) for site in sites]


def _more_spikes(value: Tensor) -> Tensor:
    return value + 1.0


def _guards(
    model: nn.Module, example: Inputs, call: Callable[..., Any], sites: Sequence[Site]
) -> list[Site]:
    """Activations that read the output of another one itself and return the same numbers.

    Those that round them to whole multiples of one step, as quantisers do, are guards, too.

    Modules alone are looked at, in all their calls.
    """
    activations = {s.key: s for s in sites if s.kind == "activation"}
    outputs: dict[tuple[int, int], Tensor] = {}  # by their memory, kept so that it stays theirs
    read: dict[str, Tensor | None] = {}
    changes: set[str] = set()

    def before(_: nn.Module, args: tuple[Any, ...], path: str) -> None:
        x = args[0] if args else None
        if isinstance(x, Tensor) and (x.data_ptr(), x.numel()) in outputs:
            read[path] = x.clone()
        else:
            read[path] = None

    def after(key: SiteKey, value: Any) -> None:
        path, function, _ = key
        if key not in activations or not isinstance(value, Tensor):
            return
        outputs[value.data_ptr(), value.numel()] = value
        x = read.get(path)
        if function is None and (x is None or not (is_equal(x, value) or _is_rounded(x, value))):
            changes.add(path)

    modules = dict(model.named_modules())
    limiters = {path for path, module in modules.items() if isinstance(module, Limiter)}
    with torch.no_grad(), ExitStack() as stack:
        for path in {s.module for s in activations.values() if s.module}:
            hook = modules[path].register_forward_pre_hook(partial(before, path=path))
            stack.callback(hook.remove)
        stack.enter_context(listening(model, after, only=list(activations.values())))
        example.clone().call(call)
    changes -= limiters  # which are none where they limit these very values, either
    return [s for s in activations.values() if s.function is None and s.module not in changes]


def _is_rounded(x: Tensor, value: Tensor) -> bool:
    """Whether a value is another one, rounded to the nearest of some multiples of one step."""
    if x.shape != value.shape:
        return False
    apart = value.unique().diff()
    apart = apart[apart > 1e-3 * value.abs().max()]
    if len(apart) < 2:
        return False
    step = float(apart.min())
    off = value / step - (value / step).round()
    return bool(off.abs().max() < 0.01) and bool((x - value).abs().max() <= 0.51 * step)


def marked_read(
    model: nn.Module, example: Inputs, call: Callable[..., Any], sites: Sequence[Site]
) -> list[Site]:
    """The sites, each marked with whether the output depends on it in some call of its neurons.

    A derivative says at once of which values the output is a function; of those without one (the
    model may round, or compute without derivatives) it is found by changing them.
    """
    shifts: dict[Site, Tensor] = {}

    def shift(value: Tensor, site: Site) -> Tensor:
        shifts[site] = torch.zeros_like(value, requires_grad=True)
        return value + shifts[site]

    smooth: set[Site] = set()
    try:
        with torch.enable_grad():
            output = with_values(model, example, call, {s: partial(shift, site=s) for s in sites})
            total = sum(leaf.sum() for leaf in real_leaves(output) if leaf.requires_grad)
            if isinstance(total, Tensor):
                found = list(shifts)
                gradients = torch.autograd.grad(
                    total, [shifts[site] for site in found], allow_unused=True
                )
                smooth = {s for s, g in zip(found, gradients, strict=True) if g is not None}
    except Exception:  # whatever has no derivative, or minds one
        pass
    doubtful = set(sites) - smooth
    read = set(smooth)
    clean = with_values(model, example, call, {})
    if doubtful and _matter(doubtful, model, example, call, clean):
        groups: dict[str, set[Site]] = {}
        for site in doubtful:
            groups.setdefault(site.units or site.name, set()).add(site)
        for group in groups.values():
            if read.isdisjoint(group) and _matter(group, model, example, call, clean):
                read |= group
        # The output may stay what it is because the spikes behind it do, on this example.
        behind = {s for s in read if s.kind == "activation"}
        while behind:
            changing = [
                group
                for group in groups.values()
                if read.isdisjoint(group)
                and any(s.kind == "activation" for s in group)
                and _reaches(group, behind, model, example, call)
            ]
            behind = set[Site]().union(*changing)
            read |= behind
    used = {site.units for site in read if site.units}
    # The units of a recurrent layer act on all that it returns.
    layers = {(site.module, site.call) for site in read if site.function in ("h_n", "c_n")}

    def is_read(site: Site) -> bool:
        inside = site.is_inside and (site.module, site.call) in layers
        return site in read or inside or (site.units != "" and site.units in used)

    return [replace(s, is_read=is_read(s), has_gradient=s in smooth) for s in sites]


def _reaches(
    sites: Collection[Site],
    neurons: Collection[Site],
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
) -> bool:
    """Whether what modules of neurons are given changes if these sites' values do."""
    paths = {site.module for site in neurons if site.function is None}

    def given(actions: Mapping[Site, Action]) -> list[Tensor]:
        seen: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.extend(leaf.clone() for leaf in real_leaves(args))

        with ExitStack() as stack, torch.no_grad():
            for path in paths:
                module = model.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(keep).remove)
            with_values(model, example, call, actions)
        return seen

    clean = given({})
    for other in OTHERS:
        try:
            changed = given(dict.fromkeys(sites, other))
        except Exception:  # a value that makes the model fail is read
            return True
        if len(changed) != len(clean) or not all(map(is_equal, clean, changed)):
            return True
    return False


def _matter(
    sites: Collection[Site],
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    clean: Any,
) -> bool:
    """Whether the output changes if these sites' values do."""
    for other in OTHERS:
        try:
            changed = with_values(model, example, call, dict.fromkeys(sites, other))
        except Exception:  # a value that makes the model fail is read
            return True
        pairs = zip(real_leaves(clean), real_leaves(changed), strict=False)
        if not all(torch.equal(a, b) for a, b in pairs):
            return True
    return False
