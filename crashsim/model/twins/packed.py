"""Layers of torch's quantised networks, whose weights are packed in words of int8.

Torch packs weight and bias for its kernels into an object that is no tensor. The layer of a twin
holds them as parameters, ``0.weight`` with the values that its words stand for, and packs them
when it runs: the same kernel, the same numbers. What faults make of a weight is read as the
nearest word.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.ao.nn.quantized as static
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic.modules.rnn import RNNBase, RNNCellBase
from torch.ao.nn.quantized.modules.conv import _ConvNd
from torch.ao.nn.quantized.modules.linear import LinearPackedParams

from crashsim.model.multiplied.stored_words import WORDS, Words
from crashsim.model.twins.held import Held
from crashsim.model.twins.twin import PerThread

# The attributes that hold what is packed.
_PACKED: Mapping[type[nn.Module], tuple[str, ...]] = {
    static.Linear: ("_packed_params",),
    _ConvNd: ("_packed_params",),
    RNNBase: ("_all_weight_values",),
    RNNCellBase: ("_packed_weight_ih", "_packed_weight_hh"),
}
_CACHE = "_crashsim_packed"


def unpack_weights(twin: nn.Module, held: Held) -> None:
    """Gives a twin's quantised layers their weights as parameters.

    Args:
        twin: changed in place, before it or a copy of it runs.
        held: layers whose weights stay packed are added to what is left.
    """
    for path, module in list(twin.named_modules()):
        kind = next((k for k in _PACKED if isinstance(module, k)), None)
        if kind is not None and not any(hasattr(type(module), a) for a in _PACKED[kind]):
            _unpack(module, kind)
        elif isinstance(module, static.Embedding | static.EmbeddingBag):
            name = f"{path}.weight" if path else "weight"
            held.left[name] = "words of 8 bits without a sign, packed by torch"
    for path, module in twin.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, torch.ScriptObject) and path.rpartition(".")[2] != "param":
                name = f"{path}.{key}" if path else key
                if not any(name.startswith(left.removesuffix("weight")) for left in held.left):
                    held.left[name] = "packed by torch in an object that is no tensor"


def _unpack(module: nn.Module, kind: type[nn.Module]) -> None:
    weights, biases = _unpacked(module)
    words = {}
    for name, tensor in {**weights, **biases}.items():
        if tensor is None:
            continue
        if tensor.is_quantized:
            words[name] = Words.of(tensor)
            tensor = tensor.dequantize()
        # Not by register_parameter: the layer has methods of these names.
        module._parameters[name] = nn.Parameter(tensor.detach(), requires_grad=False)
    for attribute in _PACKED[kind]:
        module._modules.pop(attribute, None)
        vars(module).pop(attribute, None)
    vars(module)[WORDS] = words
    vars(module)[_CACHE] = PerThread(dict)
    own: Any = type(module)
    module.__class__ = _packing(own, _PACKED[kind])


def _unpacked(module: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights and the biases of a layer of the user's, by name."""
    found = module._weight_bias()
    if isinstance(found, dict):
        return found["weight"], found["bias"]
    weight, bias = found
    return {"weight": weight}, {"bias": bias}


@cache
def _packing(kind: Any, attributes: tuple[str, ...]) -> Any:
    """The class of layers that pack their parameters where the attributes are asked for."""

    def packed(attribute: str) -> property:
        return property(lambda module: getattr(_packed(module, kind), attribute))

    def reduced(module: nn.Module, _: int) -> tuple[Any, ...]:
        return _made, (kind, attributes), vars(module)

    body = {
        **{name: packed(name) for name in attributes},
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__reduce_ex__": reduced,
    }
    return type(kind.__name__, (kind,), body)


def _made(kind: Any, attributes: tuple[str, ...]) -> nn.Module:
    found: nn.Module = object.__new__(_packing(kind, attributes))
    return found


def _packed(module: nn.Module, kind: type[nn.Module]) -> Any:
    """A layer of torch's own with the parameters packed; kept while they stay what they are."""
    known: dict[str, Any] = vars(module)[_CACHE]()
    parameters = dict(module._parameters)
    stamp = [(p, None if p is None else _version(p)) for p in parameters.values()]
    if "stamp" in known and all(
        a is b and m == n and n != -1 for (a, m), (b, n) in zip(known["stamp"], stamp, strict=True)
    ):
        return known["layer"]
    words: Mapping[str, Words] = vars(module)[WORDS]
    tensors = {
        name: words[name].quantised(p) if name in words else p.detach().float()
        for name, p in parameters.items()
        if p is not None
    }
    layer = _shell(module, kind)
    _pack(layer, tensors)
    known.update(stamp=stamp, layer=layer)
    return layer


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; -1 where it does not say."""
    return -1 if tensor.is_inference() else tensor._version


def _shell(module: nn.Module, kind: type[nn.Module]) -> Any:
    """The layer without weights, of torch's own class."""
    shell: Any = object.__new__(kind)
    vars(shell).update(vars(module))
    vars(shell).update(_parameters={}, _buffers={}, _modules={})
    if isinstance(shell, static.Linear):
        float_words = getattr(shell, "weight_dtype", torch.qint8)
        shell._modules["_packed_params"] = LinearPackedParams(float_words)
    return shell


def _pack(layer: Any, tensors: Mapping[str, Tensor]) -> None:
    if isinstance(layer, RNNBase):
        layer.set_weight_bias(tensors)
    elif isinstance(layer, RNNCellBase):
        layer.set_weight_bias({"weight": tensors, "bias": tensors})
    else:
        layer.set_weight_bias(tensors["weight"], tensors.get("bias"))
