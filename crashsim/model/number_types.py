"""Autocast, torch's automatic choice of number types, switched off where crashsim computes.

A score is of a model in one type of numbers. Under ``torch.autocast`` the same output comes out
differently in another batch, by more than rare faults move it on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type that autocast would compute in on this device now; None where it is off."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


@contextmanager
def without_autocast() -> Iterator[None]:
    """Within the block numbers keep the types that they have."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
