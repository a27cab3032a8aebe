"""How much does the loss of a classifier rise under faults, and which layer raises it?"""

import argparse
from pathlib import Path

import torch
from torch import nn

import crashsim
from crashsim import WeightCrash
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, train_classifier


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=2000, help="Monte Carlo samples")
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10)
    )
    train_classifier(model, load_data("digits", "train"), Recipe(epochs=options.epochs))
    test = load_data("digits", "test").first(64)

    score = crashsim.score(
        model.eval(),
        test.inputs,
        WeightCrash(p=0.005),
        "weights",
        epsilon=0.5,
        samples=options.samples,
        targets=test.targets,
        outputs="loss",
    )

    print(score.verdict)
    for method in ("mean-point-taylor", "saddlepoint", "monte-carlo"):
        quantity = "tail" if method == "saddlepoint" else "variance"
        print(score.find(method, quantity, output="loss"))
    if options.figure:
        draw(score, options.figure)


def draw(score: crashsim.Score, path: Path) -> None:
    """What each layer adds to the variance of the loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.5), layout="constrained")
    axes = figure.subplots()
    sites = [site for site in score.sites if site["share"] is not None]
    axes.barh([site["name"] for site in sites], [100 * (site["share"] or 0) for site in sites])
    axes.invert_yaxis()
    axes.set_xlabel("share of the loss's variance (%), 0.5% of the weights lost")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
