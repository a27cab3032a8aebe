"""Pools: largest values, means and norms over windows, and over whole images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Made, Node, UnsupportedError
from crashsim.files.onnx_graphs.operators.layers import (
    PaddedFirst,
    begins_and_ends,
    flat_pads,
    spatial,
)

_MAX: dict[int, type[Any]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_MEAN: dict[int, type[Any]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_ALL_MAX: dict[int, type[Any]] = {
    1: nn.AdaptiveMaxPool1d,
    2: nn.AdaptiveMaxPool2d,
    3: nn.AdaptiveMaxPool3d,
}
_SUMS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _windows(node: Node) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    kernel = [int(n) for n in node.attribute("kernel_shape", [])]
    if len(kernel) not in _MAX:
        raise UnsupportedError("its windows are not of one to three axes")
    stride = spatial(node, "strides", len(kernel))
    dilation = spatial(node, "dilations", len(kernel))
    begins, ends = begins_and_ends(node, kernel, stride, dilation)
    return kernel, stride, dilation, begins, ends


def _max_pool(node: Node) -> Made:
    if len(node.outputs) > 1 and node.outputs[1]:
        raise UnsupportedError("its indices are read")
    kernel, stride, dilation, begins, ends = _windows(node)
    ceil = bool(node.attribute("ceil_mode", 0))
    fits = begins == ends and all(2 * b <= k for b, k in zip(begins, kernel, strict=True))
    if ceil and not fits:
        raise UnsupportedError("unequal or wide padding with ceil_mode")
    pool = _MAX[len(kernel)](
        tuple(kernel), tuple(stride), tuple(begins) if fits else 0, tuple(dilation),
        ceil_mode=ceil,
    )  # fmt: skip
    kind = node.dtype()
    least = -math.inf if kind is None or kind.is_floating_point else torch.iinfo(kind).min
    module = pool if fits else PaddedFirst(pool, flat_pads(begins, ends), least)
    if kind is not None and not kind.is_floating_point:
        module = InFloats(module)
    return Made(module, node.inputs[:1])


class InFloats(nn.Module):
    """Computes whole numbers in double precision, where torch has nothing for them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.double()).to(x.dtype)  # type: ignore[no-any-return]


@whole
def averaged(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: list[int],
    include: bool,
) -> Tensor:
    """Means over windows; padding counts where it is included."""
    ones = x.new_ones(1, 1, *kernel)
    add = _SUMS[len(kernel)]
    flat = x.reshape(-1, 1, *x.shape[2:])
    total = add(F.pad(flat, pads), ones, stride=stride, dilation=dilation)
    counted = F.pad(torch.ones_like(flat[:1]), pads, value=float(include))
    total = total / add(counted, ones, stride=stride, dilation=dilation)
    return total.reshape(*x.shape[:2], *total.shape[2:])


def _average_pool(node: Node) -> Made:
    kernel, stride, dilation, begins, ends = _windows(node)
    ceil, include = (bool(node.attribute(n, 0)) for n in ("ceil_mode", "count_include_pad"))
    fits = begins == ends and all(2 * b <= k for b, k in zip(begins, kernel, strict=True))
    if fits and set(dilation) == {1}:
        module = _MEAN[len(kernel)](
            tuple(kernel), tuple(stride), tuple(begins), ceil_mode=ceil,
            count_include_pad=include or not any(begins),
        )  # fmt: skip
        return Made(module, node.inputs[:1])
    if ceil:
        raise UnsupportedError("unequal padding or dilation with ceil_mode")
    return node.call(
        averaged, node.inputs[0], kernel=tuple(kernel), stride=tuple(stride),
        dilation=tuple(dilation), pads=flat_pads(begins, ends), include=include,
    )  # fmt: skip


@whole
def normed(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
    pads: list[int], p: int
) -> Tensor:  # fmt: skip
    flat = F.pad(x.reshape(-1, 1, *x.shape[2:]).abs() ** p, pads)
    total = _SUMS[len(kernel)](flat, x.new_ones(1, 1, *kernel), stride=stride, dilation=dilation)
    return (total ** (1 / p)).reshape(*x.shape[:2], *total.shape[2:])


def _norm_pool(node: Node) -> Made:
    kernel, stride, dilation, begins, ends = _windows(node)
    if node.attribute("ceil_mode", 0):
        raise UnsupportedError("ceil_mode of norms")
    return node.call(
        normed, node.inputs[0], kernel=tuple(kernel), stride=tuple(stride),
        dilation=tuple(dilation), pads=flat_pads(begins, ends), p=int(node.attribute("p", 2)),
    )  # fmt: skip


def _axes_of_image(node: Node) -> tuple[int, ...]:
    return tuple(range(2, node.rank()))


def _global_average(node: Node) -> Made:
    return node.call(torch.mean, node.inputs[0], dim=_axes_of_image(node), keepdim=True)


def _global_max(node: Node) -> Made:
    count = len(_axes_of_image(node))
    if count in _ALL_MAX:
        return Made(_ALL_MAX[count](1), node.inputs[:1])
    return node.call(torch.amax, node.inputs[0], dim=_axes_of_image(node), keepdim=True)


@whole
def global_norm(x: Tensor, p: int) -> Tensor:
    return (x.abs() ** p).sum(list(range(2, x.dim())), True) ** (1 / p)


def _global_norm(node: Node) -> Made:
    return node.call(global_norm, node.inputs[0], p=int(node.attribute("p", 2)))


OPERATORS: dict[str, Callable[[Node], Made]] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalLpPool": _global_norm,
    "GlobalMaxPool": _global_max,
    "LpPool": _norm_pool,
    "MaxPool": _max_pool,
}
