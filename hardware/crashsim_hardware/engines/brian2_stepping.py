"""Stepped neurons in brian2: a group whose states are updated by `run_regularly` each step.

A forward-Euler step with a late reset is no differential equation that brian2 could integrate, so
the recursion of `SteppedNeuron` is its code. Everything is dimensionless, in units of thresholds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Chip
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.stepped_neuron import SteppedNeuron

from .block import Block, tolerance

__all__ = ["set_stepped", "stepped_group"]

Floats = NDArray[Any]

_STATES = ("v", "u", "q", "fired")
_PARAMETERS = ("keep", "keep_u", "per_charge", "gain", "rest", "lowest", "drive", "theta", "unit")


def stepped_group(
    brian2: Any, chip: Chip, index: int, neuron: SteppedNeuron, size: int, clock: Any
) -> Any:
    """A group of `size` neurons of hidden layer `index`; charges are added to its `q`."""
    if neuron.many:
        raise HardwareError(
            "brian2's neurons emit one spike a step, and those of this graph several; use "
            "engine='numpy'"
        )
    if neuron.bound is not None:
        raise HardwareError("brian2's neurons here have no lower bound; use engine='numpy'")
    layer = chip.hidden[index]
    model = "".join(f"{name} : 1\n" for name in (*_STATES, *_PARAMETERS))
    model += "active = int(t_in_timesteps >= start) * int(t_in_timesteps < stop) : 1 (shared)\n"
    late, subtracts = neuron.late, neuron.reset == "subtract"
    reset = "v -= unit" if subtracts else "v = lowest"
    group = brian2.NeuronGroup(
        size,
        model,
        threshold=f"active > 0 and v {neuron.fires_at} theta",
        reset="fired = 1" if late else reset,
        namespace={"start": index + layer.offset, "stop": index + chip.total_steps},
        clock=clock,
    )
    group.run_regularly(_step(neuron), clock=clock, when="start")
    return group


def _step(neuron: SteppedNeuron) -> str:
    if neuron.synapse is None:
        lines = ["new = keep * v + per_charge * q + drive + rest"]
    else:
        lines = [
            "u = (1 - active) * u + active * (keep_u * u + per_charge * q + drive)",
            "new = keep * v + gain * u + rest",
        ]
    if neuron.late and neuron.reset == "subtract":
        lines.append("new = new - fired * unit")
    elif neuron.late:
        lines.append("new = (1 - fired) * new + fired * lowest")
    lines += ["v = (1 - active) * v + active * new", "q = 0", "fired = 0"]
    return "\n".join(lines)


def set_stepped(
    group: Any, chip: Chip, block: Block, index: int, neuron: SteppedNeuron, shape: tuple[int, ...]
) -> None:
    """The state of a block's copies at the start, and their parameters."""
    theta = block.thresholds[index]
    theta = np.ones(1) if theta is None else theta
    slack = tolerance(chip.hidden[index].projection.fraction_bits)
    values: dict[str, Any] = {
        "v": block.phases[index] + (0.0 if neuron.origin is None else neuron.origin),
        "u": 0.0,
        "q": 0.0,
        "fired": 0.0,
        "keep": 1.0 - neuron.leak,
        "keep_u": 0.0 if neuron.synapse is None else 1.0 - neuron.synapse,
        "per_charge": neuron.per_charge,
        "gain": 1.0 if neuron.gain is None else neuron.gain,
        "rest": neuron.rest,
        "lowest": 0.0 if neuron.floor is None else neuron.floor,
        "drive": neuron.per_charge * block.drives[index],
        "theta": theta + slack if neuron.strict else theta - slack,
        "unit": np.where(np.isfinite(theta), theta, 1.0),
    }
    for name, value in values.items():
        group.variables[name].set_value(np.broadcast_to(value, shape).reshape(-1))
