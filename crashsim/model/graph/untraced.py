"""Why a model may compute something else than its torch.fx graph: hooks, own calls, own tensors.

``torch.fx`` follows ``forward`` as the class defines it and takes torch's own layers for what their
class says. Hooks, a ``forward`` or ``__call__`` of one's own on a layer, and tensors that compute
in their own way are not in the graph.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from crashsim.model.twins.held_in_forward import Multiplying

_PLAIN: tuple[type, ...] = (Tensor, nn.Parameter)
# Whose own __call__ does nothing else, or is that of no layer.
_CALLED = (fx.GraphModule, nn.ParameterList, nn.ParameterDict)
# Whose values are no floats; dynamically quantised layers take and return floats.
_QUANTISED = "torch.ao.nn.quantized.modules.", "torch.ao.nn.intrinsic.quantized.modules."


def unseen(model: nn.Module) -> str | None:
    """Why a model may compute something else than its graph; None if no reason is known."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "hooks of all modules (register_module_forward_hook) are not in the traced graph"
    for name, module in model.named_modules():
        what = f"layer {name!r} ({type(module).__name__})" if name else "the model itself"
        if _only_checks(type(module)):
            continue
        if type(module).__module__.startswith(_QUANTISED):
            return f"{what} computes with quantised tensors"
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not all(_only_checks(hook) for hook in hooks):
            return f"{what} has a forward hook, which is not in the traced graph"
        if isinstance(forward := vars(module).get("forward"), Multiplying):
            return f"{what} {forward.why_unseen}"
        if {"forward", "_call_impl", "__call__"} & vars(module).keys():
            return f"{what} has a forward of its own, put on the object, not in its class"
        called = type(module).__call__ is nn.Module.__call__ or isinstance(module, _CALLED)
        if not called or type(module)._call_impl is not nn.Module._call_impl:
            return f"{what} has a __call__ of its own, which is not in the traced graph"
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if type(tensor) not in _PLAIN:
            return f"{name!r} is a {type(tensor).__name__}, which may compute in its own way"
    return None


def _only_checks(thing: object) -> bool:
    """Whether a hook or a class is torch.export's: these look at the sizes of inputs alone."""
    return str(getattr(thing, "__module__", "")).startswith("torch.export.")


def parametrised(model: nn.Module) -> str | None:
    """The name of a layer whose weight is computed from other tensors; None if there is none."""
    found = (name for name, m in model.named_modules() if parametrize.is_parametrized(m))
    return next(found, None)


def class_of(module: nn.Module | None) -> type[nn.Module] | None:
    """The class that says what a layer computes: torch's own, without its parametrisation.

    None for a layer of another class, however it is named or whatever it inherits from.
    """
    if module is None:
        return None
    kind = type(module)
    if parametrize.is_parametrized(module) and len(kind.__bases__) == 1:
        kind = kind.__bases__[0]
    return kind if kind.__module__.startswith("torch.nn.modules.") else None


def is_torchs(node: fx.Node) -> bool:
    """Whether a function of the graph is torch's (or Python's), not a namesake of it."""
    if node.op != "call_function":
        return True
    target: Any = node.target
    if getattr(target, "__module__", None) == "torch.nn.functional":
        return True
    name = str(getattr(target, "__name__", ""))
    places: tuple[Any, ...] = (torch, F, torch._C._nn, operator)
    return any(getattr(place, name, None) is target for place in places)


def has_hooks(module: nn.Module) -> bool:
    """Whether something else runs when a module is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_all_torchs(model: nn.Module) -> bool:
    """Whether a model is made of torch's own layers alone, and no other code runs between them."""
    kinds = {type(module) for module in model.modules()}
    return all(getattr(nn, kind.__name__, None) is kind for kind in kinds) and unseen(model) is None


class FloatingTypes(TorchDispatchMode):
    """Collects the floating-point types that a forward pass computes in.

    Attributes:
        found: the types of all that was computed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[torch.dtype] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would load its compiler to skip it

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        value = out[0] if isinstance(out, tuple | list) and out else out
        if isinstance(value, Tensor) and value.is_floating_point():
            self.found.add(value.dtype)
        return out
