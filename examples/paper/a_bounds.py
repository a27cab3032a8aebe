"""(a) Bounds and estimates against the experiment, on random and on trained networks.

The paper: random networks 20-20-20-1 (ReLU, weights Normal(0.1, 3^2), p = 0.01), one input each;
and a trained network on many inputs. For each method: correlation and rank loss with the
experiment, of the mean and of the standard deviation of Delta. The experiment injects every
pattern of up to two crashes, weighted by its probability, and samples those of three and more. The
row "experiment again" is a second run against the first: what the experiment's own noise allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shared
import torch

from crashsim import FaultSpace, NeuronCrash
from crashsim.files.architectures import parse_architecture
from crashsim.training.classifier import Recipe

METHODS = ("norm", "absolute", "taylor", "single", "mean-point-taylor", "mean-point-single")
FAULTS = {"hidden": NeuronCrash(p=0.01)}


def random_network(seed: int) -> torch.nn.Module:
    """20-20-20-1 with ReLU and weights Normal(0.1, 3^2)."""
    net = parse_architecture("20-20-20-1:relu").build(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.1, 3, generator=generator)
    return net


def random_networks(count: int, samples: int, seed: int) -> dict[tuple[str, str], Any]:
    """Every method on ``count`` networks with one input each, (count,)."""
    found: dict[tuple[str, str], list[float]] = {}
    for i in range(count):
        generator = torch.Generator().manual_seed(10_000 + seed + i)
        x = torch.randn(1, 20, generator=generator)
        net = random_network(seed + i).double()
        for key, values in both(net, x, samples, seed + i).items():
            found.setdefault(key, []).append(float(values[0, 0]))
    return {key: np.array(values) for key, values in found.items()}


def both(net: Any, x: Any, samples: int, seed: int) -> dict[tuple[str, str], Any]:
    """Every method, the experiment, and the experiment again with another seed."""
    found = shared.measure(net, x, FAULTS, METHODS)
    space = FaultSpace(net, x, FAULTS)
    for name, run in (("experiment", 0), ("experiment again", 1)):
        mean, variance = shared.stratified(space, samples, 2 * seed + run)
        found |= {(name, "mean"): mean, (name, "variance"): variance}
    return found


def rows(setting: str, found: dict[tuple[str, str], Any]) -> list[dict[str, Any]]:
    lines = []
    for method in (*METHODS, "experiment again"):
        line: dict[str, Any] = {
            "setting": setting,
            "method": method,
            "paper": shared.PAPER_NAMES.get(method, ""),
        }
        for quantity, name in (("mean", "mean"), ("variance", "std")):
            fit, loss = float("nan"), float("nan")
            if (method, quantity) in found:
                values, reference = found[method, quantity], found["experiment", quantity]
                if quantity == "variance":
                    values, reference = np.sqrt(values), np.sqrt(reference)
                elif method in ("norm", "absolute"):  # bounds of the magnitude
                    reference = np.abs(reference)
                fit, loss = shared.agreement(values, reference)
            line |= {f"{name} correlation": fit, f"{name} rank loss": loss}
        lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__)
    count = shared.pick(chosen, 3, 40, 200)
    samples = shared.pick(chosen, 200, 1_000, 3_000)
    random = random_networks(count, samples, chosen.seed)
    training, test = shared.data_of(chosen)
    recipe = Recipe(epochs=shared.pick(chosen, 1, 20, 20), batch=128, seed=chosen.seed)
    trained = shared.network(
        shared.pick(chosen, "20:sigmoid", "50-25:sigmoid", "50-25:sigmoid"),
        training,
        chosen.seed,
        recipe,
    )
    inputs = test.first(shared.pick(chosen, 2, 10, 32)).inputs
    many = both(trained.double(), inputs.double(), samples, chosen.seed)
    table = [
        *rows(f"{count} random networks, one input", random),
        *rows(f"one trained network, {len(inputs)} inputs, 10 outputs", many),
    ]
    shared.table(chosen.out, "a_bounds", table)
    drawn, panels = shared.figure(2)
    for axes, (title, found) in zip(
        panels, (("random networks", random), ("trained network", many)), strict=True
    ):
        reference = np.sqrt(np.ravel(found["experiment", "variance"]))
        for method in ("taylor", "single", "mean-point-taylor", "mean-point-single"):
            values = np.sqrt(np.ravel(found[method, "variance"]))
            axes.plot(reference, values / reference, ".", ms=4, label=method)
        axes.axhline(1, color="k", lw=0.5)
        axes.set(xscale="log", title=title, xlabel="std of Δ, experiment", ylabel="estimate / it")
    panels[0].legend(fontsize=8)
    shared.save(drawn, chosen.out, "a_bounds")
    return table


if __name__ == "__main__":
    main()
