"""Whole numbers in the place of real ones: quantisation, and products of words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Constant, Made, Node, UnsupportedError
from crashsim.files.onnx_graphs.operators.arithmetic import DTYPES
from crashsim.files.onnx_graphs.operators.layers import begins_and_ends, flat_pads, spatial
from crashsim.model.multiplied.stored_words import Words

_WORDS = (torch.int8, torch.uint8, torch.int16, torch.int32)
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def along(part: Tensor, rank: int, axis: int) -> Tensor:
    """A number, or one for each place of an axis, such that it broadcasts."""
    if part.numel() == 1:
        return part.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return part.reshape(shape)


@whole
def quantised(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, dtype: torch.dtype) -> Any:
    """round(x / scale) + zero point, halves to even, within the words' range."""
    info = torch.iinfo(dtype)
    y = torch.round(x / along(scale, x.dim(), axis).to(x.dtype))
    if zero is not None:
        y = y + along(zero, x.dim(), axis).to(x.dtype)
    return y.clamp(info.min, info.max).to(dtype)


@whole
def dequantised(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """(x - zero point) times scale."""
    y = x.to(scale.dtype)
    if zero is not None:
        y = (x.to(torch.int64) - along(zero, x.dim(), axis).to(torch.int64)).to(scale.dtype)
    return y * along(scale, x.dim(), axis)


def _zero(node: Node, index: int) -> Any:
    return node.input(index)


def _check_words(node: Node) -> None:
    if node.attribute("block_size", 0):
        raise UnsupportedError("its scales are of blocks (block_size)")


def _quantise(node: Node) -> Made:
    _check_words(node)
    zero = node.input(2)
    dtype = node.dtype(2) if zero is not None else torch.uint8
    if zero is None and node.attribute("output_dtype", 0):
        dtype = DTYPES.get(node.attribute("output_dtype"))
    if dtype not in _WORDS:
        raise UnsupportedError("its words are not of int8, uint8, int16 or int32")
    axis = int(node.attribute("axis", 1))
    return node.call(quantised, node.inputs[0], node.inputs[1], zero, axis=axis, dtype=dtype)


def _dequantise(node: Node) -> Made:
    _check_words(node)
    if node.dtype() not in (*_WORDS, None):
        raise UnsupportedError("its words are not of int8, uint8, int16 or int32")
    axis = int(node.attribute("axis", 1))
    return node.call(dequantised, node.inputs[0], node.inputs[1], node.input(2), axis=axis)


@whole
def integer_product(a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    return (_rows_less(a, a_zero) @ _columns_less(b, b_zero)).to(torch.int32)


def _rows_less(a: Tensor, zero: Tensor | None) -> Tensor:
    if zero is None:
        return a.double()
    return a.double() - (zero.double().unsqueeze(-1) if zero.dim() else zero.double())


def _columns_less(b: Tensor, zero: Tensor | None) -> Tensor:
    return b.double() if zero is None else b.double() - zero.double()


@whole
def linear_product(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor
) -> Tensor:  # fmt: skip
    """Words of the product of what two arrays of words stand for."""
    rows = a_scale.double().unsqueeze(-1) if a_scale.dim() and a_scale.numel() > 1 else (
        a_scale.double()
    )  # fmt: skip
    left = _rows_less(a, a_zero if a_zero.numel() > 1 else a_zero.reshape(()))
    found = (left @ _columns_less(b, b_zero)) * (rows * b_scale.double())
    return _words_of(found, y_scale, y_zero)


def _words_of(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    info = torch.iinfo(zero.dtype)
    words = torch.round(x.to(torch.float32) / scale) + zero.to(torch.float32)
    return words.clamp(info.min, info.max).to(zero.dtype)


@whole
def integer_convolution(
    x: Tensor, w: Tensor, x_zero: Tensor | None, w_zero: Tensor | None, pads: list[int],
    **options: Any
) -> Tensor:  # fmt: skip
    left = x.double() if x_zero is None else x.double() - x_zero.double()
    right = w.double() if w_zero is None else w.double() - along(w_zero.double(), w.dim(), 0)
    return _CONV[w.dim() - 2](F.pad(left, pads), right, **options).to(torch.int32)


@whole
def linear_convolution(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor, bias: Tensor | None, pads: list[int], **options: Any
) -> Tensor:  # fmt: skip
    left = F.pad(x.double() - x_zero.double(), pads)
    right = w.double() - along(w_zero.double(), w.dim(), 0)
    found = _CONV[w.dim() - 2](left, right, None if bias is None else bias.double(), **options)
    scale = along(w_scale.double(), w.dim(), 1) * x_scale.double()
    return _words_of(found * scale, y_scale, y_zero)


def _window(node: Node, index: int) -> dict[str, Any]:
    shape = node.sizes(index)
    if shape is None or len(shape) - 2 not in _CONV or None in shape:
        raise UnsupportedError("its weights' shape is not that of one to three axes of an image")
    kernel = [int(n or 0) for n in shape[2:]]
    stride, dilation = (
        spatial(node, "strides", len(kernel)),
        spatial(node, "dilations", len(kernel)),
    )
    pads = flat_pads(*begins_and_ends(node, kernel, stride, dilation))
    groups = int(node.attribute("group", 1))
    return {"pads": pads, "stride": stride, "dilation": dilation, "groups": groups}


def _integer_product(node: Node) -> Made:
    return node.call(integer_product, *(node.input(i) for i in range(4)))


def _linear_product(node: Node) -> Made:
    return node.call(linear_product, *(node.needed(i) for i in range(8)))


def _integer_convolution(node: Node) -> Made:
    return node.call(integer_convolution, *(node.input(i) for i in range(4)), **_window(node, 1))


def _linear_convolution(node: Node) -> Made:
    bias = node.input(8)
    inputs = [node.needed(i) for i in range(8)]
    return node.call(linear_convolution, *inputs, bias, **_window(node, 3))


def stored_words(node: Node) -> Words | None:
    """The words of a weight that a node reads; None where it is no matrix or kernel of int8.

    Those of uint8 are the same bits, but for the highest, which is inverted: as words of int8 they
    and their zero point are 128 less.
    """
    stored, scale, zero = (node.input(i) for i in range(3))
    if not isinstance(stored, Constant) or not isinstance(scale, Constant):
        return None
    kind = stored.tensor.dtype
    if kind not in (torch.int8, torch.uint8) or stored.tensor.dim() < 2:
        return None
    start = zero.tensor.long() if isinstance(zero, Constant) else torch.zeros(1, dtype=torch.long)
    start = start - 128 if kind == torch.uint8 else start
    if scale.tensor.numel() == 1:
        return Words(8, scale.tensor.double().reshape(()), start.reshape(-1)[0])
    axis = int(node.attribute("axis", 1)) % stored.tensor.dim()
    factors = scale.tensor.double().reshape(-1)
    return Words(8, factors, start.reshape(-1).expand(len(factors)), axis)


OPERATORS: dict[str, Callable[[Node], Made]] = {
    "ConvInteger": _integer_convolution,
    "DequantizeLinear": _dequantise,
    "MatMulInteger": _integer_product,
    "QLinearConv": _linear_convolution,
    "QLinearMatMul": _linear_product,
    "QuantizeLinear": _quantise,
}
