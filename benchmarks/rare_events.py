"""How often the intervals of importance sampling hold: over seeds, against a million plain samples.

    OMP_NUM_THREADS=1 python benchmarks/rare_events.py [--quick]

Networks of several kinds, each at a tail of about 3e-3 and one of about 3e-4, at levels that no
outcome is near. Plain samples share nothing with the tilted ones but the network.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

from crashsim import BitFlip, CrashsimWarning, FaultSpace, NeuronCrash, WeightCrash, score
from crashsim.coordinates.drawing import draw_points

_BATCH = 20_000


class Case(NamedTuple):
    """A network with faults that few of its coordinates decide, or many."""

    name: str
    model: nn.Module
    inputs: Any
    fault: Any
    sites: str


class Attention(nn.Module):
    """Two heads over other keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(5, 8)
        self.m = nn.MultiheadAttention(8, 2, kdim=4, vdim=3, batch_first=True)
        self.h = nn.Linear(8, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        y, _ = self.m(self.q(a), b, c)
        out: torch.Tensor = self.h(torch.tanh(y).mean(1))
        return out


class Recurrent(nn.Module):
    """Two layers in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.h = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.cells(x)
        out: torch.Tensor = self.h(y.mean(1))
        return out


class Voted(nn.Module):
    """Neurons kept three times, of which the median goes on: no single fault moves anything."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(8, 20), nn.Linear(20, 12), nn.Linear(12, 3)
        self.kept = nn.ModuleList(nn.Identity() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.sigmoid(self.a(x))
        y = torch.stack([each(h) for each in self.kept]).median(0).values
        out: torch.Tensor = self.o(torch.sigmoid(self.b(y)))
        return out


def chain(activation: type[nn.Module], *sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Module:
    first = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)]
    return nn.Sequential(*first, *second)


def cases() -> Iterator[Case]:
    def made(seed: int, name: str, make: Any, shape: Any, fault: Any, sites: str) -> Case:
        torch.manual_seed(seed)
        model = make().eval()
        many = isinstance(shape, list)
        x = [torch.randn(3, *one)[:1] for one in shape] if many else torch.randn(1, *shape)
        return Case(name, model, tuple(x) if many else x, fault, sites)

    keys = [(4, 5), (6, 4), (6, 3)]
    yield made(310, "attention, weights 1e-2", Attention, keys, WeightCrash(1e-2), "weights")
    image = (1, 8, 8)
    yield made(3, "max pooling, weights 1e-3", convolutional, image, WeightCrash(1e-3), "weights")
    yield made(4, "max pooling, neurons 3e-3", convolutional, image, NeuronCrash(3e-3), "hidden")
    gelu, relu, tanh = (
        lambda: chain(nn.GELU, 12, 16, 16, 4),
        lambda: chain(nn.ReLU, 8, 20, 20, 3),
        lambda: chain(nn.Tanh, 12, 16, 16, 4),
    )
    yield made(1, "GELU, weights 3e-3", gelu, (12,), WeightCrash(3e-3), "weights")
    yield made(2, "GELU, neurons 1e-2", gelu, (12,), NeuronCrash(1e-2), "hidden")
    yield made(7, "ReLU, weights 1e-3", relu, (8,), WeightCrash(1e-3), "weights")
    yield made(6, "ReLU, neurons 1e-2", relu, (8,), NeuronCrash(1e-2), "hidden")
    yield made(9, "LSTM, weights 3e-3", Recurrent, (4, 3), WeightCrash(3e-3), "weights")
    bits = BitFlip(1e-4, format="int8")
    yield made(5, "tanh, bits of int8 1e-4", tanh, (12,), bits, "weights")
    yield made(2, "voters of three, neurons 2e-2", Voted, (8,), NeuronCrash(2e-2), "kept.*")


def plain(space: FaultSpace, samples: int) -> np.ndarray[Any, Any]:
    """|Delta| of output 0 in plain samples, in order."""
    rng, clean, found = np.random.default_rng(99), space.clean(), []
    for _ in range(samples // _BATCH):
        moved = space.outputs(draw_points(rng, space.placements, _BATCH)) - clean
        found.append(np.abs(moved[:, 0, 0]))
    return np.sort(np.concatenate(found))


def level(sizes: np.ndarray[Any, Any], tail: float) -> float:
    """In the widest gap between outcomes whose tails are within a factor of 1.5 of the one."""
    n = len(sizes)
    part = sizes[int(n * (1 - 1.5 * tail)) : int(n * (1 - tail / 1.5))]
    at = int(np.diff(part).argmax())
    return float((part[at] + part[at + 1]) / 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two networks, few seeds")
    quick = parser.parse_args(arguments).quick
    warnings.simplefilter("ignore", CrashsimWarning)
    seeds, samples = (3, 100_000) if quick else (24, 1_000_000)
    print(
        "share of seeds whose 95% interval holds; value, low, high over the truth (medians); passes"
    )
    for number, case in enumerate(cases()):
        if quick and number > 1:
            break
        space = FaultSpace(case.model, case.inputs, case.fault, case.sites)
        sizes = plain(space, samples)
        for tail in (3e-3, 3e-4):
            epsilon = level(sizes, tail)
            count = int((sizes >= epsilon).sum())
            truth, (low, high) = count / samples, binomtest(count, samples).proportion_ci()
            rows = []
            for seed in range(seeds):
                found = score(
                    case.model,
                    case.inputs,
                    case.fault,
                    case.sites,
                    epsilon=epsilon,
                    outputs=[0],
                    seed=seed,
                    methods=["importance-sampling"],
                ).find("importance-sampling", "tail", 0, 0)
                assert found is not None
                passes = int(str(found.note).split("; ")[1].split()[0])
                rows.append((found.value, found.low, found.high, passes))
            each = np.array(rows)
            holds = np.mean((each[:, 1] <= high) & (each[:, 2] >= low))
            value, down, up = np.median(each[:, :3] / truth, axis=0)
            print(
                f"{case.name:30} {truth:.1e}: {holds:4.0%}  {value:.2f} [{down:.2f}, {up:.2f}]  "
                f"{each[:, 3].mean():,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
