"""How far do the outputs of a torch model move when 1% of its neurons die, in ten lines?"""

import argparse
from pathlib import Path

import torch

import crashsim
from crashsim import NeuronCrash


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, help="a picture of it")
    figure = parser.parse_args().figure
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)
    ).eval()
    inputs = torch.randn(8, 16)

    score = crashsim.score(model, inputs, NeuronCrash(p=0.01), sites="hidden", epsilon=0.2)

    print(score.verdict)
    for method in ("taylor", "mean-point-single", "monte-carlo"):
        print(score.find(method, "variance"))
    print(score.find("importance-sampling", "class-change"))
    if figure:
        draw(score, figure)


def draw(score: crashsim.Score, path: Path) -> None:
    """P(the class changes) by every method; a measurement with its interval."""
    from matplotlib.figure import Figure

    found = [e for e in score.estimates if e.quantity == "class-change" and e.input == "all"]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for row, estimate in enumerate(reversed(found)):
        axes.plot(estimate.value, row, "o", color="tab:blue")
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [row, row], color="tab:blue")
    axes.set_yticks(range(len(found)), [f"{e.method} ({e.kind})" for e in reversed(found)])
    axes.set_xscale("log")
    axes.tick_params(which="minor", labelbottom=False)
    axes.set_xlabel("P(the class changes), 1% of the neurons dead")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
