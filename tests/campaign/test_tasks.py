"""Blocks of work on executors: the same sums, whoever runs them and whatever is ready first."""

import os
import pickle
import random
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pytest

from crashsim.campaign.tasks import Task, fold
from crashsim.errors import ArgumentError, CrashsimError


@dataclass(frozen=True)
class Thirds(Task):
    """Sums whose last digits depend on the order in which they are added."""

    scale: float

    def run(self, block):
        return np.float64(self.scale / 3 * 10.0 ** (block % 5))


@dataclass(frozen=True)
class InParts(Task):
    def run(self, block):
        return sum(self.parts(block))

    def parts(self, block):
        yield from (0.1 / 3 * 10.0 ** (block % 5), 0.2, 0.3 / (block + 1))


@dataclass(frozen=True)
class Failing(Task):
    at: int
    error: type

    def run(self, block):
        if block == self.at:
            raise self.error("block failed")
        return 1


class LastFirst(Executor):
    """Runs what it holds once it is full, the last first."""

    def __init__(self, size):
        self.size, self.held, self.most = size, [], 0

    def submit(self, work, /, *args):
        future = Future()
        self.held.append((future, work, args))
        self.most = max(self.most, sum(not f.done() for f, _, _ in self.held))
        if len(self.held) >= self.size:
            self.finish()
        return future

    def finish(self):
        while self.held:
            future, work, args = self.held.pop()
            if future.set_running_or_notify_cancel():
                future.set_result(work(*args))


def folded(task, blocks, executor=None, **options):
    """What is told of whole blocks: of parts, only work that is done here tells."""
    each = fold(task, blocks, executor, **options)
    return [(at.sums, at.blocks) for at in each if at.is_block]


def by_hand(task, blocks):
    total, found = None, []
    for count, block in enumerate(blocks, start=1):
        of_block = None
        for part in task.parts(block):
            of_block = part if of_block is None else of_block + part
        total = of_block if total is None else total + of_block
        found.append((total, count))
    return found


def test_parts_are_told_as_they_are_done():
    told = [(at.sums, at.blocks, at.is_block) for at in fold(InParts(), range(2))]
    one, ten = 0.1 / 3, 0.1 / 3 * 10.0
    first, second = one + 0.2 + 0.3, ten + 0.2 + 0.15
    assert told == [
        (one, 0, False),
        (one + 0.2, 0, False),
        (first, 0, False),
        (first, 1, True),
        (first + ten, 1, False),
        (first + (ten + 0.2), 1, False),
        (first + second, 1, False),
        (first + second, 2, True),
    ]


@pytest.mark.parametrize("task", [Thirds(0.1), InParts()])
@pytest.mark.parametrize("workers", [1, 3])
def test_sums_are_added_in_the_order_of_the_blocks(task, workers):
    blocks = list(range(40))
    random.Random(1).shuffle(blocks)
    wanted = by_hand(task, blocks)
    assert wanted[-1] != by_hand(task, sorted(blocks))[-1]  # the order can be seen
    assert folded(task, blocks) == wanted
    with ThreadPoolExecutor(workers) as pool:
        assert folded(task, blocks, pool) == wanted


def test_blocks_that_are_ready_out_of_order_wait_for_their_turn():
    executor = LastFirst(4)
    assert folded(InParts(), range(12), executor, ahead=4) == by_hand(InParts(), range(12))


def test_the_blocks_in_flight_are_bounded():
    class Counting(LastFirst):
        def submit(self, work, /, *args):
            future = super().submit(work, *args)
            if len(self.held) == 3:
                self.finish()
            return future

    executor = Counting(10**9)
    endless = fold(Thirds(1.0), iter(int, 1), executor, ahead=3)
    for _ in range(20):
        next(endless)
    assert executor.most == 3
    endless.close()


def test_what_a_block_raises_comes_at_its_turn_and_cancels_the_rest():
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        blocker = pool.submit(begun.wait, 10)
        work = fold(Failing(2, ValueError), range(100), pool, ahead=50)
        begun.set()
        seen = [next(work).blocks for _ in range(4)]
        assert seen == [0, 1, 1, 2]
        with pytest.raises(ValueError, match="block failed"):
            next(work)
        assert blocker.result()
    with ThreadPoolExecutor(2) as pool, pytest.raises(KeyboardInterrupt):
        folded(Failing(2, KeyboardInterrupt), range(100), pool)


def test_blocks_that_have_not_begun_are_cancelled_when_the_caller_stops():
    executor = LastFirst(10**9)
    submit, futures = executor.submit, []

    def watched(*args):
        futures.append(submit(*args))
        if len(futures) == 1:
            executor.finish()
        return futures[-1]

    executor.submit = watched
    work = fold(Thirds(1.0), range(10), executor, ahead=4)
    assert next(work).blocks == 0
    work.close()
    assert len(futures) == 4
    assert all(future.cancelled() for future in futures[1:])


def test_other_processes_run_blocks_too():
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert folded(InParts(), range(9), pool) == by_hand(InParts(), range(9))
        local = type("Local", (Thirds,), {"run": lambda self, block: self.scale + block})
        assert folded(local(1.0), range(3), pool) == [(1.0, 1), (3.0, 2), (6.0, 3)]
        with pytest.raises(ArgumentError, match=r"cannot be sent to other processes.*locks"):
            folded(Thirds(threading.Lock()), range(3), pool)


class Sent(Thirds):
    pickled = 0

    def __getstate__(self):
        type(self).pickled += 1
        return {"scale": self.scale}

    def __setstate__(self, state):
        vars(self).update(state)


def test_a_task_is_pickled_once_and_unpickled_once():
    arrived = []

    class Wire(LastFirst):
        def submit(self, work, /, *args):
            sent = pickle.loads(pickle.dumps(args))
            arrived.append(sent[0].task)
            return super().submit(work, *sent)

    assert folded(Sent(0.3), range(5), Wire(1)) == by_hand(Thirds(0.3), range(5))
    assert Sent.pickled == 1
    assert len({id(task) for task in arrived}) == 1


def test_an_executor_is_one():
    with pytest.raises(ArgumentError, match="executor=3"):
        folded(Thirds(1.0), range(2), 3)


def test_no_blocks_give_nothing():
    assert folded(Thirds(1.0), []) == []


@dataclass(frozen=True)
class Dying(Task):
    """Ends the process that runs it, as the system does where memory is short."""

    def run(self, block):
        os._exit(9)


def test_a_worker_that_dies_and_an_executor_that_is_shut_down_are_told():
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        pytest.raises(CrashsimError, match="a worker ended before its work did"),
    ):
        folded(Dying(), range(2), pool)
    threads = ThreadPoolExecutor(1)
    threads.shutdown()
    with pytest.raises(ArgumentError, match="executor: takes no work"):
        folded(Thirds(1.0), range(2), threads)
