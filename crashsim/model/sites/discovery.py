"""Site discovery: finds a model's sites by running it on an example or two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crashsim.model.calling import call_with
from crashsim.model.checks import check_model, dtype_of, rounding_slack, unwrapped
from crashsim.model.failures import explaining_failures
from crashsim.model.global_random import Drawing
from crashsim.model.inputs import Inputs, ModelInputs, read_inputs
from crashsim.model.multiplied.forward_weights import hold_forward_weights
from crashsim.model.multiplied.stored_words import Words, words_of
from crashsim.model.sites.inline import bends
from crashsim.model.sites.layer_inputs import inline_neurons, with_inputs
from crashsim.model.sites.layer_kinds import (
    is_activation,
    is_affine,
    is_quantised,
    is_recurrent,
    is_recurrent_cell,
)
from crashsim.model.sites.marking import marked_read, marked_roles, marked_spikes, marked_units
from crashsim.model.sites.names import (
    ACTIVATION_FUNCTIONS,
    SiteKey,
    input_name,
)
from crashsim.model.sites.neurons import Neurons, neurons_of
from crashsim.model.sites.passes import (
    LOOKED_AT,
    SiteValues,
    batch_axis,
    is_same_memory,
    watched_values,
    with_values,
)
from crashsim.model.sites.site import Site, listening
from crashsim.model.sites.time_axis import marked_steps
from crashsim.model.twins.held_weights import hold_weights
from crashsim.model.twins.twin import Twin, twin_of


class Discovered(NamedTuple):
    """What was found in a model.

    Attributes:
        sites: in order of execution; parameters last.
        missed: pairs of layers between which the model computes an activation of its own that
            cannot be struck.
        looped: modules that run once for each example, so that their values have no batch axis.
        fed_back: spiking modules that run through many steps in one call and feed their spikes
            back inside it, where no fault of their output reaches.
        closed: recurrent layers of torch whose single steps no fault reaches: they read packed
            sequences, or several sequences of an example, or are quantised.
    """

    sites: list[Site]
    missed: tuple[tuple[str, str], ...]
    looped: tuple[str, ...]
    fed_back: tuple[str, ...]
    closed: tuple[str, ...]


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


class _Watched:
    """Forward passes of a twin, with the values that its modules and functions return.

    Attributes:
        events: of the last pass: the sites, and the modules that call functions that bend.
    """

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        self._model, self._call = model, call
        self.events: list[SiteKey | str] = []

    def values(self, x: Inputs) -> tuple[SiteValues, Any]:
        """The values at all sites, and the output."""
        seen: SiteValues = {}

        def record(key: SiteKey, value: Any) -> None:
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 1:
                seen[key] = value
                self.events.append(key)

        def watch(path: str, function: object, _: tuple[Any, ...]) -> None:
            if bends(function):
                self.events.append(path)

        with torch.no_grad(), listening(self._model, record) as listener:
            self.events.clear()
            listener.watch = watch
            return seen, x.clone().call(self._call)

    def shapes(self, x: Inputs) -> dict[SiteKey, torch.Size]:
        """The shapes of all values."""
        seen: dict[SiteKey, torch.Size] = {}

        def record(key: SiteKey, value: Any) -> None:
            if isinstance(value, Tensor):
                seen[key] = value.shape

        with torch.no_grad(), listening(self._model, record):
            x.clone().call(self._call)
        return seen


def discovered(model: nn.Module, given: Inputs, call: Callable[..., Any]) -> Discovered:
    """The sites of a twin that runs, and what cannot be one.

    Args:
        model: the twin.
        given: checked examples.
        call: how to call it.
    """
    example, passes = given.part(0, 1), _Watched(model, call)
    one, _ = passes.values(example)
    two, output = passes.values(example.repeat(2))
    events = list(passes.events)
    modules = dict(model.named_modules())
    neurons = neurons_of(model, example, call)
    neurons = {path: n for path, n in neurons.items() if not _passes_on(path, two, modules)}
    sites = [
        *_input_sites(example),
        *_value_sites(passes, given, one, two, output, modules, neurons),
    ]
    sites = marked_steps(
        model,
        sites,
        lambda actions: with_values(model, example, call, actions),
        partial(watched_values, model, example, call),
    )
    inline = inline_neurons(model, example, call, sites, events, neurons)
    sites = with_inputs(sites, inline.sites)
    spiking = {path: n.item for path, n in neurons.items() if n.behaviour == "spiking"}
    recurrent = {p for p, m in modules.items() if is_recurrent(m) or is_recurrent_cell(m)}
    sites = marked_units(model, example, call, sites, {*spiking, *recurrent})
    sites = marked_read(model, example, call, sites)
    sites = marked_roles(model, given, call, sites, neurons)
    sites = marked_spikes(model, example, call, sites, spiking, inline.spiking)
    # Where nothing inside the model has a derivative, its parameters have none either.
    smooth = any(s.has_gradient for s in sites) or not any(s.is_read for s in sites)
    spikes = any(s.is_read for s in sites if s.module in spiking or s in inline.spiking)
    sites += _parameter_sites(model, smooth, spikes)
    fed_back = tuple(path for path, n in neurons.items() if n.feeds_back)
    looped = _looped(one, two, sites)
    return Discovered(sites, tuple(inline.missed), looped, fed_back, _closed(sites, modules))


def _input_sites(example: Inputs) -> list[Site]:
    return [
        Site(input_name(name), "input", tuple(tensor.shape[1:]), module=name)
        for name, tensor in zip(example.site_names, example.tensors, strict=True)
        if tensor.is_floating_point()
    ]


def _value_sites(
    passes: _Watched,
    given: Inputs,
    one: SiteValues,
    two: SiteValues,
    output: Any,
    modules: Mapping[str, nn.Module],
    neurons: Mapping[str, Neurons],
) -> list[Site]:
    """The values that have an axis for the batch, as sites.

    Args:
        passes: of the twin.
        given: examples.
        one, two: the values for one of them, and for the same twice.
        output: of the second pass.
        modules: of the twin, by path.
        neurons: the modules that compute neurons' outputs.
    """
    some = passes.shapes(given.part(0, LOOKED_AT))
    composed = _composed_activations(two, modules)
    folded = _folded({k: (one[k], v) for k, v in two.items() if k in one}, given, passes.values)
    sites = []
    for key, value in two.items():
        path, function, call = key
        if key not in one or (not path and function not in ACTIVATION_FUNCTIONS):
            continue
        axis = batch_axis(one[key], value)
        if axis is not None:
            shape = tuple(value.movedim(axis, 0).shape[1:])
        elif key in folded:
            axis, shape = folded[key], tuple(one[key].shape)
        else:
            continue
        along = 0 if key in folded else axis
        rows = value.shape[along] // 2 * min(len(given), LOOKED_AT)
        if key not in some or some[key][along] != rows:
            continue  # the model decides which examples run through it
        module = modules[path]
        is_neuron = _is_activation(key, module, composed, neurons)
        is_sequence = _is_sequence(module, key, shape)
        found = neurons.get(path)
        spikes = found if found is not None and function == found.item else None
        is_output = is_same_memory(value, output)
        sites.append(
            Site(
                name=key.name,
                units=key.name,
                kind="activation" if is_neuron else "module",
                shape=shape,
                module=path,
                function=function,
                call=call,
                is_output=is_output or (is_quantised(module) and _is_copy(value, output)),
                is_affine=is_affine(module) and function is None,
                axis=axis,
                steps=0 if is_sequence else _steps_of(spikes, axis, key in folded),
                is_recurrent=is_sequence,
            )
        )
    return sites


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


def _looped(one: SiteValues, two: SiteValues, sites: Sequence[Site]) -> tuple[str, ...]:
    """Modules that run once more for each example of a batch: their values have no batch axis."""
    known = {site.module for site in sites}
    calls = [Counter(key.module for key in values) for values in (one, two)]
    again = [path for path, count in calls[1].items() if path and count == 2 * calls[0][path]]
    return tuple(path for path in again if path not in known)


def _closed(sites: Sequence[Site], modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Recurrent layers that run, of which no sequence of steps is a site."""
    found = {s.module: None for s in sites if s.kind == "activation"}
    open_ = {s.module for s in sites if s.is_recurrent}
    return tuple(path for path in found if is_recurrent(modules[path]) and path not in open_)


def _is_copy(value: Tensor, output: Any) -> bool:
    """Whether a quantised layer's values are the output, which is a copy of them."""
    return (
        isinstance(output, Tensor)
        and value.shape == output.shape
        and torch.equal(value, output.to(value.dtype))
    )


def _is_activation(
    key: SiteKey, module: nn.Module, composed: Collection[str], neurons: Mapping[str, Neurons]
) -> bool:
    path, function, _ = key
    if path in composed:
        return function is None
    if path in neurons:
        return function == neurons[path].item
    if any(path.startswith(f"{outer}.") for outer in neurons):
        return False  # a part of what computes the neurons' outputs
    return (
        is_recurrent(module)
        or is_recurrent_cell(module)
        or function in ACTIVATION_FUNCTIONS
        or (function is None and is_activation(module))
    )


def _passes_on(path: str, values: SiteValues, modules: Mapping[str, nn.Module]) -> bool:
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


def _composed_activations(values: SiteValues, modules: Mapping[str, nn.Module]) -> set[str]:
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


def _folded(
    values: Mapping[SiteKey, tuple[Tensor, Tensor]],
    given: Inputs,
    sample: Callable[[Inputs], tuple[SiteValues, Any]],
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
