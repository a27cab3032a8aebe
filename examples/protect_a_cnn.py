"""Which bits of a convolutional network deserve protection: some, or the top two of every word?

    python examples/protect_a_cnn.py --out plan.html

A small network learns handwritten digits; its weights are stored as int8, and each stored bit flips
with probability p. The adviser may triple bits one by one, up to 5% of them, and is compared, on
digits that it has not seen, with tripling the two top bits of every word (25% of the bits).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import crashsim
from crashsim import TMR, BitFlip, Protected
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, train_classifier

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--chips", type=int, default=300)
parser.add_argument("--p", type=float, default=5e-3)
parser.add_argument("--out", type=Path, help="an HTML page with the plan")
parser.add_argument("--figure", type=Path, help="a picture of it")
arguments = parser.parse_args()

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10),
    )  # fmt: skip
train_classifier(net, load_data("digits-images", "train"), Recipe(epochs=arguments.epochs))
net.eval()
test = load_data("digits-images", "test")
flips = BitFlip(p=arguments.p, format="int8")

plan = crashsim.protect(
    net,
    (test.inputs, test.targets),
    flips,
    "weights",
    budget=0.1,  # two more copies of 5% of the bits
    schemes=[TMR(of="words")],
    by="coordinate",
    chips=arguments.chips,
)
print(plan)

unseen = test.inputs[1::2], test.targets[1::2]  # those that did not choose
by_position = Protected(net, TMR(of="words", bits=[6, 7]))
curve = crashsim.sweep(
    by_position, unseen, flips, "weights", rates=[arguments.p], chips=arguments.chips
)
share = sum(row["coordinates"] for row in plan.chosen) / plan.coordinates
print(
    f"{share:.1%} of the bits, chosen one by one: accuracy {plan.verified['value']:.4f}; the two "
    f"top bits of every word, 25%: {curve.points[0]['value']:.4f}; nothing protected: "
    f"{plan.verified['unprotected']['value']:.4f}; without faults: {plan.clean:.4f}"
)
if arguments.out:
    arguments.out.write_text(plan.to_html())
if arguments.figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    top, none = curve.points[0], plan.verified["unprotected"]
    rows = [(f"{share:.0%} of the bits,\nchosen one by one", plan.verified),
            ("the two top bits\nof every word, 25%", top), ("nothing", none)]  # fmt: skip
    for at, (_, found) in enumerate(rows):
        axes.plot([found["low"], found["high"]], [at, at], color="tab:blue", lw=2)
        axes.plot(found["value"], at, "o", color="tab:blue")
    axes.axvline(plan.clean, color="grey", lw=0.8, ls=":")
    axes.set_yticks(range(3), [label for label, _ in rows])
    axes.set_xlabel(f"accuracy, each bit flipped with p = {arguments.p:g} (dotted: none)")
    figure.savefig(arguments.figure, dpi=120)
