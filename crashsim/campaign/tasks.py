"""Work in numbered blocks: run on any executor, added up in the order of the blocks.

A task is data. The sums of one of its blocks depend on the task and on the block's number alone,
so that a block can be computed in another thread, process or machine, today or tomorrow. Sums of
floating-point numbers depend on the order of their terms, so they are always added in the same
order, whichever block is finished first: the result is the same to the last bit.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from crashsim.arguments import instance
from crashsim.campaign.sending import run_block, sent_to
from crashsim.campaign.store import Store
from crashsim.campaign.stored_work import Total, Work
from crashsim.errors import ArgumentError, CrashsimError

_AHEAD = 2  # blocks in flight for each processor
# What clusters raise where processes died under a block: of Dask, Ray and submitit.
_LOST = ("KilledWorker", "WorkerCrashedError", "OutOfMemoryError", "UncompletedJobError")


class Sums(Protocol):
    """What can be added up."""

    def __add__(self, other: Self, /) -> Self: ...


S = TypeVar("S", bound=Sums)


class Task(ABC, Generic[S]):
    """Work in numbered blocks, each of which depends on the task and its number alone.

    It is data that pickles, and running a block changes nothing in it.

    Attributes:
        made_of: the dataclasses that its sums are made of, which alone a store reads back.
    """

    made_of: ClassVar[tuple[type, ...]] = ()

    @abstractmethod
    def run(self, block: int) -> S:
        """The sums of one block."""

    def parts(self, block: int) -> Iterator[S]:
        """The sums of the consecutive parts of one block, which add up to ``run(block)``.

        A long block has several, so that progress can be told and an interrupt loses little.
        """
        yield self.run(block)

    def identity(self) -> Mapping[str, str]:
        """What the sums of its blocks depend on, in words, by which a store knows them.

        Raises:
            ArgumentError: it does not say, so that nothing of it can be stored.
        """
        raise ArgumentError(
            f"store: a {type(self).__qualname__} does not say what its sums depend on; give it the "
            "method `identity`, or leave out the store"
        )

    def is_whole(self, block: int) -> bool:
        """Whether a block is what it is in a longer run too, so that a store may keep it."""
        return True


@dataclass(frozen=True)
class Folded(Generic[S]):
    """What has been added up.

    Attributes:
        sums: of all parts so far, in order.
        blocks: number of the blocks that they hold completely.
        is_block: whether they hold no part of another block.
    """

    sums: S
    blocks: int
    is_block: bool = False


def fold(
    task: Task[S],
    blocks: Iterable[int],
    executor: Executor | None = None,
    *,
    ahead: int = 0,
    store: Store | None = None,
) -> Iterator[Folded[S]]:
    """The sums of some blocks, added up in the order in which the blocks are given.

    The parts of a block are added up first, and then the blocks.

    Args:
        task: that is run.
        blocks: the numbers of its blocks; may be endless, as the caller may stop at any time.
        executor: that runs the blocks; by default they run here, one after the other.
        ahead: number of blocks in flight at most; by default twice the number of processors.
        store: keeps what is finished, and has it where it was finished before. Then the blocks
            are ``range(n)``; those that are there already are told a few at a time.

    Yields:
        the sums after every part, and once more at the end of every block.

    Raises:
        ArgumentError: ``executor`` is not an executor, is shut down, or runs in other processes
            and the task does not pickle; the task cannot be stored.
        CrashsimError: a worker ended before its work did.
        Exception: what a block raised, as soon as its turn comes. Blocks that have not begun are
            then cancelled, as they are when the caller stops or is interrupted.
    """
    if executor is not None:
        instance("executor", executor, Executor, "an Executor of concurrent.futures, or leave it")
    if store is None:
        yield from _added(_each(task, blocks, executor, ahead, None))
        return
    if not isinstance(blocks, range) or blocks != range(len(blocks)):
        raise ArgumentError(f"blocks={blocks!r}: what is stored begins with block 0, in order")
    work: Work[S] = store.work(task.identity(), task.made_of)
    start: Total[S] | None = None
    for start in work.totals(len(blocks)):
        yield Folded(start.sums, start.blocks, is_block=True)
    left = blocks[start.blocks if start else 0 :]
    try:
        for at in _added(_each(task, left, executor, ahead, work), start):
            yield at
            if at.is_block and task.is_whole(at.blocks - 1):
                work.reached(Total(at.sums, at.blocks))
    finally:
        work.flush()


def _added(
    each: Generator[Iterable[S], None, None], start: Total[S] | None = None
) -> Iterator[Folded[S]]:
    """The sums of the parts of each block, after those of the blocks before."""
    total, count = (start.sums, start.blocks) if start else (None, 0)
    with closing(each):
        for parts in each:
            of_block: S | None = None
            for part in parts:
                of_block = part if of_block is None else of_block + part
                yield Folded(of_block if total is None else total + of_block, count)
            if of_block is not None:
                total = of_block if total is None else total + of_block
            count += 1
            if total is not None:
                yield Folded(total, count, is_block=True)


def _each(
    task: Task[S],
    blocks: Iterable[int],
    executor: Executor | None,
    ahead: int,
    work: Work[S] | None,
) -> Generator[Iterable[S], None, None]:
    """The parts of each block, in the order of the blocks; what is finished is kept."""
    if executor is None:
        for block in blocks:
            known = None if work is None else work.get(block)
            yield _kept(task, block, work) if known is None else [known]
        return
    left, sent = iter(blocks), sent_to(executor, task)
    most = ahead or _AHEAD * (os.cpu_count() or 1)
    flying: deque[_Flying[S]] = deque()
    try:
        while True:
            for block in islice(left, most - len(flying)):
                known = None if work is None else work.get(block)
                if known is None:
                    flying.append(_Flying(block, _submitted(executor, sent, block)))
                else:
                    flying.append(_Flying(block, _done(known), is_kept=True))
            if not flying:
                return
            while not flying[0].future.done():
                wait(
                    [each.future for each in flying if not each.future.done()],
                    None,
                    FIRST_COMPLETED,
                )
                _keep(flying, task, work)
            _keep(flying, task, work)
            yield [_finished(flying[0].future)]
            flying.popleft()
    finally:
        for each in flying:
            each.future.cancel()


@dataclass
class _Flying(Generic[S]):
    """A block that is under way, or whose turn has not come."""

    block: int
    future: Future[S]
    is_kept: bool = False


def _kept(task: Task[S], block: int, work: Work[S] | None) -> Iterator[S]:
    """The parts of a block that runs here."""
    total: S | None = None
    for part in task.parts(block):
        total = part if total is None else total + part
        yield part
    if work is not None and total is not None and task.is_whole(block):
        work.put(block, total)


def _keep(flying: Iterable[_Flying[S]], task: Task[S], work: Work[S] | None) -> None:
    """Stores blocks as soon as they are finished, whether or not their turn has come."""
    if work is None:
        return
    for each in flying:
        future = each.future
        if each.is_kept or not future.done() or future.cancelled() or future.exception():
            continue
        each.is_kept = True
        if task.is_whole(each.block):
            work.put(each.block, future.result())


def _done(sums: S) -> Future[S]:
    future: Future[S] = Future()
    future.set_result(sums)
    return future


def _submitted(executor: Executor, task: Any, block: int) -> Future[S]:
    try:
        return executor.submit(run_block, task, block)
    except BrokenExecutor as error:
        raise _broken(error) from error
    except RuntimeError as error:
        raise ArgumentError(f"executor: takes no work ({error}); give one that runs") from error


def _finished(future: Future[S]) -> S:
    try:
        return future.result()
    except CancelledError as error:
        raise CrashsimError("executor: was ended, or cancelled the work, before it was done") from (
            error
        )
    except Exception as error:
        if isinstance(error, BrokenExecutor) or type(error).__name__ in _LOST:
            raise _broken(error) from error
        raise


def _broken(error: Exception) -> CrashsimError:
    return CrashsimError(
        f"executor: a worker ended before its work did ({error}); it may have run out of memory: "
        "give fewer workers, or a ThreadPoolExecutor"
    )
