"""What the operations of a pass are: how many, and whether their sizes are known beforehand.

Torch's own counter knows products and convolutions. Layers that a kernel computes as a whole
(recurrent ones, attention) are counted here as if computed step by step, so that the count does not
depend on which kernels a machine has. A multiplication and an addition are two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class Operations(TorchDispatchMode):
    """Counts what torch's own counter counts, without loading torch's compiler (a second).

    Attributes:
        total: floating-point operations so far.
        written: numbers that were written, views of others left aside.
        read: numbers of the tensors that these operations were given.
        calls: operations, likewise.
        is_dynamic: whether numbers decided how large a result is, as those of a mask do that
            chooses some rows.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = self.written = self.read = self.calls = 0
        self.is_dynamic = False
        self._formulas = FlopCounterMode(display=False).flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip the compiler, torch would load it

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)  # into what there are formulas for
        if parts is not NotImplemented:
            return parts
        out = func(*args, **kwargs)
        self.is_dynamic = self.is_dynamic or _is_dynamic(func, args)
        if not func.is_view:
            self.calls += 1
            self.written += sum(_sizes(out))
            self.read += sum(sum(_sizes(value)) for value in (*args, *kwargs.values()))
        packet = func._overloadpacket
        if func.namespace == "quantized":
            self.total += _packed(packet.__name__, args, out)
        elif own := _FUSED.get(packet.__name__):
            self.total += own(*args, **kwargs)
        elif formula := self._formulas.get(packet):
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def _sizes(out: Any) -> list[int]:
    """Numbers in each tensor of a result."""
    values = out if isinstance(out, list | tuple) else (out,)
    return [value.numel() for value in values if isinstance(value, Tensor)]


def _recurrent(x: Tensor, by_input: Tensor, by_state: Tensor, *_: Any, **__: Any) -> int:
    """One layer in one direction, of gates that are affine in the input and in the state.

    Args:
        x: (T, b, n), or packed: (T b, n) in any order.
        by_input, by_state: (gates h, n) and (gates h, h).
    """
    return 2 * (x.numel() // x.shape[-1]) * (by_input.numel() + by_state.numel())


def _recurrent_backward(x: Tensor, by_input: Tensor, by_state: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _recurrent(x, by_input, by_state)


def _whole_recurrent(x: Tensor, weights: Sequence[Tensor], *_: Any, **__: Any) -> int:
    """All layers and directions: a GPU's kernels, which are given all weights and biases."""
    rows = x.numel() // x.shape[-1]
    return sum(2 * rows * weight.numel() for weight in weights if weight.dim() == 2)


def _quantized_recurrent(gates: int) -> Callable[..., int]:
    """All layers and directions of a recurrent layer whose weights are packed words."""

    def formula(
        x: Tensor, state: Any, weights: Any, bias: bool, layers: int, *_: Any, **__: Any
    ) -> int:
        first = state if isinstance(state, Tensor) else state[0]  # (layers times directions, b, h)
        rows, hidden, ways = x.numel() // x.shape[-1], first.shape[-1], first.shape[0] // layers
        read = x.shape[-1] + (layers - 1) * ways * hidden
        return 2 * rows * ways * gates * hidden * (read + layers * hidden)

    return formula


def _packed(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Layers of torch's quantized kernels: every number of the packed weights is multiplied once
    for each row of inputs (linear, recurrent) or each place of outputs (convolution; of inputs, if
    it is transposed).
    """
    weights: list[Tensor] = [arg.unpack()[0] for arg in args if hasattr(arg, "unpack")]
    is_convolution = name.startswith("conv")
    values = out if is_convolution and "transpose" not in name else args[0]
    if not weights or not isinstance(values, Tensor):
        return 0
    places = values.numel() // values.shape[1 if is_convolution else -1]
    return 2 * places * sum(weight.numel() for weight in weights)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Attention (..., L, E), (..., S, E), (..., S, V), whichever kernel computes it."""
    pairs = query.numel() // query.shape[-1] * key.shape[-2]
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


def _attention_backward(
    _: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any
) -> int:
    """The scores once more, and four products of their size."""
    pairs = query.numel() // query.shape[-1] * key.shape[-2]
    return 2 * pairs * (3 * query.shape[-1] + 2 * value.shape[-1])


def _heads(query: Tensor, key: Tensor, value: Tensor, embed: int, *_: Any, **__: Any) -> int:
    """Multi-head attention (b, T, embed) with its projections."""
    rows, length = query.numel() // embed, key.shape[1]
    projected = 2 * (rows + key.numel() // embed)
    return 2 * projected * embed**2 + 4 * rows * length * embed


def _encoder_layer(x: Tensor, embed: int, *args: Any, **_: Any) -> int:
    """A whole layer of a transformer's encoder, (b, T, embed)."""
    wide = [t for t in args if isinstance(t, Tensor) and t.dim() == 2 and t.shape != x.shape]
    rows, length = x.numel() // embed, x.shape[1] if x.dim() == 3 else x.shape[0]
    return 2 * rows * sum(t.numel() for t in wide) + 4 * rows * length * embed


def _trilinear(a: Tensor, weight: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """nn.Bilinear: of each row, every output, input and input."""
    return 2 * a.numel() // a.shape[-1] * weight.numel()


def _distances(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return 3 * a.numel() * b.shape[-2]


_FUSED: dict[str, Callable[..., int]] = {
    "mkldnn_rnn_layer": _recurrent,
    "mkldnn_rnn_layer_backward": _recurrent_backward,
    "_thnn_fused_lstm_cell": lambda *_, **__: 0,  # what its products have left over
    "_thnn_fused_gru_cell": lambda *_, **__: 0,
    "_cudnn_rnn": _whole_recurrent,
    "miopen_rnn": _whole_recurrent,
    "quantized_lstm": _quantized_recurrent(4),
    "quantized_gru": _quantized_recurrent(3),
    "_lstm_mps": lambda x, states, weights, *_, **__: _whole_recurrent(x, weights),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_native_multi_head_attention": _heads,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "_trilinear": _trilinear,
    "_cdist_forward": _distances,
}


def _is_dynamic(func: Any, args: tuple[Any, ...]) -> bool:
    if func is torch.ops.aten.index.Tensor:  # tagged for the sake of masks alone
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return torch.Tag.dynamic_output_shape in func.tags
