"""(c) The regulariser sweep: accuracy and variance under crashes, at equal cost of training.

The paper: 784-100-50-10 sigmoid, the variance term at strengths from 1e-5 to 1e2, 5% crashes.
Here every way of training gets the same time: a step with the penalty costs about 1.9 plain steps,
with crash training about 1.4 (benchmarks/training_cost.py), so the others train for more epochs.
Several initialisations; intervals are Student's, of differences to plain training with the same
initialisation. Penalty and crash training aim at p = 0.05 (crash training also at other rates); the
networks meet more crashes than that too, since at 5% a plain network has little to lose.
``relative variance`` is Var over the variance of the clean outputs, which shrinking all outputs
does not change. ``--activation relu`` sweeps the same network with ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import shared
from scipy import stats

from crashsim import CrashTraining, CrashVariance, NeuronCrash
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import Data
from crashsim.training.classifier import Recipe, train_classifier

FAULTS = {"hidden": NeuronCrash(p=0.05)}
RATES = (0.05, 0.15, 0.3)
COST = {"penalty": 1.9, "crash training": 1.4, "plain": 1.0, "weight decay": 1.0}


def train(way: str, strength: float, data: Data, epochs: float, seed: int, activation: str) -> Any:
    """One network, trained for as long as ``epochs`` epochs of plain training take."""
    net = parse_architecture(f"{data.inputs.shape[1]}-100-50-10:{activation}").build(seed)
    recipe = Recipe(
        epochs=max(1, round(epochs / COST[way])),
        learning_rate=2e-2 if activation == "sigmoid" else 2e-3,
        batch=64,
        weight_decay=strength if way == "weight decay" else 0.0,
        seed=seed,
    )
    if way == "penalty":
        with CrashVariance(net, FAULTS, strength=strength, seed=seed) as penalty:
            train_classifier(net, data, recipe, penalties=[penalty])
    elif way == "crash training":
        # Its strength: the rate of the injected crashes, in units of the true rate.
        injected = {"hidden": NeuronCrash(p=0.05 * strength)}
        with CrashTraining(net, injected, seed=seed):
            train_classifier(net, data, recipe)
    else:
        train_classifier(net, data, recipe)
    return net


def half_width(values: Any) -> float:
    n = len(values)
    if n < 2:
        return math.nan
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__)
    training, test = shared.data_of(chosen)
    seeds = chosen.nets or shared.pick(chosen, 1, 2, 5)
    epochs = shared.pick(chosen, 3, 30, 20)
    samples = shared.pick(chosen, 20, 50, 100)
    ways: list[tuple[str, float]] = [("plain", 0.0)]
    strengths = shared.pick(chosen, (0.1,), (0.1, 0.3), (0.03, 0.1, 0.3, 1.0))
    ways += [("penalty", s) for s in strengths]
    rates = shared.pick(chosen, (1.0,), (3.0,), (1.0, 3.0))
    ways += [("crash training", rate) for rate in rates]
    ways += [("weight decay", s) for s in shared.pick(chosen, (), (), (0.1,))]
    tested = test.first(1000)
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    for way, strength in ways:
        for seed in range(chosen.seed, chosen.seed + seeds):
            net = train(way, strength, training, epochs, seed, chosen.activation)
            look = shared.crashed(net, tested, FAULTS, samples, seed)
            for p in RATES:
                faults = {"hidden": NeuronCrash(p=p)}
                more = look if p == 0.05 else shared.crashed(net, tested, faults, samples, seed)
                look[f"p={p:g}"] = more["crashing accuracy"]
            found.setdefault((way, strength), []).append(look)
    rows = []
    plain = found["plain", 0.0]
    for (way, strength), measured in found.items():
        row: dict[str, Any] = {"training": way, "strength": strength}
        for name in ("clean accuracy", *(f"p={p:g}" for p in RATES)):
            gain = [100 * (m[name] - base[name]) for m, base in zip(measured, plain, strict=True)]
            row[f"{name} %"] = 100 * float(np.mean([m[name] for m in measured]))
            row[f"{name.split()[0]} gain"] = float(np.mean(gain))
            row[f"{name.split()[0]} ±"] = half_width(gain)
        for name in ("variance", "relative variance"):
            row[name] = float(np.exp(np.mean([math.log(m[name]) for m in measured])))
        rows.append(row)
    name = "c_regulariser" if chosen.activation == "sigmoid" else f"c_{chosen.activation}"
    shared.table(chosen.out, name, rows)
    drawn, panels = shared.figure(3, width=4)
    for way, marker in (
        ("plain", "ks"), ("penalty", "o-"), ("crash training", "^-"), ("weight decay", "v-"),
    ):  # fmt: skip
        mine = [row for row in rows if row["training"] == way]
        clean = [row["clean accuracy %"] for row in mine]
        for axes, column in zip(panels, ("p=0.05 %", "p=0.3 %", "relative variance"), strict=True):
            axes.plot(clean, [row[column] for row in mine], marker, label=way)
            axes.set(xlabel="clean accuracy %", title=column.replace("p=", "accuracy at p = "))
    panels[0].legend(fontsize=8)
    shared.save(drawn, chosen.out, name)
    return rows


if __name__ == "__main__":
    main()
