"""Models run layer by layer, so that faults find their sites."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn

from crashsim.checkpointing import plainly
from crashsim.precision import without_autocast

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


class Unfused:
    """Switches off what would run several layers of a model as one.

    ``torch.compile``d parts run as they were written, and attention without torch's fast path,
    which leaves out activations and packs padded sequences. Nothing is checkpointed: what backward
    would compute again would meet no faults. Autocast is off.

    Args:
        model: decides what there is to switch off.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._compiled = any(
            hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in modules
        )
        self._fused = any(isinstance(m, _FUSED) for m in modules)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(plainly())
            stack.enter_context(without_autocast())
            if self._compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                stack.enter_context(warnings.catch_warnings())
                # Of hooks that it would not see; it sees none, for it does nothing.
                warnings.filterwarnings("ignore", message="Using `torch.compile")
            if self._fused:
                stack.enter_context(_fused_attention(False))
            yield

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Fused attention again, for what has been taken apart into the layers that matter."""
        with _fused_attention(True) if self._fused else nullcontext():
            yield


@contextmanager
def _fused_attention(enabled: bool) -> Iterator[None]:
    usual = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(usual)
