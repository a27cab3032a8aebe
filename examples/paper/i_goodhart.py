"""(i) Is the measure still a measure? Theory and Monte Carlo while training pushes theory down.

Beyond the paper. Networks are trained with the variance penalty at growing strength; held-out
inputs show whether the measured variance follows the penalised formula (Goodhart's law). The table
gives the ratio of theory to measurement at the start, its extremes along training, and at the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import shared

from crashsim import CrashsimWarning, CrashVariance, NeuronCrash, TrainingReport
from crashsim.files.architectures import parse_architecture
from crashsim.training.classifier import Recipe, train_classifier

FAULTS = {"hidden": NeuronCrash(p=0.05)}


def followed(spec: str, strength: float, chosen: Any, looks: int) -> TrainingReport:
    """Trains in ``looks`` stretches and looks after each."""
    training, test = shared.data_of(chosen)
    some = test.first(32)
    net = parse_architecture(f"{training.inputs.shape[1]}-{spec}").build(chosen.seed)
    report = TrainingReport(net, some.inputs, FAULTS, targets=some.targets, samples=400)
    report.look(0)
    recipe = Recipe(epochs=shared.pick(chosen, 1, 4, 2), seed=chosen.seed)
    with CrashVariance(net, FAULTS, strength=strength, seed=chosen.seed) as penalty:
        for step in range(1, looks + 1):
            train_classifier(net, training, recipe, penalties=[penalty])
            report.look(step * recipe.epochs)
    return report


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    chosen = shared.options(argv, __doc__)
    looks = shared.pick(chosen, 1, 3, 8)
    rows = []
    drawn, panels = shared.figure(2)
    for axes, spec in zip(panels, ("100-50-10:sigmoid", "100-50-10:relu"), strict=True):
        for strength in shared.pick(chosen, (0.1,), (0.0, 1.0), (0.0, 0.1, 1.0, 3.0)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CrashsimWarning)  # the table says it
                report = followed(spec, strength, chosen, looks)
            ratios = [look.ratio for look in report.looks]
            last = report.looks[-1]
            rows.append(
                {
                    "network": spec,
                    "strength": strength,
                    "ratio, start": ratios[0],
                    "lowest": min(ratios),
                    "highest": max(ratios),
                    "end": ratios[-1],
                    "measured Var, end": last.measured,
                    "clean accuracy": last.accuracy,
                    "crashing accuracy": last.crashed_accuracy,
                    "outside 0.5 to 2": len(report.bent),
                }
            )
            steps = [look.step for look in report.looks]
            axes.plot(steps, ratios, "o-", label=f"strength {strength:g}")
        axes.axhspan(0.5, 2, color="tab:green", alpha=0.1)
        axes.set(title=spec, xlabel="epochs", ylabel="theory / measured", yscale="log")
    panels[0].legend(fontsize=8)
    shared.table(chosen.out, "i_goodhart", rows)
    shared.save(drawn, chosen.out, "i_goodhart")
    return rows


if __name__ == "__main__":
    main()
