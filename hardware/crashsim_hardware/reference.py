"""The network itself under a chip's faults: what a chip without spiking noise would give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chip import Chip, Projection, quantised
from .errors import HardwareError
from .network import Forward
from .running import as_faults
from .transforms import weight_of

__all__ = ["reference"]

Floats = NDArray[Any]


def reference(chip: Chip, inputs: Any, faults: Any = None) -> Forward:
    """Activations and outputs, (M, B, n_l) and (M, B, K), of `chip.network` under `faults`.

    dead: a = 0. stuck: a = `stuck_value`. thresholds: a / theta. dead_synapses: w = 0.
    weight_bits: w quantised as the chip stores it, on its normalised scale. release_failure:
    w (1 - q) behind spiking layers, the *mean* of what is delivered; its fluctuations are the
    chip's alone.

    Raises HardwareError if the chip has no network, or a fault does not fit.
    """
    network = chip.network
    if network is None:
        raise HardwareError(
            "this chip was not converted from a network, so there is no network to compare it "
            "with; pass one to Chip(network=...)"
        )
    broken = as_faults(chip, faults)
    gains: list[Floats] = []
    offsets: list[Floats] = []
    for index, layer in enumerate(chip.hidden):
        gain = np.ones((broken.count, layer.size))
        offset = np.zeros_like(gain)
        if (theta := broken.layer("thresholds", index)) is not None:
            gain = gain / theta
        if (stuck := broken.layer("stuck", index)) is not None:
            gain, offset = np.where(stuck, 0.0, gain), np.where(stuck, layer.stuck_value, offset)
        if (dead := broken.layer("dead", index)) is not None:
            gain, offset = np.where(dead, 0.0, gain), np.where(dead, 0.0, offset)
        gains.append(gain)
        offsets.append(offset)
    weights: list[Floats | None] = []
    for index, ann_layer in enumerate(network.layers):
        stored = (weight_of(transform) for transform in ann_layer.transforms)
        weight = next((array for array in stored if array is not None), None)
        missing = broken.layer("dead_synapses", index)
        if weight is None:
            if missing is not None or broken.release_failure > 0.0:
                raise HardwareError(
                    f"layer {index} of the network has no weights of its own, so its synapses on "
                    "the chip have no counterpart to fail"
                )
            weights.append(None)
            continue
        if broken.weight_bits is not None:
            weight = weight * _coarsening(chip.projections[index], broken.weight_bits)
        if missing is not None:
            weight = weight * ~missing.astype(bool)
        weights.append(weight * (1.0 - broken.release_failure) if index else weight)
    return network.forward(inputs, gain=gains, offset=offsets, weights=weights)


def _coarsening(projection: Projection, bits: int) -> Floats:
    """Factor on every weight by which storing it in `bits` bits changes it; 1 where it is 0."""
    stored = projection.weight
    if stored is None:
        return np.ones(())
    present = stored != 0.0
    return np.where(present, quantised(stored, bits) / np.where(present, stored, 1.0), 1.0)
