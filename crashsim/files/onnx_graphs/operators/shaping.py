"""Shapes: views, axes put in order, joined, cut, repeated and padded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.files.limits import check_size
from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Constant, Made, Node, Runtime, UnsupportedError, numbers
from crashsim.files.onnx_graphs.operators.arithmetic import DTYPES
from crashsim.files.onnx_graphs.sizes import Dim, Sizes


def listed(values: Any) -> list[Any]:
    """Sizes in a list, or in a tensor that was computed."""
    return values.tolist() if isinstance(values, Tensor) else list(values)


@whole
def reshaped(x: Tensor, sizes: Any, allow_zero: bool = False) -> Tensor:
    wanted = listed(sizes)
    if not allow_zero:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@whole
def expanded(x: Tensor, sizes: Any) -> Tensor:
    wanted = listed(sizes)
    return x.expand(torch.broadcast_shapes(x.shape, wanted))


@whole
def shape_of(x: Tensor, start: int, end: int | None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@whole
def size_of(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@whole
def as_tensor(sizes: Any) -> Tensor:
    """Sizes as a tensor, for whatever computes further with them."""
    return torch.tensor([int(n) for n in sizes] if isinstance(sizes, list) else int(sizes))


@whole
def filled(sizes: Any, value: float, dtype: torch.dtype) -> Tensor:
    wanted = [int(n) for n in listed(sizes)]
    _check(math.prod(wanted) * dtype.itemsize)
    return torch.full(wanted, value, dtype=dtype)


def _check(needed: int) -> None:
    check_size("a constant of a node", needed, "give a smaller one")


@whole
def counted(start: Any, limit: Any, step: Any) -> Tensor:
    """Numbers from start on, below limit."""
    parts = [p.item() if isinstance(p, Tensor) else p for p in (start, limit, step)]
    dtype = next((p.dtype for p in (start, limit, step) if isinstance(p, Tensor)), torch.int64)
    count = max(0, math.ceil((parts[1] - parts[0]) / parts[2]))
    _check(8 * count)
    return (torch.arange(count, dtype=torch.float64) * parts[2] + parts[0]).to(dtype)


@whole
def cut(x: Tensor, starts: Any, ends: Any, axes: Any, steps: Any) -> Tensor:
    """Parts of axes, as Python's slices (negative steps too)."""
    first, last = listed(starts), listed(ends)
    on = list(range(len(first))) if axes is None else listed(axes)
    by = [1] * len(first) if steps is None else listed(steps)
    for start, end, axis, step in zip(first, last, on, by, strict=True):
        length = x.shape[axis]
        if step > 0:
            places = range(*slice(start, end, step).indices(length))
        else:  # the limits of ONNX: what lies before the first is -1 here, not the last
            begin = min(max(start + length if start < 0 else start, -1), length - 1)
            stop = min(max(end + length if end < 0 else end, -1), length - 1)
            places = range(begin, stop, step)
        if step == 1:
            x = x.narrow(axis, places.start, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


@whole
def squeezed(x: Tensor, axes: list[int] | None) -> Tensor:
    if axes is None:
        return x.squeeze()
    for axis in axes:
        if x.shape[axis] != 1:
            raise ValueError(f"axis {axis} has length {x.shape[axis]}, and is to be squeezed")
    return x.squeeze(tuple(axes))


@whole
def unsqueezed(x: Tensor, axes: list[int]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@whole
def parts(x: Tensor, sizes: list[int] | None, count: int, axis: int) -> Any:
    if sizes is not None:
        return x.split(sizes, axis)
    length = -(-x.shape[axis] // count)
    rest = x.shape[axis] - length * (count - 1)
    return x.split([length] * (count - 1) + [rest], axis)


@whole
def tiled(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(listed(repeats))


@whole
def padded(x: Tensor, pads: Any, mode: str, value: Any, axes: list[int] | None) -> Tensor:
    """Pads axes; a negative number cuts."""
    widths, rank = listed(pads), x.dim()
    on = [a % rank for a in axes] if axes is not None else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(on):
        before[axis], after[axis] = widths[i], widths[i + len(on)]
    if mode == "constant":
        fill = value.item() if isinstance(value, Tensor) else value
        flat = [n for axis in reversed(range(rank)) for n in (before[axis], after[axis])]
        if x.dtype == torch.bool:
            return F.pad(x.to(torch.uint8), flat, value=fill or 0).bool()
        return F.pad(x, flat, value=fill or 0)
    for axis in range(rank):
        if before[axis] or after[axis]:
            x = x.index_select(axis, _places(x.shape[axis], before[axis], after[axis], mode))
    return x


def _places(length: int, before: int, after: int, mode: str) -> Tensor:
    places = torch.arange(-before, length + after)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    period = max(2 * (length - 1), 1)
    places = places % period
    return torch.where(places < length, places, period - places)


@whole
def blocks_to_space(x: Tensor, block: int, column_first: bool) -> Tensor:
    b, c, h, w = x.shape
    if column_first:
        y = x.reshape(b, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        y = x.reshape(b, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(b, c // block**2, h * block, w * block)


@whole
def space_to_blocks(x: Tensor, block: int, column_first: bool) -> Tensor:
    b, c, h, w = x.shape
    order = (0, 1, 3, 5, 2, 4) if column_first else (0, 3, 5, 1, 2, 4)
    y = x.reshape(b, c, h // block, block, w // block, block).permute(order)
    return y.reshape(b, c * block**2, h // block, w // block)


def _reshape(node: Node) -> Made:
    wanted = node.needed(1)
    allow_zero = bool(node.attribute("allowzero", 0))
    if isinstance(wanted, Constant):
        wanted = Sizes.of([int(n) for n in wanted.tensor.reshape(-1).tolist()])
    if not isinstance(wanted, Sizes):
        return node.call(reshaped, node.inputs[0], wanted, allow_zero=allow_zero)
    sizes, known = list(wanted.array.reshape(-1)), node.sizes()
    source = node.needed(0)
    if not allow_zero:
        for axis, size in enumerate(sizes):
            if isinstance(size, int) and size == 0:
                sizes[axis] = _own_size(source, known, axis)
    if _is_of_one_batch(node, sizes, known):
        assert isinstance(source, Runtime)
        sizes[0] = Dim(source.name, 0)
        _fill(sizes, known)
    open_axes = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    if len(open_axes) == 1 and all((isinstance(n, int) and n > 0) or i in open_axes
                                   for i, n in enumerate(sizes)):  # fmt: skip
        sizes[open_axes[0]] = -1  # what is left for it
        open_axes = []
    if not open_axes and _is_flattening(sizes, known):
        return Made(nn.Flatten(), [source])
    if not open_axes:
        return node.call(torch.reshape, source, shape=tuple(sizes))
    return node.call(reshaped, source, Sizes.of(sizes), allow_zero=True)


def _is_of_one_batch(node: Node, sizes: list[Any], known: tuple[int | None, ...] | None) -> bool:
    """Whether its first size is the number of examples, of which there may be others now."""
    return bool(
        node.batch is not None and sizes and sizes[0] == node.batch and known and known[0] is None
    )


def _fill(sizes: list[Any], known: tuple[int | None, ...] | None) -> None:
    """Writes a number for -1, where what the other axes hold is known."""
    rest = (known or ())[1:]
    if -1 in sizes and None not in rest:
        others = math.prod(n for n in sizes[1:] if n != -1)
        sizes[sizes.index(-1)] = math.prod(n for n in rest if n is not None) // max(others, 1)


def _own_size(source: Any, known: tuple[int | None, ...] | None, axis: int) -> Any:
    if known is not None and axis >= len(known):
        raise UnsupportedError(f"it copies the length of axis {axis}, which its input has not")
    if known is not None and known[axis] is not None:
        return known[axis]
    assert isinstance(source, Runtime)
    return Dim(source.name, axis)


def _is_flattening(sizes: list[int], known: tuple[int | None, ...] | None) -> bool:
    """Whether all axes but the first become one."""
    if known is None or len(sizes) != 2 or len(known) < 2 or None in known[1:]:
        return False
    rest = math.prod(n for n in known[1:] if n is not None)
    if sizes == [-1, rest]:
        return True
    return known[0] is not None and sizes in ([known[0], -1], [known[0], rest])


def _flatten(node: Node) -> Made:
    axis = int(node.attribute("axis", 1))
    known = node.sizes()
    if axis == 1 and known is not None and len(known) >= 2:
        return Made(nn.Flatten(), node.inputs[:1])
    return node.call(flattened, node.inputs[0], axis=axis)


@whole
def flattened(x: Tensor, axis: int) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(node: Node) -> Made:
    order = node.attribute("perm")
    order = list(range(node.rank()))[::-1] if order is None else list(order)
    return node.call(torch.permute, node.inputs[0], dims=tuple(order))


def _concat(node: Node) -> Made:
    return node.call(joined, *node.inputs, axis=int(node.attribute("axis", 1)))


def joined(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


def _identity(node: Node) -> Made:
    if isinstance(node.needed(0), Constant):
        return node.call(torch.clone, node.inputs[0])
    return Made(nn.Identity(), node.inputs[:1])


def _dropout(node: Node) -> Made:
    training = node.constant(2, "training_mode")
    if training is not None and bool(training):
        raise UnsupportedError("it drops at random (training_mode); export it for inference")
    if len(node.outputs) > 1 and node.outputs[1]:
        raise UnsupportedError("its mask is read, which is random")
    return _identity(node)


def _squeeze(node: Node) -> Made:
    axes = node.axes(1, since=13)
    if axes is None and node.sizes() is not None and None not in (node.sizes() or ()):
        axes = [i for i, n in enumerate(node.sizes() or ()) if n == 1]
    elif axes is None:
        raise UnsupportedError("it squeezes whatever axes have length 1; name them in the file")
    return node.call(squeezed, node.inputs[0], axes=axes)


def _unsqueeze(node: Node) -> Made:
    axes = node.axes(1, since=13)
    if axes is None:
        raise UnsupportedError("its axes are missing; the file is damaged")
    return node.call(unsqueezed, node.inputs[0], axes=axes)


def _split(node: Node) -> Made:
    sizes = node.integers(1, "split") if node.version >= 13 else node.attribute("split")
    sizes = None if sizes is None else list(sizes)
    count = int(node.attribute("num_outputs", len(node.outputs)))
    return node.call(
        parts, node.inputs[0], sizes=sizes, count=count, axis=int(node.attribute("axis", 0))
    )


def _slice(node: Node) -> Made:
    if node.version < 10:
        starts, ends = (Sizes.of(numbers(node.attribute(n))) for n in ("starts", "ends"))
        axes = node.attribute("axes")
        return node.call(
            cut, node.inputs[0], starts, ends, None if axes is None else Sizes.of(list(axes)), None
        )
    limits = [_as_sizes(node.input(i)) for i in range(1, 5)]
    return node.call(cut, node.needed(0), *limits)


def _as_sizes(value: Any) -> Any:
    """A constant list of whole numbers as plain numbers."""
    if isinstance(value, Constant) and not value.tensor.dtype.is_floating_point:
        return Sizes.of([int(n) for n in value.tensor.reshape(-1).tolist()])
    return value


def _expand(node: Node) -> Made:
    return node.call(expanded, node.inputs[0], _as_sizes(node.needed(1)))


def _tile(node: Node) -> Made:
    return node.call(tiled, node.inputs[0], _as_sizes(node.needed(1)))


def _shape(node: Node) -> Made:
    end = node.attribute("end")
    return node.call(
        shape_of, node.inputs[0], start=int(node.attribute("start", 0)),
        end=None if end is None else int(end),
    )  # fmt: skip


def _size(node: Node) -> Made:
    return node.call(size_of, node.inputs[0])


def _filled(node: Node) -> Made:
    value = node.attribute("value")
    value = torch.zeros(1) if value is None else value.reshape(-1)
    if value.numel() != 1:
        raise UnsupportedError("its value is no single number; the file is damaged")
    return node.call(filled, _as_sizes(node.needed(0)), value=value.item(), dtype=value.dtype)


def _range(node: Node) -> Made:
    return node.call(counted, *(node.needed(i) for i in range(3)))


def _pad(node: Node) -> Made:
    mode = node.attribute("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise UnsupportedError(f"its mode {mode!r} is not known")
    if node.version < 11:
        pads: Any = Sizes.of(numbers(node.attribute("pads")))
        value, axes = Constant(torch.tensor(float(node.attribute("value", 0.0)))), None
        return node.call(padded, node.inputs[0], pads, mode=mode, value=value.tensor, axes=axes)
    filling = node.constant(2, "its value")
    axes = node.integers(3, "axes")
    pads = _as_sizes(node.needed(1))
    fill = None if filling is None else filling.reshape(-1)[0].item()
    return node.call(padded, node.inputs[0], pads, mode=mode, value=fill, axes=axes)


def _depth_to_space(node: Node) -> Made:
    block, mode = int(node.attribute("blocksize")), node.attribute("mode", "DCR")
    return node.call(blocks_to_space, node.inputs[0], block=block, column_first=mode == "CRD")


def _space_to_depth(node: Node) -> Made:
    block, mode = int(node.attribute("blocksize")), node.attribute("mode", "DCR")
    return node.call(space_to_blocks, node.inputs[0], block=block, column_first=mode == "CRD")


@whole
def identity_like(x: Tensor, k: int, dtype: torch.dtype | None) -> Tensor:
    return torch.diag(torch.ones(max(x.shape) + abs(k)), k)[: x.shape[0], : x.shape[1]].to(
        dtype or x.dtype
    )


def _eye_like(node: Node) -> Made:
    dtype = DTYPES.get(node.attribute("dtype", 0))
    return node.call(identity_like, node.inputs[0], k=int(node.attribute("k", 0)), dtype=dtype)


@whole
def triangle(x: Tensor, k: Any, upper: bool) -> Tensor:
    by = int(k) if k is not None else 0
    return torch.triu(x, by) if upper else torch.tril(x, by)


def _trilu(node: Node) -> Made:
    k = node.integers(1, "k") or [0]
    return node.call(triangle, node.inputs[0], k=k[0], upper=bool(node.attribute("upper", 1)))


OPERATORS: dict[str, Callable[[Node], Made]] = {
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Identity": _identity,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
