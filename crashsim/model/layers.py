"""A torch model as a chain of layers of plain arrays, for the packages that know no torch.

The chain is a view of the model's graph (``crashsim.model.graph``), in which two paths may part and
meet again in an addition (a residual connection). Every layer remembers the site that its output
is, so that faults find their place again. Layers have the names that they have in
``crashsim_theory``.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from crashsim.arrays import Floats
from crashsim.errors import CrashsimError
from crashsim.model.checks import dtype_of
from crashsim.model.graph.model_graph import ModelGraph, has_tensors
from crashsim.model.graph.tracing import UntraceableError
from crashsim.model.graph.untraced import class_of, is_torchs
from crashsim.model.inputs import read_inputs
from crashsim.model.sites.names import SiteKey, function_name

Pair = tuple[int, int]


class UnsupportedLayerError(CrashsimError, TypeError):
    """The model has a layer that this analysis cannot express; the message names it."""


@dataclass(frozen=True, eq=False)
class Linear:
    """y = weight x + bias; weight (out, in), bias (out,)."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Cross-correlation; weight (out, in / groups, kh, kw), bias (out,)."""

    weight: Floats
    bias: Floats
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


@dataclass(frozen=True)
class AvgPool2d:
    """Means over windows. Padding counts as zeros."""

    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True)
class MaxPool2d:
    """Maxima over windows. Padding never wins."""

    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, eq=False)
class ChannelScale:
    """y = scale x + shift for each channel: batch normalisation with fixed statistics."""

    scale: Floats
    shift: Floats


@dataclass(frozen=True)
class Activation:
    """An activation function, by its field name (``relu``, ``sigmoid``, ``gelu``, ...).

    ``parameter`` is the slope of a leaky ReLU or the alpha of an ELU.
    """

    name: str
    parameter: float | None = None


@dataclass(frozen=True)
class Flatten:
    """All axes but the batch in one."""


@dataclass(frozen=True)
class Residual:
    """y = branch(x) + shortcut(x); an empty shortcut is the identity."""

    branch: tuple[Layer, ...]
    shortcut: tuple[Layer, ...]


Operation = Linear | Conv2d | AvgPool2d | MaxPool2d | ChannelScale | Activation | Flatten | Residual


@dataclass(frozen=True)
class Layer:
    """A layer where it stands in the model.

    Attributes:
        operation: what it computes.
        module: dotted path of the module that computes it, or whose ``forward`` calls it.
        site: the site that its output is; None where no fault can strike.
        weight: the full name of its weight, if it has one.
    """

    operation: Operation
    module: str
    site: SiteKey | None
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
        UnsupportedLayerError: a layer is not among those above, the graph is not a chain, or the
            model may compute something else than its graph (hooks, a forward of its own).
    """
    example = read_inputs(inputs[:1].to(dtype_of(model)))
    try:
        chain = _Chain(ModelGraph(model, example))
    except UntraceableError as error:
        raise UnsupportedLayerError(f"model: {error}") from error
    return list(chain.path(chain.start, chain.end))


class _Chain:
    """Reads paths of a model's graph as layers."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        if len(graph.inputs) != 1:
            raise UnsupportedLayerError(f"model: takes {len(graph.inputs)} inputs, not one tensor")
        self.start, self.end = graph.inputs[0], graph.output
        self._order = {n: i for i, n in enumerate(graph.nodes)}

    def path(self, start: fx.Node, end: fx.Node) -> tuple[Layer, ...]:
        """The layers between two nodes, ``start`` left out."""
        layers: list[Layer] = []
        node = end
        while node is not start:
            parents = [p for p in node.all_input_nodes if self._reaches(p)]
            plain = not node.kwargs.keys() - {"input", "other"}
            if node.target in _ADDITIONS and len(parents) == 2 and plain:
                shapes = {self._shape(n) for n in (node, *parents)}
                if len(shapes) > 1:
                    raise self._cannot(node, f" of shapes {shapes}")
                meeting = self._last_common(*parents)
                first, second = (self.path(meeting, parent) for parent in parents)
                residual = Residual(first, second) if first else Residual(second, first)
                layers.append(self._at(node, residual))
                node = meeting
                continue
            if not parents:
                raise UnsupportedLayerError(
                    "model: its paths cross; only residual connections, in which two paths part "
                    "and meet again, are supported"
                )
            if len(parents) != 1:
                raise self._cannot(
                    node,
                    f" joins {len(parents)} paths; only additions of two paths are supported",
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
        is_tensor = has_tensors(self._graph.values[node])
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

    def _at(self, node: fx.Node, operation: Operation, weight: str | None = None) -> Layer:
        """The layer at a node."""
        return Layer(operation, self._graph.roles[node].module, self._graph.sites.get(node), weight)

    def _cannot(self, node: fx.Node, why: str) -> UnsupportedLayerError:
        return UnsupportedLayerError(f"model: {self._graph.describe(node)}{why}")

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a node's value without the batch."""
        return tuple(getattr(self._graph.values[node], "shape", (1,)))[1:]

    def _layer(self, node: fx.Node, parent: fx.Node) -> Layer | None:
        """A node with one parent as a layer; None for one that does nothing."""
        module = self._graph.module_of(node)
        kind = class_of(module)
        if (module is not None and kind is None) or not is_torchs(node):
            raise self._cannot(node, " is not torch's own")
        shape, before = self._shape(node), self._shape(parent)
        weight = f"{node.target}.weight" if module is not None else None
        if kind in _LINEAR:
            assert isinstance(module, nn.Linear)
            if len(shape) != 1:
                raise self._cannot(node, f" acts on {shape}, not vectors")
            return self._at(node, Linear(_array(module.weight), _bias(module)), weight)
        if kind is nn.Conv2d:
            assert isinstance(module, nn.Conv2d)
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise self._cannot(node, ": only zero padding by number")
            convolution = Conv2d(
                _array(module.weight), _bias(module), _pair(module.stride), _pair(module.padding),
                _pair(module.dilation), module.groups,
            )  # fmt: skip
            return self._at(node, convolution, weight)
        if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            return self._at(node, _channel_scale(module), weight)
        operation = self._pool(node, module, before) or self._activation(node, module)
        if operation is not None:
            return self._at(node, operation)
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
            return self._at(node, Flatten()) if shape != before else None
        raise self._cannot(node, " is not supported here")

    def _pool(
        self, node: fx.Node, module: nn.Module | None, before: tuple[int, ...]
    ) -> AvgPool2d | MaxPool2d | None:
        name = _name(node)
        if isinstance(module, nn.AvgPool2d):
            plain = not module.ceil_mode and module.divisor_override is None
            if not plain or (_pair(module.padding) != (0, 0) and not module.count_include_pad):
                raise self._cannot(node, ": options not supported")
            return _window(AvgPool2d, module.kernel_size, module.stride, module.padding)
        if isinstance(module, nn.MaxPool2d):
            if module.ceil_mode or _pair(module.dilation) != (1, 1):
                raise self._cannot(node, ": options not supported")
            return _window(MaxPool2d, module.kernel_size, module.stride, module.padding)
        if isinstance(module, nn.AdaptiveAvgPool2d) or name == "adaptive_avg_pool2d":
            size = _pair(self._shape(node)[1:])
            if any(b % s for b, s in zip(before[1:], size, strict=True)):
                raise self._cannot(node, f": {before} to {size}")
            window = (before[1] // size[0], before[2] // size[1])
            return AvgPool2d(window, window, (0, 0))
        if name in ("avg_pool2d", "max_pool2d"):
            options: dict[str, Any] = dict(
                zip(("kernel_size", "stride", "padding"), node.args[1:4], strict=False)
            )
            options |= {k: v for k, v in node.kwargs.items() if v != _POOL_DEFAULTS.get(k)}
            kernel: Any = options.pop("kernel_size", None)
            stride, padding = options.pop("stride", None), options.pop("padding", 0)
            if len(node.args) > 4 or options:
                raise self._cannot(node, ": options not supported")
            if name == "avg_pool2d":
                return _window(AvgPool2d, kernel, stride, padding)
            return _window(MaxPool2d, kernel, stride, padding)
        if name == "mean" and len(before) == 3 and _is_over_images(node):
            # The mean over both axes of the image; what becomes of the axes is a matter of shape.
            return AvgPool2d((before[1], before[2]), (before[1], before[2]), (0, 0))
        return None

    def _activation(self, node: fx.Node, module: nn.Module | None) -> Activation | None:
        kind = class_of(module)
        name = _name(node) if kind is None else kind.__name__.lower()
        name = _MODULE_NAMES.get(name, name)
        if name not in _ACTIVATION_NAMES:
            return None

        def option(key: str, position: int, default: Any) -> Any:
            if module is not None:
                return getattr(module, key)
            return (
                node.args[position] if len(node.args) > position else node.kwargs.get(key, default)
            )

        if name == "leaky_relu":
            return Activation(name, float(option("negative_slope", 1, 0.01)))
        if name == "elu":
            return Activation(name, float(option("alpha", 1, 1.0)))
        if name == "gelu":
            return Activation("gelu-tanh" if option("approximate", 9, "none") == "tanh" else "gelu")
        if name == "softplus" and (option("beta", 1, 1) != 1 or option("threshold", 2, 20) < 20):
            raise self._cannot(node, ": only beta 1 and threshold 20")
        return Activation(name)


def _is_over_images(node: fx.Node) -> bool:
    """Whether a mean is over the two axes of (batch, channels, height, width) images."""
    axes: Any = node.kwargs.get("dim", node.args[1:])
    if isinstance(axes, tuple | list) and len(axes) == 1:
        axes = axes[0]
    return isinstance(axes, tuple | list) and sorted(axis % 4 for axis in axes) == [2, 3]


def _is_idle_dropout(node: fx.Node) -> bool:
    """Whether a call of the function leaves all as it is; by default it drops."""
    return _name(node) == "dropout" and node.kwargs.get("training", (*node.args, 1, 1)[2]) is False


def _channel_scale(module: nn.BatchNorm1d | nn.BatchNorm2d) -> ChannelScale:
    if module.running_mean is None or module.running_var is None:
        raise UnsupportedLayerError("model: batch normalisation without fixed statistics")
    scale = 1 / np.sqrt(_array(module.running_var) + module.eps)
    if module.weight is not None:
        scale = scale * _array(module.weight)
    shift = -scale * _array(module.running_mean)
    return ChannelScale(scale, shift if module.bias is None else shift + _array(module.bias))


_Pool = TypeVar("_Pool", AvgPool2d, MaxPool2d)


def _window(kind: type[_Pool], kernel: Any, stride: Any, padding: Any) -> _Pool:
    size = _pair(kernel)
    return kind(size, size if stride in (None, []) else _pair(stride), _pair(padding))


def _name(node: fx.Node) -> str:
    """The name of a function, without the underscore of its version in place."""
    return "" if node.op == "call_module" else function_name(node.target).rstrip("_")


def _array(tensor: Tensor) -> Floats:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise UnsupportedLayerError(f"model: a weight is a {type(tensor).__name__}")
    return tensor.detach().double().cpu().numpy()


def _bias(module: nn.Linear | nn.Conv2d) -> Floats:
    return np.zeros(len(module.weight)) if module.bias is None else _array(module.bias)


def _pair(value: Any) -> Pair:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


__all__: Sequence[str] = [
    "Activation",
    "AvgPool2d",
    "ChannelScale",
    "Conv2d",
    "Flatten",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Operation",
    "Residual",
    "UnsupportedLayerError",
    "layers_of",
]
