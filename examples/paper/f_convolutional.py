"""(f) A convolutional network: theory against experiment, for single neurons and whole channels.

Two convolutions with ReLU and max pooling and one hidden linear layer. Ranks inputs and outputs by
the variance of Delta; the row "experiment again" is a second Monte Carlo run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shared
import torch
from torch import nn

from crashsim import NeuronCrash
from crashsim.training.classifier import Recipe, accuracy, train_classifier

METHODS = ("taylor", "single", "mean-point-taylor", "mean-point-single")


def network(side: int, seed: int) -> nn.Module:
    flat = 8 * (side // 4) ** 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(flat, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__)
    training, test = shared.data_of(chosen, images=True)
    net = network(training.inputs.shape[-1], chosen.seed)
    epochs = shared.pick(chosen, 1, 10, 8)
    train_classifier(net, training, Recipe(epochs=epochs, batch=64, seed=chosen.seed))
    print(f"test accuracy {accuracy(net, test):.1%}")
    inputs = test.first(shared.pick(chosen, 2, 8, 8)).inputs
    samples = shared.pick(chosen, 200, 8_000, 20_000)
    rows, drawn = [], shared.figure(2)
    for axes, (title, fault) in zip(
        drawn[1],
        (("neurons, p = 0.01", NeuronCrash(0.01)),
         ("channels, p = 0.02", NeuronCrash(0.02, group="channel"))),
        strict=True,
    ):  # fmt: skip
        found = shared.measure(net, inputs, {"hidden": fault}, [*METHODS, "monte-carlo"], samples)
        again = shared.measure(net, inputs, {"hidden": fault}, ["monte-carlo"], samples, seed=1)
        found |= {("experiment again", q): v for (_, q), v in again.items()}
        for method in (*METHODS, "experiment again"):
            row: dict[str, Any] = {"crashes of": title, "method": method}
            for quantity in ("mean", "variance"):
                reference, values = found["monte-carlo", quantity], found[method, quantity]
                fit, loss = shared.agreement(values, reference)
                error = float(np.abs(values - reference).sum() / np.abs(reference).sum())
                row |= {f"{quantity} correlation": fit, f"{quantity} rank loss": loss,
                        f"{quantity} relative error": error}  # fmt: skip
            rows.append(row)
            if method != "experiment again":
                pair = (np.ravel(found[name, "variance"]) for name in ("monte-carlo", method))
                axes.loglog(*pair, ".", ms=4, label=method)
        ends = [found["monte-carlo", "variance"].min(), found["monte-carlo", "variance"].max()]
        axes.loglog(ends, ends, "k-", lw=0.5)
        axes.set(title=title, xlabel="Var Δ, experiment", ylabel="Var Δ, theory")
    drawn[1][0].legend(fontsize=8)
    shared.table(chosen.out, "f_convolutional", rows)
    shared.save(drawn[0], chosen.out, "f_convolutional")
    return rows


if __name__ == "__main__":
    main()
