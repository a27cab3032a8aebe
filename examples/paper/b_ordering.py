"""(b) Which network was trained with more dropout? Ordering networks by their measured robustness.

The paper: MNIST, 784-100-50-10 sigmoid, ten rates of training dropout from 0 to 0.06 at the first
hidden layer, ten networks for each; crashes of 5% of the first hidden layer. A score orders two
networks rightly if the one with more dropout looks more robust. Rank loss: the share of pairs
ordered wrongly. "paired" compares networks with the same initialisation and order of examples
only; "all" compares any two networks with different rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shared
import torch

from crashsim import CrashTraining, FaultSpace, NeuronCrash
from crashsim.analytic.first_order import (
    Analysis,
    mean_point_single,
    mean_point_taylor,
    single,
    taylor,
)
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import Data
from crashsim.results.estimates import values_of
from crashsim.training.classifier import Recipe, accuracy, train_classifier

SITE = "sigmoid1"
FAULTS = {SITE: NeuronCrash(p=0.05)}
HIGHER_IS_BETTER = ("crashing accuracy", "clean accuracy")


def trained(data: Data, dropout: float, epochs: int, seed: int) -> torch.nn.Module:
    net = parse_architecture(f"{data.inputs.shape[1]}-100-50-10:sigmoid").build(seed)
    recipe = Recipe(epochs=epochs, batch=128, seed=seed)
    with CrashTraining(net, NeuronCrash(p=dropout), SITE, inverse_scaling=True, seed=seed):
        train_classifier(net, data, recipe)
    return net


def scores(net: torch.nn.Module, test: Data, inputs: int, samples: int) -> dict[str, float]:
    """Every score of one network, averaged over inputs and summed over outputs."""
    some = test.first(inputs)
    space, analysis = FaultSpace(net, some.inputs, FAULTS), Analysis()
    for method in (taylor, single, mean_point_taylor, mean_point_single):
        method(space, analysis)
    found = {}
    for name in ("taylor", "single", "mean-point-taylor", "mean-point-single"):
        variance, mean = (values_of(analysis.estimates, name, q) for q in ("variance", "mean"))
        assert variance is not None
        assert mean is not None
        found[f"{name} variance"] = float(variance.sum(1).mean())
        found[f"{name} mean"] = float(np.abs(mean).sum(1).mean())
    absolute = shared.measure(net, some.inputs[:16], FAULTS, ["absolute"])
    found["absolute mean"] = float(absolute["absolute", "mean"].sum(1).mean())
    measured = shared.crashed(net, some, FAULTS, samples)
    found |= {k: measured[k] for k in ("crashing MAE", "crashing accuracy")}
    found["measured variance"] = measured["variance"]
    return found | {"clean accuracy": accuracy(net, test)}


def losses(values: Any) -> tuple[float, float]:
    """Rank loss within repetitions, and over all pairs of different rates; values (rates, nets)."""
    rates, _ = values.shape
    wrong_paired, wrong_all = [], []
    for less in range(rates):
        for more in range(less + 1, rates):
            # More dropout must look more robust: a smaller value.
            wrong_paired.append((values[more] >= values[less]).mean())
            wrong_all.append((values[more][:, None] >= values[less][None]).mean())
    return float(np.mean(wrong_paired)), float(np.mean(wrong_all))


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__)
    training, test = shared.data_of(chosen)
    rates = np.linspace(0, 0.06, shared.pick(chosen, 3, 4, 10))
    nets = shared.pick(chosen, 1, 3, 10)
    epochs = shared.pick(chosen, 2, 15, 25)
    inputs, samples = shared.pick(chosen, (16, 50), (100, 200), (200, 300))
    found: dict[str, Any] = {}
    for i, rate in enumerate(rates):
        for j in range(nets):
            net = trained(training, float(rate), epochs, chosen.seed + j)
            for name, value in scores(net, test, inputs, samples).items():
                found.setdefault(name, np.empty((len(rates), nets)))[i, j] = value
    rows = []
    for name, values in found.items():
        paired, every = losses(-values if name in HIGHER_IS_BETTER else values)
        rows.append({"score": name, "rank loss, paired": paired, "rank loss, all": every})
    rows.sort(key=lambda row: row["rank loss, paired"])
    shared.table(chosen.out, "b_ordering", rows)
    drawn, panels = shared.figure(2)
    for axes, name in zip(panels, ("mean-point-taylor variance", "clean accuracy"), strict=True):
        axes.plot(rates, found[name], ".", color="tab:blue")
        axes.plot(rates, found[name].mean(1), "k-")
        axes.set(xlabel="dropout in training", ylabel=name)
    shared.save(drawn, chosen.out, "b_ordering")
    return rows


if __name__ == "__main__":
    main()
