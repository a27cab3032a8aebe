"""The linear maps between two layers of neurons, as plain arrays.

A transform maps signals of shape (..., *shape_in) to (..., *shape_out), where the leading axes are
copies of the network (masks, inputs) and the trailing ones a layer: (features,) or (channels,
height, width). Weighted transforms also accept one weight array per mask, (M, *weight.shape), for
signals of shape (M, B, *shape_in): this is how dead synapses are simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .arguments import as_numbers
from .errors import HardwareError

__all__ = [
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "Scale",
    "Shape",
    "SumPool2d",
    "Transform",
    "apply",
    "chain",
    "output_shape",
]

Floats = NDArray[Any]
Shape = tuple[int, ...]


def _pair(value: int | tuple[int, int], name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(pair) != 2 or any(int(v) != v or v < least for v in pair):
        raise HardwareError(f"{name} must be one or two integers >= {least}, got {value!r}")
    return int(pair[0]), int(pair[1])


def _finite(array: Any, name: str, ndim: int) -> Floats:
    values = as_numbers(name, array)
    if values.ndim != ndim:
        raise HardwareError(f"{name} must have {ndim} axes, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise HardwareError(f"{name} contains NaN or infinity; a chip cannot store it")
    return values


@dataclass(frozen=True, eq=False)
class Linear:
    """y = weight x + bias, with weight (out, in) and bias (out,) or None."""

    weight: Floats
    bias: Floats | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _finite(self.weight, "Linear.weight", 2))
        _check_bias(self)


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Cross-correlation in two dimensions: weight (out, in / groups, kh, kw), bias (out,) or None.

    ``padding`` adds zeros at both sides of each axis. The weights are shared: a dead synapse here
    is a dead cell of the shared weight memory and is missed at every position.
    """

    weight: Floats
    bias: Floats | None = None
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _finite(self.weight, "Conv2d.weight", 4))
        for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
            object.__setattr__(self, name, _pair(getattr(self, name), f"Conv2d.{name}", least))
        if self.groups < 1 or self.weight.shape[0] % self.groups:
            raise HardwareError(
                f"Conv2d.groups must divide the {self.weight.shape[0]} output channels, "
                f"got {self.groups}"
            )
        _check_bias(self)


@dataclass(frozen=True, eq=False)
class Conv1d:
    """Cross-correlation along one axis: weight (out, in / groups, k), on (channels, length).

    The same as `Conv2d` on a picture of height 1.
    """

    weight: Floats
    bias: Floats | None = None
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _finite(self.weight, "Conv1d.weight", 3))
        _check_bias(self)
        _ = self.flat

    @property
    def flat(self) -> Conv2d:
        """The convolution of a picture of height 1 that computes the same."""
        return Conv2d(
            self.weight[:, :, None, :], self.bias, (1, self.stride), (0, self.padding),
            (1, self.dilation), self.groups,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SumPool2d:
    """The sum over each window; ``stride`` defaults to the kernel, padding adds zeros."""

    kernel: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None
    padding: int | tuple[int, int] = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "kernel", _pair(self.kernel, f"{name}.kernel", 1))
        stride = self.kernel if self.stride is None else self.stride
        object.__setattr__(self, "stride", _pair(stride, f"{name}.stride", 1))
        object.__setattr__(self, "padding", _pair(self.padding, f"{name}.padding", 0))


@dataclass(frozen=True, eq=False)
class AvgPool2d(SumPool2d):
    """The mean over each window, padding zeros included (torch's ``count_include_pad=True``)."""

    @property
    def area(self) -> int:
        """Cells in a window: what a sum is divided by."""
        return math.prod(cast(tuple[int, int], self.kernel))


@dataclass(frozen=True, eq=False)
class MaxPool2d(SumPool2d):
    """The maximum over each window; padding never wins. No synapses can say it: see Projection."""


@dataclass(frozen=True)
class Flatten:
    """(channels, height, width) -> (features,), in C order."""


@dataclass(frozen=True, eq=False)
class Scale:
    """y = scale * x, with a scalar or an array broadcast against the layer's shape."""

    scale: Floats

    def __post_init__(self) -> None:
        scale = as_numbers("scale", self.scale)
        object.__setattr__(self, "scale", _finite(scale, "Scale.scale", scale.ndim))


Transform = Linear | Conv1d | Conv2d | SumPool2d | AvgPool2d | MaxPool2d | Flatten | Scale


def _check_bias(transform: Linear | Conv1d | Conv2d) -> None:
    if transform.bias is None:
        return
    name = type(transform).__name__
    bias = _finite(transform.bias, f"{name}.bias", 1)
    if bias.shape != transform.weight.shape[:1]:
        raise HardwareError(
            f"{name}.bias must have one entry per output, shape {transform.weight.shape[:1]}, "
            f"got {bias.shape}"
        )
    object.__setattr__(transform, "bias", bias)


def output_shape(transform: Transform, shape: Shape) -> Shape:
    """The shape of a layer after `transform`; raises HardwareError where `shape` does not fit."""
    name = type(transform).__name__
    if isinstance(transform, Flatten):
        return (math.prod(shape),)
    if isinstance(transform, Scale):
        try:
            fits = np.broadcast_shapes(transform.scale.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise HardwareError(f"Scale of shape {transform.scale.shape} does not fit {shape}")
        return shape
    if isinstance(transform, Linear):
        if len(shape) != 1 or shape[0] != transform.weight.shape[1]:
            raise HardwareError(
                f"Linear expects ({transform.weight.shape[1]},) features, got {shape}; "
                "is a Flatten missing, or the input shape wrong?"
            )
        return (transform.weight.shape[0],)
    if isinstance(transform, Conv1d):
        if len(shape) != 2:
            raise HardwareError(f"Conv1d expects (channels, length), got {shape}")
        outputs, _, length = output_shape(transform.flat, (shape[0], 1, shape[1]))
        return outputs, length
    if len(shape) != 3:
        raise HardwareError(f"{name} expects (channels, height, width), got {shape}")
    if isinstance(transform, Conv2d):
        channels = transform.weight.shape[1] * transform.groups
        if shape[0] != channels:
            raise HardwareError(f"Conv2d expects {channels} input channels, got {shape[0]}")
        outputs, kernel = transform.weight.shape[0], transform.weight.shape[2:]
        dilation = cast(tuple[int, int], transform.dilation)
    else:
        outputs, kernel, dilation = shape[0], cast(tuple[int, int], transform.kernel), (1, 1)
    size = tuple(
        (shape[1 + a] + 2 * _axis(transform.padding, a) - dilation[a] * (kernel[a] - 1) - 1)
        // _axis(transform.stride, a)
        + 1
        for a in (0, 1)
    )
    if min(size) < 1:
        raise HardwareError(
            f"{name} window {tuple(kernel)} is larger than its padded input {shape}"
        )
    return (outputs, *size)


def _axis(pair: int | tuple[int, int] | None, axis: int) -> int:
    return cast(tuple[int, int], pair)[axis]  # a pair since __post_init__


def _windows(
    x: Floats,
    transform: Conv2d | SumPool2d,
    kernel: Shape,
    dilation: tuple[int, int],
    padding: float = 0.0,
) -> Floats:
    """(..., C, H, W) -> (..., C, H', W', kh, kw), a view of the padded input."""
    pads = [(0, 0)] * (x.ndim - 2) + [(_axis(transform.padding, a),) * 2 for a in (0, 1)]
    if any(pad != (0, 0) for pad in pads):
        x = np.pad(x, pads, constant_values=padding)
    span = tuple(dilation[a] * (kernel[a] - 1) + 1 for a in (0, 1))
    view: Floats = sliding_window_view(x, span, axis=(-2, -1))  # type: ignore[call-overload]
    steps = [slice(None, None, _axis(transform.stride, a)) for a in (0, 1)]
    return view[..., steps[0], steps[1], :: dilation[0], :: dilation[1]]


def _convolve(conv: Conv2d, x: Floats, weight: Floats) -> Floats:
    view = _windows(x, conv, conv.weight.shape[2:], cast(tuple[int, int], conv.dilation))
    lead, (height, width) = view.shape[:-5], view.shape[-4:-2]
    inputs, outputs = view.shape[-5] // conv.groups, conv.weight.shape[0] // conv.groups
    mixed = []
    for group in range(conv.groups):
        patch = view[..., group * inputs : (group + 1) * inputs, :, :, :, :]
        columns = np.moveaxis(patch, -5, -3).reshape(*lead, height * width, -1)
        kernels = weight[..., group * outputs : (group + 1) * outputs, :, :, :]
        kernels = kernels.reshape(*kernels.shape[:-3], -1)
        if kernels.ndim == 3:  # one kernel per mask: (M, out, k) against (M, B, hw, k)
            kernels = kernels[:, None]
        mixed.append(np.matmul(columns, np.swapaxes(kernels, -1, -2)))
    y = np.swapaxes(np.concatenate(mixed, axis=-1), -1, -2)
    return y.reshape(*y.shape[:-1], height, width)


def apply(
    transform: Transform, x: Floats, axes: int, weight: Floats | None = None, *, bias: bool = True
) -> Floats:
    """`transform` of signals x (..., *shape_in) -> (..., *shape_out); shape_in has `axes` axes.

    `weight` replaces the stored weight; with a leading axis, (M, *weight.shape), each mask of
    x (M, B, *shape_in) meets its own. The result keeps the precision of x and the weight.
    """
    y: Floats
    if isinstance(transform, Flatten):
        return x.reshape(*x.shape[: x.ndim - axes], -1)
    if isinstance(transform, Scale):
        factor = transform.scale if weight is None else weight
        if factor.ndim > transform.scale.ndim:
            factor = factor.reshape(
                factor.shape[0], *(1,) * (x.ndim - factor.ndim), *factor.shape[1:]
            )
        y = x * factor
        return y
    if isinstance(transform, Linear):
        matrix = transform.weight if weight is None else weight
        y = np.matmul(x, np.swapaxes(matrix, -1, -2))
        return y + transform.bias if bias and transform.bias is not None else y
    if isinstance(transform, Conv1d):
        kernel = None if weight is None else weight[..., None, :]
        return apply(transform.flat, x[..., None, :], 3, kernel, bias=bias)[..., 0, :]
    if isinstance(transform, Conv2d):
        y = _convolve(transform, x, transform.weight if weight is None else weight)
        return y + transform.bias[:, None, None] if bias and transform.bias is not None else y
    window = cast(Shape, transform.kernel)
    if isinstance(transform, MaxPool2d):
        y = _windows(x, transform, window, (1, 1), -np.inf).max(axis=(-2, -1))
        return y
    y = _windows(x, transform, window, (1, 1)).sum(axis=(-2, -1))
    return y / transform.area if isinstance(transform, AvgPool2d) else y


def chain(
    transforms: tuple[Transform, ...],
    x: Floats,
    shape: Shape,
    weight: Floats | None = None,
    *,
    bias: bool = True,
) -> Floats:
    """All `transforms` in turn, from flat signals (..., n_in) to flat signals (..., n_out).

    `weight` replaces that of the (one) weighted transform.
    """
    y = x.reshape(*x.shape[:-1], *shape)
    for transform in transforms:
        override = weight if isinstance(transform, Linear | Conv1d | Conv2d | Scale) else None
        y = apply(transform, y, len(shape), override, bias=bias)
        shape = output_shape(transform, shape)
    return y.reshape(*y.shape[: y.ndim - len(shape)], -1)


def with_weight(transform: Transform, weight: Floats) -> Transform:
    """The same weighted transform with another weight and no bias."""
    if isinstance(transform, Scale):
        return Scale(weight)
    if isinstance(transform, Linear | Conv1d | Conv2d):
        return replace(transform, weight=weight, bias=None)
    raise HardwareError(f"{type(transform).__name__} carries no weight")


def weight_of(transform: Transform) -> Floats | None:
    """The weight array of a weighted transform, None for the others."""
    if isinstance(transform, Scale):
        return transform.scale
    return transform.weight if isinstance(transform, Linear | Conv1d | Conv2d) else None
