"""The curve of accuracy predicted without sampling, against the measured one, on a ResNet-20.

    OMP_NUM_THREADS=1 python benchmarks/curve.py [--quick] [--chips 200] [--images 1000]

The network is that of ``resnet20.py``, its images have more noise, so that some are uncertain. For
flips of the int8 words of all weights, and for crashes of all neurons: what 1,000 images and nine
rates take to predict and to check, in seconds of the processor; and at some of the rates the change
of accuracy that is predicted, its band, and the one that as many chips show on all images, with its
standard error: where that is below a twentieth of the change, 15% can be decided. Measuring takes
an hour with 200 chips, as ten minutes with 40.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from resnet20 import resnet, textures, train

import crashsim
from crashsim import BitFlip, Curve, NeuronCrash

NOISE = 1.0
CASES = (
    (BitFlip(1e-5, format="int8"), "weights", "1e-6:1e-2:9", (1e-5, 1e-4, 1e-3)),
    (NeuronCrash(1e-3), "hidden", "1e-5:1e-1:9", (1e-3, 1e-2, 1e-1)),
)


def errors(curve: Curve) -> list[tuple[float, float]]:
    """The change of the metric at each rate, and its standard error over chips."""
    found = []
    for point in curve.points:
        values = np.repeat(point["values"], point["counts"])
        every = np.concatenate([values, np.full(curve.chips - len(values), curve.clean)])
        found.append((curve.clean - float(every.mean()), float(every.std() / len(every) ** 0.5)))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller network, fewer images")
    parser.add_argument("--chips", type=int, default=200)
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = resnet(1, 4) if given.quick else resnet(3, 16)
    train(net, 2 if given.quick else 150)
    x, y = textures(20 if given.quick else given.images, torch.Generator().manual_seed(2))
    x = x + NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    chips = 5 if given.quick else given.chips
    for fault, sites, rates, measured_at in CASES:
        start = time.process_time()
        predicted = crashsim.sweep(net, (x, y), fault, sites, rates=rates, predict=True)
        took = time.process_time() - start
        print(f"{fault!r}: {len(x)} images, {len(predicted.points)} rates in {took:.0f} s")
        print(f"  {predicted.prediction}")
        measured = crashsim.sweep(net, (x, y), fault, sites, rates=measured_at, chips=chips)
        points = {f"{point['rate']:.6g}": point for point in predicted.points}
        for rate, (change, error) in zip(measured_at, errors(measured), strict=True):
            point = points[f"{rate:.6g}"]
            told, most, least = (
                predicted.clean - point[end] for end in ("value", "band_low", "band_high")
            )
            is_inside = least <= change + 2 * error and change - 2 * error <= most
            print(
                f"  p={rate:g}: accuracy falls by {told:.3e} predicted (band {least:.2e} to "
                f"{most:.2e}), {change:.3e} +- {error:.0e} measured ({chips} chips): "
                f"{told / change if change else float('nan'):.2f} times, "
                f"{'inside' if is_inside else 'OUTSIDE'} the band"
            )


if __name__ == "__main__":
    main()
