"""Which of three architectures tolerates crashes best, over several trainings of each?"""

import argparse
from pathlib import Path

import crashsim
from crashsim import NeuronCrash
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import load_data
from crashsim.results.comparison import compare
from crashsim.training.classifier import Recipe, accuracy, train_classifier

ARCHITECTURES = ("64-30-10:relu", "64-100-10:relu", "64-100-10:tanh")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inits", type=int, default=3, help="trainings of each architecture")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1000, help="Monte Carlo samples")
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    training, test = load_data("digits", "train"), load_data("digits", "test")
    scores: dict[str, list[crashsim.Score]] = {name: [] for name in ARCHITECTURES}
    accuracies: dict[str, list[float]] = {name: [] for name in ARCHITECTURES}
    for name in ARCHITECTURES:
        for init in range(options.inits):
            model = parse_architecture(name).build(seed=init)
            train_classifier(model, training, Recipe(epochs=options.epochs, seed=init))
            accuracies[name].append(accuracy(model, test))
            scores[name].append(
                crashsim.score(
                    model,
                    test.first(32).inputs,
                    NeuronCrash(p=0.02),
                    methods=["monte-carlo"],
                    samples=options.samples,
                )
            )

    result = compare(scores, accuracies=accuracies)
    print(result.verdict)
    rows = []
    for contender in result.contenders:
        change = contender.measures["class-change"]
        print(
            f"{contender.name:16} class changes {change.value:.2%} "
            f"[{change.low:.2%}, {change.high:.2%}], accuracy {contender.accuracy:.1%}"
        )
        rows.append((contender.name, change.value, change.low, change.high))
    if options.figure:
        draw(rows, options.figure)


def draw(rows: list[tuple[str, float, float, float]], path: Path) -> None:
    """Values with their intervals, one under the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for at, (_, value, low, high) in enumerate(reversed(rows)):
        axes.plot([low, high], [at, at], color="tab:blue", lw=2)
        axes.plot(value, at, "o", color="tab:blue")
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_xlabel("P(the class changes), 2% of the neurons dead")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
