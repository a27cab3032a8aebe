"""Work in numbered blocks: run on any executor, added up in the order of the blocks.

A task is data. The sums of one of its blocks depend on the task and on the block's number alone,
so that a block can be computed in another thread, process or machine, today or tomorrow. Sums of
floating-point numbers depend on the order of their terms, so they are always added in the same
order, whichever block is finished first: the result is the same to the last bit.
"""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, Protocol, Self, TypeVar

from crashsim.arguments import instance
from crashsim.errors import ArgumentError, CrashsimError

_AHEAD = 2  # blocks in flight for each processor


class Sums(Protocol):
    """What can be added up."""

    def __add__(self, other: Self, /) -> Self: ...


S = TypeVar("S", bound=Sums)


class Task(ABC, Generic[S]):
    """Work in numbered blocks, each of which depends on the task and its number alone.

    It is data that pickles, and running a block changes nothing in it.
    """

    @abstractmethod
    def run(self, block: int) -> S:
        """The sums of one block."""

    def parts(self, block: int) -> Iterator[S]:
        """The sums of the consecutive parts of one block, which add up to ``run(block)``.

        A long block has several, so that progress can be told and an interrupt loses little.
        """
        yield self.run(block)


@dataclass(frozen=True)
class Folded(Generic[S]):
    """What has been added up.

    Attributes:
        sums: of all parts so far, in order.
        blocks: number of the blocks that they hold completely.
    """

    sums: S
    blocks: int


def fold(
    task: Task[S], blocks: Iterable[int], executor: Executor | None = None, *, ahead: int = 0
) -> Iterator[Folded[S]]:
    """The sums of some blocks, added up in the order in which the blocks are given.

    Args:
        task: that is run.
        blocks: the numbers of its blocks; may be endless, as the caller may stop at any time.
        executor: that runs the blocks; by default they run here, one after the other.
        ahead: number of blocks in flight at most; by default twice the number of processors.

    Yields:
        the sums after every part, and once more at the end of every block.

    Raises:
        ArgumentError: ``executor`` is not an executor, is shut down, or runs in other processes
            and the task does not pickle.
        CrashsimError: a worker ended before its work did.
        Exception: what a block raised, as soon as its turn comes. Blocks that have not begun are
            then cancelled, as they are when the caller stops or is interrupted.
    """
    if executor is not None:
        instance("executor", executor, Executor, "an Executor of concurrent.futures, or leave it")
    total: S | None = None
    with closing(_each(task, blocks, executor, ahead)) as each:
        for count, parts in enumerate(each, start=1):
            for part in parts:
                total = part if total is None else total + part
                yield Folded(total, count - 1)
            if total is not None:
                yield Folded(total, count)


def _each(
    task: Task[S], blocks: Iterable[int], executor: Executor | None, ahead: int
) -> Generator[Iterable[S], None, None]:
    """The parts of each block, in the order of the blocks."""
    if executor is None:
        yield from (task.parts(block) for block in blocks)
        return
    left, sent = iter(blocks), _Sent(task)
    most = ahead or _AHEAD * (os.cpu_count() or 1)
    flying: deque[Future[list[S]]] = deque()
    try:
        while True:
            for block in islice(left, most - len(flying)):
                flying.append(_submitted(executor, sent, block))
            if not flying:
                return
            yield _finished(flying[0])
            flying.popleft()
    finally:
        for future in flying:
            future.cancel()


def _submitted(executor: Executor, sent: _Sent[S], block: int) -> Future[list[S]]:
    try:
        return executor.submit(_run, sent, block)
    except BrokenExecutor as error:
        raise _broken(error) from error
    except RuntimeError as error:
        raise ArgumentError(f"executor: takes no work ({error}); give one that runs") from error


def _finished(future: Future[list[S]]) -> list[S]:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise _broken(error) from error


def _broken(error: BrokenExecutor) -> CrashsimError:
    return CrashsimError(
        f"executor: a worker ended before its work did ({error}); it may have run out of memory: "
        "give fewer workers, or a ThreadPoolExecutor"
    )


class _Sent(Generic[S]):
    """A task on its way to workers: pickled once, and unpickled once in each process."""

    def __init__(self, task: Task[S]) -> None:
        self.task = task
        self._pickled: bytes | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._pickled is None:
            try:
                self._pickled = pickle.dumps(self.task)
            except Exception as error:  # whatever its parts raise
                raise ArgumentError(
                    f"executor: the work cannot be sent to other processes ({error}); give classes "
                    "and functions that are defined at the top of a module, or a ThreadPoolExecutor"
                ) from error
        return _received, (self._pickled,)


@lru_cache(maxsize=2)  # a model is prepared once in a worker, not for each block
def _received(pickled: bytes) -> _Sent[Any]:
    return _Sent(pickle.loads(pickled))


def _run(sent: _Sent[S], block: int) -> list[S]:
    return list(sent.task.parts(block))
