"""(c) The regulariser sweep: accuracy and variance under crashes, at equal cost of training.

The paper: 784-100-50-10 sigmoid, the variance term at strengths from 1e-5 to 1e2, 5% crashes.
Here every way of training gets the same time: a step with the penalty costs about 1.9 plain steps,
with crash training about 1.4 (benchmarks/training_cost.py), so the others train for more epochs.
Several initialisations; intervals are Student's, of differences to plain training with the same
initialisation. ``relative variance`` is Var over the variance of the clean outputs, which shrinking
all outputs does not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import shared
from scipy import stats

from crashsim import CrashTraining, CrashVariance, NeuronCrash
from crashsim.architectures import parse_architecture
from crashsim.data import Data
from crashsim.training import Recipe, train_classifier

FAULTS = {"hidden": NeuronCrash(p=0.05)}
COST = {"penalty": 1.9, "crash training": 1.4, "plain": 1.0, "weight decay": 1.0}


def train(way: str, strength: float, data: Data, epochs: float, seed: int) -> Any:
    """One network, trained for as long as ``epochs`` epochs of plain training take."""
    net = parse_architecture(f"{data.inputs.shape[1]}-100-50-10:sigmoid").build(seed)
    recipe = Recipe(
        epochs=max(1, round(epochs / COST[way])),
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
    seeds = shared.pick(chosen, 1, 2, 5)
    epochs = shared.pick(chosen, 4, 20, 40)
    samples = shared.pick(chosen, 50, 200, 200)
    ways: list[tuple[str, float]] = [("plain", 0.0)]
    strengths = shared.pick(chosen, (0.1,), (1e-2, 1e-1, 1.0), (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0))
    ways += [("penalty", s) for s in strengths]
    ways += [("crash training", s) for s in shared.pick(chosen, (1.0,), (1.0,), (0.5, 1.0, 2.0))]
    ways += [("weight decay", s) for s in shared.pick(chosen, (), (0.1,), (0.03, 0.1, 0.3))]
    found = {
        (way, strength): [
            shared.crashed(
                train(way, strength, training, epochs, chosen.seed + s),
                test.first(500), FAULTS, samples, seed=s,
            )
            for s in range(seeds)
        ]
        for way, strength in ways
    }  # fmt: skip
    rows = []
    plain = found["plain", 0.0]
    for (way, strength), measured in found.items():
        row: dict[str, Any] = {"training": way, "strength": strength}
        for name in ("clean accuracy", "crashing accuracy"):
            gain = [100 * (m[name] - base[name]) for m, base in zip(measured, plain, strict=True)]
            row[f"{name} %"] = 100 * float(np.mean([m[name] for m in measured]))
            row[f"{name.split()[0]} gain"] = float(np.mean(gain))
            row["±" if name.startswith("clean") else "± "] = half_width(gain)
        for name in ("variance", "relative variance"):
            row[name] = float(np.exp(np.mean([math.log(m[name]) for m in measured])))
        rows.append(row)
    shared.table(chosen.out, "c_regulariser", rows)
    drawn, panels = shared.figure(2)
    for way, marker in (
        ("plain", "ks"), ("penalty", "o-"), ("crash training", "^-"), ("weight decay", "v-"),
    ):  # fmt: skip
        mine = [row for row in rows if row["training"] == way]
        clean = [row["clean accuracy %"] for row in mine]
        panels[0].plot(clean, [row["crashing accuracy %"] for row in mine], marker, label=way)
        panels[1].plot(clean, [row["relative variance"] for row in mine], marker, label=way)
    panels[0].set(xlabel="clean accuracy %", ylabel="accuracy % with 5% of neurons crashed")
    panels[1].set(xlabel="clean accuracy %", ylabel="relative variance", yscale="log")
    panels[0].legend(fontsize=8)
    shared.save(drawn, chosen.out, "c_regulariser")
    return rows


if __name__ == "__main__":
    main()
