"""Layers as ``torch.vmap`` can map them: it has no rule for some of torch's own kernels.

Recurrent layers and cells go step by step, and attention by its formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# A step: the input's and the state's affine parts, the state before (h, or h and c), and the state
# after; as documented with nn.RNN, nn.GRU and nn.LSTM.
_States = tuple[Tensor, ...]
_Step = Callable[[Tensor, Tensor, _States], _States]


def _lstm(of_input: Tensor, of_state: Tensor, states: _States) -> _States:
    enter, forget, cell, output = (of_input + of_state).chunk(4, -1)
    c = forget.sigmoid() * states[1] + enter.sigmoid() * cell.tanh()
    return output.sigmoid() * c.tanh(), c


def _gru(of_input: Tensor, of_state: Tensor, states: _States) -> _States:
    reset, update, new = of_input.chunk(3, -1)
    reset_state, update_state, new_state = of_state.chunk(3, -1)
    candidate = (new + (reset + reset_state).sigmoid() * new_state).tanh()
    return (candidate + (update + update_state).sigmoid() * (states[0] - candidate),)


_STEPS: dict[str, _Step] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": lambda of_input, of_state, _: ((of_input + of_state).tanh(),),
    "rnn_relu": lambda of_input, of_state, _: ((of_input + of_state).relu(),),
}


class Mappable(TorchFunctionMode):
    """Within it, recurrent layers are computed by steps; those of packed sequences are not."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        known = _FORMULAS.get(name)
        if known is not None:
            return known(func, *args, **(kwargs or {}))
        cell = _STEPS.get(name.removesuffix("_cell"))
        if name.endswith("_cell") and cell is not None and len(args) == 6:
            return _cell(cell, *args)
        step = _STEPS.get(name)
        if step is None or len(args) != 9 or not isinstance(args[3], bool):
            return func(*args, **(kwargs or {}))
        x, states, weights, has_bias, layers, _, training, both_ways, batch_first = args
        if training:
            return func(*args, **(kwargs or {}))
        given = states if step is _lstm else (states,)
        x = x.transpose(0, 1) if batch_first else x
        directions = 2 if both_ways else 1
        each = len(weights) // (layers * directions)
        last: list[_States] = []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                number = layer * directions + direction
                ours = weights[number * each : (number + 1) * each]
                start = tuple(state[number] for state in given)
                output, end = _run(step, x, start, ours, has_bias, backwards=direction == 1)
                outputs.append(output)
                last.append(end)
            x = torch.cat(outputs, -1)
        x = x.transpose(0, 1) if batch_first else x
        return x, *(torch.stack(state) for state in zip(*last, strict=True))


def _attention(_: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """``F.scaled_dot_product_attention`` by its formula, not by a kernel."""
    found: Tensor = torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
    return found


def _multi_head(
    function: Callable[..., Any], *args: Any, need_weights: bool = True, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """``F.multi_head_attention_forward``, by the formula, as where weights are wanted."""
    found, weights = function(*args, need_weights=True, **kwargs)
    return found, weights if need_weights else None


def _prelu(_: Callable[..., Any], x: Tensor, weight: Tensor) -> Tensor:
    slopes = weight.view(-1, *[1] * (x.dim() - 2)) if x.dim() > 1 else weight
    return torch.where(x > 0, x, slopes * x)


_FORMULAS: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    "prelu": _prelu,
}


def _cell(
    step: _Step,
    x: Tensor,
    state: Tensor | _States,
    by_input: Tensor,
    by_state: Tensor,
    of_input: Tensor | None,
    of_state: Tensor | None,
) -> Tensor | _States:
    """One step of nn.RNNCell, nn.GRUCell or nn.LSTMCell, whose state has two parts."""
    states = state if isinstance(state, tuple) else (state,)
    after = step(F.linear(x, by_input, of_input), F.linear(states[0], by_state, of_state), states)
    return after if isinstance(state, tuple) else after[0]


def _run(
    step: _Step,
    x: Tensor,
    states: _States,
    weights: Sequence[Tensor],
    has_bias: bool,
    backwards: bool,
) -> tuple[Tensor, _States]:
    """One layer in one direction: its outputs (T, b, h), and its state at the end."""
    by_input, by_state, *rest = weights
    biases = rest[:2] if has_bias else (None, None)
    projection = rest[2 if has_bias else 0 :]
    of_input = F.linear(x, by_input, biases[0])
    outputs: list[Tensor] = []
    steps = range(len(x))
    for t in reversed(steps) if backwards else steps:
        h, *others = step(of_input[t], F.linear(states[0], by_state, biases[1]), states)
        h = F.linear(h, projection[0]) if projection else h
        states = (h, *others)
        outputs.append(h)
    return torch.stack(outputs[::-1] if backwards else outputs), states
