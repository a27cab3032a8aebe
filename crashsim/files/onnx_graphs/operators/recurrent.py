"""LSTM, GRU and RNN: torch's layers with the gates in torch's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Constant, Made, Node, UnsupportedError, Value

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's order of ONNX's blocks
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


class Recurrent(nn.Module):
    """A recurrent layer of torch between ONNX's axes.

    Args:
        layer: of torch; its batch is the second axis.
        backwards: whether time runs backwards.
        batch_first: whether the batch is the first axis of all.
    """

    def __init__(self, layer: nn.RNNBase, backwards: bool, batch_first: bool) -> None:
        super().__init__()
        self.layer, self.backwards, self.batch_first = layer, backwards, batch_first

    def forward(self, x: Any, h: Any = None, c: Any = None) -> tuple[Any, ...]:
        """All outputs (T, D, B, H), then the last states (D, B, H)."""
        if self.batch_first:
            x = x.transpose(0, 1)
            h, c = (None if s is None else s.transpose(0, 1) for s in (h, c))
        if self.backwards:
            x = x.flip(0)
        if h is None:
            found, state = self.layer(x)
        else:
            found, state = self.layer(x, h if c is None else (h, c))
        if self.backwards:
            found = found.flip(0)
        ways = 2 if self.layer.bidirectional else 1
        found = found.unflatten(-1, (ways, self.layer.hidden_size)).transpose(1, 2)
        states = (state[0], state[1]) if isinstance(self.layer, nn.LSTM) else (state,)
        if self.batch_first:
            found = found.permute(2, 0, 1, 3)
            states = tuple(s.transpose(0, 1) for s in states)
        return (found, *states)


@whole
def gated(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    h: Tensor | None,
    direction: str,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """A GRU whose reset gate strikes the state before its weights (linear_before_reset=0)."""
    if batch_first:
        x, h = x.transpose(0, 1), None if h is None else h.transpose(0, 1)
    size = r.shape[-1]
    if x.is_meta:  # the shapes alone
        every, last = (
            x.new_empty(len(x), len(w), x.shape[1], size),
            x.new_empty(len(w), x.shape[1], size),
        )
        return (every.permute(2, 0, 1, 3), last.transpose(0, 1)) if batch_first else (every, last)
    bias = x.new_zeros(len(w), 6 * size) if b is None else b
    state = x.new_zeros(len(w), x.shape[1], size) if h is None else h
    outputs, ends = [], []
    for way in range(len(w)):
        backwards = direction == "reverse" or way == 1
        steps = x.flip(0) if backwards else x
        both = bias[way, : 3 * size] + bias[way, 3 * size :]
        drive = F.linear(steps, w[way], both)
        now, found = state[way], []
        for step in drive:
            z, reset, new = step.split(size, -1)
            rz, rr, rn = r[way].split(size, 0)
            z, reset = torch.sigmoid(z + now @ rz.T), torch.sigmoid(reset + now @ rr.T)
            now = z * now + (1 - z) * torch.tanh(new + (reset * now) @ rn.T)
            found.append(now)
        found = found[::-1] if backwards else found
        outputs.append(torch.stack(found))
        ends.append(now)
    every, last = torch.stack(outputs, 1), torch.stack(ends)
    return (every.permute(2, 0, 1, 3), last.transpose(0, 1)) if batch_first else (every, last)


def _recurrent(node: Node) -> Made:
    direction = node.attribute("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise UnsupportedError(f"its direction {direction!r} is not known")
    functions = _activations(node, 2 if direction == "bidirectional" else 1)
    first, weights, again = node.needed(0), node.needed(1), node.needed(2)
    bias = node.input(3)
    if not (isinstance(weights, Constant) and isinstance(again, Constant)) or not isinstance(
        bias, Constant | None
    ):
        raise UnsupportedError("its weights are computed, and must be in the file")
    _check_lengths(node)
    if node.input(7) is not None and not _is_zero(node.input(7)):
        raise UnsupportedError("it has peepholes, which torch's LSTM has not")
    h, c = (None if _is_zero(node.input(i)) else node.input(i) for i in (5, 6))
    batch_first = bool(node.attribute("layout", 0))
    if node.operator == "GRU" and not node.attribute("linear_before_reset", 0):
        return node.call(
            gated, first, weights, again, bias, h, direction=direction, batch_first=batch_first
        )
    layer = _layer(node, weights.tensor, again.tensor, None if bias is None else bias.tensor,
                   functions)  # fmt: skip
    states: Sequence[Value | None] = [h] if node.operator != "LSTM" else [h, c]
    if any(s is not None for s in states) and None in states:
        raise UnsupportedError("one of its first states is left out or zero and the other is not")
    if any(isinstance(s, Constant) for s in states):
        raise UnsupportedError("its first states are numbers of the file, and not zero")
    module = Recurrent(layer, direction == "reverse", batch_first)
    return Made(module, [first, *(s for s in states if s is not None)])


def _activations(node: Node, ways: int) -> list[str]:
    usual = _USUAL[node.operator]
    found = [str(name) for name in node.attribute("activations", usual * ways)]
    is_relu = node.operator == "RNN" and found == ["Relu"] * ways
    if found != usual * ways and not is_relu:
        raise UnsupportedError(f"its activations {found} are not torch's {usual}")
    if node.attribute("clip") is not None:
        raise UnsupportedError("it clips what enters its activations")
    if node.attribute("input_forget", 0):
        raise UnsupportedError("its input and forget gates are one")
    return found


def _check_lengths(node: Node) -> None:
    """Raises UnsupportedError where examples have lengths of their own."""
    if node.input(4) is None:
        return
    lengths, sizes = node.integers(4, "sequence_lens"), node.sizes()
    time = None if sizes is None else sizes[1 if node.attribute("layout", 0) else 0]
    if time is None or set(lengths or []) != {time}:
        raise UnsupportedError("its examples have lengths of their own (sequence_lens)")


def _is_zero(value: Value | None) -> bool:
    return value is None or (isinstance(value, Constant) and not bool(value.tensor.any()))


def _layer(node: Node, w: Tensor, r: Tensor, b: Tensor | None, functions: list[str]) -> nn.RNNBase:
    ways, size = len(w), r.shape[-1]
    options: dict[str, Any] = {
        "bidirectional": ways == 2, "bias": b is not None, "device": "meta",
    }  # fmt: skip
    if node.operator == "RNN":
        options["nonlinearity"] = functions[0].lower()
    kinds: dict[str, type[Any]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
    layer: nn.RNNBase = kinds[node.operator](w.shape[-1], size, **options)

    def ordered(block: Tensor) -> nn.Parameter:
        gates = block.split(size, 0)
        return nn.Parameter(torch.cat([gates[g] for g in _GATES[node.operator]]).clone())

    for way in range(ways):
        end = "l0" if way == 0 else "l0_reverse"
        setattr(layer, f"weight_ih_{end}", ordered(w[way]))
        setattr(layer, f"weight_hh_{end}", ordered(r[way]))
        if b is not None:
            inner, outer = b[way].split(b.shape[-1] // 2)
            setattr(layer, f"bias_ih_{end}", ordered(inner))
            setattr(layer, f"bias_hh_{end}", ordered(outer))
    return layer


OPERATORS: dict[str, Callable[[Node], Made]] = dict.fromkeys(_GATES, _recurrent)
