"""Recurrent layers computed step by step, so that a unit can fail in each, and layers for vmap.

``torch.vmap`` has no rule for some of torch's own kernels: recurrent layers and cells go step by
step for it, and attention by its formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
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


# What a state becomes in a step, by layer, direction and number of the step.
StrikeStep = Callable[[Tensor, int, int, int], Tensor]
# What the outputs of the recurrent layer that runs pass through before they are fed back, whichever
# of several modes computes it; None: nothing.
STRUCK_IN_STEPS: ContextVar[StrikeStep | None] = ContextVar("struck in steps", default=None)


class Stepwise(TorchFunctionMode):
    """Within it, recurrent layers are computed by steps; those of packed sequences are not.

    Each step's output passes through ``strike``, or else through ``STRUCK_IN_STEPS``.
    """

    strike: StrikeStep | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        cell = _STEPS.get(name.removesuffix("_cell"))
        if name.endswith("_cell") and cell is not None and len(args) == 6:
            return _cell(cell, *args)
        step = _STEPS.get(name)
        if step is None or len(args) != 9 or not isinstance(args[3], bool):
            return func(*args, **(kwargs or {}))
        x, states, weights, has_bias, layers, dropout, trains, both_ways, batch_first = args
        dropout = float(dropout) if trains else 0.0
        shape = _Shape(has_bias, layers, 2 if both_ways else 1, batch_first, dropout)
        strike = self.strike or STRUCK_IN_STEPS.get()
        return _by_steps(step, x, states, weights, shape, strike)


class Mappable(Stepwise):
    """Within it, ``torch.vmap`` can map recurrent layers, attention and prelu."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        known = _FORMULAS.get(getattr(func, "__name__", ""))
        if known is not None:
            return known(func, *args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


@dataclass(frozen=True)
class _Shape:
    """Of a recurrent layer: what stands beside its weights in a call of torch's kernels.

    Attributes:
        dropout: probability with which what passes from layer to layer is dropped; 0 unless it
            trains.
    """

    has_bias: bool
    layers: int
    directions: int
    batch_first: bool
    dropout: float


def _by_steps(
    step: _Step,
    x: Tensor,
    states: Any,
    weights: Sequence[Tensor],
    shape: _Shape,
    strike: StrikeStep | None,
) -> tuple[Tensor, ...]:
    """What ``torch.lstm``, ``torch.gru``, ``torch.rnn_tanh`` and ``torch.rnn_relu`` return."""
    given = states if step is _lstm else (states,)
    x = x.transpose(0, 1) if shape.batch_first else x
    each = len(weights) // (shape.layers * shape.directions)
    last: list[_States] = []
    for layer in range(shape.layers):
        outputs = []
        for direction in range(shape.directions):
            number = layer * shape.directions + direction
            ours = weights[number * each : (number + 1) * each]
            start = tuple(state[number] for state in given)
            struck = None if strike is None else partial(_struck, strike, layer, direction)
            output, end = _run(step, x, start, ours, shape.has_bias, direction == 1, struck)
            outputs.append(output)
            last.append(end)
        x = torch.cat(outputs, -1)
        if shape.dropout and layer < shape.layers - 1:
            x = F.dropout(x, shape.dropout)
    x = x.transpose(0, 1) if shape.batch_first else x
    return x, *(torch.stack(state) for state in zip(*last, strict=True))


def _struck(strike: StrikeStep, layer: int, direction: int, h: Tensor, t: int) -> Tensor:
    return strike(h, layer, direction, t)


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
    strike: Callable[[Tensor, int], Tensor] | None = None,
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
        h = h if strike is None else strike(h, t)
        states = (h, *others)
        outputs.append(h)
    return torch.stack(outputs[::-1] if backwards else outputs), states
