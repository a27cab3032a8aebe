"""Warnings of the package's own, collected where a caller gathers them.

``warnings.catch_warnings`` changes filters for all threads; here each thread has a list of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .errors import HardwareWarning

__all__ = ["collecting", "notice"]

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def notice(message: str, stacklevel: int = 2) -> None:
    """Warns of something, or has it collected; ``stacklevel`` 1 is the line of this call."""
    found = _collected.get()
    if found is None:
        warnings.warn(message, HardwareWarning, stacklevel=stacklevel + 1)
    elif message not in found:
        found.append(message)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """The messages of all notices within the block, instead of warnings."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
