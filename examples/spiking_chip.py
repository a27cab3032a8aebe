"""Theory, Monte Carlo and a spiking chip, side by side; writes an HTML report."""

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


if __name__ == "__main__":
    main()
