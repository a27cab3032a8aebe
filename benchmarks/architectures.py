# ruff: noqa: E402 (the thread count must be set before torch is imported)
"""Scores of the field's architectures at their published widths, against their plain passes.

    python benchmarks/architectures.py [--quick] [--only NAME] [--faults KIND] [--budget 2m]

ResNet-18, U-Net, GPT-2 small, ViT-B/16, BERT-base and an LSTM classifier in plain torch, with
random weights. For each, and for crashes of its neurons, of its weights and int8 flips of these:
what the plan says it takes; what the score took, and that over the plain passes of its samples,
timed in the same run; the same for Monte Carlo alone; peak memory; the longest silence between two
reports of progress; P(class changes); and which methods answered. Seconds are those of the
processor, on one thread. Each network runs in a process of its own; ``--quick`` takes small widths
and a budget of a second, all in one.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
from many_outputs import UNet, resnet
from torch import nn

import crashsim
from crashsim import BitFlip, NeuronCrash, WeightCrash

FAULTS = {
    "neurons": (NeuronCrash(1e-3), "hidden"),
    "weights": (WeightCrash(1e-5), "weights"),
    "bits": (BitFlip(1e-6, format="int8"), "weights"),
}


class Encoder(nn.Module):
    """Blocks of attention over tokens or patches, with what comes before and after them."""

    def __init__(self, before: nn.Module, blocks: nn.ModuleList, after: nn.Module, causal: bool):
        super().__init__()
        self.before, self.blocks, self.after, self.causal = before, blocks, after, causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        mask = None
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for block in self.blocks:
            x = block(x, src_mask=mask)
        return self.after(x)


class Tokens(nn.Module):
    """Embeddings of tokens and of their places."""

    def __init__(self, vocabulary: int, tokens: int, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.words(x) + self.places(torch.arange(x.shape[1]))


class Patches(nn.Module):
    """Embeddings of an image's patches, behind a token for its class, and of their places."""

    def __init__(self, image: int, patch: int, width: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2 + 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cut = self.cut(x).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), cut], 1) + self.places


class First(nn.Module):
    """What the first token says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


class Reader(nn.Module):
    """Tokens read by an LSTM both ways; classes from its last step."""

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.read = nn.LSTM(width, 2 * width, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.read(self.words(x))[0][:, -1])


def blocks(width: int, depth: int, norm_first: bool) -> nn.ModuleList:
    """Of attention with heads of 64."""
    heads = max(width // 64, 1)
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=norm_first
        )
        for _ in range(depth)
    )


def gpt(small: bool) -> tuple[nn.Module, torch.Tensor]:
    vocabulary, width, depth = (500, 64, 2) if small else (50257, 768, 12)
    after = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False))
    net = Encoder(Tokens(vocabulary, 16, width), blocks(width, depth, True), after, causal=True)
    return net, torch.randint(0, vocabulary, (1, 16))


def bert(small: bool) -> tuple[nn.Module, torch.Tensor]:
    vocabulary, width, depth = (500, 64, 2) if small else (30522, 768, 12)
    tokens = 16 if small else 128
    after = nn.Sequential(First(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
    before = nn.Sequential(Tokens(vocabulary, tokens, width), nn.LayerNorm(width))
    net = Encoder(before, blocks(width, depth, False), after, causal=False)
    return net, torch.randint(0, vocabulary, (1, tokens))


def vit(small: bool) -> tuple[nn.Module, torch.Tensor]:
    image, width, depth, classes = (32, 64, 2, 10) if small else (224, 768, 12, 1000)
    after = nn.Sequential(First(), nn.LayerNorm(width), nn.Linear(width, classes))
    before = Patches(image, 8 if small else 16, width)
    net = Encoder(before, blocks(width, depth, True), after, causal=False)
    return net, torch.randn(1, 3, image, image)


def unet(small: bool) -> tuple[nn.Module, torch.Tensor]:
    side = 16 if small else 128
    return UNet(4 if small else 64), torch.randn(1, 3, side, side)


def resnet18(small: bool) -> tuple[nn.Module, torch.Tensor]:
    side = 32 if small else 224
    return resnet(4 if small else 64), torch.randn(4, 3, side, side)


def lstm(small: bool) -> tuple[nn.Module, torch.Tensor]:
    vocabulary, width, steps = (200, 16, 12) if small else (10_000, 256, 100)
    return Reader(vocabulary, width, 2), torch.randint(0, vocabulary, (4, steps))


NETWORKS: dict[str, Callable[[bool], tuple[nn.Module, torch.Tensor]]] = {
    "resnet18": resnet18,
    "unet": unet,
    "gpt2": gpt,
    "vit": vit,
    "bert": bert,
    "lstm": lstm,
}


class Silence:
    """The longest time between two reports of progress, and before which stage it was."""

    def __init__(self) -> None:
        self._last, self.longest, self.stage = time.monotonic(), 0.0, "-"

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last > self.longest:
            self.longest, self.stage = now - self._last, stage
        self._last = now


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(name: str, faults_of: str, budget: str | None, small: bool) -> None:
    torch.manual_seed(0)
    net, x = NETWORKS[name](small)
    net.eval()
    with torch.no_grad():
        net(x)
        plain = min(seconds(lambda: net(x)) for _ in range(3))
    faults, sites = FAULTS[faults_of]
    planned = crashsim.plan(net, x, faults, sites=sites, budget=budget)
    silence, found = Silence(), []
    spent = seconds(
        lambda: found.append(crashsim.score(net, x, faults, sites, budget=budget, progress=silence))
    )
    score = found[0]
    of_samples = plain * score.samples
    found = score.find("monte-carlo", "class-change", "all", "all")
    change = (
        f"class change {found.value:.2g} [{found.low:.2g}, {found.high:.2g}], " if found else ""
    )
    leading = ", ".join(str(row["site"]) for row in score.top[:3])
    print(
        f"{name}, {faults_of}, {budget or 'default'}: {score.coordinates:,} coordinates, "
        f"{len(x)} x {score.outputs:,} outputs, a pass {1000 * plain:.0f} ms; planned "
        f"{planned.seconds:.0f} s, took {spent:.0f} s; {score.samples} samples, "
        f"{spent / of_samples:.2f} times their plain passes (Monte Carlo alone "
        f"{score.timings['monte-carlo'] / of_samples:.2f}, by the clock); peak "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB; longest silence "
        f"{silence.longest:.1f} s before {silence.stage}; {change}"
        f"{len(score.sites)} sites ranked, first {leading}; "
        f"{', '.join(dict.fromkeys(e.method for e in score.estimates.parts))}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small widths: that it runs")
    parser.add_argument("--only", choices=NETWORKS, help="a single network")
    parser.add_argument("--faults", choices=FAULTS, help="one kind of fault")
    parser.add_argument("--budget", default=None, help="such as 2m; by default none")
    options = parser.parse_args()
    if options.quick and options.budget is None:
        options.budget = "1s"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", crashsim.CrashsimWarning)
    names = [options.only] if options.only else list(NETWORKS)
    kinds = [options.faults] if options.faults else list(FAULTS)
    for name in names:
        for kind in kinds:
            if options.quick or (options.only and options.faults):
                measure(name, kind, options.budget, options.quick)
                continue
            command = [sys.executable, __file__, "--only", name, "--faults", kind]
            command += ["--budget", options.budget] if options.budget else []
            subprocess.run(command, check=False)  # its peak memory is its own


if __name__ == "__main__":
    main()
