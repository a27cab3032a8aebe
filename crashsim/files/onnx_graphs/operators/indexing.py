"""Reading and writing by index: tables, scattering, sorting out the largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Constant, Made, Node, UnsupportedError

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positive(indices: Tensor, length: int) -> Tensor:
    """Indices from the first on; those below zero count from the end.

    By their sign bit: a comparison would look like a neuron's.
    """
    wide = indices.long()
    return wide - (wide >> 63) * length


@whole
def gathered(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    axis = axis % x.dim()
    places = _positive(indices, x.shape[axis])
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@whole
def gathered_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    return x.gather(axis, _positive(indices, x.shape[axis]))


@whole
def gathered_nd(x: Tensor, indices: Tensor, batch: int) -> Tensor:
    depth = indices.shape[-1]
    lead, rest = indices.shape[:batch], x.shape[batch + depth :]
    flat = x.reshape(-1, *x.shape[batch:])
    places = indices.reshape(len(flat), -1, depth)
    found = []
    for table, rows in zip(flat, places, strict=True):
        where = tuple(_positive(rows[:, i], table.shape[i]) for i in range(depth))
        found.append(table[where])
    return torch.stack(found).reshape((*lead, *indices.shape[batch:-1], *rest))


@whole
def scattered_elements(
    x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str
) -> Tensor:
    places = _positive(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])


@whole
def scattered_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    depth = indices.shape[-1]
    where = tuple(_positive(indices[..., i], x.shape[i]) for i in range(depth))
    if reduction == "none":
        return x.index_put(where, updates)
    strides = torch.ones(depth, dtype=torch.long)
    for i in range(depth - 2, -1, -1):
        strides[i] = strides[i + 1] * x.shape[i + 1]
    flat = sum(w * s for w, s in zip(where, strides, strict=True))
    assert isinstance(flat, Tensor)
    rows = x.reshape(-1, *x.shape[depth:]).flatten(1) if x.dim() > depth else x.reshape(-1, 1)
    new = updates.reshape(flat.numel(), -1)
    index = flat.reshape(-1, 1).expand_as(new)
    return rows.scatter_reduce(0, index, new, _REDUCTIONS[reduction]).reshape(x.shape)


@whole
def extreme(x: Tensor, axis: int, keep: bool, last: bool, largest: bool) -> Tensor:
    """The index of the largest or smallest."""
    x = x if largest else -x if x.dtype.is_floating_point else -x.long()
    if not last:
        return x.argmax(axis, keep)
    return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keep)


@whole
def top(x: Tensor, k: Any, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The first of equal ones comes first."""
    count = int(k) if not isinstance(k, list) else int(k[0])
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@whole
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, axis: int) -> Tensor:
    count = int(depth.item()) if isinstance(depth, Tensor) else int(depth)
    places = indices.long()
    places = torch.where(places < 0, places + count, places)
    hot = places.unsqueeze(-1) == torch.arange(count)
    found = torch.where(hot, values[1], values[0])
    return found.movedim(-1, axis if axis >= 0 else axis + found.dim())


@whole
def nonzero(x: Tensor) -> Tensor:
    return torch.nonzero(x).T


@whole
def cumulated(x: Tensor, axis: Any, exclusive: bool, reverse: bool) -> Tensor:
    on = int(axis)
    y = x.flip(on) if reverse else x
    found = y.cumsum(on).to(x.dtype)
    if exclusive:
        found = torch.cat([torch.zeros_like(y.narrow(on, 0, 1)),
                           found.narrow(on, 0, y.shape[on] - 1)], on)  # fmt: skip
    return found.flip(on) if reverse else found


@whole
def reversed_sequences(x: Tensor, lengths: Tensor, batch: int, time: int) -> Tensor:
    """Each example backwards up to its own length."""
    y = x.movedim((time, batch), (0, 1))
    steps = torch.arange(y.shape[0]).unsqueeze(1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    index = places.reshape(*places.shape, *[1] * (y.dim() - 2)).expand_as(y)
    return y.gather(0, index).movedim((0, 1), (time, batch))


def _gather(node: Node) -> Made:
    table, axis = node.needed(0), int(node.attribute("axis", 0))
    is_table = isinstance(table, Constant) and table.is_weight and table.tensor.dim() == 2
    kind = node.dtype(1)
    if is_table and axis == 0 and kind in (torch.int32, torch.int64):
        assert isinstance(table, Constant)
        if table.tensor.dtype.is_floating_point and not isinstance(node.needed(1), Constant):
            module = nn.Embedding.from_pretrained(table.tensor)
            module.weight = node.parameter(table.tensor)
            return Made(Wrapped(module), [node.needed(1)])
    return node.call(gathered, table, node.needed(1), axis=axis)


class Wrapped(nn.Embedding):
    """An embedding whose negative indices count from the end, as those of ONNX do."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, _weight=table.weight.data)
        self.weight = table.weight

    def forward(self, indices: Tensor) -> Tensor:
        return gathered(self.weight, indices, axis=0)


def _gather_elements(node: Node) -> Made:
    return node.call(gathered_elements, *node.inputs, axis=int(node.attribute("axis", 0)))


def _gather_nd(node: Node) -> Made:
    return node.call(gathered_nd, *node.inputs, batch=int(node.attribute("batch_dims", 0)))


def _scatter_elements(node: Node) -> Made:
    return node.call(
        scattered_elements, *node.inputs, axis=int(node.attribute("axis", 0)),
        reduction=node.attribute("reduction", "none"),
    )  # fmt: skip


def _scatter_nd(node: Node) -> Made:
    return node.call(scattered_nd, *node.inputs, reduction=node.attribute("reduction", "none"))


def _arg(node: Node, *, largest: bool) -> Made:
    return node.call(
        extreme, node.inputs[0], axis=int(node.attribute("axis", 0)),
        keep=bool(node.attribute("keepdims", 1)), last=bool(node.attribute("select_last_index", 0)),
        largest=largest,
    )  # fmt: skip


def _arg_max(node: Node) -> Made:
    return _arg(node, largest=True)


def _arg_min(node: Node) -> Made:
    return _arg(node, largest=False)


def _top(node: Node) -> Made:
    count: Any = node.needed(1) if node.version >= 10 else None
    if count is None:
        count = Constant(torch.tensor(int(node.attribute("k"))))
    return node.call(
        top, node.inputs[0], count, axis=int(node.attribute("axis", -1)),
        largest=bool(node.attribute("largest", 1)),
    )  # fmt: skip


def _one_hot(node: Node) -> Made:
    return node.call(one_hot, *node.inputs, axis=int(node.attribute("axis", -1)))


def _nonzero(node: Node) -> Made:
    return node.call(nonzero, *node.inputs)


def _cumulated(node: Node) -> Made:
    axis = node.integers(1, "axis")
    if not axis:
        raise UnsupportedError("its axis is missing; the file is damaged")
    return node.call(
        cumulated, node.inputs[0], axis=axis[0], exclusive=bool(node.attribute("exclusive", 0)),
        reverse=bool(node.attribute("reverse", 0)),
    )  # fmt: skip


def _reversed(node: Node) -> Made:
    return node.call(
        reversed_sequences, *node.inputs, batch=int(node.attribute("batch_axis", 1)),
        time=int(node.attribute("time_axis", 0)),
    )  # fmt: skip


OPERATORS: dict[str, Callable[[Node], Made]] = {
    "ArgMax": _arg_max,
    "ArgMin": _arg_min,
    "CumSum": _cumulated,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _nonzero,
    "OneHot": _one_hot,
    "ReverseSequence": _reversed,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top,
}
