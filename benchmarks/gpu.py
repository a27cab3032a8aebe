"""What a GPU does for faulty samples: the rate there against the model's plain passes and the CPU.

    python benchmarks/gpu.py [--quick]

``ratio`` is the time of the plain forward pass over the same number of rows, in the chunks that
suit it best, over the time of the samples, both on the GPU: above 1, a faulty sample costs less
than a plain evaluation. ``x CPU`` is the time of the same samples on one thread of the CPU over
theirs on the GPU. Drawing the faults, which happens on the CPU, is told beside: its share of the
time that drawing and computing take together. Medians of the repeats.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from crashsim import BitFlip, Fault, FaultSpace, NeuronCrash, WeightCrash
from crashsim.coordinates.drawing import sample_points


@dataclass(frozen=True)
class Case:
    """A network under faults, and how many samples are timed."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    fault: Fault
    sites: str
    samples: int


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """A basic block of a residual network."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.act_a, self.act_b = nn.ReLU(), nn.ReLU()
        self.short = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.norm_b(self.b(self.act_a(self.norm_a(self.a(x)))))
        out: torch.Tensor = self.act_b(inner + self.short(x))
        return out


def resnet20() -> nn.Module:
    blocks: list[nn.Module] = []
    for before, after in ((16, 16), (16, 32), (32, 64)):
        blocks += [Block(before, after, 1 if before == after else 2)]
        blocks += [Block(after, after, 1) for _ in range(2)]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*stem, *blocks, *head)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


def wide() -> nn.Module:
    return mlp(784, 1000, 500, 10)


CASES = [
    Case("784-1000-500-10", wide, (64, 784), NeuronCrash(0.01), "hidden", 2048),
    Case("784-1000-500-10", wide, (64, 784), NeuronCrash(0.3), "hidden", 2048),
    Case("784-1000-500-10", wide, (64, 784), WeightCrash(1e-3), "weights", 512),
    Case("ResNet-20", resnet20, (16, 3, 32, 32), NeuronCrash(1e-3), "hidden", 128),
    Case("ResNet-20", resnet20, (16, 3, 32, 32), BitFlip(1e-5), "weights", 128),
    Case("encoder 4 x 256", encoder, (8, 32, 256), NeuronCrash(1e-2), "hidden", 128),
]


def timed(work: Callable[[], object], repeats: int) -> float:
    """Seconds: the median of some repeats, after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def plain(model: nn.Module, inputs: torch.Tensor, rows: int, repeats: int) -> float:
    """Seconds of plain passes over this many rows, in the chunks that suit them best."""

    def run(chunk: int) -> float:
        given = inputs.repeat(-(-chunk // len(inputs)), *[1] * (inputs.dim() - 1))[:chunk]

        def passes() -> None:
            for _ in range(rows // chunk):
                model(given)

        return timed(passes, repeats) * rows / (rows // chunk * chunk)

    with torch.inference_mode():
        return min(run(min(chunk, rows)) for chunk in (256, 1024, 4096))


def measure(case: Case, samples: int, repeats: int) -> str:
    """A row of the table, and how the first site's samples are computed."""
    torch.manual_seed(0)
    here, there = case.build().eval(), case.build().eval()
    there.load_state_dict(here.state_dict())
    inputs = torch.randn(*case.shape)
    there.cuda()
    space = FaultSpace(there, inputs.cuda(), case.fault, case.sites)
    points = sample_points(space.placements, 0, samples)
    seconds = timed(lambda: space.outputs(points), repeats)
    drawing = timed(lambda: sample_points(space.placements, 0, samples), repeats)
    few = points.part(0, max(4, samples // 32))
    on_cpu = FaultSpace(here, inputs, case.fault, case.sites)
    cpu = timed(lambda: on_cpu.outputs(few), 1) * samples / few.count
    rows = samples * len(inputs)
    ratio = plain(there, inputs.cuda(), rows, repeats) / seconds
    label = f"{case.fault.name} p={case.fault.rate:g}"
    return (
        f"{case.name:16} {label:22} {samples:7d} {rows / seconds:9.3g} {ratio:6.2f} "
        f"{cpu / seconds:6.1f} {drawing / (drawing + seconds):8.0%}\n    {space.plan()[0]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing to measure")
    torch.set_num_threads(1)
    print(f"{torch.cuda.get_device_name()}; torch {torch.__version__}")
    columns = ("samples", "rows/s", "ratio", "x CPU", "drawing")
    print("{:16} {:22} {:>7} {:>9} {:>6} {:>6} {:>8}".format("net", "faults", *columns))
    for case in CASES:
        samples = max(32, case.samples // (16 if options.quick else 1))
        print(measure(case, samples, options.repeats), flush=True)


if __name__ == "__main__":
    main()
