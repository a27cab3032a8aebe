"""Neurons whose output is struck for some steps only, whatever their membranes do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Strike"]

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Strike:
    """A window in which neurons of one layer send nothing, or a spike whenever they could.

    What is struck is the output: a silenced neuron resets as if its spike had left, so that it
    goes on afterwards as it would have.

    silenced, forced: (m, 1, n) or None, True where a neuron is struck; one that is both is silent.
    start, stop: the steps, from start to before stop, in the time of the layer's own window.
    pause: steps between two spikes of a forced neuron.
    """

    silenced: NDArray[np.bool_] | None
    forced: NDArray[np.bool_] | None
    start: int
    stop: int
    pause: int = 1

    def sent(self, spikes: Floats, step: int) -> Floats:
        """What leaves of the spikes (m, b, n) of a step; the array itself where nothing changes."""
        if not self.start <= step < self.stop:
            return spikes
        if self.forced is not None:
            fires = (step - self.start) % self.pause == 0
            spikes = np.where(self.forced, spikes.dtype.type(fires), spikes)
        if self.silenced is not None:
            spikes = np.where(self.silenced, spikes.dtype.type(0), spikes)
        return spikes
