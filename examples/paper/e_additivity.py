"""(e) Errors of crashes at different layers add up.

The paper: a network 50-51-52-53 with ReLU and crashes of 1%. The mean and variance of Delta with
crashes at all layers, against the sum of those with crashes at one layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shared
import torch

from crashsim import FaultSpace, NeuronCrash, monte_carlo
from crashsim.files.architectures import parse_architecture

LAYERS = ("input", "relu1", "relu2")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__)
    samples = shared.pick(chosen, 2_000, 30_000, 300_000)
    net = parse_architecture("50-51-52-53:relu").build(chosen.seed)
    generator = torch.Generator().manual_seed(chosen.seed)
    inputs = torch.randn(shared.pick(chosen, 2, 4, 16), 50, generator=generator)
    fault = NeuronCrash(p=0.01)

    def measured(layers: Sequence[str], seed: int) -> tuple[Any, Any]:
        space = FaultSpace(net, inputs, dict.fromkeys(layers, fault))
        found = monte_carlo(space, samples=samples, seed=seed)
        return found.mean, found.variance

    single = [measured([layer], 1 + i) for i, layer in enumerate(LAYERS)]
    joint, again = measured(LAYERS, 0), measured(LAYERS, 99)
    rows, sums = [], []
    for i, name in enumerate(("mean", "variance")):
        total = np.sum([found[i] for found in single], axis=0)
        sums.append(total)
        fit, loss = shared.agreement(total, joint[i])
        limit, limit_loss = shared.agreement(again[i], joint[i])
        rows.append(
            {
                "quantity": name,
                "sum over layers / joint": float(np.abs(total).sum() / np.abs(joint[i]).sum()),
                "correlation": fit,
                "rank loss": loss,
                "correlation, experiment again": limit,
                "rank loss, experiment again": limit_loss,
            }
            | {f"share of {layer}": float(np.abs(found[i]).sum() / np.abs(total).sum())
               for layer, found in zip(LAYERS, single, strict=True)}
        )  # fmt: skip
    shared.table(chosen.out, "e_additivity", rows)
    drawn, panels = shared.figure(2)
    for axes, name, total, whole in zip(panels, ("E Δ", "Var Δ"), sums, joint, strict=True):
        axes.plot(whole.ravel(), total.ravel(), ".", ms=4)
        ends = [whole.min(), whole.max()]
        axes.plot(ends, ends, "k-", lw=0.5)
        axes.set(xlabel=f"{name}, crashes at all layers", ylabel="sum over single layers")
    shared.save(drawn, chosen.out, "e_additivity")
    return rows


if __name__ == "__main__":
    main()
