# ruff: noqa: E402 (the thread count must be set before torch is imported)
"""How fast faulty samples are computed, against the plain forward pass and against other ways.

    python benchmarks/engine.py [--quick] [--repeats 5]

The ratio is (time of the plain forward pass on the same number of rows) / (time of the samples):
above 1, a faulty sample costs less than a plain evaluation of the model. Both are timed in turn in
one process on one thread, in seconds of the processor, so that other work on the machine does not
count, and the median of the ratios is printed; ``drawing`` adds the time to draw the faults. The
plain pass takes its rows in chunks of the size that suits it best.
PyTorchFI 0.6 is compared with if it can be imported.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import itertools
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crashsim import FaultSpace, GainNoise, NeuronCrash, WeightCrash
from crashsim.coordinates.drawing import sample_points

Faults = dict[str, Any]


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    ).eval()


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 10),
    ).eval()


def wide_convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 128, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.cell(x)[0][:, -1])
        return out


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.encoder(x).mean(1))
        return out


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "784-1000-500-10": (lambda: mlp(784, 1000, 500, 10), (784,)),
    "conv": (convolutional, (3, 16, 16)),
    "wide conv": (wide_convolutional, (3, 16, 16)),
    "lenet": (lenet, (1, 28, 28)),
    "lstm": (lambda: Recurrent().eval(), (16, 32)),
    "encoder": (lambda: Encoder().eval(), (16, 64)),
    "small": (lambda: mlp(8, 32, 16, 3), (8,)),
    "64-100-50-10": (lambda: mlp(64, 100, 50, 10), (64,)),
    "2-6-1": (lambda: mlp(2, 6, 1), (2,)),
}
MLP = "784-1000-500-10"
CHANNEL = NeuronCrash(0.01, group="channel")
LARGE = [  # net, what, faults, inputs
    (MLP, "neurons, hidden, p = 0.001", {"hidden": NeuronCrash(0.001)}, 1),
    (MLP, "neurons, hidden, p = 0.01", {"hidden": NeuronCrash(0.01)}, 1),
    (MLP, "neurons, hidden, p = 0.01", {"hidden": NeuronCrash(0.01)}, 16),
    (MLP, "neurons, hidden, p = 0.1", {"hidden": NeuronCrash(0.1)}, 1),
    (MLP, "neurons, hidden, p = 0.3", {"hidden": NeuronCrash(0.3)}, 1),
    (MLP, "neurons, hidden, p = 0.3", {"hidden": NeuronCrash(0.3)}, 4),
    (MLP, "neurons, input, p = 0.01", {"input": NeuronCrash(0.01)}, 1),
    (MLP, "neurons, input, p = 0.3", {"input": NeuronCrash(0.3)}, 1),
    (MLP, "neurons, input, p = 0.3", {"input": NeuronCrash(0.3)}, 16),
    (MLP, "gain noise, input", {"input": GainNoise(0.1)}, 1),
    (MLP, "gain noise, input", {"input": GainNoise(0.1)}, 4),
    (MLP, "weights, layer 1, p = 0.0001", {"0.weight": WeightCrash(1e-4)}, 1),
    (MLP, "weights, layer 1, p = 0.001", {"0.weight": WeightCrash(1e-3)}, 1),
    (MLP, "weights, layer 1, p = 0.001", {"0.weight": WeightCrash(1e-3)}, 4),
    (MLP, "weights, all, p = 0.001", {"weights": WeightCrash(1e-3)}, 1),
    (MLP, "weights, all, p = 0.001", {"weights": WeightCrash(1e-3)}, 4),
    ("conv", "neurons, input, p = 0.01", {"input": NeuronCrash(0.01)}, 1),
    ("conv", "neurons, input, p = 0.3", {"input": NeuronCrash(0.3)}, 1),
    ("conv", "neurons, hidden, p = 0.01", {"hidden": NeuronCrash(0.01)}, 1),
    ("conv", "neurons, hidden, p = 0.01", {"hidden": NeuronCrash(0.01)}, 4),
    ("conv", "neurons, hidden, p = 0.3", {"hidden": NeuronCrash(0.3)}, 1),
    ("conv", "channels, p = 0.01", {"1": CHANNEL}, 1),
    ("conv", "weights, all, p = 0.001", {"weights": WeightCrash(1e-3)}, 1),
    ("conv", "weights, all, p = 0.001", {"weights": WeightCrash(1e-3)}, 4),
    ("wide conv", "neurons, first, p = 0.01", {"1": NeuronCrash(0.01)}, 1),
    ("wide conv", "channels, first, p = 0.01", {"1": CHANNEL}, 1),
    ("wide conv", "weights, last conv, p = 0.001", {"2.weight": WeightCrash(1e-3)}, 1),
    ("lenet", "neurons, hidden, p = 0.01", {"hidden": NeuronCrash(0.01)}, 1),
    ("lenet", "neurons, hidden, p = 0.3", {"hidden": NeuronCrash(0.3)}, 1),
    ("lstm", "neurons, hidden, p = 0.3", {"hidden": NeuronCrash(0.3)}, 1),
    ("lstm", "neurons, input, p = 0.3", {"input": NeuronCrash(0.3)}, 1),
    ("encoder", "neurons, hidden, p = 0.3", {"hidden": NeuronCrash(0.3)}, 1),
    ("encoder", "neurons, input, p = 0.3", {"input": NeuronCrash(0.3)}, 1),
    ("2-6-1", "weights, layer 1, p = 0.3", {"0.weight": WeightCrash(0.3)}, 1),
    ("2-6-1", "weights, layer 1, p = 0.3", {"0.weight": WeightCrash(0.3)}, 16),
    ("64-100-50-10", "weights, all, p = 0.3", {"weights": WeightCrash(0.3)}, 1),
    ("64-100-50-10", "weights, all, p = 0.3", {"weights": WeightCrash(0.3)}, 16),
    ("lenet", "weights, all, p = 0.3", {"weights": WeightCrash(0.3)}, 1),
    ("lstm", "weights, all, p = 0.3", {"weights": WeightCrash(0.3)}, 1),
    ("lstm", "weights, all, p = 0.001", {"weights": WeightCrash(0.001)}, 1),
]
SMALL = [
    ("small", "neurons, hidden, p = 0.05", {"hidden": NeuronCrash(0.05)}, 2),
    ("small", "neurons, input, p = 0.3", {"input": NeuronCrash(0.3)}, 1),
    ("small", "weights, layer 1, p = 0.01", {"0.weight": WeightCrash(0.01)}, 1),
    ("small", "weights, layer 1, p = 0.3", {"0.weight": WeightCrash(0.3)}, 1),
]


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def repeat(work: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        work()


def plain_pass(model: nn.Module, rows: torch.Tensor) -> Callable[[], Any]:
    """The model on all rows, as many at a time as is fastest."""

    @torch.no_grad()
    def work(size: int) -> None:
        for chunk in rows.split(size):
            model(chunk)

    sizes = [size for size in (32, 128, 512, 1024) if size <= len(rows)]
    times = {size: min(seconds(partial(work, size)) for _ in range(2)) for size in sizes}
    return partial(work, min(times, key=times.__getitem__))


def masking(keep: torch.Tensor) -> Callable[..., Any]:
    return lambda _, __, out: (out[0] * keep, *out[1:]) if isinstance(out, tuple) else out * keep


def naive_loop(space: FaultSpace, count: int) -> Callable[[], np.ndarray] | None:
    """One sample after the other: draw a full mask, multiply, run the model.

    None where a mask on a module's output is not enough.
    """
    if any(p.site.function for p in space.placements):
        return None
    model = space.model
    parameters = dict(model.named_parameters())

    @torch.no_grad()
    def work() -> np.ndarray:
        outputs = []
        for sample in range(count):
            generator = torch.Generator().manual_seed(sample)
            x, changed, handles = space.inputs, dict(parameters), []
            for p in space.placements:
                keep = torch.rand(p.site.shape, generator=generator) >= p.fault.rate
                if p.site.kind == "parameter":
                    changed[p.site.module] = parameters[p.site.module] * keep
                elif p.site.kind == "input":
                    x = x * keep
                else:
                    module = model.get_submodule(p.site.module)
                    handles.append(module.register_forward_hook(masking(keep)))
            outputs.append(torch.func.functional_call(model, changed, (x,)).numpy())
            for handle in handles:
                handle.remove()
        return np.stack(outputs)

    return work


def pytorchfi_loop(space: FaultSpace, count: int) -> Callable[[], Any] | str:
    """The same faults injected by PyTorchFI; or why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pytorchfi.core import fault_injection  # type: ignore[import-not-found]
    except ImportError as error:
        return f"not installed ({error}); pip install pytorchfi==0.6.0 --no-deps"
    points = sample_points(space.placements, 0, count)
    model, shape = space.model, list(space.inputs.shape[1:])
    if space.B != 1 or any(p.site.kind == "input" for p in space.placements):
        return "-"
    if all(p.site.kind == "parameter" for p in space.placements):
        if len(space.placements) > 1 or len(space.placements[0].site.shape) != 2:
            return "-"
        injector = fault_injection(model, 1, shape, [nn.Linear])
        width = space.placements[0].site.shape[1]

        @torch.no_grad()
        def weights() -> None:
            for sample in range(count):
                hit = points.columns[points.rows == sample]
                row, column = (hit // width).tolist(), (hit % width).tolist()
                nothing, zero = [None] * len(hit), [0] * len(hit)
                faulty = injector.declare_weight_fi(
                    layer_num=zero, k=row, dim1=column, dim2=nothing, dim3=nothing, value=zero
                )
                faulty(space.inputs)

        return weights
    # It strikes layers that have weights: before a ReLU, which makes of 0 what a crash makes.
    kinds, axes = {1: nn.Linear, 3: nn.Conv2d}, len(space.placements[0].site.shape)
    known = all(
        len(p.site.shape) == axes and p.fault == NeuronCrash(p.fault.rate) for p in space.placements
    )
    if not known or axes not in kinds:
        return "-"
    injector = fault_injection(model, count, shape, [kinds[axes]])
    starts = np.array([p.start for p in space.placements])
    layer = np.searchsorted(starts, points.columns, side="right") - 1
    places = np.zeros((axes, len(layer)), int)
    for number, p in enumerate(space.placements):
        inside = layer == number
        places[:, inside] = np.unravel_index(points.columns[inside] - p.start, p.site.shape)
    where = [*places.tolist(), *[[None] * len(layer)] * (3 - axes)]
    x = space.inputs.repeat(count, *[1] * len(shape))

    @torch.no_grad()
    def neurons() -> None:
        faulty = injector.declare_neuron_fi(
            batch=points.rows.tolist(),
            layer_num=layer.tolist(),
            dim1=where[0],
            dim2=where[1],
            dim3=where[2],
            value=[0.0] * len(layer),
        )
        faulty(x)

    return neurons


def ratios(cases: list[Any], samples: int, repeats: int) -> None:
    print("\nThe plain forward pass's time over that of as many faulty rows:\n")
    heads = ("inputs", "us/row", "ratio", "drawing", "x naive", "x PyTorchFI")
    print(f"{'':46}" + "".join(f"{head:>{10 if head == 'inputs' else 12}}" for head in heads))
    reason = ""
    for net, name, faults, batch in cases:
        build, shape = NETS[net]
        torch.manual_seed(0)
        model, x = build(), torch.randn(batch, *shape)
        space = FaultSpace(model, x, faults)
        points = sample_points(space.placements, 0, samples)
        plain = plain_pass(model, x.repeat(samples, *[1] * len(shape)))
        few = max(2, samples // 32)
        naive, injected = naive_loop(space, few), pytorchfi_loop(space, few)
        compute = partial(space.outputs, points)
        compute(), plain()
        # Both sides last about as long, so that a busy machine interrupts them alike.
        times = max(1, round(seconds(plain) / seconds(compute)))
        pairs = [
            (seconds(plain), seconds(partial(repeat, compute, times)) / times)
            for _ in range(repeats)
        ]
        ratio = statistics.median(a / b for a, b in pairs)
        ours = statistics.median(b for _, b in pairs) / samples
        draw = partial(sample_points, space.placements, 0, samples)
        drawn = min(seconds(draw) for _ in range(3))
        slow = other = "-"
        if naive:
            naive()
            slow = f"{statistics.median(seconds(naive) for _ in range(3)) / few / ours:,.0f}"
        if callable(injected):
            injected()
            other = f"{min(seconds(injected) for _ in range(2)) / few / ours:,.0f}"
        elif injected != "-":
            reason = injected
        print(
            f"{net:17}{name:31}{batch:8}{1e6 * ours / batch:12.2f}{ratio:12.2f}"
            f"{ratio * ours / (ours + drawn / samples):12.2f}{slow:>12}{other:>12}"
        )
        for line in space.plan():
            print(f"    {line}")
    if reason:
        print(f"PyTorchFI skipped: {reason}")


def exponents(small: bool, repeats: int) -> None:
    """How the time grows with the number of samples and of coordinates."""
    print("\nTime grows as samples^a and as coordinates^b (plain forward: 1 and 1 or 2):\n")
    torch.manual_seed(0)
    width = 100 if small else 1000
    x = torch.randn(1, width)
    counts = [64, 128] if small else [512, 1024, 2048, 4096]
    widths = [32, 64] if small else [500, 1000, 2000, 4000]

    def slope(sizes: list[int], work: Callable[[int], Callable[[], Any]]) -> float:
        times = []
        for size in sizes:
            job = work(size)
            job()
            times.append(min(seconds(job) for _ in range(repeats)))
        return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])

    for name, site, fault in (
        ("neurons, p = 0.01", "1", NeuronCrash(0.01)),
        ("neurons, 10 expected", "1", None),
        ("weights, p = 0.001", "0.weight", WeightCrash(1e-3)),
    ):

        def at(hidden: int, count: int, site: str = site, fault: Any = fault) -> Callable[[], Any]:
            space = FaultSpace(
                mlp(width, hidden, 100, 10), x, {site: fault or NeuronCrash(10 / hidden)}
            )
            points = sample_points(space.placements, 0, count)
            return lambda: space.outputs(points)

        a = slope(counts, lambda count: at(width, count))
        b = slope(widths, lambda hidden: at(hidden, counts[-1]))
        print(f"{name:36} a = {a:.2f}   b = {b:.2f}")


_MEMORY = """
import sys
import torch
from torch import nn
import crashsim
from crashsim.coordinates.drawing import sample_points
hidden, samples, site, p = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10)).eval()
fault = crashsim.WeightCrash(p) if "weight" in site else crashsim.NeuronCrash(p)
space = crashsim.FaultSpace(net, torch.randn(2, 784), {site: fault})
space.outputs(sample_points(space.placements, 0, 2))
def peak():  # not getrusage's, which starts at the parent's
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
before = peak()
crashsim.monte_carlo(space, samples=samples)
print(before / 1024, peak() / 1024)
"""


def memory(small: bool) -> None:
    if not Path("/proc/self/status").exists():
        print("\nPeak memory skipped: this system has no /proc")
        return
    print("\nPeak resident memory of monte_carlo, MiB (before -> peak):\n")
    cases = [
        ("neurons", 1000, 10_000, "1", 0.01),
        ("neurons, 10x samples", 1000, 100_000, "1", 0.01),
        ("neurons, 10x sites", 10_000, 10_000, "1", 0.01),
        ("weights", 1000, 2_000, "0.weight", 1e-4),
        ("weights, 10x samples", 1000, 20_000, "0.weight", 1e-4),
        ("weights, 10x sites", 10_000, 2_000, "0.weight", 1e-4),
    ]
    if small:
        cases = [("neurons", 32, 2_000, "1", 0.05)]
    for name, hidden, samples, site, p in cases:
        command = [sys.executable, "-c", _MEMORY, str(hidden), str(samples), site, str(p)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        before, peak = (float(value) for value in run.stdout.split())
        print(f"{name:36}{hidden:8} wide{samples:9} samples{before:9.0f} -> {peak:.0f}")


def machine() -> str:
    """The processor, and the versions that matter."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{cpu or platform.processor() or platform.machine()}, one thread, {os.cpu_count()} cores "
        f"with load {load}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small nets: that it runs, not speed")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    ratios(SMALL if options.quick else LARGE, 64 if options.quick else 1024, options.repeats)
    exponents(options.quick, options.repeats)
    memory(options.quick)


if __name__ == "__main__":
    main()
