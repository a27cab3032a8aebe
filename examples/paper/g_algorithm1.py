"""(g) Algorithm 1's path: what it changes and why, in our way and in the paper's.

Both are asked for the same: no output moves by epsilon with probability above delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import shared

from crashsim import NeuronCrash
from crashsim.training.classifier import Recipe
from crashsim.training.hardening import Limits, harden

FAULTS = {"hidden": NeuronCrash(p=0.05)}
EPSILON, DELTA = 1.0, 1e-3


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__)
    training, test = shared.data_of(chosen)
    recipe = Recipe(epochs=shared.pick(chosen, 1, 12, 15), batch=128, seed=chosen.seed)
    limits = Limits(width=shared.pick(chosen, 1, 4, 8), steps=shared.pick(chosen, 2, 12, 12),
                    replicas=shared.pick(chosen, 21, 3, 3),
                    samples=shared.pick(chosen, 5_000, 100_000, 200_000))  # fmt: skip
    start = f"{training.inputs.shape[1]}-50-10:sigmoid"
    rows, drawn = [], shared.figure(1, width=7)
    for method, marker in (("saddlepoint", "o-"), ("paper", "s--")):
        found = harden(start, training, test, FAULTS, epsilon=EPSILON, delta=DELTA, method=method,
                       recipe=recipe, limits=limits, seed=chosen.seed)  # fmt: skip
        for step in found.steps:
            rows.append(
                {
                    "method": method,
                    "step": step.number,
                    "network": str(step.design.architecture),
                    "variance strength": step.design.variance,
                    "accuracy": step.accuracy,
                    "P(fails)": step.failure,
                    "replicas": step.replicas or "",
                    "reason": step.reason,
                }
            )
        print(f"{method}: {found.statement}")
        drawn[1][0].semilogy(
            [step.number for step in found.steps],
            [max(step.failure, 1e-12) for step in found.steps],
            marker, label=f"{method}: {found.replicas} replicas at the end",
        )  # fmt: skip
    drawn[1][0].axhline(DELTA, color="k", lw=0.5)
    drawn[1][0].set(xlabel="step", ylabel="P(one network fails), predicted")
    drawn[1][0].legend()
    shared.table(chosen.out, "g_algorithm1", rows)
    shared.save(drawn[0], chosen.out, "g_algorithm1")
    return rows


if __name__ == "__main__":
    main()
