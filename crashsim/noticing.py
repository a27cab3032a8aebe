"""Warnings of crashsim's own, collected where an analysis gathers them.

``warnings.catch_warnings`` changes filters for all threads. Here each thread, and each task of
asyncio, has a list of its own; outside of a block that collects, a notice is a warning at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from crashsim.errors import CrashsimWarning

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def notice(message: str, stacklevel: int = 2) -> None:
    """Warns of something, or has it collected.

    Args:
        message: what deserves attention.
        stacklevel: whose line the warning names: 1 is that of the call of ``notice``.
    """
    found = _collected.get()
    if found is None:
        warnings.warn(message, CrashsimWarning, stacklevel=stacklevel + 1)
    else:
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
