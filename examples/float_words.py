"""Which stored words bear flipped bits: formats, parts of a word, neighbours, stuck bits?"""

import argparse
from pathlib import Path

import torch
from torch import nn

import crashsim
from crashsim import BitFlip, BitStuck
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, accuracy, train_classifier


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=2000, help="Monte Carlo samples")
    parser.add_argument("--p", type=float, default=1e-4, help="bit error rate")
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
    train_classifier(model, load_data("digits", "train"), Recipe(epochs=options.epochs))
    test = load_data("digits", "test")
    print(f"accuracy {accuracy(model, test):.1%}")

    inputs, p, rows = test.first(32).inputs, options.p, []
    for label, fault in {
        "float32": BitFlip(p, format="float32"),
        "float32, exponents": BitFlip(p, format="float32", bits="exponent"),
        "float32, mantissas": BitFlip(p, format="float32", bits="mantissa"),
        "bfloat16": BitFlip(p, format="bfloat16"),
        "float8_e4m3fn": BitFlip(p, format="float8_e4m3fn"),
        "int8, a scale for each channel": BitFlip(p, format="int8", scale="channel"),
        "float32, two neighbours": BitFlip(p, format="float32", upset=2),
        "float32, stuck at 1": BitStuck(p, to=1, format="float32"),
    }.items():
        score = crashsim.score(
            model,
            inputs,
            fault,
            "weights",
            samples=options.samples,
            methods=["word-strata", "monte-carlo"],
        )
        changes = score.find("monte-carlo", "class-change")
        assert changes is not None
        print(
            f"{label}: class changes with probability {changes.value:.2g} "
            f"[{changes.low:.2g}, {changes.high:.2g}]"
        )
        rows.append((label, changes.value, changes.low, changes.high))
        if label == "float32":
            print(score.verdict)
    if options.figure:
        draw(rows, options.figure)


def draw(rows: list[tuple[str, float, float, float]], path: Path) -> None:
    """Values with their intervals, one under the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for at, (_, value, low, high) in enumerate(reversed(rows)):
        axes.plot([low, high], [at, at], color="tab:blue", lw=2)
        axes.plot(value, at, "o", color="tab:blue")
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_xlabel("P(the class changes), each bit struck with p = 1e-4")
    axes.set_xscale("log")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
