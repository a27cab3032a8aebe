"""What campaigns cost beside the work: the store, the processes, and the queue of a cluster.

python benchmarks/campaign.py            # some minutes
python benchmarks/campaign.py --quick
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

import crashsim
from crashsim import FaultSpace, NeuronCrash, Store
from crashsim.campaign.stored_work import Total
from crashsim.campaign.tasks import Task, fold
from crashsim.sampling.chips.run import chip_metrics
from crashsim.sampling.chips.sums import ChipSums

CHIPS, EXAMPLES = 64, 10_000  # of a block, as of a study on a test set
WORKERS = 1000


@dataclass(frozen=True)
class Count:
    """The sums of a block that is no work."""

    blocks: int

    def __add__(self, other: Count) -> Count:
        return Count(self.blocks + other.blocks)


@dataclass(frozen=True)
class Nothing(Task[Count]):
    """Blocks that take no time."""

    made_of: ClassVar = (Count,)

    def identity(self) -> dict[str, str]:
        return {"work": "nothing"}

    def run(self, block: int) -> Count:
        return Count(1)


def sums_of_a_block() -> ChipSums:
    """As large as those of 64 chips on 10,000 examples are."""
    each = np.random.default_rng(0).random((EXAMPLES, 1))
    return ChipSums(CHIPS, (np.ones((CHIPS, 1)),), each, each, CHIPS * EXAMPLES)


def cost_of_storing(blocks: int, together: int) -> float:
    """Seconds a block, of which so many are written together, with the totals."""
    sums, start = sums_of_a_block(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Store(folder).work({"work": "a block"}, (ChipSums,))
        total = sums
        for block in range(blocks):
            work.put(block, sums)
            if block % together == 0:
                work.flush()
            total = total + sums if block else sums
            work.reached(Total(total, block + 1))
        work.flush()
        return (time.perf_counter() - start) / blocks


def opening(blocks: int) -> tuple[float, float]:
    """Seconds to fill a store with so many blocks, and to have their sum from it."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            for at in fold(Nothing(), range(blocks), store=Store(folder)):
                last = at
            seconds.append(time.perf_counter() - start)
            assert last.sums == Count(blocks)
        files = sum(1 for _ in Path(folder).rglob("*"))
        print(f"  {files} files")
        return seconds[0], seconds[1]


def speed_of_workers(chips: int) -> dict[int, float]:
    """Chips a second of one and of two processes that are warm."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
    x, y = torch.randn(EXAMPLES, 64), torch.randint(0, 10, (EXAMPLES,))
    found, values = {}, set()
    for count in (1, 2):
        with crashsim.Workers(count) as workers:
            for seed in (1, 0):  # the first one warms up
                space = FaultSpace(net.eval(), x[:8], NeuronCrash(p=0.05))
                start = time.perf_counter()
                run = chip_metrics(
                    space, x, targets=y, metrics=["accuracy"], samples=chips, seed=seed,
                    executor=workers,
                )  # fmt: skip
            found[count] = chips / (time.perf_counter() - start)
            values.add(float(run.found.mean(0, 0.05).value))
    assert len(values) == 1
    return found


def share_of_time_at_work(
    workers: int, ahead: int, parent: float, blocks: int, seconds: float
) -> float:
    """Simulates the queue: how much of their time workers work.

    The parent hands out blocks while at most ``ahead`` are under way or wait for their turn, and
    takes what is finished, one after the other, ``parent`` seconds for both together.

    Args:
        workers, blocks: their numbers.
        ahead: blocks in flight.
        parent: seconds that the parent spends on a block.
        seconds: that a block takes, about: with a standard deviation of a tenth.
    """
    rng = np.random.default_rng(0)
    lengths = seconds * rng.lognormal(0.0, 0.1, blocks)
    free, clock = [0.0] * workers, 0.0
    ready = np.full(blocks, np.inf)
    running: list[tuple[float, int]] = []
    sent = folded = 0
    while folded < blocks:
        if sent < blocks and sent - folded < ahead:
            clock += parent / 2
            start = max(heapq.heappop(free), clock)
            end = start + lengths[sent]
            heapq.heappush(free, end)
            heapq.heappush(running, (end, sent))
            sent += 1
            continue
        end, block = heapq.heappop(running)
        clock = max(clock, end) + parent / 2
        ready[block] = clock
        while folded < blocks and ready[folded] < np.inf:
            folded += 1
    return float(lengths.sum() / (workers * clock))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    quick = parser.parse_args().quick

    print(f"store, sums of {CHIPS} chips on {EXAMPLES} examples")
    alone = cost_of_storing(16 if quick else 128, 1)
    print(f"  each block written alone: {1e3 * alone:.1f} ms, {alone:.2%} of a second's block")
    many = cost_of_storing(256 if quick else 2048, 500)
    print(f"  500 blocks at a time: {1e3 * many:.2f} ms a block")

    blocks = 20_000 if quick else 1_000_000
    print(f"store of {blocks} blocks")
    filled, opened = opening(blocks)
    print(f"  filled in {filled:.1f} s, opened in {opened:.2f} s")

    speeds = speed_of_workers(128 if quick else 2048)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"processes, on {cores} cores")
    print(f"  two do {speeds[2] / speeds[1]:.2f} times the work of one ({speeds[1]:.0f} chips/s)")

    print(f"queue of {WORKERS} workers, simulated, {1e3 * many:.2f} ms of the parent for a block")
    for seconds, ahead in itertools.product((1, 10, 60), (WORKERS, 2 * WORKERS)):
        count = (10 if quick else 60) * WORKERS
        share = share_of_time_at_work(WORKERS, ahead, many, count, seconds)
        print(f"  {seconds} s a block, {ahead} in flight: they work {share:.1%} of their time")


if __name__ == "__main__":
    main()
