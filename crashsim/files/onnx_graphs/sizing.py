"""Nodes that compute sizes from sizes: worked out while the network is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crashsim.files.onnx_graphs.node import Constant, Node, Runtime, Value
from crashsim.files.onnx_graphs.sizes import Dim, Expression, Sizes

_WHOLE = (6, 7)  # ONNX's int32 and int64


def sized(node: Node) -> Sizes | Constant | None:
    """What a node gives where that are sizes; None where it must be computed with tensors."""
    if node.operator in ("Shape", "Size"):
        return _shape(node)
    known = node.operator in _SIZING and any(isinstance(v, Sizes) for v in node.inputs)
    if not known:
        return None
    try:
        found = _SIZING[node.operator](node)
    except (TypeError, ValueError, IndexError, KeyError, ArithmeticError):
        return None
    if isinstance(found, Constant) or found is None:
        return found
    return settled(Sizes(np.asarray(found, dtype=object)))


def settled(sizes: Sizes) -> Sizes | Constant:
    """Sizes; as a tensor, where all of them are known."""
    known = sizes.known
    return sizes if known is None else Constant(torch.from_numpy(known))


def array_of(value: Value | None) -> NDArray[Any]:
    """Sizes or whole numbers of the file as an array of objects.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, Sizes):
        return value.array
    if isinstance(value, Constant) and value.tensor.dtype in (torch.int64, torch.int32):
        return value.tensor.numpy().astype(object)
    raise TypeError("no sizes")


def _shape(node: Node) -> Sizes | Constant | None:
    value = node.needed(0)
    if isinstance(value, Sizes):
        return Constant(torch.tensor(value.array.shape, dtype=torch.int64))
    sizes = node.sizes()
    if sizes is None:
        return None
    found: list[Any] = [
        Dim(value.name, axis) if n is None and isinstance(value, Runtime) else n
        for axis, n in enumerate(sizes)
    ]
    if node.operator == "Size":
        total: Any = 1
        for size in found:
            total = size * total
        return settled(Sizes.of(total))
    end = node.attribute("end")
    return settled(Sizes.of(found[int(node.attribute("start", 0)) : end]))


def _gather(node: Node) -> NDArray[Any]:
    indices = array_of(node.needed(1)).astype(np.int64)
    return np.take(array_of(node.needed(0)), indices, axis=int(node.attribute("axis", 0)))


def _slice(node: Node) -> NDArray[Any]:
    if node.version < 10:
        starts, ends = node.attribute("starts"), node.attribute("ends")
        steps: Any = [1] * len(starts)
    else:
        starts, ends = (array_of(node.needed(i)).tolist() for i in (1, 2))
        steps = [1] if node.input(4) is None else array_of(node.needed(4)).tolist()
    array = array_of(node.needed(0))
    if array.ndim != 1 or len(starts) != 1:
        raise TypeError("not of one axis")
    if steps[0] < 0 and ends[0] < -len(array):
        return array[starts[0] :: steps[0]]
    return array[starts[0] : ends[0] : steps[0]]


def _concat(node: Node) -> NDArray[Any]:
    return np.concatenate([array_of(v) for v in node.inputs], axis=int(node.attribute("axis", 0)))


def _unsqueeze(node: Node) -> NDArray[Any]:
    axes = node.axes(1, since=13) or []
    array = array_of(node.needed(0))
    return np.expand_dims(array, tuple(axes)) if axes else array


def _squeeze(node: Node) -> NDArray[Any]:
    axes = node.axes(1, since=13)
    array = array_of(node.needed(0))
    found: Any = np.squeeze(array, None if axes is None else tuple(axes))
    return np.asarray(found, dtype=object)


def _cast(node: Node) -> NDArray[Any]:
    if node.attribute("to") not in _WHOLE:
        raise TypeError("no whole numbers")
    return array_of(node.needed(0))


def _reshape(node: Node) -> NDArray[Any]:
    shape = array_of(node.needed(1)).astype(np.int64).tolist()
    return array_of(node.needed(0)).reshape(shape)


def _identity(node: Node) -> NDArray[Any]:
    return array_of(node.needed(0))


def _arithmetic(operate: Callable[[Any, Any], Any], node: Node) -> NDArray[Any]:
    left, right = array_of(node.needed(0)), array_of(node.needed(1))
    return np.asarray(np.frompyfunc(operate, 2, 1)(left, right), dtype=object)


def _divided(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        return int(left / right) if abs(left) < 2**52 else left // right
    if isinstance(right, int) and right > 0:
        return left // right
    raise TypeError("a quotient of unknown sign")


def _product(node: Node) -> NDArray[Any]:
    total: Any = 1
    for size in array_of(node.needed(0)).reshape(-1):
        total = size * total
    found = Sizes.of(total).array
    return found.reshape(1) if node.attribute("keepdims", 1) else found


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    numbers = [n for n in (left, right) if isinstance(n, int)]
    dims = [n for n in (left, right) if isinstance(n, Dim)]
    if numbers and dims and numbers[0] < 0:
        return False  # no axis is that long
    raise TypeError("not known before the model runs")


def _equal(node: Node) -> Constant:
    left, right = array_of(node.needed(0)), array_of(node.needed(1))
    found = np.asarray(np.frompyfunc(_same, 2, 1)(left, right)).astype(np.bool_)
    return Constant(torch.from_numpy(found))


def _where(node: Node) -> NDArray[Any]:
    condition = node.needed(0)
    if not isinstance(condition, Constant):
        raise TypeError("not known before the model runs")
    picked = np.frompyfunc(lambda c, a, b: a if c else b, 3, 1)
    return np.asarray(
        picked(condition.tensor.numpy().astype(object), *map(array_of, node.inputs[1:3])),
        dtype=object,
    )


def _sum(a: Any, b: Any) -> Any:
    return a + b


def _difference(a: Any, b: Any) -> Any:
    return a - b


def _times(a: Any, b: Any) -> Any:
    return b * a if isinstance(b, Expression) else a * b


_SIZING: dict[str, Callable[[Node], Any]] = {
    "Add": partial(_arithmetic, _sum),
    "Cast": _cast,
    "Concat": _concat,
    "Div": partial(_arithmetic, _divided),
    "Equal": _equal,
    "Gather": _gather,
    "Identity": _identity,
    "Mul": partial(_arithmetic, _times),
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": partial(_arithmetic, _difference),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
