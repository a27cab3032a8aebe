"""(d) The 1/n law: Var Delta and the derivatives against width, with and without continuity.

Expected under the continuity regularisers: slopes -1 (mean |dF|), -2 (mean |d2F|) and -1 (Var) on a
log-log plot against the width n; without them the derivatives decay more slowly. Networks with one
hidden layer of n tanh neurons. With continuity the weights start as smooth functions of the
neuron's position and the weights out of the layer are of size 1 / n, as the limit has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shared
import torch
import torch.nn.functional as F
from crashsim_theory import balance, decay_exponents, roughness
from torch import nn

from crashsim import Balance, Continuity, FaultSpace, NeuronCrash, monte_carlo
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import Data
from crashsim.training.classifier import accuracy

FAULTS = {"hidden": NeuronCrash(p=0.01)}
_WAVES = 6


def smooth_start(net: nn.Module, seed: int) -> None:
    """Weights that are smooth random functions of the hidden neuron's position t in [0, 1]."""
    first, last = (m for m in net.modules() if isinstance(m, nn.Linear))
    n = first.out_features
    t = torch.linspace(0, 1, n)
    waves = torch.cos(torch.pi * torch.arange(_WAVES)[:, None] * t) * 2**0.5  # (waves, n)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        into = torch.randn(_WAVES, first.in_features, generator=generator)
        first.weight.copy_(waves.T @ into * (first.in_features * _WAVES) ** -0.5)
        out = torch.randn(last.out_features, _WAVES, generator=generator)
        last.weight.copy_(out @ waves / n)


def trained(data: Data, n: int, continuous: bool, epochs: int, seed: int) -> nn.Module:
    """Adam on the cross-entropy. With continuity the weights out of the layer, of size 1 / n, take
    steps of that size."""
    net = parse_architecture(f"{data.inputs.shape[1]}-{n}-10:tanh").build(seed)
    first, last = (m for m in net.modules() if isinstance(m, nn.Linear))
    penalties: list[Any] = []
    if continuous:
        smooth_start(net, seed)
        penalties = [Continuity(net, 0.3), Balance(net, 1e-3)]
    rates = (1e-2, 1e-2, 5.0 / n) if continuous else (5e-3, 5e-3, 5e-3)
    groups = [[*first.parameters()], [last.bias], [last.weight]]
    optimizer = torch.optim.Adam(
        [{"params": g, "lr": rate} for g, rate in zip(groups, rates, strict=True)]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    assert data.targets is not None
    for _ in range(epochs):
        for some in torch.randperm(len(data.inputs), generator=generator).split(64):
            output = net(data.inputs[some])
            loss = F.cross_entropy(output, data.targets[some])
            for penalty in penalties:
                loss = loss + penalty(output)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return net


def look(net: nn.Module, data: Data, samples: int, seed: int) -> dict[str, float]:
    """Derivatives at no faults, averaged over neurons, outputs and inputs; measured variance."""
    space = FaultSpace(net, data.first(32).inputs, FAULTS)
    gradient = np.concatenate([g for _, g in space.gradients(np.zeros(space.N))])
    weights = [m.weight.detach() for m in net.modules() if isinstance(m, nn.Linear)]
    # One hidden layer and linear outputs: F is linear in the crashes, so the loss is differentiated
    # twice: d2L/de_i de_j = g_i^T (diag s - s s^T) g_j with the softmax s.
    outputs = torch.from_numpy(space.clean()).softmax(1).numpy()
    curvature = np.einsum("bk,bki,bkj->bij", outputs, gradient, gradient, optimize=True)
    first = np.einsum("bk,bki->bi", outputs, gradient)
    curvature -= first[:, :, None] * first[:, None]
    measured = monte_carlo(space, samples=samples, seed=seed)
    return {
        "|dF|": float(np.abs(gradient).mean()),
        "|d2L|": float(np.abs(curvature).mean()),
        "Var": float(measured.variance.sum(1).mean()),
        "accuracy": accuracy(net, data),
        "roughness": roughness(weights[0].numpy()),
        "balance": balance(weights[0].numpy()),
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__)
    training, test = shared.data_of(chosen)
    widths = shared.pick(chosen, (8, 32), (32, 64, 128, 256), (32, 64, 128, 256, 512))
    epochs = shared.pick(chosen, 1, 12, 12)
    nets = shared.pick(chosen, 1, 1, 3)
    rows = []
    for continuous in (False, True):
        for n in widths:
            looks = [
                look(trained(training, n, continuous, epochs, seed), test,
                     shared.pick(chosen, 100, 2000, 2000), seed)
                for seed in range(chosen.seed, chosen.seed + nets)
            ]  # fmt: skip
            mean = {k: float(np.mean([found[k] for found in looks])) for k in looks[0]}
            rows.append({"training": "continuous" if continuous else "plain", "width": n, **mean})
    for way in ("plain", "continuous"):
        mine = [row for row in rows if row["training"] == way]
        measures = [[row[k] for row in mine] for k in ("|dF|", "|d2L|", "Var")]
        slopes = decay_exponents(widths, *measures)
        slope = dict(zip(("|dF|", "|d2L|", "Var"), slopes, strict=True))
        rows.append({"training": f"{way}, slope", "width": "", **slope, "accuracy": "",
                     "roughness": "", "balance": ""})  # fmt: skip
    shared.table(chosen.out, "d_continuity", rows)
    drawn, panels = shared.figure(3, width=3.6)
    for axes, name in zip(panels, ("|dF|", "|d2L|", "Var"), strict=True):
        for way in ("plain", "continuous"):
            mine = [row for row in rows if row["training"] == way]
            axes.loglog(widths, [row[name] for row in mine], "o-", label=way)
        axes.set(xlabel="neurons", title=name)
    panels[0].legend()
    shared.save(drawn, chosen.out, "d_continuity")
    return rows


if __name__ == "__main__":
    main()
