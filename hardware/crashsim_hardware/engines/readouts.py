"""What a run gives as outputs: mean rates, first spikes, or membranes."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Chip
from crashsim_hardware.errors import HardwareError

from .block import Activity, Block

__all__ = ["Readout", "check_readout", "read_outputs"]

Floats = NDArray[Any]
Readout = Literal["count", "first-spike", "membrane"]


def check_readout(chip: Chip, readout: Any) -> Readout:
    """Raises HardwareError unless the outputs of `chip` can be read in that way."""
    if not isinstance(readout, str) or readout not in get_args(Readout):
        raise HardwareError(
            f"readout must be one of {', '.join(get_args(Readout))}, got {readout!r:.80}"
        )
    found: Readout = readout  # type: ignore[assignment]
    if found == "count":
        return found
    if not chip.reads_neurons:
        raise HardwareError(
            f"readout={found!r} reads the spiking neurons before the output, and here weights lie "
            'between them; use readout="count"'
        )
    if found == "first-spike" and chip.hidden[-1].neuron.bipolar:
        raise HardwareError('neurons with signed spikes have no first spike; use readout="count"')
    return found


def read_outputs(chip: Chip, block: Block, activity: Activity, readout: Readout) -> Floats:
    """Outputs (m, b, K) of a block.

    "count": the readout of the mean rates. "first-spike": 1 - t / T for a first spike in step t
    of T (the first is step 0), and 0 without one: the earliest is the largest. "membrane": the
    potential after the last step, in thresholds; 0 of a neuron that is dead.
    """
    if readout == "first-spike":
        assert activity.first is not None
        duration = chip.duration(len(chip.hidden) - 1)
        return np.where(activity.first < 0, 0.0, 1.0 - activity.first / duration)
    if readout == "membrane":
        assert activity.membrane is not None
        theta = block.thresholds[-1]
        return (
            activity.membrane
            if theta is None
            else np.where(theta == np.inf, 0.0, activity.membrane)
        )
    last = len(chip.hidden) - 1
    if activity.readout is not None and not chip.reads_neurons:  # who have no synapses to fail
        outputs = activity.readout / chip.duration(last) + chip.readout.bias
    else:
        gain, counts = block.gain(last), activity.counts[-1]
        sent = counts if gain is None else counts * gain
        outputs = chip.read(sent, block.weights[last + 1])
    return outputs if block.offset_readout is None else outputs + block.offset_readout
