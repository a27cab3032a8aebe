"""P(class changes) under flips of stored bits, against injectors that share nothing with crashsim.

Five bit error rates in float32, float16, bfloat16 and int8 words of the weights of a trained
64-30-10 network: crashsim's Monte Carlo, strata and importance sampling, XOR on numpy's words, and
MRFI where it can be imported (its single flips of random bits of float32 and float16).

    pip install mrfi==2.1.0 pyyaml --no-deps --target /tmp/mrfi
    PYTHONPATH=/tmp/mrfi python benchmarks/words.py
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import crashsim
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, train_classifier

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
FORMATS = ("float32", "float16", "bfloat16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    options = parser.parse_args()
    samples = options.samples
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", crashsim.CrashsimWarning)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
    train_classifier(model, load_data("digits", "train"), Recipe(epochs=10))
    x = load_data("digits", "test").first(64).inputs
    with_mrfi = importlib.util.find_spec("mrfi") is not None
    print(f"{samples:,} chips each; 95% intervals; {'with' if with_mrfi else 'without'} MRFI")
    print("format    p      crashsim               word-strata word-importance     numpy", end="")
    print("               MRFI")
    for name in options.formats:
        for p in RATES:
            print(row(model, x, name, p, samples, with_mrfi), flush=True)


def row(
    model: nn.Sequential, x: torch.Tensor, name: str, p: float, samples: int, with_mrfi: bool
) -> str:
    fault = crashsim.BitFlip(p, format=name)
    methods = ["monte-carlo", "word-strata", "word-importance"]
    score = crashsim.score(model, x, fault, "weights", samples=samples, methods=methods)
    cells = []
    for method in methods:
        found = score.find(method, "class-change")
        if found is None:
            cells.append("-")
        elif found.low is None or found.high is None:
            cells.append(f"{found.value:.5f}")
        else:
            cells.append(f"{found.value:.5f} [{found.low:.5f}, {found.high:.5f}]")
    rng = np.random.default_rng(int(1 / p))
    cells.append(_measured(model, x, samples, lambda: _flipped(model, name, p, rng)))
    if with_mrfi and name in ("float32", "float16"):
        cells.append(_measured(model, x, samples, _mrfi_weights(model, name, p)))
    return f"{name:<9} {p:<6g} " + "  ".join(cells)


def _measured(
    model: nn.Sequential,
    x: torch.Tensor,
    chips: int,
    weights: Callable[[], dict[str, torch.Tensor]],
) -> str:
    """Mean over chips and its standard error, doubled."""
    shares = []
    with torch.no_grad():
        clean = model(x).argmax(1)
        for _ in range(chips):
            outputs = torch.func.functional_call(model, weights(), (x,))
            bad = ~torch.isfinite(outputs).all(1)
            shares.append((bad | (outputs.argmax(1) != clean)).double().mean().item())
    return f"{np.mean(shares):.5f} +- {2 * np.std(shares) / np.sqrt(chips):.5f}"


def _flipped(
    model: nn.Sequential, name: str, p: float, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Weights of which bits of numpy's words, or of integers, are flipped."""
    return {
        key: _flipped_words(value.detach(), name, p, rng)
        for key, value in model.named_parameters()
        if key.endswith("weight")
    }


def _flipped_words(
    value: torch.Tensor, name: str, p: float, rng: np.random.Generator
) -> torch.Tensor:
    given = value.double().numpy()
    if name == "int8":
        step = np.abs(given).max() / 127
        words = np.round(given / step).astype(np.int8)
        kept = given - words * step
    else:
        rounded = value.to(getattr(torch, name))
        width = {"float32": torch.int32}.get(name, torch.int16)
        words, kept = rounded.view(width).numpy().copy(), given - rounded.double().numpy()
    bits = 8 * words.dtype.itemsize
    hit = rng.choice(words.size * bits, rng.binomial(words.size * bits, p), replace=False)
    unsigned = words.view(f"u{words.dtype.itemsize}").reshape(-1)
    np.bitwise_xor.at(
        unsigned,
        hit // bits,
        (np.uint64(1) << (hit % bits).astype(np.uint64)).astype(unsigned.dtype),
    )
    if name == "int8":
        return torch.from_numpy(words * step + kept).float()
    meant = torch.from_numpy(words).view(getattr(torch, name)).double()
    return (meant + torch.from_numpy(kept)).float()


def _mrfi_weights(
    model: nn.Sequential, name: str, p: float
) -> Callable[[], dict[str, torch.Tensor]]:
    """MRFI's flips: so many weights, each in one random bit."""
    from mrfi.error_mode import FloatRandomBitFlip
    from mrfi.selector import RandomPositionByRate

    bits = {"float32": 32, "float16": 16}[name]

    def drawn() -> dict[str, torch.Tensor]:
        found = {}
        for key, value in model.named_parameters():
            if key.endswith("weight"):
                weight = value.detach().clone()
                at = RandomPositionByRate(weight.shape, rate=bits * p)
                if len(at):
                    flat = weight.view(-1)
                    flat[at] = FloatRandomBitFlip(flat[at], name)
                found[key] = weight
        return found

    return drawn


if __name__ == "__main__":
    main()
