"""Layers of a feed-forward network as plain arrays, and the matrices the affine ones amount to.

An activation is a layer too: its name or an `Activation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse

from crashsim_theory.activations import Activation
from crashsim_theory.arrays import Array, as_array
from crashsim_theory.errors import TheoryError

Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Linear:
    """y = W x + b with weight W (out, in) and bias (out,) or None."""

    weight: Any
    bias: Any = None


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Cross-correlation of (channels, height, width) with weight (out, in / groups, kh, kw)."""

    weight: Any
    bias: Any = None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class AvgPool2d:
    """Means over windows; stride None means the kernel. Padding counts as zeros."""

    kernel: Pair
    stride: Pair | None = None
    padding: Pair = (0, 0)


@dataclass(frozen=True)
class MaxPool2d:
    """Maxima over windows; stride None means the kernel. Padding never wins."""

    kernel: Pair
    stride: Pair | None = None
    padding: Pair = (0, 0)


@dataclass(frozen=True)
class Flatten:
    """(channels, height, width) to one axis."""


@dataclass(frozen=True, eq=False)
class ChannelScale:
    """y = scale x + shift, one pair per channel (axis 0): batch normalisation in eval mode."""

    scale: Any
    shift: Any


@dataclass(frozen=True, eq=False)
class Residual:
    """y = shortcut(x) + branch(x); an empty shortcut is the identity."""

    branch: Sequence[Any]
    shortcut: Sequence[Any] = ()


Layer: TypeAlias = (
    Linear | Conv2d | AvgPool2d | MaxPool2d | Flatten | ChannelScale | Residual | Activation | str
)


def affine_matrix(layer: Any, shape: tuple[int, ...]) -> tuple[Any, Array, tuple[int, ...]]:
    """Weight matrix, bias and output shape of an affine layer on inputs of `shape`."""
    size = int(np.prod(shape))
    if isinstance(layer, Linear):
        weight = as_array("weight", layer.weight)
        if weight.ndim != 2 or weight.shape[1] != size:
            raise ValueError(f"weight has shape {weight.shape}")
        bias = np.zeros(len(weight)) if layer.bias is None else as_array("bias", layer.bias)
        return weight, np.broadcast_to(bias, (len(weight),)), (len(weight),)
    if isinstance(layer, ChannelScale):
        repeat = size // shape[0]
        scale, shift = (
            np.repeat(np.broadcast_to(as_array(name, a), shape[:1]), repeat)
            for name, a in (("scale", layer.scale), ("shift", layer.shift))
        )
        return scipy.sparse.diags(scale, format="csr"), shift, shape
    if isinstance(layer, AvgPool2d):
        windows, out = pool_windows(
            shape, layer.kernel, layer.stride or layer.kernel, layer.padding
        )
        values = np.full(windows.shape, 1.0 / windows.shape[1])
        return _sparse(windows, values, size), np.zeros(len(windows)), out
    if isinstance(layer, Conv2d):
        return _convolution(layer, shape)
    raise TheoryError("layer", layer, "not a layer of this package")


def _convolution(layer: Conv2d, shape: tuple[int, ...]) -> tuple[Any, Array, tuple[int, ...]]:
    weight = as_array("weight", layer.weight)
    out_channels, per_group, *kernel = weight.shape
    if shape[0] != per_group * layer.groups:
        raise ValueError(f"weight has shape {weight.shape}, groups {layer.groups}")
    group_size = out_channels // layer.groups
    blocks, out = [], (0, 0, 0)
    for channel in range(out_channels):
        first = (channel // group_size) * per_group
        windows, out = pool_windows(
            shape,
            (kernel[0], kernel[1]),
            layer.stride,
            layer.padding,
            layer.dilation,
            channels=range(first, first + per_group),
        )
        values = np.broadcast_to(weight[channel].reshape(-1), windows.shape)
        blocks.append(_sparse(windows, values, int(np.prod(shape))))
    area = out[1] * out[2]
    bias = np.zeros(out_channels) if layer.bias is None else as_array("bias", layer.bias)
    matrix = scipy.sparse.vstack(blocks, format="csr")
    return matrix, np.repeat(np.broadcast_to(bias, (out_channels,)), area), (out_channels, *out[1:])


def pool_windows(
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    channels: range | None = None,
) -> tuple[Any, tuple[int, int, int]]:
    """Flat indices of the inputs under each window (-1 in the padding), and the output shape.

    Without `channels`, every channel is pooled on its own: (channels * area, kh * kw). With them,
    each window spans these channels: (area, len(channels) * kh * kw).
    """
    depth, height, width = shape
    rows, row_ok = _positions(height, kernel[0], stride[0], padding[0], dilation[0])
    columns, column_ok = _positions(width, kernel[1], stride[1], padding[1], dilation[1])
    flat = rows[:, None, :, None] * width + columns[None, :, None, :]
    flat = np.where(row_ok[:, None, :, None] & column_ok[None, :, None, :], flat, -1)
    area = len(rows) * len(columns)
    flat = flat.reshape(area, -1)
    planes = np.arange(depth) if channels is None else np.array(channels)
    spread = np.where(flat >= 0, flat + planes[:, None, None] * height * width, -1)
    if channels is None:
        return spread.reshape(depth * area, -1), (depth, len(rows), len(columns))
    return spread.transpose(1, 0, 2).reshape(area, -1), (1, len(rows), len(columns))


def _positions(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[Any, Any]:
    span = dilation * (kernel - 1) + 1
    if size + 2 * padding < span:
        raise ValueError(f"a kernel spanning {span} exceeds {size} + 2 * {padding}")
    count = (size + 2 * padding - span) // stride + 1
    at = np.arange(count)[:, None] * stride + np.arange(kernel) * dilation - padding
    return at, (at >= 0) & (at < size)


def _sparse(columns: Any, values: Array, size: int) -> Any:
    rows = np.repeat(np.arange(len(columns)), columns.shape[1])
    inside = columns.reshape(-1) >= 0
    entries = (values.reshape(-1)[inside], (rows[inside], columns.reshape(-1)[inside]))
    return scipy.sparse.csr_matrix(entries, shape=(len(columns), size))
