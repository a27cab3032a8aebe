"""Warnings of crashsim's own, collected where an analysis gathers them.

``warnings.catch_warnings`` changes filters for all threads. Here each thread, and each task of
asyncio, has a list of its own; outside of a block that collects, a notice is a warning at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from crashsim.errors import CrashsimWarning

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)
_speaker: ContextVar[Callable[[str], None] | None] = ContextVar("speaker", default=None)


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


def say_now(message: str, stacklevel: int = 2) -> None:
    """Tells at once what is of use before the work: a warning, or what a speaker makes of it."""
    speaker = _speaker.get()
    if speaker is None:
        warnings.warn(message, CrashsimWarning, stacklevel=stacklevel + 1)
    else:
        speaker(message)


@contextmanager
def speaking(speaker: Callable[[str], None]) -> Iterator[None]:
    """Within the block, what is told at once is told to this speaker."""
    token = _speaker.set(speaker)
    try:
        yield
    finally:
        _speaker.reset(token)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """The messages of all notices within the block, instead of warnings."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
