"""How accurate does a classifier stay: on average over chips, on the worst, and how many pass?"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import crashsim
from crashsim import NeuronCrash, WeightCrash
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, train_classifier


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--chips", type=int, default=1000)
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))
    train_classifier(model, load_data("digits", "train"), Recipe(epochs=options.epochs))
    model.eval()
    test = load_data("digits", "test")
    assert test.targets is not None

    laws: dict[str, list[tuple[float, float]]] = {}
    for label, faults in {
        "a tenth of the neurons": {"hidden": NeuronCrash(p=0.1)},
        "one weight in a thousand": {"weights": WeightCrash(p=0.001)},
    }.items():
        score = crashsim.score(
            model,
            TensorDataset(test.inputs, test.targets),
            faults,
            metrics=["accuracy", "top-2"],
            accept={"accuracy": 0.9},
            samples=options.chips,
            methods=["monte-carlo"],
        )
        assert score.chips is not None
        accuracy = score.chips["metrics"][0]
        accepted = accuracy["accepted"]
        assert accepted is not None
        print(f"{label}: {score.verdict}")
        print(
            f"  change of accuracy {accuracy['change']['value']:+.2%} "
            f"[{accuracy['change']['low']:+.2%}, {accuracy['change']['high']:+.2%}]; "
            f"{accepted['value']:.1%} of chips reach 90% "
            f"[{accepted['low']:.1%}, {accepted['high']:.1%}]"
        )
        laws[label] = [(at["value"], at["level"]) for at in accuracy["percentiles"]]
    if options.figure:
        draw(laws, options.figure)


def draw(laws: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """The share of chips below each accuracy, at the percentiles that the score holds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for label, points in laws.items():
        axes.plot(*zip(*points, strict=True), "o-", label=label)
    axes.axvline(0.9, color="grey", lw=0.8)
    axes.set_xlabel("accuracy of a chip")
    axes.set_ylabel("share of chips below")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
