"""How good are the numbers? Every method against Monte Carlo and importance sampling.

On networks trained on the embedded digits, with both hidden layers faulty:

1. relative error of E and Var Delta, over inputs and outputs, beside Monte Carlo's own noise;
2. what a sample is worth: plain samples that would do as well as one with a control variate and
   (where faults are rare) exact strata; samples to +-2% of Var Delta, with and without;
3. tails at 1e-3, 1e-6 and 1e-9: each method over importance sampling, for several inputs;
4. forward passes that importance sampling asks for a standard error of 10%, faults in one and in
   both hidden layers.

    python benchmarks/accuracy.py [--quick]
"""

import argparse

import numpy as np
from crashsim_theory import SurrogateLaw, certify, chebyshev
from torch import nn

from crashsim import FaultSpace, NeuronCrash, monte_carlo, score
from crashsim.analytic.first_order import Analysis, double_precision, mean_point_single, of_pair
from crashsim.analytic.proofs import provable
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import load_data
from crashsim.sampling.exact_strata import probability_of_two
from crashsim.sampling.tilted.events import tail_events
from crashsim.sampling.tilted.importance import sample_union
from crashsim.training.classifier import train_classifier

MOMENTS = ("taylor", "single", "mean-point-taylor", "mean-point-single")


def trained(spec: str) -> nn.Module:
    model = parse_architecture(spec).build(seed=0)
    train_classifier(model, load_data("digits", "train"))
    return model


def moments(specs: list[str], probabilities: list[float], samples: int) -> None:
    print("relative error of E | Var Delta; in brackets, Monte Carlo's half-width")
    for spec in specs:
        model = trained(spec)
        for p in probabilities:
            result = score(
                model, load_data("digits").first(32).inputs, NeuronCrash(p),
                methods=[*MOMENTS, "monte-carlo"], samples=samples,
            )  # fmt: skip
            errors = {(a.method, a.quantity): a for a in result.agreement}
            cells = "  ".join(
                f"{m} {errors[m, 'mean'].relative_error:.3f} | "
                f"{abs((errors[m, 'variance'].ratio or 0) - 1):.3f}"
                for m in MOMENTS
            )
            noise = " | ".join(f"{errors['taylor', q].noise:.3f}" for q in ("mean", "variance"))
            print(f"{spec:24} p={p:<6g} {cells}  ({noise})")


def fewer_samples(specs: list[str], probabilities: list[float]) -> None:
    print("\nplain samples that one is worth: median (smallest) over inputs and outputs")
    inputs = load_data("digits").first(16).inputs
    for spec in specs:
        model = trained(spec)
        for p in probabilities:
            space, analysis = FaultSpace(model, inputs, NeuronCrash(p)), Analysis()
            mean_point_single(double_precision(space), analysis)
            few = probability_of_two(space.mean_point) < 0.5
            options = {"control": analysis.surrogate, "few_exact": few}
            found = monte_carlo(space, samples=10_000, epsilon=1.0, **options)  # type: ignore[arg-type]
            cells = []
            for quantity in ("mean", "variance", "tail", "class-change"):
                chosen = [e for e in found.estimates if e.quantity == quantity and e.worth]
                worth = [e.worth / found.samples for e in chosen if e.worth and e.input != "all"]
                if worth:
                    cells.append(f"{quantity} {np.median(worth):.2g} ({min(worth):.2g})")
            plain, better = (
                monte_carlo(space, rel_width=0.02, **o).samples  # type: ignore[arg-type]
                for o in ({}, options)
            )
            strata = "with strata" if few else "           "
            print(
                f"{spec:24} p={p:<6g} {strata} {'  '.join(cells)}; to 2% of Var: {plain:,} plain, "
                f"{better:,}"
            )


def passes(specs: list[str], inputs: int, samples: int) -> None:
    print("\npasses to a standard error of 10%: median (largest) over inputs, output 3")
    for spec in specs:
        model = trained(spec)
        for sites in ("hidden", f"{spec.rpartition(':')[2]}1"):
            for p in (0.001, 0.01):
                space = FaultSpace(
                    model, load_data("digits").first(inputs).inputs, NeuronCrash(p), sites
                )
                analysis = Analysis()
                mean_point_single(double_precision(space), analysis)
                assert analysis.surrogate is not None
                cells = []
                for delta in (1e-3, 1e-6, 1e-9):
                    asked = []
                    for b in range(inputs):
                        one = of_pair(analysis.surrogate, b, 3)
                        events = tail_events(one, 3, space.K, float(one.quantile(delta)))
                        found = sample_union(
                            space.at_input(b), events, b, samples=samples, rel_width=0.01
                        )
                        asked.append(found.samples * (found.error / 0.1) ** 2)
                    cells.append(f"{delta:g} {np.median(asked):,.0f} ({max(asked):,.0f})")
                print(f"{spec:24} {sites:9} p={p:<6g} {'  '.join(cells)}")


def tails(specs: list[str], inputs: int, samples: int) -> None:
    print("\ntails over importance sampling: median [smallest, largest] over inputs, output 3")
    for spec in specs:
        model = trained(spec)
        space = FaultSpace(model, load_data("digits").first(inputs).inputs, NeuronCrash(0.01))
        analysis = Analysis()
        mean_point_single(double_precision(space), analysis)
        surrogate, proof = analysis.surrogate, provable(space)
        assert surrogate is not None
        for delta in (1e-3, 1e-6, 1e-9):
            ratios: dict[str, list[float]] = {}
            for b in range(inputs):
                one = of_pair(surrogate, b, 3)
                epsilon = float(one.quantile(delta))
                found = sample_union(
                    space.at_input(b), tail_events(one, 3, space.K, epsilon), b, samples=samples
                )
                x = proof.inputs[b]
                for name, value in {
                    "saddlepoint": one.saddlepoint(epsilon),
                    "surrogate-law": SurrogateLaw.of(one).tail(epsilon),
                    "chernoff": one.chernoff(epsilon),
                    "chebyshev": chebyshev(one.mean, one.variance, epsilon),
                    "certificate": certify(proof.network, x, proof.faults, epsilon, 3).probability,
                }.items():
                    ratios.setdefault(name, []).append(float(value) / found.value)
            cells = "  ".join(
                f"{name} {np.median(r):.2g} [{min(r):.2g}, {max(r):.2g}]"
                for name, r in ratios.items()
            )
            print(f"{spec:24} {delta:g}: {cells}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small network")
    quick = parser.parse_args(arguments).quick
    narrow = ["64-100-50-10:sigmoid", "64-100-50-10:relu"]
    moments(
        narrow[:1] if quick else [*narrow, "64-1000-50-10:tanh"],
        [0.01] if quick else [0.01, 0.1],
        1000 if quick else 50_000,
    )
    wide = ["64-1000-100-10:relu", "64-1000-100-10:sigmoid"]
    specs = narrow[:1] if quick else [*narrow, *wide]
    fewer_samples(specs, [0.01] if quick else [0.001, 0.01, 0.1])
    tails(specs[:1] if quick else [*narrow, wide[1]], 2 if quick else 6, 16_384)
    passes(specs, 2 if quick else 6, 1024 if quick else 16_384)


if __name__ == "__main__":
    main()
