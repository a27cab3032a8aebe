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
    together = fold_each([(task, blocks)], executor, ahead=ahead, store=store)
    with closing(together):
        for _, at in together:
            yield at


def fold_each(
    works: Iterable[tuple[Task[S], Iterable[int]]],
    executor: Executor | None = None,
    *,
    ahead: int = 0,
    store: Store | None = None,
) -> Generator[tuple[int, Folded[S]], None, None]:
    """The sums of several pieces of work, one after the other, as ``fold`` has them.

    An executor has blocks of the next ones while the last blocks of one are under way.

    Args:
        works: tasks, each with the numbers of its blocks.
        executor, ahead, store: as of ``fold``.

    Yields:
        the number of the piece of work, and its sums, as ``fold`` does.

    Raises:
        As ``fold``.
    """
    if executor is not None:
        instance("executor", executor, Executor, "an Executor of concurrent.futures, or leave it")
    opened: list[Work[S]] = []
    with closing(_each(_steps(works, executor, store, opened), executor, ahead)) as each:
        yield from _added(each, opened)


def _added(
    each: Iterable[tuple[_Start[S] | _Step[S], Iterable[S]]], opened: list[Work[S]]
) -> Generator[tuple[int, Folded[S]], None, None]:
    """The sums after every part of every block; what is finished is on the disk at the end."""
    total: S | None = None
    count = 0
    try:
        for step, parts in each:
            if isinstance(step, _Start):
                total, count = None, 0
                for start in step.totals:
                    total, count = start.sums, start.blocks
                    yield step.number, Folded(total, count, is_block=True)
                continue
            of_block: S | None = None
            for part in parts:
                of_block = part if of_block is None else of_block + part
                yield step.number, Folded(of_block if total is None else total + of_block, count)
            if of_block is not None:
                total = of_block if total is None else total + of_block
            count += 1
            if total is not None:
                yield step.number, Folded(total, count, is_block=True)
                if step.work is not None and step.task.is_whole(count - 1):
                    step.work.reached(Total(total, count))
    finally:
        for work in opened:
            work.flush()


@dataclass(frozen=True)
class _Start(Generic[S]):
    """A piece of work begins, with what is known of it."""

    number: int
    totals: Iterable[Total[S]] = ()


@dataclass(frozen=True)
class _Step(Generic[S]):
    """A block of a piece of work, whose task is sent elsewhere in the place of itself."""

    number: int
    task: Task[S]
    block: int
    work: Work[S] | None
    sent: Any


def _steps(
    works: Iterable[tuple[Task[S], Iterable[int]]],
    executor: Executor | None,
    store: Store | None,
    opened: list[Work[S]],
) -> Generator[_Start[S] | _Step[S], None, None]:
    """The blocks that are to be run or read, after a start of each piece of work."""
    for number, (task, blocks) in enumerate(works):
        work, left = None, blocks
        if store is None:
            yield _Start(number)
        else:
            if not isinstance(blocks, range) or blocks != range(len(blocks)):
                raise ArgumentError(
                    f"blocks={blocks!r}: what is stored begins with block 0, in order"
                )
            work = store.work(task.identity(), task.made_of)
            opened.append(work)
            known = _Known(work.totals(len(blocks)))
            yield _Start(number, known)
            left = blocks[known.blocks :]
        sent = None
        for block in left:
            if executor is not None and sent is None:
                sent = sent_to(executor, task)
            yield _Step(number, task, block, work, sent)


class _Known(Generic[S]):
    """The totals that a store has, read as they are asked for."""

    def __init__(self, totals: Iterator[Total[S]]) -> None:
        self._left, self._held, self._last = totals, list[Total[S]](), 0

    def __iter__(self) -> Iterator[Total[S]]:
        for total in [*self._held]:
            yield total
        for total in self._left:
            self._last = total.blocks
            yield total

    @property
    def blocks(self) -> int:
        """How many blocks the last of them holds; those that were not asked for are read now."""
        for total in self._left:
            self._held.append(total)
            self._last = total.blocks
        return self._last


def _each(
    steps: Generator[_Start[S] | _Step[S], None, None], executor: Executor | None, ahead: int
) -> Generator[tuple[_Start[S] | _Step[S], Iterable[S]], None, None]:
    """The parts of each block, in the order of the blocks; what is finished is kept."""
    with closing(steps):
        if executor is not None:
            yield from _sent(steps, executor, ahead or _AHEAD * (os.cpu_count() or 1))
            return
        for step in steps:
            if isinstance(step, _Start):
                yield step, ()
                continue
            known = None if step.work is None else step.work.get(step.block)
            yield step, _kept(step) if known is None else [known]


def _sent(
    steps: Generator[_Start[S] | _Step[S], None, None], executor: Executor, most: int
) -> Generator[tuple[_Start[S] | _Step[S], Iterable[S]], None, None]:
    """The same, of an executor that has so many blocks at a time."""
    flying: deque[_Start[S] | _Flying[S]] = deque()
    try:
        while True:
            while len(flying) < most and (step := next(steps, None)) is not None:
                flying.append(step if isinstance(step, _Start) else _begun(step, executor))
                if isinstance(flying[0], _Start):
                    break  # whoever reads what is known may stop there
            if not flying:
                return
            first = flying[0]
            if isinstance(first, _Start):
                yield first, ()
                flying.popleft()
                continue
            while not first.future.done():
                waiting = [each.future for each in _of(flying) if not each.future.done()]
                wait(waiting, None, FIRST_COMPLETED)
                _keep(flying)
            _keep(flying)
            yield first.step, [_finished(first.future)]
            flying.popleft()
    finally:
        for each in _of(flying):
            each.future.cancel()


@dataclass
class _Flying(Generic[S]):
    """A block that is under way, or whose turn has not come."""

    step: _Step[S]
    future: Future[S]
    is_kept: bool = False


def _of(flying: Iterable[_Start[S] | _Flying[S]]) -> list[_Flying[S]]:
    return [each for each in flying if isinstance(each, _Flying)]


def _begun(step: _Step[S], executor: Executor) -> _Flying[S]:
    known = None if step.work is None else step.work.get(step.block)
    if known is not None:
        return _Flying(step, _done(known), is_kept=True)
    return _Flying(step, _submitted(executor, step.sent, step.block))


def _kept(step: _Step[S]) -> Iterator[S]:
    """The parts of a block that runs here."""
    total: S | None = None
    for part in step.task.parts(step.block):
        total = part if total is None else total + part
        yield part
    if step.work is not None and total is not None and step.task.is_whole(step.block):
        step.work.put(step.block, total)


def _keep(flying: Iterable[_Start[S] | _Flying[S]]) -> None:
    """Stores blocks as soon as they are finished, whether or not their turn has come."""
    for each in _of(flying):
        future, step = each.future, each.step
        if each.is_kept or not future.done() or future.cancelled() or future.exception():
            continue
        each.is_kept = True
        if step.work is not None and step.task.is_whole(step.block):
            step.work.put(step.block, future.result())


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
