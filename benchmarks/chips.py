# ruff: noqa: E402 (the thread count must be set before torch is imported)
"""What it costs to judge chips on a whole test set, against plain forward passes of as many rows.

    python benchmarks/chips.py [--chips 1000] [--images 10000]

The ratio is (time of ``chip_metrics``) / (time of the plain forward pass on chips times images
rows), both in seconds of the processor on one thread, in one process; the plain pass takes its rows
in chunks of the size that suits it best. Memory is the most that the process held beyond what it
held before.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import resource
import time
from collections.abc import Callable

import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash, WeightCrash
from crashsim.sampling.chips.run import chip_metrics

_CHUNKS = (500, 1000, 2000, 5000)


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10)
    ).eval()


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 10),
    ).eval()


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def plain_row(model: nn.Module, x: torch.Tensor) -> float:
    """Seconds of the plain pass for one row, with the best chunk."""
    best = float("inf")
    with torch.no_grad():
        for chunk in _CHUNKS:
            parts = x[:chunk]
            model(parts)
            repeats = max(1, 10_000 // len(parts))
            best = min(best, seconds(lambda p=parts, r=repeats: [model(p) for _ in range(r)])
                       / (repeats * len(parts)))  # fmt: skip
    return best


def measure(name: str, model: nn.Module, x: torch.Tensor, chips: int) -> None:
    y = torch.zeros(len(x), dtype=torch.long)
    row = plain_row(model, x)
    for sites, fault in (("hidden", NeuronCrash(0.01)), ("weights", WeightCrash(0.01))):
        space = FaultSpace(model, x[:100], fault, sites)
        chip_metrics(space, (x[:200], y[:200]), samples=4)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        taken = seconds(
            lambda s=space: chip_metrics(s, (x, y), metrics=["accuracy"], samples=chips)
        )
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        ratio = taken / (row * len(x) * chips)
        print(
            f"{name} {sites}: {chips} chips x {len(x)} images: {taken:.1f} s, {ratio:.2f} times "
            f"the plain pass ({1e6 * row:.2f} us a row), {grown / 1024:.0f} MiB more"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", type=int, default=1000)
    parser.add_argument("--images", type=int, default=10_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measure("784-100-50-10", perceptron(), torch.rand(given.images, 784), given.chips)
    few = max(1, given.images // 20)
    measure("convolutional", convolutional(), torch.rand(few, 1, 28, 28), max(2, given.chips // 5))


if __name__ == "__main__":
    main()
