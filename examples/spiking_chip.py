"""Do theory, Monte Carlo and a spiking chip agree on what dead neurons do? With an HTML report."""

import argparse
from pathlib import Path

import crashsim
from crashsim import NeuronCrash
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, train_classifier


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--inputs", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("spiking_chip.html"))
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    model = parse_architecture("64-60-30-10:relu").build(seed=0)
    train_classifier(model, load_data("digits", "train"), Recipe(epochs=options.epochs))
    inputs = load_data("digits", "test").first(options.inputs).inputs

    score = crashsim.score(model, inputs, NeuronCrash(p=0.05), samples=2000, hardware=True)

    for method in ("mean-point-single", "monte-carlo", "hardware"):
        print(score.find(method, "variance"))
    assert score.hardware is not None
    print(
        "chip against network, mask by mask: slope of the mean "
        f"{score.hardware['slope']:.3f}, ratio of the variance "
        f"{score.hardware['variance_ratio']:.3f}"
    )
    options.out.write_text(score.to_html())
    print(f"wrote {options.out}")
    if options.figure:
        draw(score, options.figure)


def draw(score: crashsim.Score, path: Path) -> None:
    """The variance of every input and output: theory and chip against Monte Carlo."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    values: dict[str, dict[tuple[object, object], float]] = {}
    for e in score.estimates:
        if e.quantity == "variance" and isinstance(e.input, int) and isinstance(e.output, int):
            values.setdefault(e.method, {})[e.input, e.output] = float(e.value)
    measured = values["monte-carlo"]
    for method, mark in (("hardware", "x"), ("mean-point-single", ".")):
        shared = values[method].keys() & measured.keys()
        axes.plot(
            [measured[k] for k in shared], [values[method][k] for k in shared], mark, label=method
        )
    ends = [min(measured.values()), max(measured.values())]
    axes.plot(ends, ends, color="grey", lw=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(which="minor", labelbottom=False, labelleft=False)
    axes.set_xlabel("variance by Monte Carlo")
    axes.set_ylabel("variance by theory, and on the chip")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
