"""Work that is told while it is done, so that whatever runs a model for long shows how far it is.

What computes outputs says how many rows it has computed, each an input of a sample; it need not
know for whom. Whoever waits listens, in its own thread alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SELDOM = 0.2  # seconds between two reports
_AT_LEAST = 0.5  # after which the same step is told again, so that silence means that nothing runs

_LISTENER: ContextVar[Callable[[float], None] | None] = ContextVar("work", default=None)


def worked(rows: float) -> None:
    """Tells whoever listens that this much is done: rows of a forward pass; 0 where it is none, but
    something was done."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(rows)


@contextmanager
def listening(listener: Callable[[float], None]) -> Iterator[None]:
    """Within the block, in this thread, work is told to this listener and to nobody else."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class Steps:
    """Steps of a piece of work, told as they are counted or as rows are computed.

    It never tells less than before, nor the last step until it is said to be done.

    Args:
        tell: is called with the steps done and their number, a few times a second at most.
        total: number of steps expected.
        rows: of a step.
    """

    def __init__(self, tell: Callable[[int, int], None], total: int, rows: float) -> None:
        self._tell, self._total, self._rows = tell, max(total, 1), max(rows, 1.0)
        self._done, self._told, self._last = 0.0, -1, -float("inf")

    def begin(self) -> None:
        """Tells that it begins."""
        self._told, self._last = 0, time.monotonic()
        self._tell(0, self._total)

    def work(self, rows: float) -> None:
        """Some rows were computed."""
        self._done += rows / self._rows
        done, now = min(int(self._done), self._total - 1), time.monotonic()
        done = max(done, self._told)
        if now - self._last >= (_SELDOM if done > self._told else _AT_LEAST):
            self._told, self._last = done, now
            self._tell(done, self._total)

    def count(self, done: int, total: int) -> None:
        """So many steps are done, of so many: known, and so told at once."""
        self._done, self._total = float(done), max(total, 1)
        if done > self._told or done == total:
            self._told, self._last = done, time.monotonic()
            self._tell(done, total)

    def end(self) -> None:
        """All is done."""
        if self._told < self._total:
            self._told = self._total
            self._tell(self._total, self._total)


@contextmanager
def telling(stage: str, progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Within the block, work of which nobody knows how much it is is told as one step that takes
    long: that something is done."""
    steps = Steps(lambda done, total: progress(stage, done, total), 1, 1.0)
    steps.begin()
    with listening(steps.work):
        yield
    steps.end()
