"""What a training step costs with CrashVariance, against without it and against crash training.

    python benchmarks/training_cost.py [--steps 200] [--out cost.csv]

Times whole steps (forward, loss, backward, optimiser) in turn, so that a busy machine slows all
alike, and prints medians and their ratios to the plain step. The exact penalty is the paper's way:
one backward pass for each output.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from crashsim import NeuronCrash
from crashsim.training.crash_training import CrashTraining
from crashsim.training.crash_variance import CrashVariance

FAULT = NeuronCrash(p=0.05)


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    net = nn.Sequential(
        nn.Linear(784, 100), nn.Sigmoid(), nn.Linear(100, 50), nn.Sigmoid(), nn.Linear(50, 10)
    )
    return net, (784,)


def wide_mlp() -> tuple[nn.Module, tuple[int, ...]]:
    net = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return net, (784,)


def conv() -> tuple[nn.Module, tuple[int, ...]]:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    return net, (1, 28, 28)


NETWORKS = {"784-100-50-10 sigmoid": mlp, "784-512-512-10 relu": wide_mlp, "small conv": conv}


def stepper(name: str, way: str, batch: int, stack: ExitStack) -> Callable[[], None]:
    """A function that makes one training step of a fresh network."""
    torch.manual_seed(0)
    net, shape = NETWORKS[name]()
    x, y = torch.randn(batch, *shape), torch.randint(0, 10, (batch,))
    optimizer = torch.optim.Adam(net.parameters())
    penalty = None
    if way.startswith("penalty"):
        exact, at = "exact" in way, "mean" if "mean" in way else "zero"
        penalty = stack.enter_context(CrashVariance(net, FAULT, strength=1e-3, exact=exact, at=at))
    elif way == "crash training":
        stack.enter_context(CrashTraining(net, FAULT))

    def step() -> None:
        optimizer.zero_grad()
        output = net(x)
        loss = F.cross_entropy(output, y)
        if penalty is not None:
            loss = loss + penalty(output)
        loss.backward()
        optimizer.step()

    return step


WAYS = ("plain", "penalty", "penalty at the mean point", "penalty, exact", "crash training")


def measure(name: str, batch: int, steps: int) -> dict[str, float]:
    """Median seconds a step for each way."""
    with ExitStack() as stack:
        functions = {way: stepper(name, way, batch, stack) for way in WAYS}
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for i in range(steps + 3):
            for way, function in functions.items():
                start = time.perf_counter()
                function()
                if i >= 3:
                    times[way].append(time.perf_counter() - start)
    return {way: statistics.median(values) for way, values in times.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    rows = []
    for name in NETWORKS:
        found = measure(name, options.batch, options.steps)
        for way, seconds in found.items():
            ratio = seconds / found["plain"]
            rows.append((name, way, f"{1e3 * seconds:.3f}", f"{ratio:.2f}"))
            print(f"{name:24} {way:28} {1e3 * seconds:8.3f} ms   {ratio:5.2f} x")
    if options.out:
        with options.out.open("w", newline="") as file:
            csv.writer(file).writerows([("network", "way", "ms", "ratio"), *rows])


if __name__ == "__main__":
    main()
