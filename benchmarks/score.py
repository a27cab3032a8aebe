# ruff: noqa: E402 (the thread count must be set before torch is imported)
"""What a whole score costs, against the plain forward passes of as many samples.

    python benchmarks/score.py [--quick] [--resnet]

Everything that ``crashsim.score`` does is in it (drawing, running, counting, intervals, curves) but
making the space, which is measured with two samples and taken off. Both sides run in one process on
one thread, in seconds of the processor, so that other work on the machine does not count. The plain
pass takes its rows in chunks of 512; beside faulty weights of many inputs, a sample's at a time, as
a loop that patches them would. Above 1, a score takes less than the plain passes of its
samples.

``--resnet`` adds what a first score of a ResNet-18 at 224 x 224 says within a budget of two
minutes, and what it took.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import crashsim
from crashsim import BitFlip, FaultSpace, NeuronCrash, WeightCrash


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def small_convolutional() -> nn.Module:
    """With 6,272 neurons for an image of 28 x 28."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(7),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()


class Residual(nn.Module):
    """Two convolutions beside a short cut, as in He and others, CVPR 2016."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.short: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            cut = nn.Conv2d(before, after, 1, stride, bias=False)
            self.short = nn.Sequential(cut, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: torch.Tensor = self.relu2(y + self.short(x))
        return out


def resnet(widths: tuple[int, ...], stem: nn.Module, classes: int) -> nn.Module:
    blocks: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise((widths[0], *widths))):
        blocks += [Residual(before, after, 1 + (i > 0)), Residual(after, after, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(stem, *blocks, *head).eval()


def resnet18() -> nn.Module:
    stem = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    )
    return resnet((64, 128, 256, 512), stem, 1000)


def small_resnet() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return resnet((16, 32, 64), stem, 10)


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def plain_seconds(model: nn.Module, x: torch.Tensor, samples: int) -> float:
    """Of one sample of all inputs: so many rows in chunks of 512."""
    rows = min(samples * len(x), 20 * 512)
    batch = x.repeat(-(-min(rows, 512) // len(x)), *[1] * (x.dim() - 1))[:512]
    model(batch)
    times = max(1, rows // len(batch))
    spent = seconds(lambda: [model(batch) for _ in range(times)])
    return spent / times / len(batch) * len(x)


def ratio(
    name: str, model: nn.Module, x: torch.Tensor, faults: Any, samples: int, **options: Any
) -> None:
    """Prints how much less a score takes than the plain passes of its samples."""

    def scored(count: int) -> Any:
        return crashsim.score(model, x, faults, samples=count, **options)

    scored(2)  # what is loaded once
    before = plain_seconds(model, x, samples)
    setting_up, spent = seconds(lambda: scored(2)), seconds(lambda: scored(samples))
    plain = (before + plain_seconds(model, x, samples)) / 2 * samples
    took = max(spent - setting_up, 1e-9)
    print(f"{name:58}{samples:9,}{took:9.2f} s{plain / took:10.2f}", flush=True)


def through_the_score(small: bool) -> None:
    print(f"\n{'a score of Monte Carlo alone':58}{'samples':>9}{'took':>11}{'ratio':>10}")
    net = mlp(64, 100, 50, 10) if small else mlp(784, 1000, 500, 10)
    x = torch.randn(1, 64 if small else 784)
    count = 2_000 if small else 200_000
    alone: dict[str, Any] = {"methods": ["monte-carlo"]}
    ratio("neurons, hidden, p = 0.01, one input", net, x, NeuronCrash(0.01), count, **alone)
    for p in (0.01, 0.001):
        faults = {"weights": WeightCrash(p)}
        ratio(f"weights, all, p = {p}, one input", net, x, faults, count // 50, **alone)


@torch.no_grad()
def alone_seconds(model: nn.Module, x: torch.Tensor, samples: int) -> float:
    """Of one sample of all inputs that has a pass for itself, as faulty weights need one."""
    model(x)
    return seconds(lambda: [model(x) for _ in range(samples)]) / samples


def many_inputs(small: bool) -> None:
    print(f"\n{'one sample of many inputs, residual network':58}{'inputs':>9}{'plain passes':>21}")
    net = small_resnet()
    for faults in (WeightCrash(0.01), BitFlip(0.001), NeuronCrash(0.01)):
        for inputs in (4, 16) if small else (1, 16, 64, 256, 1000):
            x = torch.randn(inputs, 1, 28, 28)
            samples = 8 if small else max(8, 2000 // inputs)
            space = FaultSpace(net, x, faults)
            crashsim.monte_carlo(space, samples=4)
            of_plain = plain_seconds if isinstance(faults, NeuronCrash) else alone_seconds
            before = of_plain(net, x, samples)
            spent = seconds(lambda space=space, samples=samples: crashsim.monte_carlo(
                space, samples=samples))  # fmt: skip
            plain = (before + of_plain(net, x, samples)) / 2
            print(
                f"{type(faults).__name__:58}{inputs:9}{spent / samples / plain:21.2f}", flush=True
            )


def rare_events(small: bool) -> None:
    """A tail of about 1e-9 by the saddlepoint: passes of importance sampling."""
    net = mlp(16, 40, 10, 2) if small else mlp(784, 1000, 500, 10)
    x, faults = torch.randn(1, 16 if small else 784), NeuronCrash(0.01)
    space = FaultSpace(net, x, faults)
    epsilon = float(crashsim.monte_carlo(space, samples=500).variance[0].max() ** 0.5)

    def tail(method: str) -> Any:
        score = crashsim.score(net, x, faults, epsilon=epsilon, methods=[method])
        tails = [e for e in score.estimates if e.quantity == "tail" and e.input == 0]
        return max(tails, key=lambda e: e.value)

    while tail("saddlepoint").value > 2e-9:
        epsilon *= 1.15
    found = tail("importance-sampling")
    print(f"\na tail: {found.value:.2g} [{found.low:.2g}, {found.high:.2g}]; {found.note}")


def default_scores(small: bool) -> None:
    print(f"\n{'a default score':58}{'took':>11}{'plain passes':>20}")
    net, inputs = small_convolutional(), 2 if small else 32
    x = torch.randn(inputs, 1, 28, 28)
    score: Any = None

    def run() -> None:
        nonlocal score
        score = crashsim.score(net, x, NeuronCrash(0.01), samples=100 if small else None)

    spent = seconds(run)
    plain = plain_seconds(net, x, score.samples)
    name = f"convolutional, {score.coordinates:,} neurons, {inputs} inputs"
    print(f"{name:58}{spent:9.1f} s{spent / plain:20,.0f}")
    for step, took in sorted(score.timings.items(), key=lambda pair: -pair[1])[:5]:
        print(f"    {step}: {took:.2f} s by the clock")


def first_score_of_a_resnet() -> None:
    net, x = resnet18(), torch.randn(4, 3, 224, 224)
    for faults in (NeuronCrash(1e-3), BitFlip(1e-6, format="int8")):
        sites = "weights" if isinstance(faults, BitFlip) else "hidden"
        planned = crashsim.plan(net, x, faults, sites=sites, budget="2m")
        print(f"\nResNet-18, 4 images, {faults}\n{planned}")
        start = time.perf_counter()
        spent = seconds(lambda faults=faults, sites=sites: print(
            crashsim.score(net, x, faults, sites, budget="2m").to_text(120)))  # fmt: skip
        print(f"took {spent:.0f} s of the processor, {time.perf_counter() - start:.0f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small nets: that it runs, not speed")
    parser.add_argument("--resnet", action="store_true", help="also a ResNet-18, some minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", crashsim.CrashsimWarning)
    print(f"one thread; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}")
    through_the_score(options.quick)
    many_inputs(options.quick)
    rare_events(options.quick)
    default_scores(options.quick)
    if options.resnet:
        first_score_of_a_resnet()


if __name__ == "__main__":
    main()
