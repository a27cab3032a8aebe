"""Weights that are computed from other tensors (weight_norm, pruning), held as plain parameters.

A layer may compute its weight anew in every pass: ``torch.nn.utils.parametrize`` (the new
``weight_norm`` and ``spectral_norm`` among others), or a hook that sets the attribute (the old
ones, ``torch.nn.utils.prune``). Hardware stores what is multiplied. So a twin computes it once and
holds it under the name that the layer knows, ``0.weight``; what it was computed from is gone.

A pruned weight is held as the zero that it is: hardware is taken to store it like any other. A
crash leaves it 0, and a flipped bit or noise changes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from crashsim.model.global_random import Drawing
from crashsim.model.multiplied.stored_words import WORDS, stored_by_subclass
from crashsim.model.twins.held import Held
from crashsim.model.twins.twin import apart


@dataclass(frozen=True)
class _Computed:
    """A weight that a layer computes from other tensors.

    Attributes:
        path, name: of the layer, and of the attribute that is the weight.
        compute: returns it, for a layer of any twin.
        sources: names of what it is computed from, inside the layer.
        hook: the number of the hook that sets the attribute; None for a parametrisation.
    """

    path: str
    name: str
    compute: Callable[[nn.Module], Tensor]
    sources: tuple[str, ...]
    hook: int | None = None

    @property
    def full_name(self) -> str:
        return _joined(self.path, self.name)


def computed_weights(model: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    """The weights that layers compute outside of ``forward``, with the names of their sources."""
    return [
        (c.full_name, tuple(_joined(c.path, source) for source in c.sources))
        for c in _computed(model)
    ]


def hold_weights(twin: nn.Module) -> Held:
    """Has a twin hold its weights themselves, wherever they are computed outside of ``forward``.

    Tensors that share their memory become one parameter: one memory, one fault.

    Args:
        twin: changed in place, before it or a copy of it runs.
    """
    held = Held()
    if "torch.ao.nn.quantized" in sys.modules:  # else no layer is of it, and it takes its time
        from crashsim.model.twins.packed import unpack_weights

        unpack_weights(twin, held)
    _unite(twin)
    _read_subclasses(twin)
    found = list(_computed(twin))
    if not found:
        return held
    scratch = apart(twin)
    values = {c.full_name: value for c in found if (value := _value(c, scratch, held)) is not None}
    same: dict[object, nn.Parameter] = {}
    for path in dict.fromkeys(c.path for c in found):
        module = twin.get_submodule(path)
        ours = [c for c in found if c.path == path]
        if left := [c for c in ours if c.full_name in held.left]:
            # One class computes all that is parametrised in a layer: it stays, or it goes.
            held.left |= {c.full_name: held.left[left[0].full_name] for c in ours}
            continue
        for computed in ours:
            key, value = _identity(module, computed), values[computed.full_name]
            parameter = same.get(key)
            if parameter is None or not torch.equal(parameter, value):
                parameter = nn.Parameter(value.detach().clone(), value.is_floating_point())
            same[key] = parameter
            _hold(module, computed, parameter)
            held.sources |= {_joined(path, s): computed.full_name for s in computed.sources}
    return held


def _value(computed: _Computed, scratch: nn.Module, held: Held) -> Tensor | None:
    """The weight itself; None, with the reason noted, where it is not the same in every pass."""
    layer = scratch.get_submodule(computed.path)
    drawing = Drawing(next((t.device for t in layer.parameters()), torch.device("cpu")))
    try:
        with torch.no_grad():
            value = drawing.watch(lambda: computed.compute(layer))
    except Exception as error:  # whatever the code of a parametrisation raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        held.left[computed.full_name] = f"computing it fails: {reason}"
        return None
    if drawing.draws:
        held.left[computed.full_name] = "it is random, drawn anew in every pass"
        return None
    return value


def _computed(model: nn.Module) -> Iterator[_Computed]:
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name, parts in module.parametrizations.items():
                own = (*parts.named_parameters(), *parts.named_buffers())
                sources = tuple(f"parametrizations.{name}.{key}" for key, _ in own)
                yield _Computed(path, name, _getter(name), sources)
        for number, hook in module._forward_pre_hooks.items():
            name = _name_of(hook)
            if name is None:
                continue
            ends = ("_g", "_v", "_orig", "_mask", "_u")
            sources = tuple(
                name + end
                for end in ends
                if name + end in module._parameters or name + end in module._buffers
            )
            yield _Computed(path, name, _runner(hook, name), sources, number)


def _name_of(hook: object) -> str | None:
    """The attribute that a hook of torch's computes before every pass; None for other hooks."""
    if isinstance(hook, WeightNorm | SpectralNorm):
        return hook.name
    return hook._tensor_name if isinstance(hook, BasePruningMethod) else None


def _getter(name: str) -> Callable[[nn.Module], Tensor]:
    def compute(module: nn.Module) -> Tensor:
        found: Tensor = getattr(module, name)
        return found

    return compute


def _runner(hook: Callable[..., object], name: str) -> Callable[[nn.Module], Tensor]:
    def compute(module: nn.Module) -> Tensor:
        hook(module, ())
        found: Tensor = getattr(module, name)
        return found

    return compute


def _identity(module: nn.Module, computed: _Computed) -> object:
    """Equal for weights that are computed from the very same tensors."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return tuple(id(tensor) for name, tensor in tensors if name in computed.sources)


def _hold(module: nn.Module, computed: _Computed, parameter: nn.Parameter) -> None:
    """Gives a layer a plain parameter in the place of what it is computed from."""
    name = computed.name
    if computed.hook is None:
        parts = module._modules["parametrizations"]
        assert isinstance(parts, nn.ModuleDict)
        del parts[name]
        if not len(parts):
            # The class that computes weights is that of the user's layer too, and stays as it is.
            del module._modules["parametrizations"]
            module.__class__ = type(module).__bases__[0]
    else:
        del module._forward_pre_hooks[computed.hook]
        module._forward_pre_hooks_with_kwargs.pop(computed.hook, None)
        vars(module).pop(name, None)
        for source in computed.sources:
            module._parameters.pop(source, None)
            module._buffers.pop(source, None)
    put_parameter(module, name, parameter)


def put_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Gives a layer a parameter, in the order of a plain layer: biases come last.

    Coordinates of faults are counted in this order.
    """
    if name in module._parameters or name.startswith("bias"):
        module._parameters[name] = parameter
        return
    others = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: parameter, **others})


def _read_subclasses(twin: nn.Module) -> None:
    """Makes plain parameters of tensors of a class of its own that stores integer words."""
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            found = None if parameter is None else stored_by_subclass(parameter)
            if found is not None:
                value, words = found
                module._parameters[name] = nn.Parameter(value, requires_grad=False)
                vars(module).setdefault(WORDS, {})[name] = words


def _unite(twin: nn.Module) -> None:
    """Makes parameters that are the same numbers in the same memory one parameter."""
    first: dict[object, nn.Parameter] = {}
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or type(parameter) is not nn.Parameter or not parameter.numel():
                continue
            if parameter.is_meta or parameter.layout is not torch.strided:
                continue
            key = parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype
            module._parameters[name] = first.setdefault((key, parameter.device), parameter)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
