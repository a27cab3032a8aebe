"""Which way makes this network tolerate its faults at the least cost: training, clipping, copies?

A small convolutional network, trained by a loop of its own, keeps its weights as int8 words in a
memory whose bits flip, each with probability 4e-3. How accurate are its chips, and what is worth
doing about it? Every way starts from the same weights and takes the same steps; the one that is
chosen is measured once more, on examples that no decision saw.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crashsim
from crashsim import SECDED, BitFlip, Copies, CrashTrained, NarrowWeights, Penalised, Protection
from crashsim.files.data import Data, load_data
from crashsim.training.menu.ways import WayOrWays


def network() -> nn.Module:
    """Convolutions with batch normalisation, for images of 8 x 8."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Training:
    """A plain loop of torch: an optimiser, a schedule, and the penalty added to the loss."""

    def __init__(self, data: Data, epochs: int) -> None:
        assert data.targets is not None
        self.x, self.y, self.epochs = data.inputs, data.targets, epochs

    def __call__(self, model: nn.Module, penalty: Callable[[Tensor], Tensor]) -> None:
        optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.epochs)
        for _ in range(self.epochs):
            for chosen in torch.randperm(len(self.x)).split(64):
                optimiser.zero_grad()
                outputs: Tensor = model(self.x[chosen])
                (F.cross_entropy(outputs, self.y[chosen]) + penalty(outputs)).backward()
                optimiser.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--chips", type=int, default=300)
    parser.add_argument("--p", type=float, default=4e-3, help="of each bit")
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args()
    trained_on, held_out = load_data("digits-images", "train"), load_data("digits-images", "test")
    menu: list[WayOrWays] = [
        Penalised(0.1),
        CrashTrained(),
        NarrowWeights(0.3),
        (NarrowWeights(0.3), CrashTrained()),
        Protection(SECDED()),
        Copies(3, "median"),
    ]
    found = crashsim.harden(
        network,
        trained_on.inputs,
        (held_out.inputs, held_out.targets),
        BitFlip(p=options.p, format="int8"),
        "weights",
        train=Training(trained_on, options.epochs),
        menu=menu,
        target=0.95,
        chips=options.chips,
    )
    print(found)
    if options.figure:
        draw(found, options.figure)


def draw(found: crashsim.Hardening, path: Path) -> None:
    """What each way reaches on held-out examples, with its interval."""
    from matplotlib.figure import Figure

    ways = [way for way in reversed(found.ways) if way["mean"] is not None]
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axes = figure.subplots()
    for at, way in enumerate(ways):
        reached = way["mean"]
        axes.plot([reached["low"], reached["high"]], [at, at], color="tab:blue", lw=2)
        axes.plot(reached["value"], at, "o", color="tab:blue")
    axes.axvline(0.95, color="grey", lw=0.8)
    axes.set_yticks(range(len(ways)), [way["name"] for way in ways])
    axes.set_xlabel("accuracy, mean over chips")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
