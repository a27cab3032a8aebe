"""Site discovery: finds a model's sites by running it on an example or two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from crashsim.model.calling import call_with
from crashsim.model.checks import check_model, dtype_of, rounding_slack, unwrapped
from crashsim.model.failures import explaining_failures
from crashsim.model.global_random import Drawing
from crashsim.model.inline import bends, between_layers
from crashsim.model.inputs import Inputs, ModelInputs, read_inputs
from crashsim.model.layer_kinds import (
    is_activation,
    is_affine,
    is_quantised,
    is_recurrent,
    is_recurrent_cell,
)
from crashsim.model.multiplied.forward_weights import hold_forward_weights
from crashsim.model.multiplied.stored_words import Words, words_of
from crashsim.model.nested import leaves
from crashsim.model.neurons import Neurons, is_torchs, multiplied, neurons_of
from crashsim.model.reuse import Feeders, Following, is_used_again
from crashsim.model.site_names import (
    ACTIVATION_FUNCTIONS,
    INPUT,
    SiteKey,
    input_name,
)
from crashsim.model.sites import Action, Role, Site, listening, perturbing
from crashsim.model.time_axis import marked_steps
from crashsim.model.twins.held_weights import hold_weights
from crashsim.model.twins.twin import Twin, twin_of

_SiteValues = dict[SiteKey, Tensor]


class Discovered(NamedTuple):
    """What was found in a model.

    Attributes:
        sites: in order of execution; parameters last.
        missed: pairs of layers between which the model computes an activation of its own that
            cannot be struck.
        looped: modules that run once for each example, so that their values have no batch axis.
        fed_back: spiking modules that run through many steps in one call and feed their spikes
            back inside it, where no fault of their output reaches.
    """

    sites: list[Site]
    missed: tuple[tuple[str, str], ...]
    looped: tuple[str, ...]
    fed_back: tuple[str, ...]


_LOOKED_AT = 16  # examples, to see whether all of them run through a layer


@torch.inference_mode(False)
def find_sites(
    model: nn.Module,
    inputs: ModelInputs | Inputs,
    run: Callable[..., Any] | None = None,
) -> list[Site]:
    """All sites of a model, in order of execution; parameters last.

    A value must be a floating-point tensor with the batch on its first axis (or the second, in
    sequences (T, B, ...)), or with several rows for each example on the first.

    Args:
        model: any module, in evaluation mode.
        inputs: (B, ...) examples, of which some are looked at; several tensors, as ``FaultSpace``
            takes them.
        run: how to call the model, if not as ``model(inputs)``; the caller has checked both.

    Raises:
        ArgumentError: the model is not a module, or the inputs make no sense.
        ModelError: the model cannot be analysed as it is, or fails on the inputs.
    """
    given = inputs if isinstance(inputs, Inputs) else read_inputs(inputs)
    if run is not None:
        return discovered(model, given, run).sites
    model = unwrapped(model)
    check_model(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    given = given.to(device, dtype_of(model))
    # On a twin, whose parameters are copies: forward may write to them.
    origin = twin_of(model)
    held = hold_weights(origin)
    twin = Twin(origin, None, set(), owned=None)
    twin.looks = True

    def run_with(x: Inputs, tensors: Mapping[str, Tensor]) -> Any:
        return x.call(lambda *args, **kwargs: called(tensors, args, kwargs))

    def called(tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Any) -> Any:
        return twin.call(lambda: call_with(twin.module, tensors, args, kwargs))

    def call(*arguments: Any, **keywords: Any) -> Any:
        return called(twin.tensors, arguments, keywords)

    drawing = Drawing(device)
    with torch.no_grad(), explaining_failures(model, given):
        drawing.watch(lambda: given.part(0, 1).call(call))
        with drawing.undone():
            made = hold_forward_weights(origin, twin.module, twin.tensors, given, run_with, held)
        if made:
            twin = Twin(origin, None, set(), owned=None)
            twin.looks = True
            drawing.watch(lambda: given.part(0, 1).call(call))
    with drawing.undone(), explaining_failures(model, given):
        return discovered(twin.module, given, call).sites


def discovered(model: nn.Module, given: Inputs, call: Callable[..., Any]) -> Discovered:
    """The sites of a twin that runs, and what cannot be one.

    Args:
        model: the twin.
        given: checked examples.
        call: how to call it.
    """
    example = given.part(0, 1)
    events: list[SiteKey | str] = []  # of a pass: sites, and modules that call what bends

    def watch(path: str, function: object, _: tuple[Any, ...]) -> None:
        if bends(function):
            events.append(path)

    def sample(x: Inputs) -> tuple[_SiteValues, Any]:
        seen: _SiteValues = {}

        def record(key: SiteKey, value: Any) -> None:
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 1:
                seen[key] = value
                events.append(key)

        with torch.no_grad(), listening(model, record) as listener:
            events.clear()
            listener.watch = lambda path, function, _: (
                events.append(path) if bends(function) else None
            )
            return seen, x.clone().call(call)

    def shapes(x: Inputs) -> dict[SiteKey, torch.Size]:
        seen: dict[SiteKey, torch.Size] = {}

        def record(key: SiteKey, value: Any) -> None:
            if isinstance(value, Tensor):
                seen[key] = value.shape

        with torch.no_grad(), listening(model, record):
            x.clone().call(call)
        return seen

    one, _ = sample(example)
    two, output = sample(example.repeat(2))
    some = shapes(given.part(0, _LOOKED_AT))
    modules = dict(model.named_modules())
    composed = _composed_activations(two, modules)
    neurons = neurons_of(model, example, call)
    neurons = {path: n for path, n in neurons.items() if not _passes_on(path, two, modules)}
    folded = _folded({k: (one[k], v) for k, v in two.items() if k in one}, given, sample)
    sites = [
        Site(input_name(name), "input", tuple(tensor.shape[1:]), module=name)
        for name, tensor in zip(example.site_names, example.tensors, strict=True)
        if tensor.is_floating_point()
    ]
    for key, value in two.items():
        path, function, _ = key
        if key not in one or (not path and function not in ACTIVATION_FUNCTIONS):
            continue
        axis = _batch_axis(one[key], value)
        if axis is not None:
            shape = tuple(value.movedim(axis, 0).shape[1:])
        elif key in folded:
            axis, shape = folded[key], tuple(one[key].shape)
        else:
            continue
        along = 0 if key in folded else axis
        rows = value.shape[along] // 2 * min(len(given), _LOOKED_AT)
        if key not in some or some[key][along] != rows:
            continue  # the model decides which examples run through it
        is_neuron = _is_activation(key, modules[path], composed, neurons)
        is_sequence = _is_sequence(modules[path], key, shape)
        sites.append(
            Site(
                name=key.name,
                units=key.name,
                kind="activation" if is_neuron else "module",
                shape=shape,
                module=path,
                function=function,
                call=key[2],
                is_output=_is_same(value, output)
                or (is_quantised(modules[path]) and _is_copy(value, output)),
                is_affine=is_affine(modules[path]) and function is None,
                axis=axis,
                steps=0
                if is_sequence
                else _steps_of(
                    neurons.get(path) if function is None else None, axis, key in folded
                ),
                is_recurrent=is_sequence,
            )
        )
    sites = marked_steps(
        model,
        sites,
        lambda actions: _with_values(model, example, call, actions),
        partial(watched_values, model, example, call),
    )
    inline = _inline(model, example, call, sites, events, neurons)
    sites = _with_inputs(sites, inline.sites)
    stateful = {path for path, n in neurons.items() if n.behaviour == "spiking"}
    stateful |= {p for p, m in modules.items() if is_recurrent(m) or is_recurrent_cell(m)}
    sites = _marked_units(model, example, call, sites, stateful)
    sites = _marked_read(model, example, call, sites)
    sites = _marked_roles(model, given, call, sites, neurons)
    spiking = [path for path, n in neurons.items() if n.behaviour == "spiking"]
    sites = _marked_spikes(model, example, call, sites, spiking, inline.spiking)
    # Where nothing inside the model has a derivative, its parameters have none either.
    smooth = any(s.has_gradient for s in sites) or not any(s.is_read for s in sites)
    spikes = any(s.is_read for s in sites if s.module in spiking or s in inline.spiking)
    sites += _parameter_sites(model, smooth, spikes)
    fed_back = tuple(path for path, n in neurons.items() if n.feeds_back)
    return Discovered(sites, tuple(inline.missed), _looped(one, two, sites), fed_back)


def _parameter_sites(model: nn.Module, smooth: bool, spikes: bool) -> list[Site]:
    """Each parameter once, with the other names of one that several layers share."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [
        Site(
            name,
            "parameter",
            tuple(parameter.shape),
            module=name,
            has_gradient=smooth,
            acts_on_spikes=spikes,
            aliases=tuple(names[id(parameter)][1:]),
            words=_words(model, name),
        )
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    ]


def _words(model: nn.Module, name: str) -> Words | None:
    path, _, key = name.rpartition(".")
    return words_of(model.get_submodule(path), key)


def _looped(one: _SiteValues, two: _SiteValues, sites: Sequence[Site]) -> tuple[str, ...]:
    """Modules that run once more for each example of a batch: their values have no batch axis."""
    known = {site.module for site in sites}
    calls = [Counter(key.module for key in values) for values in (one, two)]
    again = [path for path, count in calls[1].items() if path and count == 2 * calls[0][path]]
    return tuple(path for path in again if path not in known)


class _Inline(NamedTuple):
    """Neurons that no module computes: their sites, those that spike, and what was missed."""

    sites: Sequence[Site]
    spiking: Collection[Site]
    missed: Sequence[tuple[str, str]]


def _inline(
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    sites: Sequence[Site],
    events: Sequence[SiteKey | str],
    neurons: Collection[str],
) -> _Inline:
    """What the model's own forward pass computes between its layers; see ``model/inline.py``."""
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
    mine = [site for site in read if site.module in found.struck]
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
        bent = [_bent(model, example, call, dict.fromkeys(source, o), is_known) for o in _OTHERS]
        clean = _bent(model, example, call, {}, is_known)
        return any(len(b) != len(clean) or not all(map(_is_equal, b, clean)) for b in bent)

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
            given.extend(leaf.clone() for leaf in _real_leaves(args))

    with torch.no_grad(), listening(model, lambda *_: None) as listener:
        listener.watch = watch
        _with_values(model, example, call, actions)
    return given


def _read_by(
    model: nn.Module, example: Inputs, call: Callable[..., Any], layers: Collection[str]
) -> tuple[list[Site], dict[SiteKey, tuple[int, Feeders]]]:
    """What layers read, as sites, and the memory of each with what it was last multiplied by."""

    def values(x: Inputs) -> tuple[_SiteValues, dict[SiteKey, tuple[int, Feeders]]]:
        seen: _SiteValues = {}
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
        axis = _batch_axis(one[key], value) if key in one else None
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
        return all(a is not None and b is not None and _is_equal(a, b) for a, b in pairs)

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


def _with_inputs(sites: Sequence[Site], read: Sequence[Site]) -> list[Site]:
    """The sites, each layer's input before its output."""
    before = {site.key: site for site in read}
    found = []
    for site in sites:
        mine = before.get(SiteKey(site.module, INPUT, site.call))
        if mine is not None and site.function is None:
            found.append(mine)
        found.append(site)
    return found


def watched_values(
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    actions: Mapping[Site, Action],
    watched: Sequence[Site],
) -> dict[Site, Tensor]:
    """The values of some sites, where those of others are passed through actions."""
    seen: dict[Site, Tensor] = {}

    def look(site: Site) -> Action:
        def keep(value: Tensor) -> Tensor:
            changed = actions[site](value) if site in actions else None
            seen[site] = (value if changed is None else changed).clone()
            return value if changed is None else changed

        return keep

    with torch.no_grad():
        _with_values(model, example, call, {s: look(s) for s in {*watched, *actions}})
    return seen


def _is_same(value: Tensor, output: Any) -> bool:
    return (
        isinstance(output, Tensor)
        and value.data_ptr() == output.data_ptr()
        and value.numel() == output.numel()
    )


def _is_copy(value: Tensor, output: Any) -> bool:
    """Whether a quantised layer's values are the output, which is a copy of them."""
    return (
        isinstance(output, Tensor)
        and value.shape == output.shape
        and torch.equal(value, output.to(value.dtype))
    )


def _is_activation(
    key: SiteKey, module: nn.Module, composed: Collection[str], neurons: Collection[str]
) -> bool:
    path, function, _ = key
    if path in composed or path in neurons:
        return function is None
    if any(path.startswith(f"{outer}.") for outer in neurons):
        return False  # a part of what computes the neurons' outputs
    return (
        is_recurrent(module)
        or is_recurrent_cell(module)
        or function in ACTIVATION_FUNCTIONS
        or (function is None and is_activation(module))
    )


def _passes_on(path: str, values: _SiteValues, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module returns what an activation inside it computes, so that the latter counts."""
    whole = values.get(SiteKey(path, None, 0))
    return whole is not None and any(
        value.data_ptr() == whole.data_ptr() and value.shape == whole.shape
        for (inner, function, _), value in values.items()
        if (inner.startswith(f"{path}.") and is_activation(modules[inner]))
        or (inner == path and function in ACTIVATION_FUNCTIONS)
    )


def _is_sequence(module: nn.Module, key: SiteKey, shape: tuple[int, ...]) -> bool:
    return isinstance(module, nn.RNNBase) and key.function is None and len(shape) == 2


def _steps_of(neurons: Neurons | None, axis: int, folded: bool) -> int | None:
    """The axis of a site's shape that is time."""
    if neurons is None or neurons.steps_axis is None:
        return None
    if folded:
        return 0 if neurons.steps_axis == 0 else None
    return neurons.steps_axis - (neurons.steps_axis > axis)


def _marked_units(
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
    firsts: dict[tuple[str, str | None], list[Site]] = {}
    told = []
    for site in sites:
        if site.kind in ("input", "parameter") or site.function == INPUT:
            told.append(site)
            continue
        known = firsts.setdefault((site.module, site.function), [])
        now = feeders.get(site.key, {})
        for first in known:
            before = feeders.get(first.key, {})
            same = site.module in stateful or is_used_again(before, now)
            if same and site.shape == first.shape and site.steps == first.steps:
                told.append(replace(site, units=first.name))
                break
        else:
            known.append(site)
            told.append(replace(site, units=site.name))
    return told


def _marked_roles(
    model: nn.Module,
    given: Inputs,
    call: Callable[..., Any],
    sites: Sequence[Site],
    neurons: Mapping[str, Neurons],
) -> list[Site]:
    """The sites with the roles of activations: output neurons and guards told apart."""
    some = given.part(0, _LOOKED_AT)
    roles: dict[Site, Role] = dict.fromkeys(_guards(model, some, call, sites), "guard")
    example = given.part(0, 1)
    spiking = {path for path, n in neurons.items() if n.behaviour == "spiking"}
    if spiking:
        clean = multiplied(lambda: _with_values(model, example, call, {}))
        for path in spiking:
            ours = [s for s in sites if s.module == path and s.kind == "activation"]
            for site in ours:
                roles.pop(site, None)  # silent neurons behind silent neurons are no guards
            more: dict[Site, Action] = dict.fromkeys(ours, _more_spikes)
            changed = multiplied(partial(_with_values, model, example, call, more))
            if len(clean) == len(changed) and all(map(_is_equal, clean, changed)):
                roles |= dict.fromkeys(ours, "output")
    return [replace(site, role=roles.get(site, site.role)) for site in sites]


def _marked_spikes(
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    sites: Sequence[Site],
    spiking: Sequence[str],
    inline: Collection[Site],
) -> list[Site]:
    """The sites, each marked with whether spikes depend on its value: it is changed to see."""
    if not spiking and not inline:
        return list(sites)
    readers = {site.module for site in inline}

    def spikes(actions: Mapping[Site, Action]) -> list[Tensor]:
        seen: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            seen.extend(leaf.clone() for leaf in _real_leaves(output)[:1])

        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.extend(leaf.clone() for leaf in _real_leaves(args)[:1])

        with ExitStack() as stack, torch.no_grad():
            for path in readers:  # likewise
                module = model.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(read).remove)
            for path in spiking:  # before faults strike what they return
                stack.callback(model.get_submodule(path).register_forward_hook(keep).remove)
            _with_values(model, example, call, actions)
        return seen

    clean = spikes({})
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.units or site.name, []).append(site)
    found: set[Site] = set()
    for group in groups.values():
        for other in _OTHERS:
            try:
                changed = spikes(dict.fromkeys(group, other))
            except Exception:  # a value that makes the model fail is read
                changed = []
            if len(changed) != len(clean) or not all(map(_is_equal, clean, changed)):
                found.update(group)
                break
    return [replace(site, acts_on_spikes=site in found) for site in sites]


def _more_spikes(value: Tensor) -> Tensor:
    return value + 1.0


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _guards(
    model: nn.Module, example: Inputs, call: Callable[..., Any], sites: Sequence[Site]
) -> list[Site]:
    """Activations that read the output of another one itself and return the same numbers.

    Modules alone are looked at, in all their calls.
    """
    activations = {s.key: s for s in sites if s.kind == "activation"}
    outputs: list[Tensor] = []
    read: dict[str, Tensor | None] = {}
    changes: set[str] = set()

    def before(_: nn.Module, args: tuple[Any, ...], path: str) -> None:
        x = args[0] if args else None
        if isinstance(x, Tensor) and any(_is_same(x, value) for value in outputs):
            read[path] = x.clone()
        else:
            read[path] = None

    def after(key: SiteKey, value: Any) -> None:
        path, function, _ = key
        if key not in activations or not isinstance(value, Tensor):
            return
        outputs.append(value)
        x = read.get(path)
        if function is None and (x is None or not _is_equal(x, value)):
            changes.add(path)

    modules = dict(model.named_modules())
    with torch.no_grad(), ExitStack() as stack:
        for path in {s.module for s in activations.values() if s.module}:
            hook = modules[path].register_forward_pre_hook(partial(before, path=path))
            stack.callback(hook.remove)
        stack.enter_context(listening(model, after, only=list(activations.values())))
        example.clone().call(call)
    return [s for s in activations.values() if s.function is None and s.module not in changes]


def _composed_activations(values: _SiteValues, modules: Mapping[str, nn.Module]) -> set[str]:
    """Modules that compute an activation function out of others, such as x * sigmoid(x).

    They have no layers inside and no matrix of weights, and return another value than the function
    that they call does, of the same shape.
    """
    found = set()
    for (path, function, _), value in values.items():
        if function not in ACTIVATION_FUNCTIONS or not path or any(modules[path].children()):
            continue
        whole = values.get(SiteKey(path))
        if whole is None or whole.shape != value.shape or whole.data_ptr() == value.data_ptr():
            continue
        if all(p.dim() < 2 for p in modules[path].parameters()):
            found.add(path)
    return found


def _batch_axis(one: Tensor, two: Tensor) -> int | None:
    """The axis along which a value for two examples is twice as long as for one."""
    if one.dim() != two.dim():
        return None
    grown = [axis for axis in range(one.dim()) if one.shape[axis] != two.shape[axis]]
    if len(grown) != 1 or (one.shape[grown[0]], two.shape[grown[0]]) != (1, 2):
        return None
    return grown[0] if grown[0] == 0 or (grown[0] == 1 and two.dim() >= 3) else None


def _folded(
    values: Mapping[SiteKey, tuple[Tensor, Tensor]],
    given: Inputs,
    sample: Callable[[Inputs], tuple[_SiteValues, Any]],
) -> dict[SiteKey, int]:
    """The values with several rows for each example.

    Their number alone does not say in which order: two different examples do.

    Args:
        values: for one example and for the same twice.

    Returns:
        0 where the rows of the first example come before those of the second, 1 where the first
        rows of all come before the second rows of all.
    """
    grown = {
        key
        for key, (one, two) in values.items()
        if len(one) > 1 and (2 * len(one), *one.shape[1:]) == two.shape
    }
    if not grown:
        return {}
    first = given.part(0, 1)
    second = given.part(1, 2) if len(given) > 1 else first.rolled()
    try:
        both, other = sample(first.joined(second))[0], sample(second)[0]
    except Exception:  # the model need not take an example that we made up
        return {}
    found = {}
    for key in grown & both.keys() & other.keys():
        a, b = values[key][0], other[key]
        if a.shape != b.shape or _close(a, b):
            continue
        for axis, order in enumerate((torch.cat([a, b]), torch.stack([a, b], 1).flatten(0, 1))):
            if _close(both[key], order):
                found[key] = axis
                break
    return found


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two values differ by rounding alone."""
    if a.shape != b.shape:
        return False
    return bool((a - b).abs().max() <= rounding_slack(a.dtype) * (1e-30 + a.abs().max()))


def _marked_read(
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
            output = _with_values(model, example, call, {s: partial(shift, site=s) for s in sites})
            total = sum(leaf.sum() for leaf in _real_leaves(output) if leaf.requires_grad)
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
    clean = _with_values(model, example, call, {})
    if doubtful and _matter(doubtful, model, example, call, clean):
        groups: dict[str, set[Site]] = {}
        for site in doubtful:
            groups.setdefault(site.units or site.name, set()).add(site)
        for group in groups.values():
            if read.isdisjoint(group) and _matter(group, model, example, call, clean):
                read |= group
    used = {site.units for site in read if site.units}
    # The units of a recurrent layer act on all that it returns.
    layers = {(site.module, site.call) for site in read if site.function in ("h_n", "c_n")}

    def is_read(site: Site) -> bool:
        inside = site.is_inside and (site.module, site.call) in layers
        return site in read or inside or (site.units != "" and site.units in used)

    return [replace(s, is_read=is_read(s), has_gradient=s in smooth) for s in sites]


# What values are replaced by to see whether anything depends on them.
_OTHERS: tuple[Action, ...] = (
    torch.zeros_like,
    torch.neg,
    lambda value: value + 10 * (1 + value.abs()),
)


def _matter(
    sites: Collection[Site],
    model: nn.Module,
    example: Inputs,
    call: Callable[..., Any],
    clean: Any,
) -> bool:
    """Whether the output changes if these sites' values do."""
    for other in _OTHERS:
        try:
            changed = _with_values(model, example, call, dict.fromkeys(sites, other))
        except Exception:  # a value that makes the model fail is read
            return True
        pairs = zip(_real_leaves(clean), _real_leaves(changed), strict=False)
        if not all(torch.equal(a, b) for a, b in pairs):
            return True
    return False


def _with_values(
    model: nn.Module, example: Inputs, call: Callable[..., Any], actions: Mapping[Site, Action]
) -> Any:
    """The output, with each site's value passed through its action."""
    x = example.clone()
    for index, name in enumerate(example.site_names):
        for site, action in actions.items():
            if site.kind == "input" and site.module == name:
                x = x.with_tensor(index, cast(Tensor, action(x.tensors[index])))
    inner = {site: action for site, action in actions.items() if site.kind != "input"}
    with perturbing(model, inner):
        return x.call(call)


def _real_leaves(output: Any) -> list[Tensor]:
    found = (leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor))
    return [leaf for leaf in found if leaf.is_floating_point()]
