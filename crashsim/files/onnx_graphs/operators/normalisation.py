"""Normalisation by fixed statistics, and by those of each example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Constant, Made, Node, UnsupportedError, Value

_BATCH_NORM: dict[int, type[Any]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


@whole
def batch_normalised(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, eps)


@whole
def layer_normalised(
    x: Tensor, scale: Tensor, shift: Tensor | None, axis: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The values, their mean, and the inverse of their deviation."""
    axes = list(range(axis % x.dim(), x.dim()))
    mean = x.mean(axes, True)
    centred = x - mean
    inverse = 1 / ((centred * centred).mean(axes, True) + eps).sqrt()
    found = centred * inverse * scale
    return found if shift is None else found + shift, mean, inverse


@whole
def layer_normalised_alone(*inputs: Any, **options: Any) -> Tensor:
    return layer_normalised(*inputs, **options)[0]


@whole
def root_normalised(x: Tensor, scale: Tensor, axis: int, eps: float) -> Tensor:
    axes = list(range(axis % x.dim(), x.dim()))
    return x / ((x * x).mean(axes, True) + eps).sqrt() * scale


@whole
def instance_normalised(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=shift, eps=eps)


@whole
def group_normalised(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
    """Scale and shift are of each channel, or (versions below 21) of each group."""
    if len(scale) == groups != x.shape[1]:
        each = x.shape[1] // groups
        scale, shift = scale.repeat_interleave(each), shift.repeat_interleave(each)
    return F.group_norm(x, groups, scale, shift, eps)


@whole
def locally_normalised(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    squares = x * x
    before, after = (size - 1) // 2, math.ceil((size - 1) / 2)
    wide = F.pad(squares.movedim(1, -1), (before, after)).movedim(-1, 1)
    total = sum(wide.narrow(1, i, x.shape[1]) for i in range(size))
    return x / (bias + alpha / size * total) ** beta


@whole
def of_length_one(x: Tensor, p: int, axis: int) -> Tensor:
    length = x.norm(p, axis, True)
    return torch.where(length == 0, torch.zeros_like(x), x / length)


@whole
def standardised(x: Tensor, axes: list[int]) -> Tensor:
    mean = x.mean(axes, True)
    spread = ((x * x).mean(axes, True) - mean * mean).sqrt()
    return (x - mean) / (spread + 1e-9)


def _batch_norm(node: Node) -> Made:
    if node.attribute("training_mode", 0) or sum(1 for name in node.outputs if name) > 1:
        raise UnsupportedError("it takes statistics of the batch; export the model for inference")
    if not node.attribute("spatial", 1):
        raise UnsupportedError("its statistics are not of channels (spatial=0)")
    eps = float(node.attribute("epsilon", 1e-5))
    held = [v.tensor for v in node.inputs[1:5] if isinstance(v, Constant)]
    sizes = node.sizes()
    if len(held) < 4 or sizes is None or len(sizes) not in _BATCH_NORM:
        return node.call(batch_normalised, *node.inputs[:5], eps=eps)
    scale, shift, mean, variance = held
    module = _BATCH_NORM[len(sizes)](len(scale), eps=eps)
    module.weight, module.bias = node.parameter(scale), node.parameter(shift)
    module.running_mean, module.running_var = mean.clone(), variance.clone()
    return Made(module, node.inputs[:1])


def _layer_norm(node: Node) -> Made:
    axis, eps = int(node.attribute("axis", -1)), float(node.attribute("epsilon", 1e-5))
    scale, shift = node.needed(1), node.input(2)
    is_last = axis == -1 or (node.sizes() is not None and axis == len(node.sizes() or ()) - 1)
    is_lone = not any(node.outputs[1:])
    if is_lone and is_last and _is_vector(scale) and (shift is None or _is_vector(shift)):
        assert isinstance(scale, Constant)
        module = nn.LayerNorm(len(scale.tensor), eps=eps, bias=shift is not None)
        module.weight = node.parameter(scale.tensor)
        if isinstance(shift, Constant):
            module.bias = node.parameter(shift.tensor)
        return Made(module, node.inputs[:1])
    function = layer_normalised_alone if is_lone else layer_normalised
    return node.call(function, node.needed(0), scale, shift, axis=axis, eps=eps)


def _is_vector(value: Value) -> bool:
    return isinstance(value, Constant) and value.tensor.dim() == 1


def _root_norm(node: Node) -> Made:
    axis, eps = int(node.attribute("axis", -1)), float(node.attribute("epsilon", 1e-5))
    return node.call(root_normalised, *node.inputs[:2], axis=axis, eps=eps)


def _instance_norm(node: Node) -> Made:
    eps = float(node.attribute("epsilon", 1e-5))
    return node.call(instance_normalised, *node.inputs, eps=eps)


def _group_norm(node: Node) -> Made:
    return node.call(
        group_normalised, *node.inputs, groups=int(node.attribute("num_groups")),
        eps=float(node.attribute("epsilon", 1e-5)),
    )  # fmt: skip


def _local_norm(node: Node) -> Made:
    alpha, beta = float(node.attribute("alpha", 1e-4)), float(node.attribute("beta", 0.75))
    return node.call(
        locally_normalised, node.inputs[0], size=int(node.attribute("size")), alpha=alpha,
        beta=beta, bias=float(node.attribute("bias", 1.0)),
    )  # fmt: skip


def _lp_norm(node: Node) -> Made:
    p, axis = int(node.attribute("p", 2)), int(node.attribute("axis", -1))
    return node.call(of_length_one, node.inputs[0], p=p, axis=axis)


def _standardised(node: Node) -> Made:
    return node.call(standardised, node.inputs[0], axes=list(node.attribute("axes", [0, 2, 3])))


OPERATORS: dict[str, Callable[[Node], Made]] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _standardised,
    "RMSNormalization": _root_norm,
}
