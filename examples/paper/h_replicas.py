"""(h) The median of replicas: the exact law, simulation, and the paper's rule; Byzantine replicas.

Failure probability of the median of R networks against R, by simulation and by the binomial law
from one network's tail; how many replicas a target takes, beside the paper's rule 2 log(1/delta) /
log 3; and which voter holds with how many lying copies of how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shared
import torch
from crashsim_theory import median_failure, published_replicas

from crashsim import (
    FaultSpace,
    NeuronCrash,
    byzantine_table,
    monte_carlo,
    plan_replicas,
    voter_robustness,
)
from crashsim.protection.replicas import simulate_vote
from crashsim.protection.voters import VOTERS
from crashsim.training.classifier import Recipe

FAULTS = {"hidden": NeuronCrash(p=0.05)}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__)
    training, test = shared.data_of(chosen)
    recipe = Recipe(epochs=shared.pick(chosen, 1, 15, 15), batch=128, seed=chosen.seed)
    net = shared.network("50:sigmoid", training, chosen.seed, recipe)
    space = FaultSpace(net, test.inputs[:1], FAULTS)
    trials = shared.pick(chosen, 500, 10_000, 50_000)
    sampled = monte_carlo(space, samples=20 * trials, seed=1)
    # One output, so that the binomial law is exact; epsilon where one network fails one time in 5.
    size = np.abs(sampled.kept[:, 0])
    k = int(size.mean(0).argmax())
    epsilon = float(np.quantile(size[:, k], 0.8))
    upper = float((sampled.kept[:, 0, k] >= epsilon).mean())
    lower = float((sampled.kept[:, 0, k] <= -epsilon).mean())

    def voter(name: str) -> Any:
        def vote(outputs: Any) -> Any:
            chosen_vote = outputs.mean(0) if name == "mean" else outputs.median(0).values
            alone = outputs[0] * 0 + clean
            alone[:, k] = chosen_vote[:, k]
            return alone

        return vote

    clean = torch.from_numpy(space.clean()[0])
    rows = []
    for count in shared.pick(chosen, (1, 3), (1, 3, 5, 7, 9, 13), (1, 3, 5, 7, 9, 13, 17, 21)):
        row: dict[str, Any] = {"replicas": count, "exact": median_failure(count, upper, lower)}
        for name in ("median", "mean"):
            found = simulate_vote(space, count, epsilon, voter(name), trials, seed=chosen.seed + 2)
            row |= {name: float(found.pooled.value), f"{name} low": float(found.pooled.low),
                    f"{name} high": float(found.pooled.high)}  # fmt: skip
        rows.append(row)
    print(f"one network: P(Delta >= {epsilon:.3g}) = {upper:.3g}, <= -epsilon {lower:.3g}")
    shared.table(chosen.out, "h_replicas", rows)
    counts = []
    for single in (0.01, 0.0918, 0.2, 1 / 3):
        for target in (1e-3, 1e-6):
            plan = plan_replicas(target, single)
            counts.append(
                {"one fails": single, "target": target, "exact count": plan.count,
                 "published count": published_replicas(target),
                 "which fails with": plan.published_failure}
            )  # fmt: skip
    shared.table(chosen.out, "h_counts", counts)
    bad = byzantine_table(net, test.first(shared.pick(chosen, 20, 200, 500)).inputs, 11,
                          faults=FAULTS, trials=shared.pick(chosen, 1, 5, 20))  # fmt: skip
    print("\n" + bad.text())
    (chosen.out / "h_byzantine.txt").write_text(bad.text() + "\n")
    bad.plot(chosen.out / "h_byzantine.png")
    robust = [
        voter_robustness(name, *shared.pick(chosen, (5, 1), (11, 3), (11, 3)))
        for name in VOTERS
        if name != "majority"  # votes on classes, not on values
    ]
    shared.table(
        chosen.out,
        "h_robustness",
        [
            {"voter": r.voter, "least": r.least, "found": r.found, "bound": r.bound or ""}
            for r in robust
        ],
    )
    drawn, panels = shared.figure(1, width=6)
    x = [row["replicas"] for row in rows]
    panels[0].semilogy(x, [row["exact"] for row in rows], "k-", label="binomial law")
    for name, color in (("median", "tab:blue"), ("mean", "tab:orange")):
        y = np.array([[row[name], row[f"{name} low"], row[f"{name} high"]] for row in rows])
        shown = np.maximum(y, 1e-7)
        panels[0].errorbar(x, shown[:, 0], np.abs(shown[:, 1:] - shown[:, :1]).T, fmt="o",
                           color=color, label=f"{name}, simulated")  # fmt: skip
    panels[0].set(xlabel="replicas", ylabel="P(the vote fails)", ylim=(1e-6, 1))
    panels[0].legend()
    shared.save(drawn, chosen.out, "h_replicas")
    return rows


if __name__ == "__main__":
    main()
