"""The network itself under a chip's faults: what a chip without spiking noise would give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chip import INPUT, Chip, quantised
from .engines.running import as_faults
from .errors import HardwareError
from .network import Forward
from .transforms import weight_of

__all__ = ["reference"]

Floats = NDArray[Any]


def reference(chip: Chip, inputs: Any, faults: Any = None) -> Forward:
    """Activations and outputs, (M, B, n_l) and (M, B, K), of `chip.network` under `faults`.

    dead, dead_inputs: a = 0. stuck: a = `stuck_value`. thresholds: a / theta. dead_synapses: w = 0.
    held: a = scale * rate. gains, offsets: a * gain + scale * offset, after the others.
    weights: as read, in the network's units.
    weight_bits: w quantised as the chip stores it, on its normalised scale. release_failure:
    w (1 - q) behind spiking layers, the *mean* of what is delivered; its fluctuations are the
    chip's alone. leaks, refractory, read_noise, adc_bits: left out, as a network has none of them.

    Raises HardwareError if the chip has no network, or a fault does not fit.
    """
    network = chip.network
    if network is None:
        raise HardwareError(
            "this chip was not converted from a network, so there is no network to compare it "
            "with; pass one to Chip(network=...)"
        )
    broken = as_faults(chip, faults)
    window = broken.window or broken.synapse_window
    if window is not None:
        raise HardwareError(
            f"faults in the steps {window} alone: a network without time has no counterpart"
        )
    gains: list[Floats] = []
    offsets: list[Floats] = []
    for index, spiking in enumerate(chip.hidden):
        gain = np.ones((broken.count, spiking.size))
        offset = np.zeros_like(gain)
        if (theta := broken.layer("thresholds", index)) is not None:
            gain = gain / theta
        if (held := broken.layer("held", index)) is not None:
            fires = np.isfinite(held)
            offset = np.where(fires, spiking.scale * np.where(fires, held, 0.0), offset)
            gain = np.where(fires, 0.0, gain)
        if (stuck := broken.layer("stuck", index)) is not None:
            gain, offset = np.where(stuck, 0.0, gain), np.where(stuck, spiking.stuck_value, offset)
        if (dead := broken.layer("dead", index)) is not None:
            gain, offset = np.where(dead, 0.0, gain), np.where(dead, 0.0, offset)
        if (factor := broken.layer("gains", index)) is not None:
            gain, offset = gain * factor, offset * factor
        if (current := broken.layer("offsets", index)) is not None:
            offset = offset + spiking.scale * current
        gains.append(gain)
        offsets.append(offset)
    weights: list[Floats | None] = []
    ways = zip(network.paths, chip.projections, strict=True)
    for index, ((source, transforms), projection) in enumerate(ways):
        spikes = source != INPUT
        own = (weight_of(transform) for transform in transforms)
        weight = next((array for array in own if array is not None), None)
        stored, scale = projection.weight, projection.gain
        if weight is None or stored is None or scale is None:
            struck = broken.read_weight(projection, index, slice(None)) is not None
            if struck or broken.weight_bits is not None or (spikes and broken.release_failure):
                raise HardwareError(
                    f"way {index} of the network has no weights of its own, so its synapses on "
                    "the chip have no counterpart to fail"
                )
            weights.append(None)
            continue
        kept = stored if broken.weight_bits is None else quantised(stored, broken.weight_bits)
        changed = projection if broken.weight_bits is None else projection.with_weight(kept)
        read = broken.read_weight(changed, index, slice(None))
        read = kept if read is None else read
        # differences, so that the chip's own rounding stays out of the reference
        safe = np.where(scale == 0.0, 1.0, scale)
        faulty = np.where(read == 0.0, 0.0, weight + (read - stored) / safe)
        weights.append(faulty * (1.0 - broken.release_failure) if spikes else faulty)
    return network.forward(
        inputs, gain=gains, offset=offsets, weights=weights, dead_inputs=broken.dead_inputs
    )
