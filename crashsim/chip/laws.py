"""Faults of any law on a chip: what they do to neurons' outputs and to weights, mask by mask.

A fault turns an output a into a + e v(a). Where v is a line, v(a) = alpha + beta a, a neuron's
output is (1 + e beta) a + e alpha: its spikes are worth another amount, and its line carries a
constant current besides. Where nothing is left of a, the neuron is dead, or stuck at a rate if it
can fire at that. Weights are read as the fault leaves them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from crashsim_hardware import Chip

from crashsim.arrays import Floats
from crashsim.errors import ArgumentError
from crashsim.faults import Fault

__all__ = ["NeuronOutputs", "changed_weights", "line_of"]

_VALUES = (0.0, 1.0, 2.0, -3.0, 1e-3)


def line_of(fault: Fault) -> tuple[float, float] | None:
    """alpha and beta of a fault's displacement alpha + beta a; None where it is no such line."""
    if not fault.is_elementwise and not fault.zeroes:
        return None
    values = torch.tensor(_VALUES, dtype=torch.float64)
    v = fault.displacement(values).double()
    alpha, beta = float(v[0]), float(v[1] - v[0])
    return (alpha, beta) if torch.allclose(v, alpha + beta * values, 1e-12, 1e-12) else None


def changed_weights(fault: Fault, weight: Floats, e: Floats) -> Floats:
    """An array of weights as a fault leaves it under coordinates e (M, n): (M, *weight.shape)."""
    value = torch.as_tensor(np.ascontiguousarray(weight), dtype=torch.float64)
    rows = torch.as_tensor(np.ascontiguousarray(e), dtype=torch.float64)
    found = fault.perturb(value, rows, tuple(weight.shape))
    return np.asarray(found.expand(len(e), *weight.shape).numpy(), dtype=np.float64)


@dataclass
class NeuronOutputs:
    """What faults, one after the other, make of the outputs of a chip's neurons: gain a + offset.

    Outputs are in the units of the network, or spikes per step where there is none.
    """

    chip: Chip
    masks: int
    gains: dict[int, Floats] = field(default_factory=dict)
    offsets: dict[int, Floats] = field(default_factory=dict)

    def strike(self, layer: int, fault: Fault, e: Floats, where: str) -> None:
        """Adds a fault with coordinates e (M, n_l) of each neuron.

        Raises:
            ArgumentError: its displacement is no line.
        """
        line = line_of(fault)
        if line is None:
            raise ArgumentError(
                f"faults: the chip cannot have {fault} at {where!r}: what it does to a neuron's "
                "output a is not alpha + beta a; strike weights, or name a device"
            )
        alpha, beta = line
        size = self.chip.sizes[layer]
        gain = self.gains.get(layer, np.ones((self.masks, size)))
        offset = self.offsets.get(layer, np.zeros((self.masks, size)))
        factor = 1.0 + beta * e
        self.gains[layer] = gain * factor
        self.offsets[layer] = offset * factor + alpha * e

    def fields(self) -> dict[str, Any]:
        """The fields of `ChipFaults` that say the same."""
        arrays: dict[str, list[Any]] = {}
        for layer, gain in self.gains.items():
            for name, array in self._of_layer(layer, gain).items():
                arrays.setdefault(name, [None] * len(self.chip.sizes))[layer] = array
        return dict(arrays)

    def _of_layer(self, layer: int, gain: Floats) -> dict[str, Any]:
        spiking = self.chip.hidden[layer]
        scale = np.where(spiking.scale == 0.0, 1.0, spiking.scale)
        offset = self.offsets[layer] / scale
        top = spiking.neuron.max_rate
        lost, least = gain == 0.0, -top if spiking.neuron.bipolar else 0.0
        dead = lost & (offset == 0.0)
        held = lost & ~dead & (least <= offset) & (offset <= top)
        settled = dead | held
        found = {
            "dead": dead,
            "held": np.where(held, offset, np.nan),
            "gains": np.where(settled, 1.0, gain),
            "offsets": np.where(settled, 0.0, offset),
        }
        harmless = {"dead": ~dead.any(), "held": ~held.any()}
        harmless |= {"gains": (found["gains"] == 1).all(), "offsets": ~found["offsets"].any()}
        return {name: array for name, array in found.items() if not harmless[name]}
