"""What inputs send into a chip: the same current in every step, or a train, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.arguments import as_numbers
from crashsim_hardware.chip import INPUT, Chip
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.network import flat_inputs

__all__ = ["Train", "flat_signals", "is_driven"]

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Train:
    """Inputs step by step, for the masks and inputs of one block.

    values: (b, T, n_in); with T = 1, the same in every step.
    cut: (m, n_in), True where a mask cuts the line; or None.
    """

    values: Floats
    cut: NDArray[np.bool_] | None = None

    def at(self, step: int) -> Floats:
        """What the lines carry in a step, (m or 1, b, n_in)."""
        now = self.values[None, :, step if self.values.shape[1] > 1 else 0]
        return now if self.cut is None else now * ~self.cut[:, None, :]


def flat_signals(chip: Chip, x: Any) -> Floats:
    """Inputs as float64: constant currents (B, n_in), or trains (B, T, n_in).

    x: (B, *chip.input_shape), or (B, T, *chip.input_shape) with one entry for each step.

    Raises HardwareError for another shape, or NaN.
    """
    values = as_numbers("inputs", x)
    if values.ndim != len(chip.input_shape) + 2:
        return flat_inputs(values, chip.input_shape)
    wanted = (chip.total_steps, *chip.input_shape)
    if values.shape[1:] != wanted or not len(values):
        settling = chip.total_steps - chip.steps
        why = f" (of which the filters settle in {settling})" if settling else ""
        raise HardwareError(
            f"trains must have shape (B, {', '.join(map(str, wanted))}), an entry for each of the "
            f"{chip.total_steps} steps{why}, got {values.shape}; give as many, or set steps"
        )
    return flat_inputs(values, wanted).reshape(len(values), chip.total_steps, -1)


def is_driven(chip: Chip, layer: int) -> bool:
    """Whether the inputs are the drive of a hidden layer, beside its biases."""
    return chip.source(layer) == INPUT and chip.hidden[layer].delay == 0
