"""(j) The paper's own data: Boston housing, one network on many inputs and many networks on one.

The paper trains regressors of 13 features and compares its bounds with the experiment. No package
ships the data any more: get BostonHousing.csv (506 rows; Harrison and Rubinfeld 1978, StatLib) and
give it as ``--boston FILE``. Columns are found by name, ``medv`` is predicted. Without a file a
smooth function of 13 made features takes its place, and the tables say so.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shared
import torch
from a_bounds import both, rows
from torch import Tensor, nn

from crashsim.files.architectures import parse_architecture

HIDDEN = "30-20:sigmoid"
# Correlation and rank loss that the paper reports: mean, then std.
PAPER = {
    ("one network, many inputs", "single"): "0.996 / 0.068, 0.996 / 0.069",
    ("one network, many inputs", "taylor"): "0.979 / 0.092, 0.958 / 0.143",
    ("many networks, one input", "single"): "0.997 / 0.016, 0.996 / 0.032",
    ("many networks, one input", "taylor"): "0.913 / 0.126, 0.887 / 0.158",
}


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Features (506, 13) and prices (506, 1), each with mean 0 and deviation 1."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    names = [name for name in lines[0] if name.lower() != "medv"]
    (target,) = (name for name in lines[0] if name.lower() == "medv")
    x = torch.tensor([[float(line[name]) for name in names] for line in lines])
    return standardised(x), standardised(torch.tensor([[float(line[target])] for line in lines]))


def made(seed: int) -> tuple[Tensor, Tensor]:
    """Features and targets of the same shape, where there is no file."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(506, 13, generator=generator)
    y = torch.sin(x[:, 0] * x[:, 1]) + x[:, 2] ** 2 / 2 + x[:, 3:].sum(1) / 4
    return x, standardised(y[:, None] + 0.1 * torch.randn(506, 1, generator=generator))


def standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0)


def trained(x: Tensor, y: Tensor, seed: int, epochs: int) -> nn.Module:
    """A regressor with two hidden layers, by Adam on the squared error."""
    sizes, _, activation = HIDDEN.partition(":")
    net = parse_architecture(f"13-{sizes}-1:{activation}").build(seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(64):
            optimiser.zero_grad()
            nn.functional.mse_loss(net(x[chosen]), y[chosen]).backward()
            optimiser.step()
    return net.eval().double()


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__, boston=True)
    x, y = read(chosen.boston) if chosen.boston else made(chosen.seed)
    held_out, x, y = x[400:], x[:400], y[:400]
    epochs = shared.pick(chosen, 3, 60, 60)
    samples = shared.pick(chosen, 100, 1_000, 1_000)
    inputs, networks = shared.pick(chosen, 4, 60, 60), shared.pick(chosen, 3, 40, 40)
    source = "Boston housing" if chosen.boston else "made data"

    net = trained(x, y, chosen.seed, epochs)
    many_inputs = both(net, held_out[:inputs].double(), samples, chosen.seed)
    many_networks: dict[tuple[str, str], list[float]] = {}
    for i in range(networks):
        found = both(trained(x, y, i, epochs), held_out[:1].double(), samples, i)
        for key, values in found.items():
            many_networks.setdefault(key, []).append(float(values[0, 0]))

    settings = {
        "one network, many inputs": many_inputs,
        "many networks, one input": {k: np.array(v) for k, v in many_networks.items()},
    }
    table = [
        {"data": source, **row, "paper": PAPER.get((setting, row["method"]), "")}
        for setting, found in settings.items()
        for row in rows(setting, found)
    ]
    shared.table(chosen.out, "j_boston", table)
    drawn, panels = shared.figure(2)
    for axes, (setting, found) in zip(panels, settings.items(), strict=True):
        reference = np.sqrt(np.ravel(found["experiment", "variance"]))
        for method in ("taylor", "single", "mean-point-single"):
            estimate = np.sqrt(np.ravel(found[method, "variance"]))
            axes.plot(reference, estimate / reference, ".", ms=5, label=method)
        axes.axhline(1, color="k", lw=0.5)
        axes.set(title=setting, xlabel="std of Δ, experiment", ylabel="estimate / it")
    panels[0].legend(fontsize=8)
    shared.save(drawn, chosen.out, "j_boston")
    return table


if __name__ == "__main__":
    main()
