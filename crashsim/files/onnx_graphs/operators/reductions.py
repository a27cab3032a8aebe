"""Sums, means and norms over axes; products by Einstein's notation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Made, Node, UnsupportedError

_SINCE = {"ReduceSum": 13}  # its axes are an input; of the others since 18


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keep) if x.dtype.is_floating_point else (
        torch.div(x.sum(axes, keep), _count(x, axes), rounding_mode="trunc").to(x.dtype)
    )  # fmt: skip


def _count(x: Tensor, axes: list[int]) -> int:
    found = 1
    for axis in axes:
        found *= x.shape[axis]
    return found


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keep).to(x.dtype)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keep).to(x.dtype)
    return x


def _is_empty(x: Tensor, axes: list[int]) -> bool:
    return any(x.shape[axis] == 0 for axis in axes)


def _emptied(x: Tensor, axes: list[int], keep: bool, value: float) -> Tensor:
    """The largest or smallest of nothing."""
    if not x.dtype.is_floating_point:
        info = torch.iinfo(x.dtype)
        value = info.min if value < 0 else info.max
    shape = x.sum(axes, keep).shape
    return torch.full(shape, value, dtype=x.dtype)


def _largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _emptied(x, axes, keep, -math.inf) if _is_empty(x, axes) else x.amax(axes, keep)


def _smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _emptied(x, axes, keep, math.inf) if _is_empty(x, axes) else x.amin(axes, keep)


def _sum_of_sizes(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.abs().sum(axes, keep).to(x.dtype)


def _sum_of_squares(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x * x).sum(axes, keep).to(x.dtype)


def _length(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x * x).sum(axes, keep).sqrt().to(x.dtype)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keep).log().to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x if x.dtype.is_floating_point else x.float(), axes, keep).to(x.dtype)


_KINDS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": _sum_of_sizes,
    "ReduceL2": _length,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _largest,
    "ReduceMean": _mean,
    "ReduceMin": _smallest,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": _sum_of_squares,
}
_MAPS: dict[str, Callable[[Tensor], Tensor]] = {  # of one value alone
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceLogSum": torch.log,
    "ReduceSumSquare": torch.square,
}


@whole
def reduced(x: Tensor, kind: str, axes: list[int] | None, keep: bool) -> Tensor:
    """A reduction over some axes, or over all."""
    if x.dtype == torch.bool:
        found = reduced(x.to(torch.uint8), kind=kind, axes=axes, keep=keep)
        return found == 1  # of nothing, the smallest is true
    on = list(range(x.dim())) if axes is None else axes
    if not on:  # nothing is summed, but what it is a sum of is still taken
        return _MAPS[kind](x) if kind in _MAPS else x
    return _KINDS[kind](x, on, keep)


@whole
def product(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


def _reduce(node: Node) -> Made:
    axes = node.axes(1, since=_SINCE.get(node.operator, 18))
    keep = bool(node.attribute("keepdims", 1))
    if not axes:
        nothing = bool(node.attribute("noop_with_empty_axes", 0))
        axes = [] if nothing else None
    value = node.needed(0)
    kind = node.dtype()
    if node.operator == "ReduceMean" and axes and kind is not None and kind.is_floating_point:
        return node.call(torch.mean, value, dim=tuple(axes), keepdim=keep)
    if node.operator == "ReduceSum" and axes and kind is not None and kind.is_floating_point:
        return node.call(torch.sum, value, dim=tuple(axes), keepdim=keep)
    return node.call(reduced, value, kind=node.operator, axes=axes, keep=keep)


def _einsum(node: Node) -> Made:
    equation = node.attribute("equation")
    if not isinstance(equation, str):
        raise UnsupportedError("its equation is missing; the file is damaged")
    return node.call(product, *node.inputs, equation=equation.replace(" ", ""))


OPERATORS: dict[str, Callable[[Node], Made]] = {
    **dict.fromkeys(_KINDS, partial(_reduce)),
    "Einsum": _einsum,
}
