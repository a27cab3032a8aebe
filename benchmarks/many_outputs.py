"""Networks with many outputs: what a score costs beside the passes that its samples need.

    python benchmarks/many_outputs.py [--full]

Random weights throughout. Prints, for each network, the CPU time of Monte Carlo, and of a whole
score, as multiples of as many plain forward passes in the same run; the peak memory; and the sizes
of JSON, HTML and .npz. ``--full`` takes the published widths (minutes).
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings

import torch
from torch import nn

import crashsim
from crashsim import NeuronCrash


class UNet(nn.Module):
    """Two steps down and up, with skips: maps of 21 classes."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU()
            )

        w = width
        self.down = nn.ModuleList([block(3, w), block(w, 2 * w), block(2 * w, 4 * w)])
        self.up = nn.ModuleList([block(6 * w, 2 * w), block(3 * w, w)])
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(w, 21, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down[0](x)
        b = self.down[1](self.pool(a))
        c = self.down[2](self.pool(b))
        b = self.up[0](torch.cat([b, self.grow(c)], 1))
        return self.head(self.up[1](torch.cat([a, self.grow(b)], 1)))


class GPT(nn.Module):
    """Blocks of attention over 16 tokens, and logits of a vocabulary for each."""

    def __init__(self, width: int, depth: int, vocabulary: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Residual(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(i, o, 3, stride, 1), nn.Conv2d(o, o, 3, 1, 1)
        self.short = nn.Conv2d(i, o, 1, stride) if (i, stride) != (o, 1) else nn.Identity()
        self.inner, self.outer = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.short(x) + self.second(self.inner(self.first(x))))


def resnet(width: int) -> nn.Module:
    """The layers of ResNet-18 for 1,000 classes."""
    w = width
    stages = [(w, w, 1), (w, w, 1), (w, 2 * w, 2), (2 * w, 2 * w, 1)]
    stages += [(2 * w, 4 * w, 2), (4 * w, 4 * w, 1), (4 * w, 8 * w, 2), (8 * w, 8 * w, 1)]
    return nn.Sequential(
        nn.Conv2d(3, w, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        *(Residual(*stage) for stage in stages),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, 1000),
    )  # fmt: skip


def main(full: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    tokens = GPT(768, 12 if full else 2, 50257), torch.randn(1, 16, 768)
    networks = {
        "U-Net, 21 x 128 x 128": (UNet(64 if full else 16), torch.randn(1, 3, 128, 128)),
        "token logits, 16 x 50,257": tokens,
        "ResNet-18, 1,000 classes": (resnet(64), torch.randn(1, 3, *(2 * (224 if full else 64,)))),
    }
    for name, (net, x) in networks.items():
        measure(name, net.eval(), x, 40)


def measure(name: str, net: nn.Module, x: torch.Tensor, samples: int) -> None:
    with torch.no_grad():
        net(x)
        start = time.process_time()
        for _ in range(samples):
            net(x)
        plain = time.process_time() - start
    faults = NeuronCrash(0.001)
    space = crashsim.FaultSpace(net, x, faults)
    crashsim.monte_carlo(space, samples=2)  # set-up
    start = time.process_time()
    crashsim.monte_carlo(space, samples=samples)
    sampled = (time.process_time() - start) / plain
    print(f"{name}: K = {space.K:,}, N = {space.N:,}, a pass {1000 * plain / samples:.0f} ms")
    print(f"  Monte Carlo of {samples} samples: {sampled:.2f} times their plain passes")
    start = time.process_time()
    score = crashsim.score(net, x, faults, samples=samples)
    whole = (time.process_time() - start) / plain
    sizes = [len(json.dumps(score.to_dict())), len(score.to_html()), len(score.estimates_file())]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  score: {whole:.2f} times, {len(score.estimates):,} estimates; peak {peak:.2f} GiB")
    told = zip(("JSON", "HTML", "npz"), sizes, strict=True)
    print("  " + ", ".join(f"{kind} {size / 1e6:.2f} MB" for kind, size in told))
    skipped = set(score.skipped.values())
    print(f"  methods: {', '.join(dict.fromkeys(e.method for e in score.estimates.parts))}")
    for reason in sorted(skipped):
        print(f"    not: {reason}")


if __name__ == "__main__":
    main("--full" in sys.argv)
