"""How far does each fault of a spiking chip move its outputs, and which neurons are the worst?"""

import argparse
from pathlib import Path

import numpy as np
from crashsim_hardware import (
    Drift,
    IrDrop,
    Levels,
    Variation,
    crash_statistics,
    criticality,
    device,
    phase_change,
    sample_cells,
)
from crashsim_hardware.noticing import collecting

from crashsim import FaultSpace, GainNoise
from crashsim.chip.chip_faults import CHIP_FAULTS, parse_chip_fault
from crashsim.chip.conversion import chip_of
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, train_classifier

STRENGTHS = {
    "stuck-neuron": "0.02,rate=0.3", "mismatch": "0.1", "refractory-variation": "0.5",
    "weight-bits": "4", "adc-bits": "5,adc_range=0.3", "levels": "8", "drift": "1e6,nu=0.05",
    "pcm": "3600", "ir-drop": "2e-5", "bit-flip": "1e-3", "read-noise": "0.1",
    "perturbed-synapse": "0.1", "conductance-variation": "0.1",
}  # fmt: skip
DEVICES = ("rram-stuck-cells", "sram-65nm", "pcm", "loihi-2", "brainscales-2", "speck", "akida")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--inputs", type=int, default=8)
    parser.add_argument("--masks", type=int, default=200)
    parser.add_argument("--figure", type=Path, help="a picture of it")
    options = parser.parse_args(arguments)

    model = parse_architecture("64-40-10:relu").build(seed=0)
    train_classifier(model, load_data("digits", "train"), Recipe(epochs=options.epochs))
    inputs = load_data("digits", "test").first(options.inputs).inputs
    chip, _ = chip_of(FaultSpace(model, inputs, GainNoise(0.1)))
    x = inputs.double().numpy()

    variances = []

    def moved(faults) -> str:
        with collecting():  # of windows too short for a small effect
            found = crash_statistics(chip, x, faults)
        variances.append(float(found.variance.value.mean()))
        shift = float(np.abs(found.mean.value).mean())
        return f"|E delta| {shift:8.4f}   Var delta {found.variance.value.mean():9.5f}"

    print("one fault at a time, by the names of --chip-fault")
    specs = []
    for name in CHIP_FAULTS:
        if name == "leak-variation":  # the neurons of a converted ReLU network have no leak
            continue
        spec = f"{name}={STRENGTHS.get(name, '0.02')}"
        specs.append(spec)
        print(f"  {spec:32} {moved(parse_chip_fault(spec)(chip, options.masks, 0))}")

    if options.figure:
        draw(specs, variances, options.figure)

    print("devices")
    for name in DEVICES:
        print(f"  {name:32} {moved(device(name).sample(chip, options.masks, 0))}")

    print("cells with several effects, in order")
    cells = [
        Levels(32),
        Variation(0.03),
        Drift(86400.0, 0.05, 0.01, compensated=True),
        IrDrop(1e-5),
    ]
    print(f"  {'levels, variation, drift, IR drop':32} "
          f"{moved(sample_cells(chip, cells, options.masks, 0))}")  # fmt: skip
    for time in (0.0, 3600.0, 86400.0 * 30):
        told = f"phase-change memory, {time:g} s"
        print(f"  {told:32} {moved(sample_cells(chip, phase_change(time), options.masks, 0))}")

    print("the worst single faults of neurons")
    for worst in criticality(chip, x).worst(5):
        print(f"  {worst.fault} {worst.layer} {worst.index}: {worst.moved:.3f}, "
              f"classes changed {worst.changed:.0%}")  # fmt: skip


def draw(names: list[str], variances: list[float], path: Path) -> None:
    """The variance of the outputs under each fault, the largest first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.8 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots()
    order = sorted(range(len(names)), key=lambda i: variances[i])
    axes.barh([names[i] for i in order], [variances[i] for i in order], color="tab:blue")
    axes.set_xscale("log")
    axes.set_xlabel("variance over chips (no bar: the same on every chip)")
    axes.tick_params("y", labelsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
