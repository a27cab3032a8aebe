"""What the experiments share: options, training, measuring, tables and figures."""

from __future__ import annotations

import argparse
import csv
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

import crashsim
from crashsim import CrashsimWarning
from crashsim.coordinates.placement import Faults
from crashsim.coordinates.points import Points
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import Data, load_data
from crashsim.results.agreement import correlation, rank_loss
from crashsim.results.estimates import values_of
from crashsim.training.classifier import Recipe, train_classifier

PAPER_NAMES = {
    "norm": "b1",
    "absolute": "b2",
    "taylor": "b3",
    "single": "b4",
    "mean-point-taylor": "ours",
    "mean-point-single": "ours",
}


def options(
    argv: Sequence[str] | None, doc: str | None, data: str = "digits", boston: bool = False
) -> Any:
    """``--data``, ``--out``, ``--quick`` and so on; makes the folder for results."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--data", default=data, help="digits or mnist:FOLDER")
    parser.add_argument("--out", type=Path, default=Path("paper-results"), help="a folder")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nets", type=int, help="initialisations of the sweep's networks")
    parser.add_argument("--activation", default="sigmoid", help="of the sweep's networks")
    if boston:
        parser.add_argument("--boston", type=Path, help="BostonHousing.csv, which you bring")
    found = parser.parse_args(argv)
    found.full = found.data.startswith("mnist")
    found.out.mkdir(parents=True, exist_ok=True)
    return found


def pick(chosen: Any, quick: Any, normal: Any, full: Any) -> Any:
    """The value for ``--quick``, for the default, and for MNIST."""
    return quick if chosen.quick else full if chosen.full else normal


def data_of(chosen: Any, images: bool = False) -> tuple[Data, Data]:
    """Training and test data, as vectors or as images."""
    spec = chosen.data
    if images:
        name, colon, folder = spec.partition(":")
        spec = f"{name}-images{colon}{folder}"
    return load_data(spec, "train"), load_data(spec, "test")


def network(
    hidden: str, data: Data, seed: int, recipe: Recipe | None = None, penalties: Any = ()
) -> nn.Sequential:
    """A trained network with these hidden layers, such as ``100-50:sigmoid``."""
    sizes, _, activation = hidden.partition(":")
    model = parse_architecture(f"{data.inputs.shape[1]}-{sizes}-10:{activation}").build(seed)
    train_classifier(model, data, recipe or Recipe(seed=seed), penalties=penalties)
    return model


def measure(
    model: nn.Module,
    inputs: torch.Tensor,
    faults: Faults,
    methods: Sequence[str],
    samples: int = 10_000,
    seed: int = 0,
) -> dict[tuple[str, str], Any]:
    """Mean and variance of Delta by each method, (B, K); what a method cannot do is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CrashsimWarning)
        score = crashsim.score(
            model, inputs, faults, methods=list(methods), samples=samples, seed=seed
        )
    found = {}
    for method in methods:
        for quantity in ("mean", "variance"):
            values = values_of(score.estimates, method, quantity)
            if values is not None:
                found[method, quantity] = values
    return found


def crashed(
    model: nn.Module, data: Data, faults: Faults, samples: int, seed: int = 0
) -> dict[str, float]:
    """Accuracy, mean absolute change and variance under faults, measured."""
    assert data.targets is not None
    space = crashsim.FaultSpace(model, data.inputs, faults)
    targets, clean = data.targets.numpy(), space.clean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CrashsimWarning)
        found = crashsim.monte_carlo(space, samples=samples, seed=seed)
    variance = float(found.variance.sum(1).mean())
    return {
        "clean accuracy": float((clean.argmax(1) == targets).mean()),
        "crashing accuracy": float(((found.kept + clean).argmax(2) == targets).mean()),
        "crashing MAE": float(np.abs(found.kept).mean()),
        "variance": variance,
        "relative variance": variance / float(clean.var(0).sum()),
    }


def stratified(space: crashsim.FaultSpace, samples: int, seed: int) -> tuple[Any, Any]:
    """Mean and variance of Delta, (B, K): up to two crashes exactly, more by sampling.

    All N coordinates crash with the same p. Patterns of 0, 1 and 2 crashes are all run and weighted
    with their probabilities; ``samples`` patterns of 3 and more are drawn from their own law.
    """
    n, p = space.N, float(space.mean_point[0])
    single = [(i,) for i in range(n)]
    pairs = list(itertools.combinations(range(n), 2))
    rng = np.random.default_rng(seed)
    counts = np.arange(3, n + 1)
    weights = stats.binom.pmf(counts, n, p)
    drawn = rng.choice(counts, samples, p=weights / weights.sum())
    many = [tuple(rng.choice(n, count, replace=False)) for count in drawn]
    first = np.zeros((space.B, space.K))
    second = np.zeros_like(first)
    for patterns, weight in (
        (single, stats.binom.pmf(1, n, p) / n),
        (pairs, stats.binom.pmf(2, n, p) / len(pairs)),
        (many, stats.binom.sf(2, n, p) / samples),
    ):
        for start in range(0, len(patterns), 1000):
            some = patterns[start : start + 1000]
            rows = np.repeat(np.arange(len(some)), [len(pattern) for pattern in some])
            columns = np.concatenate(some).astype(np.int64)
            points = Points(len(some), np.zeros(n), rows, columns, np.ones(len(rows)))
            delta = space.outputs(points) - space.clean()
            first += weight * delta.sum(0)
            second += weight * (delta**2).sum(0)
    return first, second - first**2


def agreement(values: Any, reference: Any) -> tuple[float, float]:
    """Correlation and rank loss of two arrays."""
    first, second = np.ravel(values), np.ravel(reference)
    found = correlation(first, second)
    return float("nan") if found is None else found, rank_loss(first, second)


def table(out: Path, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints rows and writes them as NAME.csv."""
    columns = list(rows[0])
    with (out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    shown = [[_text(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *shown]) for i in range(len(columns))]
    print(f"\n{name}")
    for line in [columns, *shown]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
    return rows


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figure(panels: int = 1, width: float = 5.0) -> tuple[Figure, list[Any]]:
    """A figure with panels side by side."""
    drawn = Figure(figsize=(width * panels, 4), layout="constrained")
    axes = drawn.subplots(1, panels, squeeze=False)[0]
    return drawn, list(axes)


def save(drawn: Figure, out: Path, name: str) -> None:
    drawn.savefig(out / f"{name}.png", dpi=120)
    print(f"wrote {out / name}.csv and .png")
