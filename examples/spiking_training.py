"""Can a spiking network be trained to bear neurons that die for good, and what does it gain?

Networks of the same start learn the digits: plainly; with ``CrashVariance``, the variance of the
outputs as a penalty, through the surrogate gradient; with ``CrashTraining``, neurons that are dead
in all steps of a pass while the network trains; and with both. The spread of the outputs over the
inputs says how much of a smaller variance is smaller outputs alone.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crashsim
from crashsim import CrashTraining, CrashVariance, NeuronCrash
from crashsim.files.data import Data, load_data
from crashsim.training.classifier import Recipe, accuracy, train_classifier


class Spike(torch.autograd.Function):
    """A step, with the derivative of a fast sigmoid in its place."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradients[0] / (1 + 10 * v.abs()) ** 2


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons: spikes and membranes after a step."""

    def forward(self, current: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + current
        spikes: Tensor = Spike.apply(v - 1)  # type: ignore[no-untyped-call]
        return spikes, v - spikes


class SpikingNet(nn.Module):
    """Hidden spiking neurons; the outputs are what they drive, on average over the steps."""

    def __init__(self, hidden: int, steps: int) -> None:
        super().__init__()
        self.first, self.lif, self.head = nn.Linear(64, hidden), LIF(), nn.Linear(hidden, 10)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        current = self.first(x)
        v = torch.zeros_like(current)
        out = x.new_zeros(len(x), 10)
        for _ in range(self.steps):
            spikes, v = self.lif(current, v)
            out = out + self.head(spikes)
        return out / self.steps


def trained(
    data: Data, options: argparse.Namespace, fault: NeuronCrash, strength: float, crashes: bool
) -> nn.Module:
    """A network of the same start, trained with a penalty, with crashes, or with neither."""
    torch.manual_seed(options.seed)
    model = SpikingNet(options.hidden, options.steps)
    with ExitStack() as stack:
        penalties = []
        if strength:
            penalty = CrashVariance(model, fault, strength=strength, seed=options.seed)
            penalties.append(stack.enter_context(penalty))
        if crashes:
            more = NeuronCrash(p=2 * fault.p)  # each pass is one draw: it takes more of them
            stack.enter_context(CrashTraining(model, more, seed=options.seed))
        recipe = Recipe(epochs=options.epochs, seed=options.seed)
        train_classifier(model, data, recipe, penalties=penalties)
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=48, help="spiking neurons")
    parser.add_argument("--steps", type=int, default=10, help="time steps")
    parser.add_argument("--p", type=float, default=0.05, help="of a neuron's death")
    parser.add_argument("--strength", type=float, default=0.3, help="of the penalty")
    parser.add_argument("--samples", type=int, default=1000, help="Monte Carlo samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    training, test = load_data("digits", "train"), load_data("digits", "test")
    fault = NeuronCrash(p=options.p)
    plain, rows = None, []
    for label, strength, crashes in (
        ("plain", 0.0, False),
        ("CrashVariance", options.strength, False),
        ("CrashTraining", 0.0, True),
        ("both", options.strength, True),
    ):
        model = trained(training, options, fault, strength, crashes)
        with torch.no_grad():
            spread = float(model(test.inputs).var(0).sum())
        score = crashsim.score(
            model, test.inputs, fault, methods=["monte-carlo"], samples=options.samples
        )
        variance = score.find("monte-carlo", "variance")
        change = score.find("monte-carlo", "class-change")
        print(f"{label}: accuracy {accuracy(model, test):.1%}, spread of the outputs {spread:.3g}")
        for what, found in (("variance", variance), ("class change", change)):
            print(f"  {what} {found.value:.3g} [{found.low:.3g}, {found.high:.3g}]")
            if plain is not None:
                before = plain[what]
                low, high = found.low / before.high, found.high / before.low
                print(f"    {found.value / before.value:.2f} [{low:.2f}, {high:.2f}] of plain")
        plain = plain or {"variance": variance, "class change": change}
        rows.append((label, change.value, change.low, change.high))
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
    axes.set_xlabel("P(the class changes), 5% of the hidden neurons dead")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
