"""Fused kernels, checkpointing and autocast switched off, so that faults find their sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from crashsim.model.checkpointing import plainly
from crashsim.model.number_types import without_autocast
from crashsim.model.recurrence import Stepwise

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


class Unfused:
    """Switches off what would run several layers of a model as one.

    Attention without torch's fast path, which leaves out activations and packs padded sequences.
    Nothing is checkpointed: what backward would compute again would meet no faults. No
    autocast. On a GPU recurrent layers run by steps: its kernel of whole sequences reads weights
    from memory of its own, where faults do not reach them, and has no derivative in evaluation.

    Args:
        model: a twin, which decides whether there is anything to switch off.
    """

    def __init__(self, model: nn.Module) -> None:
        self._fused = any(isinstance(m, _FUSED) for m in model.modules())
        layers = [m for m in model.modules() if isinstance(m, nn.RNNBase) and _is_on_gpu(m)]
        self._by_steps = bool(layers)
        for layer in layers:  # which would move the weights, faulty ones too, to other memory
            vars(layer)["flatten_parameters"] = _leave_apart

    @contextmanager
    def __call__(self) -> Iterator[None]:
        watched = _Watched() if self._fused else nullcontext()
        with (
            plainly(),
            without_autocast(),
            watched,
            Stepwise() if self._by_steps else nullcontext(),
        ):
            yield


def _leave_apart() -> None:
    """In the place of a recurrent layer's ``flatten_parameters``."""


def _is_on_gpu(module: nn.Module) -> bool:
    return any(p.is_cuda for p in module.parameters())


class _Watched(TorchFunctionMode):
    """Torch takes no fast path where its functions are watched, in this thread alone.

    ``torch.backends.mha.set_fastpath_enabled`` is for all threads.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(*args, **(kwargs or {}))
