# ruff: noqa: E402 (the thread count must be set before numpy is imported)
"""How many copies of a crashed chip each engine runs per second, and how well they agree.

A copy-run is one mask on one input through the whole window: 64-100-50-10, ReLU, T = 100 steps.
The baseline is what a first script would do: a new brian2 Network, with Synapses, for every mask.
Everything runs in one process on one thread, so that the ratios mean something.

    python benchmarks/hardware_throughput.py [--seconds 3] [--baseline 12] [--agreement]
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy loads its BLAS

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from crashsim_hardware import (
    Chip,
    ChipFaults,
    Linear,
    Network,
    NeuronLayer,
    convert,
    run,
    sample_dead,
    spiking_gap,
)


def trained(activation: str = "relu", seed: int = 0) -> tuple[Network, np.ndarray, np.ndarray]:
    """A digits network, with the inputs it was trained on and those it was not."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = x / 16.0
    name = {"relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}[activation]
    model = MLPClassifier((100, 50), activation=name, max_iter=60, alpha=1e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x[:1300], y[:1300])
    pairs = zip(model.coefs_, model.intercepts_, strict=True)
    layers = [
        NeuronLayer(Linear(weight.T, bias), activation if index < 2 else "linear")
        for index, (weight, bias) in enumerate(pairs)
    ]
    return Network(layers, (64,)), x[:1300], x[1300:]


def rate(work: Callable[[], int], seconds: float) -> float:
    """Copy-runs per second: the median over repeats that together take about `seconds`."""
    work()  # code generation and first-touch costs are not the engine's
    rates, start = [], time.perf_counter()
    while not rates or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - before))
    return statistics.median(rates)


def plain_network_per_mask(chip: Chip, x: np.ndarray, faults: ChipFaults, masks: int) -> int:
    """The baseline: every mask builds, runs and throws away its own Network, as a script would."""
    import brian2 as b2

    physics = chip.physics
    constants = {"C": physics.capacitance * b2.farad, "v_th": physics.threshold * b2.volt}
    model = "dv/dt = I / C : volt\nI : amp\nalive : 1"
    drives = [chip.hidden[0].projection.drive(x[None])[0, 0], chip.hidden[1].projection.bias]
    for mask in range(masks):
        clock = b2.Clock(dt=physics.dt * b2.second)
        groups = [
            b2.NeuronGroup(
                size,
                model,
                threshold="v >= v_th and alive > 0",
                reset="v -= v_th",
                method="euler",
                namespace=constants,
                clock=clock,
            )
            for size in chip.sizes
        ]
        for group, drive, dead in zip(groups, drives, faults.dead or (), strict=True):
            group.v = np.random.default_rng(mask).random(len(drive)) * physics.threshold * b2.volt
            group.I = drive * physics.charge / physics.dt * b2.amp
            group.alive = ~dead[mask]
        wires = b2.Synapses(*groups, "w : volt", on_pre="v_post += w", clock=clock)
        wires.connect()
        wires.w = chip.hidden[1].projection.matrix().ravel() * physics.threshold * b2.volt
        counts = b2.SpikeMonitor(groups[1], record=False)
        network = b2.Network(*groups, wires, counts)
        network.run(chip.steps * physics.dt * b2.second)
        chip.read(np.asarray(counts.count, dtype=float))
    return masks


def network_per_mask(chip: Chip, x: np.ndarray, faults: ChipFaults, masks: int) -> int:
    """The same through this package, which keeps the garbage collector out of every run."""
    for mask in range(masks):
        run(chip, x, faults.only(mask), engine="brian2-synapses", phases="random")
    return masks


def machine() -> str:
    """The processor, and the versions that matter."""
    import brian2

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return (
        f"{cpu or platform.processor() or platform.machine()}, one thread; "
        f"Python {platform.python_version()}, numpy {np.__version__}, brian2 {brian2.__version__}"
    )


def throughput(seconds: float, baseline: int) -> None:
    """Print copy-runs per second and their ratios to one Network per mask."""
    network, train, test = trained()
    chip = convert(network, train, steps=100)
    x = test[:1]
    faults = sample_dead(chip, 0.05, 4096, seed=1)
    few = sample_dead(chip, 0.05, 256, seed=1)

    def copies(engine: str, faults: ChipFaults) -> Callable[[], int]:
        def work() -> int:
            return len(run(chip, x, faults, engine=engine, phases="random").outputs)

        return work

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # brian2's use of pyparsing
        import brian2

        brian2.prefs["codegen.target"] = "numpy"
        plain = rate(lambda: plain_network_per_mask(chip, x, faults, baseline), seconds)
    measured = {
        "brian2, a Network per mask": plain,
        "the same, collector frozen": rate(
            lambda: network_per_mask(chip, x, faults, baseline), seconds
        ),
        "brian2, Synapses, 64 copies": rate(copies("brian2-synapses", few), seconds),
        "brian2, dense delivery": rate(copies("brian2", faults), seconds),
        "numpy": rate(copies("numpy", faults), seconds),
    }
    print("64-100-50-10 ReLU, T = 100, random phases")
    print(f"{'engine':30}{'copy-runs/s':>14}{'ratio':>10}")
    for name, value in measured.items():
        print(f"{name:30}{value:14,.0f}{value / plain:9,.0f}x")


def mean_point_variance(network: Network, x: np.ndarray, p: float) -> np.ndarray:
    """sum p (1 - p) (F(m, e_i = 1) - F(m, e_i = 0))^2: the theory's estimate of Var Delta."""
    total = np.zeros((len(x), network.shapes[-1][0]))
    for layer, size in enumerate(network.sizes):
        ends = []
        for value in (0.0, 1.0):
            gain = [np.full((size, n), 1.0 - p) for n in network.sizes]
            np.fill_diagonal(gain[layer], value)
            ends.append(network.forward(x, gain=gain).outputs)
        total += p * (1.0 - p) * ((ends[0] - ends[1]) ** 2).sum(axis=0)
    return total


def agreement() -> None:
    """Print how the chip compares with its network and with the theory."""
    print(
        f"\n{'network':14}{'T':>4}{'RMSE %':>9}{'same class %':>14}{'E slope':>9}{'Var ratio':>11}"
        f"{'E corr':>9}{'Var corr':>10}{'Var/theory':>12}"
    )
    for activation in ("relu", "sigmoid", "tanh"):
        for seed in (0, 1, 2):
            network, train, test = trained(activation, seed)
            exact = network.forward(test).outputs
            theory = mean_point_variance(network, test[:8], 0.05)
            for steps in (50, 100):
                chip = convert(network, train, steps)
                read = run(chip, test, engine="numpy").outputs[0]
                rmse = np.sqrt(((read - exact) ** 2).mean() / (exact**2).mean())
                same = (read.argmax(1) == exact.argmax(1)).mean()
                faults = sample_dead(chip, 0.05, 3000, seed=1)
                gap = spiking_gap(chip, test[:8], faults, engine="numpy")
                ratio = gap.statistics.variance.value.sum() / theory.sum()
                print(
                    f"{activation + ' ' + str(seed):14}{steps:4}{100 * rmse:9.2f}{100 * same:14.2f}"
                    f"{gap.slope:9.4f}{gap.variance_ratio:11.4f}{gap.correlation:9.5f}"
                    f"{gap.variance_correlation:10.5f}{ratio:12.3f}"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per engine")
    parser.add_argument("--baseline", type=int, default=12, help="masks of the baseline")
    parser.add_argument("--agreement", action="store_true", help="also compare with the network")
    options = parser.parse_args()
    print(machine())
    throughput(options.seconds, options.baseline)
    if options.agreement:
        agreement()
