"""When is a dead neuron worst for a spiking chip that sees events? Digits as spikes of pixels."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from crashsim_hardware import event_trains, run, sample_dead

from crashsim import FaultSpace, NeuronCrash
from crashsim.chip.conversion import chip_of
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, train_classifier

STEP = 1000.0  # microseconds, of which recordings of events count their times


def events_of(pictures: np.ndarray, steps: int, seed: int) -> tuple[np.ndarray, ...]:
    """Times, addresses and examples: a pixel x of 0 to 1 sends an event a step with probability x.

    This is what an .npz for `crashsim hardware GRAPH.nir --inputs events.npz` holds, too.
    """
    rng = np.random.default_rng(seed)
    fired = rng.random((len(pictures), steps, pictures.shape[1])) < pictures[:, None]
    examples, step, addresses = np.nonzero(fired)
    times = STEP * (step + rng.random(len(step)))
    return times, addresses, examples


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--inputs", type=int, default=50)
    parser.add_argument("--masks", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    model = parse_architecture("64-60-30-10:relu").build(seed=0)
    train_classifier(model, load_data("digits", "train"), Recipe(epochs=options.epochs))
    digits = load_data("digits", "test").first(options.inputs)
    assert digits.targets is not None
    inputs, labels = digits.inputs / digits.inputs.max(), digits.targets.numpy()
    chip, _ = chip_of(FaultSpace(model, inputs, NeuronCrash(0.2)), options.steps)
    x = inputs.double().numpy()

    times, addresses, examples = events_of(x, chip.total_steps, seed=1)
    train = event_trains(
        times, addresses, chip.input_shape, chip.total_steps,
        step=STEP, examples=examples, count=len(x),
    )  # fmt: skip

    def accuracy(signals: np.ndarray, faults=None) -> float:
        return float((run(chip, signals, faults).outputs.argmax(-1) == labels).mean())

    print(f"{len(times):,} events of {len(x)} digits in {chip.total_steps} steps")
    print(f"  as constant currents: accuracy {accuracy(x):.1%}")
    shown = {"intact": accuracy(train)}
    print(f"  as events:            accuracy {shown['intact']:.1%}")
    dead = sample_dead(chip, 0.2, options.masks, seed=0)
    print("one neuron in five dead, on events")
    shown["dead in all steps"] = accuracy(train, dead)
    print(f"  in all steps:         accuracy {shown['dead in all steps']:.1%}")
    quarter = options.steps // 4
    for start in range(0, 4 * quarter, quarter):
        window = (start, start + quarter)
        told = f"in steps {window[0]} to {window[1] - 1}:"
        shown[told.rstrip(":")] = accuracy(train, replace(dead, window=window))
        print(f"  {told:21} accuracy {shown[told.rstrip(':')]:.1%}")
    if options.figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.barh(list(shown)[::-1], list(shown.values())[::-1], color="tab:blue")
        axes.set_xlabel("accuracy on events, one neuron in five dead")
        figure.savefig(options.figure, dpi=120)


if __name__ == "__main__":
    main()
