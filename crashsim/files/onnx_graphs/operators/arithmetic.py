"""Arithmetic, comparisons and logic, value by value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Made, Node, UnsupportedError

DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def _plain(function: Callable[..., Any], node: Node) -> Made:
    return node.call(function, *node.inputs)


@whole
def divide(x: Tensor, y: Tensor) -> Tensor:
    """Whole numbers are cut towards zero."""
    if x.dtype.is_floating_point:
        return x / y
    if bool((y == 0).any()):
        raise ZeroDivisionError("division of whole numbers by zero")
    return torch.div(x, y, rounding_mode="trunc")


@whole
def power(x: Tensor, y: Tensor) -> Tensor:
    """The result has the type of the base."""
    if x.dtype.is_floating_point or not y.dtype.is_floating_point:
        return torch.pow(x, y).to(x.dtype)
    return torch.pow(x.double(), y.double()).to(x.dtype)


@whole
def clip(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    if low is not None:
        x = torch.maximum(x, low.to(x.dtype))
    return x if high is None else torch.minimum(x, high.to(x.dtype))


@whole
def cast(x: Tensor, dtype: torch.dtype, real: torch.dtype | None = None) -> Tensor:
    """Numbers in another type.

    Args:
        real: the type of floating point that the graph computes with. Where the network is run in a
            wider one, so is what is cast to it.
    """
    if real is not None and dtype == real and x.dtype == torch.float64:
        return x
    if x.dtype.is_floating_point and not dtype.is_floating_point and dtype != torch.bool:
        return x.trunc().to(torch.int64).to(dtype)
    return x.to(dtype)


@whole
def shifted(x: Tensor, y: Tensor, left: bool) -> Tensor:
    wide, by = x.to(torch.int64), y.to(torch.int64)
    return (wide << by if left else wide >> by).to(x.dtype)


@whole
def is_infinite(x: Tensor, positive: bool, negative: bool) -> Tensor:
    return (torch.isposinf(x) & positive) | (torch.isneginf(x) & negative)


def _operator_cast(node: Node) -> Made:
    code = node.attribute("to")
    if code not in DTYPES:
        raise UnsupportedError(f"it casts to type {code}, which torch does not compute with")
    if DTYPES[code] == node.dtype():
        return node.call(torch.clone, *node.inputs[:1])
    return node.call(cast, *node.inputs[:1], dtype=DTYPES[code])


def _cast_like(node: Node) -> Made:
    dtype = node.dtype(1)
    if dtype is None:
        raise UnsupportedError("the type that it casts to does not follow from the file")
    return node.call(cast, *node.inputs[:1], dtype=dtype)


def _clip(node: Node) -> Made:
    if node.version < 11:
        limits = [node.attribute(name) for name in ("min", "max")]
        return node.call(torch.clamp, node.inputs[0], min=limits[0], max=limits[1])
    return node.call(clip, node.needed(0), node.input(1), node.input(2))


def _mod(node: Node) -> Made:
    function = torch.fmod if node.attribute("fmod", 0) else torch.remainder
    return node.call(function, *node.inputs)


def _folded(function: Callable[..., Any], node: Node) -> Made:
    if len(node.inputs) == 2:
        return node.call(function, *node.inputs)
    return node.call(partial_fold(function), *node.inputs)


def fold(*tensors: Tensor, function: Callable[..., Any]) -> Any:
    return reduce(function, tensors)


def partial_fold(function: Callable[..., Any]) -> Callable[..., Any]:
    return partial(fold, function=function)


def mean_of(*tensors: Tensor) -> Any:
    return reduce(torch.add, tensors) / len(tensors)


def _shift(node: Node) -> Made:
    left = node.attribute("direction", "LEFT") == "LEFT"
    return node.call(shifted, *node.inputs, left=left)


def _is_inf(node: Node) -> Made:
    positive, negative = (bool(node.attribute(f"detect_{s}", 1)) for s in ("positive", "negative"))
    return node.call(is_infinite, *node.inputs, positive=positive, negative=negative)


def _where(node: Node) -> Made:
    return node.call(torch.where, *node.inputs)


_PLAIN: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Div": divide,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": power,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Xor": torch.logical_xor,
}
_FOLDED: dict[str, Callable[..., Any]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}

OPERATORS: dict[str, Callable[[Node], Made]] = {
    **{name: partial(_plain, function) for name, function in _PLAIN.items()},
    **{name: partial(_folded, function) for name, function in _FOLDED.items()},
    "BitShift": _shift,
    "Cast": _operator_cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "IsInf": _is_inf,
    "Mean": partial(_plain, mean_of),
    "Mod": _mod,
    "Where": _where,
}
