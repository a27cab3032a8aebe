"""What to protect in a ResNet-20: int8 flips of all weights, plans, and what they are worth.

    OMP_NUM_THREADS=1 python benchmarks/protection.py [--quick]

The network is that of benchmarks/resnet20.py. Printed are, at p = 3e-4: virtual chips against real
ones for plans that protect bits by position and by what they do, and how long a plan takes to be
judged; the set of at most 5% of the bits that the adviser chooses one by one, against the two top
bits of every word, on examples that did not choose; and what a target costs, against three copies
of everything.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from resnet20 import resnet, textures, train
from torch import nn

import crashsim
from crashsim import SECDED, TMR, BitFlip, FaultSpace, Protected
from crashsim.protection.adviser.margins import margins_of
from crashsim.protection.adviser.virtual_plans import VirtualChips
from crashsim.protection.protected import Residual
from crashsim.protection.schemes import Scheme
from crashsim.sampling.chips.run import chip_metrics

P = 3e-4
Data = tuple[torch.Tensor, torch.Tensor]


def uncertain(net: nn.Module, count: int, seed: int) -> Data:
    """The images of the least certain among ten times as many, with their clean classes."""
    images, _ = textures(10 * count, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        out = torch.cat([net(part) for part in images.split(100)])
    top = out.topk(2, 1).values
    chosen = (top[:, 0] - top[:, 1]).argsort()[:count]
    return images[chosen], out.argmax(1)[chosen]


def changed(
    net: nn.Module, schemes: tuple[Scheme, ...], data: Data, chips: int
) -> tuple[float, float]:
    """The share of answers that change on real chips with schemes, and its standard error."""
    space = FaultSpace(Protected(net, schemes), data[0][:1], BitFlip(P, bits=8), "weights")
    run = chip_metrics(space, data[0], metrics=["class-change"], samples=chips, one_exact=False)
    values = run.found.law(0).sampled
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def judge_plans(net: nn.Module, data: Data, chips: int, real: int) -> None:
    """Virtual against real chips, plan by plan."""
    space = FaultSpace(net, data[0][:1], BitFlip(P, bits=8), "weights")
    whole = FaultSpace(net, data[0], BitFlip(P, bits=8), "weights")
    start = time.process_time()
    margins = margins_of(space, whole.examples, whole.clean().argmax(1), 2**32)
    print(
        f"slopes of {margins.clean.size} margins within reach of {space.N:,} bits: "
        f"{time.process_time() - start:.1f} s"
    )
    judge = VirtualChips(margins, 0, chips)
    for name, schemes in (
        ("nothing", ()),
        ("sign bits", (TMR(of="words", bits=[7]),)),
        ("two top bits", (TMR(of="words", bits=[6, 7]),)),
        ("SECDED of every word", (SECDED(),)),
    ):
        start = time.process_time()
        virtual = 1 - judge.accuracies(Residual(schemes))
        took = time.process_time() - start
        value, error = changed(net, schemes, data, real)
        print(
            f"{name}: {virtual.mean():.4f} of the answers change on {chips} virtual chips "
            f"({took:.2f} s), {value:.4f} +- {error:.4f} on {real} real ones"
        )


def few_bits(net: nn.Module, search: Data, chips: int) -> None:
    """At most 5% of the bits, chosen one by one, against the two top bits of every word."""
    start = time.process_time()
    plan = crashsim.protect(
        net, search[0], BitFlip(P, bits=8), "weights", budget=0.1,
        schemes=[TMR(of="words")], by="coordinate", chips=chips, metric="class-change",
    )  # fmt: skip
    took = time.process_time() - start
    count = sum(row["coordinates"] for row in plan.chosen)
    held = search[0][1::2], search[1][1::2]
    top, error = changed(net, (TMR(of="words", bits=[6, 7]),), held, chips)
    found = plan.verified
    print(
        f"{100 * count / plan.coordinates:.2f}% of the bits, chosen in {took:.0f} s: "
        f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}] of the answers change on "
        f"examples that did not choose (predicted {found['predicted']:.4f}); the two top bits, "
        f"25%: {top:.4f} +- {error:.4f}; nothing: {found['unprotected']['value']:.4f}"
    )


def reach(net: nn.Module, search: Data, chips: int, limit: float) -> None:
    """A target for the share of chips, and what it costs."""
    plan = crashsim.protect(
        net, search[0], BitFlip(P, bits=8), "weights", target=limit, share=0.95,
        metric="class-change", chips=chips,
    )  # fmt: skip
    found, at = plan.verified, plan.verified["accepted"]
    assert at is not None
    print(
        f"at most {limit:.3f} of the answers change on {at['value']:.3f} [{at['low']:.3f}, "
        f"{at['high']:.3f}] of chips (asked: 0.95) at an overhead of {100 * plan.overhead:.1f}%, "
        f"against 200% for three copies; {found['value']:.4f} change on average, "
        f"{found['unprotected']['value']:.4f} without"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller network, fewer chips")
    quick = parser.parse_args(arguments).quick
    torch.manual_seed(0)
    net = resnet(1, 4) if quick else resnet(3, 16)
    train(net, 2 if quick else 150)
    data = uncertain(net, 4 if quick else 37, 2)
    judge_plans(net, data, 50 if quick else 400, 10 if quick else 400)
    search = uncertain(net, 8 if quick else 74, 3)
    chips = 10 if quick else 300
    few_bits(net, search, chips)
    reach(net, search, chips, 0.5 if quick else 0.02)


if __name__ == "__main__":
    main()
