"""NIR nodes without state as transforms, and which transforms can be one set of synapses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.errors import HardwareError
from crashsim_hardware.transforms import (
    AvgPool2d,
    Conv1d,
    Conv2d,
    Flatten,
    Linear,
    Scale,
    Shape,
    SumPool2d,
    Transform,
    output_shape,
)

__all__ = ["append", "node_of", "plain", "transform_of", "windowed"]

Floats = NDArray[Any]


def transform_of(nir: Any, name: str, node: Any) -> Transform:
    """The transform that a node stands for; raises HardwareError, naming it, for all others."""
    if isinstance(node, nir.Affine):
        return Linear(_matrix(node.weight), np.asarray(node.bias).reshape(-1))
    if isinstance(node, nir.Linear):
        return Linear(_matrix(node.weight))
    if isinstance(node, nir.Scale):
        return Scale(node.scale)
    if isinstance(node, nir.Flatten):
        return Flatten()
    if isinstance(node, nir.Conv1d):
        return Conv1d(
            node.weight,
            _bias(node),
            stride=_single(node.stride),
            padding=_same(node, name)[0],
            dilation=_single(node.dilation),
            groups=int(node.groups),
        )
    if isinstance(node, nir.Conv2d):
        return Conv2d(
            node.weight,
            _bias(node),
            stride=_pair(node.stride),
            padding=_same(node, name),
            dilation=_pair(node.dilation),
            groups=int(node.groups),
        )
    if isinstance(node, nir.SumPool2d | nir.AvgPool2d):
        kind = SumPool2d if isinstance(node, nir.SumPool2d) else AvgPool2d
        return kind(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
    raise HardwareError(
        f"node {name!r} is a {type(node).__name__}, which cannot be run; a chip has Affine, "
        "Linear, Scale, Conv1d, Conv2d, SumPool2d, AvgPool2d, Flatten, Delay, Threshold, IF, LIF, "
        "CubaLIF, and LI or I before the Output"
    )


def node_of(nir: Any, transform: Transform, shape: Shape) -> tuple[Any, Shape]:
    """The NIR node of a transform of a layer of `shape`, and the shape after it."""
    after = output_shape(transform, shape)
    if isinstance(transform, Linear):
        if transform.bias is None:
            return nir.Linear(transform.weight), after
        return nir.Affine(transform.weight, transform.bias), after
    if isinstance(transform, Conv1d | Conv2d):
        two = isinstance(transform, Conv2d)
        bias = np.zeros(len(transform.weight)) if transform.bias is None else transform.bias
        conv = (nir.Conv2d if two else nir.Conv1d)(
            input_shape=shape[1:] if two else shape[1],
            weight=transform.weight,
            stride=transform.stride,
            padding=transform.padding,
            dilation=transform.dilation,
            groups=transform.groups,
            bias=bias,
        )
        # nir infers the shape from the first kernel axis and forgets the groups
        conv.input_type = {"input": np.array(shape)}
        conv.output_type = {"output": np.array(after)}
        return conv, after
    if isinstance(transform, SumPool2d):
        kind = nir.AvgPool2d if isinstance(transform, AvgPool2d) else nir.SumPool2d
        pool = kind(
            kernel_size=np.array(transform.kernel),
            stride=np.array(transform.stride),
            padding=np.array(transform.padding),
        )
        return pool, after
    if isinstance(transform, Flatten):
        return nir.Flatten({"input": np.array(shape)}, start_dim=0), after
    return nir.Scale(np.broadcast_to(transform.scale, shape).copy()), after


def _matrix(weight: Any) -> Floats:
    array = np.asarray(weight, dtype=np.float64)
    return array.reshape(array.shape[-2:]) if array.ndim > 2 and array.size else array


def _bias(node: Any) -> Floats:
    bias = np.asarray(node.bias, dtype=np.float64)
    return np.broadcast_to(bias, np.asarray(node.weight).shape[:1])


def _single(value: Any) -> int:
    return int(np.asarray(value, dtype=int).reshape(-1)[0])


def _pair(value: Any) -> tuple[int, int]:
    both = np.broadcast_to(np.asarray(value, dtype=int).reshape(-1), (2,))
    return int(both[0]), int(both[1])


def plain(value: Any) -> Any:
    """A value of a file as Python's own."""
    value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    return value.decode() if isinstance(value, bytes) else value


def _same(node: Any, name: str) -> tuple[int, int]:
    padding = plain(node.padding)
    if not isinstance(padding, str):
        return _pair(padding)
    if padding == "valid":
        return 0, 0
    kernel = np.asarray(node.weight).shape[2:]
    span = [d * (k - 1) for d, k in zip(_pair(node.dilation), kernel, strict=False)]
    if any(s % 2 for s in span) or _pair(node.stride) != (1, 1):
        raise HardwareError(f'node {name!r}: padding "same" needs an odd kernel and stride 1')
    return span[0] // 2, span[-1] // 2


def windowed(transform: Transform, before: Shape, after: Shape) -> int:
    """Numbers in the padded input of a convolution or pooling, and in all of its windows."""
    if isinstance(transform, Conv2d):
        kernel, channels = transform.weight.shape[2:], transform.weight.shape[1]
    elif isinstance(transform, SumPool2d):
        kernel, channels = _pair(transform.kernel), before[0]
    else:
        return 0
    padding = _pair(transform.padding)
    padded = before[0] * math.prod(n + 2 * p for n, p in zip(before[1:], padding, strict=True))
    return max(padded, int(channels) * math.prod(kernel) * math.prod(after[1:]))


def append(pending: list[Transform], transform: Transform, name: str) -> None:
    """Add a transform, multiplied into the weighted one before it: one synapse, one weight."""
    weighted = Linear | Conv1d | Conv2d | Scale
    before = next((t for t in pending if isinstance(t, weighted)), None)
    if before is None or not isinstance(transform, weighted):
        pending.append(transform)
        return
    place = next(i for i, t in enumerate(pending) if t is before)
    merged = _merge(before, transform) if place == len(pending) - 1 else None
    if merged is None:
        raise HardwareError(
            f"node {name!r}: {type(before).__name__} and {type(transform).__name__} follow each "
            "other without neurons in between and cannot be multiplied into one set of weights"
        )
    pending[place] = merged


def _merge(first: Transform, second: Transform) -> Transform | None:
    if isinstance(first, Scale) and isinstance(second, Scale):
        return Scale(first.scale * second.scale)
    if isinstance(first, Scale) and isinstance(second, Linear) and first.scale.ndim <= 1:
        return replace(second, weight=second.weight * first.scale)
    if isinstance(first, Linear) and isinstance(second, Scale) and second.scale.ndim <= 1:
        rows = np.broadcast_to(second.scale, first.weight.shape[:1])
        bias = None if first.bias is None else first.bias * rows
        return Linear(first.weight * rows[:, None], bias)
    if isinstance(first, Linear) and isinstance(second, Linear):
        weight = second.weight @ first.weight
        moved = 0.0 if first.bias is None else second.weight @ first.bias
        own = 0.0 if second.bias is None else second.bias
        return Linear(weight, np.broadcast_to(moved + own, weight.shape[:1]))
    if isinstance(first, Conv2d) and isinstance(second, Scale) and second.scale.size == 1:
        gain = float(second.scale.reshape(-1)[0])
        return replace(
            first,
            weight=first.weight * gain,
            bias=None if first.bias is None else first.bias * gain,
        )
    if isinstance(first, Scale) and isinstance(second, Conv2d) and first.scale.size == 1:
        return replace(second, weight=second.weight * float(first.scale.reshape(-1)[0]))
    return None
