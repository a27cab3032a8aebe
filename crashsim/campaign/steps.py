"""The blocks of pieces of work, one after the other: run here, on an executor, or read back."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
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
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from crashsim.campaign.sending import run_block, sent_to
from crashsim.campaign.store import Store
from crashsim.campaign.stored_work import Total, Work
from crashsim.errors import ArgumentError, CrashsimError

if TYPE_CHECKING:
    from crashsim.campaign.tasks import Sums, Task

_AHEAD = 2  # blocks in flight for each processor
# What clusters raise where processes died under a block: of Dask, Ray and submitit.
_LOST = ("KilledWorker", "WorkerCrashedError", "OutOfMemoryError", "UncompletedJobError")

S = TypeVar("S", bound="Sums")


@dataclass(frozen=True)
class Start(Generic[S]):
    """A piece of work begins, with what is known of it."""

    number: int
    totals: Iterable[Total[S]] = ()


@dataclass(frozen=True)
class Step(Generic[S]):
    """A block of a piece of work, whose task is sent elsewhere in the place of itself."""

    number: int
    task: Task[S]
    block: int
    work: Work[S] | None
    sent: Any


def steps_of(
    works: Iterable[tuple[Task[S], Iterable[int]]],
    executor: Executor | None,
    store: Store | None,
    opened: list[Work[S]],
) -> Generator[Start[S] | Step[S], None, None]:
    """The blocks that are to be run or read, after a start of each piece of work."""
    for number, (task, blocks) in enumerate(works):
        work, left = None, blocks
        if store is None:
            yield Start(number)
        else:
            if not isinstance(blocks, range) or blocks != range(len(blocks)):
                raise ArgumentError(
                    f"blocks={blocks!r}: what is stored begins with block 0, in order"
                )
            work = store.work(task.identity(), task.made_of)
            opened.append(work)
            known = _Known(work.totals(len(blocks)))
            yield Start(number, known)
            left = blocks[known.blocks :]
        sent = None
        for block in left:
            if executor is not None and sent is None:
                sent = sent_to(executor, task)
            yield Step(number, task, block, work, sent)


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


def each_step(
    steps: Generator[Start[S] | Step[S], None, None], executor: Executor | None, ahead: int
) -> Generator[tuple[Start[S] | Step[S], Iterable[S]], None, None]:
    """The parts of each block, in the order of the blocks; what is finished is kept."""
    with closing(steps):
        if executor is not None:
            yield from _sent(steps, executor, ahead or _AHEAD * _places(executor))
            return
        for step in steps:
            if isinstance(step, Start):
                yield step, ()
                continue
            known = None if step.work is None else step.work.get(step.block)
            yield step, _kept(step) if known is None else [known]


def _places(executor: Executor) -> int:
    """How many blocks an executor runs at once, as it says, or else this machine."""
    count = getattr(executor, "count", None)
    return count if isinstance(count, int) and count > 0 else os.cpu_count() or 1


def _sent(
    steps: Generator[Start[S] | Step[S], None, None], executor: Executor, most: int
) -> Generator[tuple[Start[S] | Step[S], Iterable[S]], None, None]:
    """The same, of an executor that has so many blocks at a time."""
    flying: deque[Start[S] | _Flying[S]] = deque()
    try:
        while True:
            while len(flying) < most and (step := next(steps, None)) is not None:
                flying.append(step if isinstance(step, Start) else _begun(step, executor))
                if isinstance(flying[0], Start):
                    break  # whoever reads what is known may stop there
            if not flying:
                return
            first = flying[0]
            if isinstance(first, Start):
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

    step: Step[S]
    future: Future[S]
    is_kept: bool = False


def _of(flying: Iterable[Start[S] | _Flying[S]]) -> list[_Flying[S]]:
    return [each for each in flying if isinstance(each, _Flying)]


def _begun(step: Step[S], executor: Executor) -> _Flying[S]:
    known = None if step.work is None else step.work.get(step.block)
    if known is not None:
        return _Flying(step, _done(known), is_kept=True)
    return _Flying(step, _submitted(executor, step.sent, step.block))


def _kept(step: Step[S]) -> Iterator[S]:
    """The parts of a block that runs here."""
    total: S | None = None
    for part in step.task.parts(step.block):
        total = part if total is None else total + part
        yield part
    if step.work is not None and total is not None and step.task.is_whole(step.block):
        step.work.put(step.block, total)


def _keep(flying: Iterable[Start[S] | _Flying[S]]) -> None:
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
