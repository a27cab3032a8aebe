"""Work in numbered blocks: run on any executor, added up in the order of the blocks.

A task is data. The sums of one of its blocks depend on the task and on the block's number alone,
so that a block can be computed in another thread, process or machine, today or tomorrow. Sums of
floating-point numbers depend on the order of their terms, so they are always added in the same
order, whichever block is finished first: the result is the same to the last bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from crashsim.arguments import instance
from crashsim.campaign.steps import Start, Step, each_step, steps_of
from crashsim.campaign.store import Store
from crashsim.campaign.stored_work import Total, Work
from crashsim.errors import ArgumentError


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
        ahead: number of blocks in flight at most; by default twice the ``count`` of the executor,
            or the number of processors where it has none.
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
    with closing(each_step(steps_of(works, executor, store, opened), executor, ahead)) as each:
        yield from _added(each, opened)


def _added(
    each: Iterable[tuple[Start[S] | Step[S], Iterable[S]]], opened: list[Work[S]]
) -> Generator[tuple[int, Folded[S]], None, None]:
    """The sums after every part of every block; what is finished is on the disk at the end."""
    total: S | None = None
    count = 0
    before: Work[S] | None = None
    try:
        for step, parts in each:
            if isinstance(step, Start):
                if before is not None:
                    before.flush()
                total, count, before = None, 0, None
                for start in step.totals:
                    total, count = start.sums, start.blocks
                    yield step.number, Folded(total, count, is_block=True)
                continue
            before = step.work
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
