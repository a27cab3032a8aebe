"""Up to which rate of dead neurons does a network stay accurate enough?

Measured with a band, and predicted without sampling.

python examples/accuracy_curve.py --out curve.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

import crashsim
from crashsim import NeuronCrash
from crashsim.files.data import load_data
from crashsim.training.classifier import Recipe, train_classifier

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--chips", type=int, default=300)
parser.add_argument("--out", type=Path, help="an HTML page with the figure")
parser.add_argument("--figure", type=Path, help="a picture of it")
arguments = parser.parse_args()

net = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))
train_classifier(net, load_data("digits", "train"), Recipe(epochs=arguments.epochs))
test = load_data("digits", "test")

curve = crashsim.sweep(
    net.eval(),
    (test.inputs, test.targets),
    NeuronCrash(p=0.01),
    rates="1e-3:0.3:6",
    chips=arguments.chips,
    target=0.9,
    predict="beside",
)
print(curve)
found = curve.tolerable_rate(0.9)
print(
    f"90% are right up to p = {found.rate:.2g} (95% interval {found.low:.2g} to {found.high:.2g})"
)
if arguments.out:
    arguments.out.write_text(curve.to_html())
if arguments.figure:
    axes = curve.plot()
    axes.axhline(0.9, color="grey", lw=0.8)
    axes.legend()
    axes.figure.set_size_inches(6, 3.6)
    axes.figure.savefig(arguments.figure, dpi=120)
