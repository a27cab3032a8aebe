"""Fused kernels, checkpointing and autocast switched off, so that faults find their sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from crashsim.model.checkpointing import plainly
from crashsim.model.number_types import without_autocast

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


class Unfused:
    """Switches off what would run several layers of a model as one.

    Attention without torch's fast path, which leaves out activations and packs padded sequences.
    Nothing is checkpointed: what backward would compute again would meet no faults. No
    autocast.

    Args:
        model: decides whether there is anything to switch off.
    """

    def __init__(self, model: nn.Module) -> None:
        self._fused = any(isinstance(m, _FUSED) for m in model.modules())

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with plainly(), without_autocast(), _Watched() if self._fused else nullcontext():
            yield


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
