"""Parameters of neurons that differ from mask to mask: leak, refractory period, a rate held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.faults.chip_faults import ChipFaults

__all__ = ["Varied", "varied_layer"]

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Varied:
    """What is not as built in the neurons of one layer, (m, 1, n_l) each, or None.

    leaks: factor on the leak. refractory: whole steps, in place of the neuron's own. held: the rate
    a neuron is stuck at, NaN where it is not. gains: what a spike is worth.
    """

    leaks: Floats | None = None
    refractory: Floats | None = None
    held: Floats | None = None
    gains: Floats | None = None

    @property
    def kinds(self) -> tuple[bool, bool, bool]:
        """Which of the parameters that change the neurons' equations there are."""
        return self.leaks is not None, self.refractory is not None, self.held is not None

    def leak(self, leak: Any) -> Any:
        """The leak of a neuron under the masks, at most 1."""
        return leak if self.leaks is None else np.minimum(leak * self.leaks, 1.0)

    def pause(self, refractory: int) -> Any:
        """Whole steps after a spike in which none can follow."""
        return refractory if self.refractory is None else self.refractory.astype(np.int64)

    def hold(self, spikes: Floats, step: int) -> None:
        """Puts the spikes of held neurons in step `step` of the layer's window in place."""
        if self.held is None:
            return
        rate = np.abs(self.held)
        due = np.floor((step + 1) * rate + 0.5) > np.floor(step * rate + 0.5)
        np.copyto(spikes, due * np.sign(self.held), where=np.isfinite(self.held), casting="unsafe")


def varied_layer(faults: ChipFaults, layer: int, rows: slice) -> Varied:
    """What the masks `rows` vary in hidden layer `layer`."""
    found = {
        name: array[rows][:, None, :]
        for name in ("leaks", "refractory", "held", "gains")
        if (array := faults.layer(name, layer)) is not None
    }
    return Varied(**found)
