"""What does a residual convolutional network lose with some weights, or whole channels, dead?"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crashsim
from crashsim import NeuronCrash, WeightCrash
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, accuracy, train_classifier


class SmallResNet(nn.Module):
    """Two convolutions with a shortcut; one ReLU module is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(12 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(x + self.second(x))
        out: Tensor = self.head(F.avg_pool2d(x, 2).flatten(1))
        return out


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=1000, help="Monte Carlo samples")
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = SmallResNet()
    train_classifier(model, load_data("digits-images", "train"), Recipe(epochs=options.epochs))
    test = load_data("digits-images", "test")
    print(f"accuracy {accuracy(model, test):.1%}")

    inputs, rows = test.first(8).inputs, []
    for label, faults in {
        "1% of the second convolution's weights": {"second.weight": WeightCrash(p=0.01)},
        "5% of all channels": {"relu*": NeuronCrash(p=0.05, group="channel")},
        "both": {
            "second.weight": WeightCrash(p=0.01),
            "relu*": NeuronCrash(p=0.05, group="channel"),
        },
    }.items():
        score = crashsim.score(model, inputs, faults, samples=options.samples)
        print(f"{label}: {score.verdict}")
        change = score.find("monte-carlo", "class-change")
        assert change is not None
        rows.append((label, change.value, change.low, change.high))
    if options.figure:
        draw(rows, options.figure)


def draw(rows: list[tuple[str, float, float, float]], path: Path) -> None:
    """Values with their intervals, one under the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for at, (_, value, low, high) in enumerate(reversed(rows)):
        axes.plot([low, high], [at, at], color="tab:blue", lw=2)
        axes.plot(value, at, "o", color="tab:blue")
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_xlabel("P(the class changes)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
