"""Theory and sampling at two million coordinates: int8 flips of all weights of a ResNet-20.

    OMP_NUM_THREADS=1 python benchmarks/resnet20.py [--quick] [--repeats SEEDS]

The network has CIFAR's widths and is trained, for a minute, to tell ten coloured textures apart.
Printed are what all gains cost, in forward passes of the same inputs and in bytes; by how much
first-order theory is off; how many plain samples one with the gradient as control variate is worth
(median over outputs, and the worst), as the estimates say it and as independent draws show it, and
how many single faults are looked at for that, each as dear as a sample; P(class changes) by the
surrogate's law, without sampling, over Monte Carlo's, on images of small margins at four rates; and
how long a score with default settings takes. ``--repeats`` adds whether the intervals of so many
seeds hold the value of a long run, and what a sample is worth by how far they are off. Seconds are
those of the processor.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import crashsim
from crashsim import BitFlip, FaultSpace, Score
from crashsim.analytic.gains import MEMORY, Gains
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.coordinates.drawing import sample_points
from crashsim.sampling.control_variates import Control
from crashsim.sampling.pilot import STRIKES

MOMENTS = ("mean-point-taylor", "monte-carlo")


class Block(nn.Module):
    """A basic block of a residual network."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.act_a, self.act_b = nn.ReLU(), nn.ReLU()
        self.short: nn.Module = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.short = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.norm_b(self.b(self.act_a(self.norm_a(self.a(x)))))
        out: torch.Tensor = self.act_b(inner + self.short(x))
        return out


def resnet(blocks: int, width: int) -> nn.Sequential:
    """Three stages of so many blocks: 3 and 16 for ResNet-20."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
    layers.append(nn.ReLU())
    before = width
    for stage in range(3):
        for number in range(blocks):
            after = width << stage
            layers.append(Block(before, after, 1 + (number == 0 and stage > 0)))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def textures(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 3, 32, 32) of ten smooth patterns, moved and under noise; their classes."""
    fixed = torch.Generator().manual_seed(1)
    patterns = F.interpolate(torch.randn(10, 3, 8, 8, generator=fixed), scale_factor=4.0)
    classes = torch.randint(0, 10, (count,), generator=generator)
    moves = torch.randint(0, 32, (count, 2), generator=generator).tolist()
    moved = [
        torch.roll(patterns[c], move, (1, 2))
        for c, move in zip(classes.tolist(), moves, strict=True)
    ]
    images = torch.stack(moved)
    return images + 1.5 * torch.randn(images.shape, generator=generator), classes


def train(net: nn.Module, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    net.train()
    for _ in range(steps):
        images, classes = textures(64, generator)
        optimiser.zero_grad()
        F.cross_entropy(net(images), classes).backward()
        optimiser.step()
        schedule.step()
    net.eval()


def measure_gains(net: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        plain = min(_seconds(lambda: net(x)) for _ in range(5))
    space = FaultSpace(net, x, BitFlip(1e-5, bits=8), "weights")
    start = time.process_time()
    gains = Gains.of(space, "zero", MEMORY)
    seconds = time.process_time() - start
    kept = sum(slopes.nbytes for slopes in gains.kept or ())
    print(
        f"{space.N:,} coordinates, {space.B} inputs, {space.K} outputs: all gains in "
        f"{seconds:.2f} s, {seconds / plain / space.K:.1f} forward passes an output; "
        f"{kept / 2**20:.0f} MiB kept"
    )


def _seconds(work: object) -> float:
    start = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - start


def measure_worth(net: nn.Module, x: torch.Tensor, p: float, samples: int, draws: int) -> None:
    fault = BitFlip(p, bits=8)
    start = time.process_time()
    score = crashsim.score(net, x, fault, "weights", samples=samples, methods=list(MOMENTS))
    took = time.process_time() - start
    strikes, shown = _worth_of_draws(FaultSpace(net, x, fault, "weights"), samples, draws)
    cells = []
    for quantity, ratio in zip(("mean", "variance"), shown, strict=True):
        pooled = _pooled(score, quantity)
        worth = np.array([np.nan if e.worth is None else e.worth for e in pooled]) / samples
        theory, measured = (_values(score, method, quantity) for method in MOMENTS)
        off = f", theory {np.median(theory / measured):.3g} of it" if quantity == "variance" else ""
        cells.append(
            f"{quantity} {np.nanmedian(worth):.3g} ({np.nanmin(worth):.3g}), by {draws} draws "
            f"{np.median(ratio):.3g} ({ratio.min():.3g}){off}"
        )
    print(
        f"p={p:g}: a sample is worth {'; '.join(cells)}; {strikes} single faults before {samples} "
        f"samples; {took:.0f} s"
    )


def _worth_of_draws(space: FaultSpace, samples: int, draws: int) -> tuple[int, list[np.ndarray]]:
    """Single faults looked at; and of the outputs' averages over inputs, and of their squares', the
    variance over what is left of it when the control of so many samples is taken away."""
    gains = Gains.of(space, "mean", MEMORY)
    surrogate = FactoredSurrogate.of(gains, gains.shift - gains.sums.mean)
    control = Control.of(space, surrogate, None, 0, samples)
    pilot = control.pilot
    strikes = 0 if pilot is None else len(pilot.rates)
    if pilot is not None and pilot.mended is not None:
        strikes += STRIKES + len(pilot.mended.columns)
    delta, linear = [], []
    for block in range(-(-draws // 50)):
        points = sample_points(space.placements, 10_000 + block, 50)
        delta.append(space.outputs(points) - space.clean())
        linear.append(control.at(points))
    d, at = np.concatenate(delta), np.concatenate(linear)
    pairs = [(d.mean(1), at.mean(1)), ((d**2).mean(1), (at**2).mean(1))]
    return strikes, [whole.var(0) / (whole - part).var(0) for whole, part in pairs]


def measure_repeats(net: nn.Module, x: torch.Tensor, p: float, samples: int, seeds: int) -> None:
    """Whether intervals of so few samples cover, and what one is worth by how seeds spread."""
    fault = BitFlip(p, bits=8)
    truth, error, plain = _long_run(FaultSpace(net, x, fault, "weights"), samples, 5 * samples)
    found = {"mean": [], "variance": []}  # type: ignore[var-annotated]
    for seed in range(1, seeds + 1):
        score = crashsim.score(
            net, x, fault, "weights", samples=samples, seed=seed, methods=list(MOMENTS)
        )
        for quantity, rows in found.items():
            rows.append([(e.value, e.low, e.high, e.worth) for e in _pooled(score, quantity)])
    for number, (quantity, rows) in enumerate(found.items()):
        value, low, high, worth = np.moveaxis(np.array(rows, float), -1, 0)  # (seeds, K)
        covered = (low <= truth[number] + 2 * error[number]) & (
            truth[number] - 2 * error[number] <= high
        )
        off = ((value - truth[number]) ** 2).mean(0) - error[number] ** 2
        shown = plain[number] / samples / np.maximum(off, 1e-30)
        print(
            f"p={p:g}, {seeds} seeds of {samples} samples, {quantity}: {100 * covered.mean():.0f}% "
            f"of the 95% intervals hold the value of a long run (standard error "
            f"{np.median(error[number] / abs(truth[number])):.1%}); worth {np.median(shown):.3g} "
            f"({shown.min():.3g} to {shown.max():.3g}) by how far they are off, "
            f"{np.nanmedian(worth) / samples:.3g} by their own estimate"
        )


def _long_run(space: FaultSpace, samples: int, draws: int) -> tuple[list[np.ndarray], ...]:
    """E Delta and Var Delta averaged over inputs, their standard errors, and one plain sample's
    variance of either: by independent draws less a control of known mean, with slope 1."""
    gains = Gains.of(space, "mean", MEMORY)
    surrogate = FactoredSurrogate.of(gains, gains.shift - gains.sums.mean)
    control = Control.of(space, surrogate, None, 99, samples)
    first, second, plain = [], [], []
    for block in range(-(-draws // 50)):
        points = sample_points(space.placements, 20_000 + block, 50)
        delta, linear = space.outputs(points) - space.clean(), control.at(points)
        first.append(delta - linear)
        second.append((delta**2 - linear**2).mean(1))
        plain.append([delta.mean(1), (delta**2).mean(1)])
    left, squares = np.concatenate(first), np.concatenate(second)  # (S, B, K), (S, K)
    mean = left.mean(0)
    values = [mean.mean(0), (control.second - mean**2).mean(0) + squares.mean(0)]
    errors = [part.std(0) / len(left) ** 0.5 for part in (left.mean(1), squares)]
    return values, errors, [np.concatenate(part).var(0) for part in zip(*plain, strict=True)]


def _pooled(score: Score, quantity: str) -> list[crashsim.Estimate]:
    found = (e for e in score.estimates if (e.method, e.quantity) == ("monte-carlo", quantity))
    return [e for e in found if e.input == "all" and isinstance(e.output, int)]


def _values(score: Score, method: str, quantity: str) -> np.ndarray:
    found = (e for e in score.estimates if (e.method, e.quantity) == (method, quantity))
    return np.array([e.value for e in found if e.input == "all" and isinstance(e.output, int)])


def least_certain(net: nn.Module, count: int, among: int) -> torch.Tensor:
    """The images of smallest margin, of some under more noise: class changes are common there."""
    generator = torch.Generator().manual_seed(3)
    images, _ = textures(among, generator)
    images = images + 2.0 * torch.randn(images.shape, generator=generator)
    with torch.no_grad():
        best = torch.cat([net(part) for part in images.split(50)]).topk(2, 1).values
    return images[(best[:, 0] - best[:, 1]).argsort()[:count]]


def measure_changes(net: nn.Module, x: torch.Tensor, p: float, samples: int) -> None:
    fault, methods = BitFlip(p, bits=8), ["surrogate-law", "monte-carlo"]
    score = crashsim.score(net, x, fault, "weights", samples=samples, methods=methods)
    law, drawn = (score.find(method, "class-change") for method in methods)
    ratio = law.value / drawn.value if drawn.value else float("nan")
    print(
        f"p={p:g}: P(class changes) {law.value:.3e} by the law, {drawn.value:.3e} "
        f"[{drawn.low:.3e}, {drawn.high:.3e}] by Monte Carlo: {ratio:.2f} of it",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller network, fewer samples")
    parser.add_argument(
        "--repeats", type=int, default=0, help="seeds by which to see whether intervals cover"
    )
    options = parser.parse_args(arguments)
    quick = options.quick
    torch.manual_seed(0)
    net = resnet(1, 4) if quick else resnet(3, 16)
    start = time.process_time()
    train(net, 2 if quick else 150)
    x, classes = textures(2 if quick else 16, torch.Generator().manual_seed(2))
    with torch.no_grad():
        right = float((net(x).argmax(1) == classes).float().mean())
    print(f"trained in {time.process_time() - start:.0f} s, {100 * right:.0f}% right")
    samples, draws = (50, 100) if quick else (1000, 2000)
    measure_gains(net, x)
    for p in (1e-3,) if quick else (1e-5, 1e-4):
        measure_worth(net, x, p, samples, draws)
    uncertain = least_certain(net, len(x), 20 if quick else 400)
    for p in (1e-3,) if quick else (1e-6, 1e-5, 1e-4, 1e-3):
        measure_changes(net, uncertain, p, samples)
    for p in (1e-3,) if quick else (1e-5, 1e-4):
        if options.repeats:
            measure_repeats(net, x, p, samples, options.repeats)
    start = time.process_time()
    score = crashsim.score(net, x, BitFlip(1e-5, bits=8), "weights")
    print(f"a default score: {time.process_time() - start:.0f} s; skipped: {list(score.skipped)}")


if __name__ == "__main__":
    main()
