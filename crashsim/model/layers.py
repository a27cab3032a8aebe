"""A torch model as a list of layers of plain arrays, for the packages that know no torch.

The model is traced with ``torch.fx``; its graph must be a chain of layers, in which two paths may
part and meet again in an addition (a residual connection). Every layer remembers the site that its
output is, so that faults find their place again.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from crashsim.arrays import Floats
from crashsim.errors import CrashsimError
from crashsim.model.tracing import UntraceableError, trace
from crashsim.model.untraced import class_of, is_torchs, overwritten, unseen

Key = tuple[str, str | None, int]  # a site: module, function, call
Pair = tuple[int, int]


class UnsupportedLayerError(CrashsimError, TypeError):
    """The model has a layer that this analysis cannot express; the message names it."""


@dataclass(frozen=True, eq=False)
class Affine:
    """y = weight x + bias; weight (out, in), bias (out,)."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True, eq=False)
class Convolution:
    """Cross-correlation; weight (out, in / groups, kh, kw), bias (out,)."""

    weight: Floats
    bias: Floats
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


@dataclass(frozen=True)
class Pool:
    """Average (padding counts as zeros) or maximum over windows."""

    kind: str  # "average" or "maximum"
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, eq=False)
class ChannelScale:
    """y = scale x + shift for each channel: batch normalisation with fixed statistics."""

    scale: Floats
    shift: Floats


@dataclass(frozen=True)
class Nonlinearity:
    """An activation function, by its field name (``relu``, ``sigmoid``, ``gelu``, ...).

    ``parameter`` is the slope of a leaky ReLU or the alpha of an ELU.
    """

    name: str
    parameter: float | None = None


@dataclass(frozen=True)
class Flat:
    """All axes but the batch in one."""


@dataclass(frozen=True)
class Addition:
    """y = first(x) + second(x); an empty path is the identity."""

    first: tuple[Layer, ...]
    second: tuple[Layer, ...]


Operation = Affine | Convolution | Pool | ChannelScale | Nonlinearity | Flat | Addition


@dataclass(frozen=True)
class Layer:
    """One operation, with the site its output is and, if it has one, its weight's full name."""

    operation: Operation
    site: Key
    weight: str | None = None


_ACTIVATION_NAMES = frozenset("relu leaky_relu sigmoid tanh softplus gelu silu elu sin".split())
_MODULE_NAMES = {"leakyrelu": "leaky_relu"}
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_POOL_DEFAULTS = {
    "dilation": 1,
    "ceil_mode": False,
    "count_include_pad": True,
    "return_indices": False,
}
_NOTHING = (nn.Identity, nn.modules.dropout._DropoutNd)
_LINEAR = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


def layers_of(model: nn.Module, inputs: Tensor) -> list[Layer]:
    """The layers of a model, in double precision.

    Args:
        model: a twin, which is not run.
        inputs: (B, ...) its input, for the shapes.

    Raises:
        UnsupportedLayerError: a layer is not among those above, the graph is no chain, or the
            model may compute something else than its graph (hooks, a forward of its own).
    """
    told = unseen(model)
    if told:
        raise UnsupportedLayerError(f"model: {told}")
    try:
        with torch.no_grad():  # as it is run: forward may ask
            graph, _ = trace(model)
    except UntraceableError as error:
        raise UnsupportedLayerError(f"model: {error}") from error
    overwriting = overwritten(graph)
    if overwriting is not None:
        raise UnsupportedLayerError(
            f"model: {_describe(overwriting)} overwrites a value that is needed later"
        )
    with torch.no_grad():
        ShapeProp(graph).propagate(inputs[:1].to(_dtype(model)))
    reader = _Reader(graph)
    output = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    if not isinstance(output, fx.Node):
        raise UnsupportedLayerError("model: returns more than one tensor")
    return list(reader.path(reader.start, output))


class _Reader:
    """Reads paths of a traced graph."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._modules = dict(graph.named_modules())
        nodes = list(graph.graph.nodes)
        starts = [n for n in nodes if n.op == "placeholder"]
        if len(starts) != 1:
            raise UnsupportedLayerError(f"model: takes {len(starts)} inputs, not one tensor")
        self.start = starts[0]
        self._order = {n: i for i, n in enumerate(nodes)}
        calls: Counter[tuple[str, str | None]] = Counter()
        self._keys: dict[fx.Node, Key] = {}
        for n in nodes:
            name = _site_name(n)
            if name is not None:
                self._keys[n] = (*name, calls[name])
                calls[name] += 1

    def path(self, start: fx.Node, end: fx.Node) -> tuple[Layer, ...]:
        """The layers between two nodes, ``start`` left out."""
        layers: list[Layer] = []
        node = end
        while node is not start:
            parents = [p for p in node.all_input_nodes if self._reaches(p)]
            plain = not node.kwargs.keys() - {"input", "other"}
            if node.target in _ADDITIONS and len(parents) == 2 and plain:
                shapes = {_shape(n) for n in (node, *parents)}
                if len(shapes) > 1:
                    raise UnsupportedLayerError(f"model: {_describe(node)} of shapes {shapes}")
                meeting = self._last_common(*parents)
                paths = [self.path(meeting, parent) for parent in parents]
                layers.append(Layer(Addition(*paths), self._key(node)))
                node = meeting
                continue
            if not parents:
                raise UnsupportedLayerError(
                    "model: its paths cross; only residual connections, in which two paths part "
                    "and meet again, are supported"
                )
            if len(parents) != 1:
                raise UnsupportedLayerError(
                    f"model: {_describe(node)} joins {len(parents)} paths; only additions of two "
                    "paths are supported"
                )
            layer = self._layer(node, parents[0])
            if layer is not None:
                layers.append(layer)
            node = parents[0]
        return tuple(reversed(layers))

    def _reaches(self, node: fx.Node) -> bool:
        """Whether a node is a tensor (no size) that depends on the input."""
        if node is self.start:
            return True
        is_tensor = "tensor_meta" in node.meta
        return is_tensor and any(self._reaches(p) for p in node.all_input_nodes)

    def _ancestors(self, node: fx.Node) -> set[fx.Node]:
        found, waiting = {node}, [node]
        while waiting:
            for parent in waiting.pop().all_input_nodes:
                if parent not in found:
                    found.add(parent)
                    waiting.append(parent)
        return found

    def _last_common(self, first: fx.Node, second: fx.Node) -> fx.Node:
        common = self._ancestors(first) & self._ancestors(second)
        return max((n for n in common if self._reaches(n)), key=self._order.__getitem__)

    def _key(self, node: fx.Node) -> Key:
        return self._keys.get(node, ("", None, 0))

    def _layer(self, node: fx.Node, parent: fx.Node) -> Layer | None:
        """A node with one parent as a layer; None for one that does nothing."""
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        kind = class_of(module)
        if (module is not None and kind is None) or not is_torchs(node):
            raise UnsupportedLayerError(f"model: {_describe(node)} is not torch's own")
        shape, before = _shape(node), _shape(parent)
        weight = f"{node.target}.weight" if module is not None else None
        if kind in _LINEAR:
            assert isinstance(module, nn.Linear)
            if len(shape) != 1:
                raise UnsupportedLayerError(
                    f"model: {_describe(node)} acts on {shape}, not vectors"
                )
            return Layer(Affine(_array(module.weight), _bias(module)), self._key(node), weight)
        if kind is nn.Conv2d:
            assert isinstance(module, nn.Conv2d)
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise UnsupportedLayerError(
                    f"model: {_describe(node)}: only zero padding by number"
                )
            convolution = Convolution(
                _array(module.weight), _bias(module), _pair(module.stride), _pair(module.padding),
                _pair(module.dilation), module.groups,
            )  # fmt: skip
            return Layer(convolution, self._key(node), weight)
        if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            return Layer(_channel_scale(module), self._key(node), weight)
        operation = self._pool(node, module, before) or _nonlinearity(node, module)
        if operation is not None:
            return Layer(operation, self._key(node))
        name = _name(node)
        if isinstance(module, _NOTHING) or name == "contiguous" or _is_idle_dropout(node):
            return None
        shaping = isinstance(module, nn.Flatten) or name in (
            "flatten",
            "view",
            "reshape",
            "squeeze",
        )
        if shaping and (len(shape) == 1 or shape == before):
            return Layer(Flat(), self._key(node)) if shape != before else None
        raise UnsupportedLayerError(f"model: {_describe(node)} is not supported here")

    def _pool(
        self, node: fx.Node, module: nn.Module | None, before: tuple[int, ...]
    ) -> Pool | None:
        name = _name(node)
        if isinstance(module, nn.AvgPool2d):
            plain = not module.ceil_mode and module.divisor_override is None
            if not plain or (_pair(module.padding) != (0, 0) and not module.count_include_pad):
                raise UnsupportedLayerError(f"model: {_describe(node)}: options not supported")
            return _window("average", module.kernel_size, module.stride, module.padding)
        if isinstance(module, nn.MaxPool2d):
            if module.ceil_mode or _pair(module.dilation) != (1, 1):
                raise UnsupportedLayerError(f"model: {_describe(node)}: options not supported")
            return _window("maximum", module.kernel_size, module.stride, module.padding)
        if isinstance(module, nn.AdaptiveAvgPool2d) or name == "adaptive_avg_pool2d":
            size = _pair(_shape(node)[1:])
            if any(b % s for b, s in zip(before[1:], size, strict=True)):
                raise UnsupportedLayerError(f"model: {_describe(node)}: {before} to {size}")
            window = (before[1] // size[0], before[2] // size[1])
            return Pool("average", window, window, (0, 0))
        if name in ("avg_pool2d", "max_pool2d"):
            options: dict[str, Any] = dict(
                zip(("kernel_size", "stride", "padding"), node.args[1:4], strict=False)
            )
            options |= {k: v for k, v in node.kwargs.items() if v != _POOL_DEFAULTS.get(k)}
            kernel: Any = options.pop("kernel_size", None)
            stride, padding = options.pop("stride", None), options.pop("padding", 0)
            if len(node.args) > 4 or options:
                raise UnsupportedLayerError(f"model: {_describe(node)}: options not supported")
            return _window(
                "average" if name == "avg_pool2d" else "maximum", kernel, stride, padding
            )
        if name == "mean" and len(before) == 3 and _is_over_images(node):
            # The mean over both axes of the image; what becomes of the axes is a matter of shape.
            return Pool("average", (before[1], before[2]), (before[1], before[2]), (0, 0))
        return None


def _is_over_images(node: fx.Node) -> bool:
    """Whether a mean is over the two axes of (batch, channels, height, width) images."""
    axes: Any = node.kwargs.get("dim", node.args[1:])
    if isinstance(axes, tuple | list) and len(axes) == 1:
        axes = axes[0]
    return isinstance(axes, tuple | list) and sorted(axis % 4 for axis in axes) == [2, 3]


def _is_idle_dropout(node: fx.Node) -> bool:
    """Whether a call of the function leaves all as it is; by default it drops."""
    return _name(node) == "dropout" and node.kwargs.get("training", (*node.args, 1, 1)[2]) is False


def _nonlinearity(node: fx.Node, module: nn.Module | None) -> Nonlinearity | None:
    kind = class_of(module)
    name = _name(node) if kind is None else kind.__name__.lower()
    name = _MODULE_NAMES.get(name, name)
    if name not in _ACTIVATION_NAMES:
        return None

    def option(key: str, position: int, default: Any) -> Any:
        if module is not None:
            return getattr(module, key)
        return node.args[position] if len(node.args) > position else node.kwargs.get(key, default)

    if name == "leaky_relu":
        return Nonlinearity(name, float(option("negative_slope", 1, 0.01)))
    if name == "elu":
        return Nonlinearity(name, float(option("alpha", 1, 1.0)))
    if name == "gelu":
        return Nonlinearity("gelu-tanh" if option("approximate", 9, "none") == "tanh" else "gelu")
    if name == "softplus" and (option("beta", 1, 1) != 1 or option("threshold", 2, 20) < 20):
        raise UnsupportedLayerError(f"model: {_describe(node)}: only beta 1 and threshold 20")
    return Nonlinearity(name)


def _channel_scale(module: nn.BatchNorm1d | nn.BatchNorm2d) -> ChannelScale:
    if module.running_mean is None or module.running_var is None:
        raise UnsupportedLayerError("model: batch normalisation without fixed statistics")
    scale = 1 / np.sqrt(_array(module.running_var) + module.eps)
    if module.weight is not None:
        scale = scale * _array(module.weight)
    shift = -scale * _array(module.running_mean)
    return ChannelScale(scale, shift if module.bias is None else shift + _array(module.bias))


def _window(kind: str, kernel: Any, stride: Any, padding: Any) -> Pool:
    size = _pair(kernel)
    return Pool(kind, size, size if stride in (None, []) else _pair(stride), _pair(padding))


def _site_name(node: fx.Node) -> tuple[str, str | None] | None:
    """Module and function of a node, as sites are named; None for what is never a site."""
    if node.op == "call_module":
        return str(node.target), None
    if node.op in ("call_function", "call_method"):
        stack = node.meta.get("nn_module_stack") or {}
        return next(reversed(stack), ""), _name(node)
    return None


def _name(node: fx.Node) -> str:
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return "" if node.op == "call_module" else str(name).rstrip("_")


def _describe(node: fx.Node) -> str:
    if node.op == "call_module":
        module = node.graph.owning_module and node.graph.owning_module.get_submodule(
            str(node.target)
        )
        return f"layer {node.target!r} ({type(module).__name__})"
    return f"{_name(node)}()"


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", (1,)))[1:]


def _array(tensor: Tensor) -> Floats:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise UnsupportedLayerError(f"model: a weight is a {type(tensor).__name__}")
    return tensor.detach().double().cpu().numpy()


def _bias(module: nn.Linear | nn.Conv2d) -> Floats:
    return np.zeros(len(module.weight)) if module.bias is None else _array(module.bias)


def _pair(value: Any) -> Pair:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


__all__: Sequence[str] = [
    "Addition",
    "Affine",
    "ChannelScale",
    "Convolution",
    "Flat",
    "Layer",
    "Nonlinearity",
    "Pool",
    "UnsupportedLayerError",
    "layers_of",
]
