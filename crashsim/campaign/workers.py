"""Processes that work for a run, and go on where one of them dies.

A pool of ``concurrent.futures`` gives up altogether when one of its processes is killed. Here each
process is a pool of its own: the block that it had goes to a new one, and only a block that ends
one process after the other is given up, by name.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from crashsim.arguments import whole
from crashsim.errors import CrashsimError

_TRIES = 4  # processes that a piece of work may end
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Piece:
    """Work that was handed in."""

    work: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    future: Future[Any] = field(default_factory=Future)


class Workers(Executor):
    """New processes (spawn) that share work, and are replaced where they die.

    On ``shutdown(cancel_futures=True)``, as when a ``with`` block is left by an error, they are
    ended at once. They end as well when the program that started them is killed.

    Args:
        count: number of processes.
        threads: of torch in each.
    """

    def __init__(self, count: int, threads: int = 1) -> None:
        self.count = whole("workers", count, 1)
        self._threads = whole("threads", threads, 1)
        self._queue: SimpleQueue[_Piece | None] = SimpleQueue()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._numbers: dict[int, int] = {}
        self._servers = [
            threading.Thread(target=self._serve, args=(number,), daemon=True)
            for number in range(self.count)
        ]
        self._is_closed = False
        self._shared: tempfile.TemporaryDirectory[str] | None = None
        for server in self._servers:
            server.start()

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            piece = _Piece(work, args, options)
            self._queue.put(piece)
        return piece.future

    def share(self, content: bytes) -> Path:
        """Puts what several pieces of work need into a file that all processes read once."""
        with self._lock:
            if self._shared is None:
                self._shared = tempfile.TemporaryDirectory(prefix="crashsim-")
            file = Path(self._shared.name, f"{len(os.listdir(self._shared.name))}.pkl")
            file.write_bytes(content)
        return file

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            is_first, self._is_closed = not self._is_closed, True
            if is_first:
                for _ in self._servers:
                    self._queue.put(None)
        if cancel_futures:
            self._ended.set()
            for process in self.processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
        if wait:
            for server in self._servers:
                server.join()
            if self._shared is not None:
                self._shared.cleanup()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.shutdown(cancel_futures=kind is not None)

    @property
    def processes(self) -> list[int]:
        """The numbers by which the system knows the processes that are alive."""
        with self._lock:
            return list(self._numbers.values())

    def _serve(self, number: int) -> None:
        """One process, and those that come after it."""
        while (piece := self._queue.get()) is not None:
            if self._ended.is_set():
                piece.future.cancel()
            elif piece.future.set_running_or_notify_cancel():
                self._do(piece, number)
        if (pool := self._without(number)) is not None:
            pool.shutdown()

    def _do(self, piece: _Piece, number: int) -> None:
        for _ in range(_TRIES):
            try:
                found = self._pool(number).submit(piece.work, *piece.args, **piece.options).result()
            except BrokenExecutor as error:
                lost: BaseException = error
                if (broken := self._without(number)) is not None:
                    broken.shutdown(wait=False)
                if self._ended.is_set():
                    break
            except BaseException as error:
                piece.future.set_exception(error)
                return
            else:
                piece.future.set_result(found)
                return
        told = CrashsimError(
            f"workers: {_told(piece)} ended {_TRIES} processes, one after the other; they may have "
            "run out of memory: give fewer workers, or run without them to see what happens"
        )
        told.__cause__ = lost
        piece.future.set_exception(told)

    def _pool(self, number: int) -> ProcessPoolExecutor:
        if number not in self._pools:
            pool = ProcessPoolExecutor(1, get_context("spawn"), _prepare, (self._threads,))
            with self._lock:
                self._pools[number] = pool
            process = pool.submit(os.getpid).result()
            with self._lock:
                self._numbers[number] = process
        return self._pools[number]

    def _without(self, number: int) -> ProcessPoolExecutor | None:
        with self._lock:
            self._numbers.pop(number, None)
            return self._pools.pop(number, None)


def _told(piece: _Piece) -> str:
    numbers = [each for each in piece.args if type(each) is int]
    return f"block {numbers[0]}" if numbers else "a piece of work"


def _prepare(threads: int) -> None:
    """In a new process, before its first work."""
    # An interrupt is the affair of the program that the user started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _THREADS:  # read by what is imported from here on
        os.environ[name] = str(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
