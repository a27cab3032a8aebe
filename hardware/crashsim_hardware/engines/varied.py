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
    a neuron is stuck at, NaN where it is not. gains: what a spike is worth. window: the steps of
    the layer's own window in which held neurons are so, from the first to before the second; None
    for all.
    """

    leaks: Floats | None = None
    refractory: Floats | None = None
    held: Floats | None = None
    gains: Floats | None = None
    window: tuple[int, int] | None = None

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

    def holds(self, step: int) -> bool:
        """Whether held neurons are so in a step of the layer's own window."""
        return self.window is None or self.window[0] <= step < self.window[1]

    def hold(self, spikes: Floats, step: int, offset: int) -> None:
        """Puts the spikes of held neurons in `step` in place; `offset` is the first that may fire.

        Spike k of a rate r is emitted in the step in which r (step - offset + 1) + 1/2 passes k.
        """
        if self.held is None or not self.holds(step):
            return
        rate, since = np.abs(self.held), step - offset
        due = np.floor((since + 1) * rate + 0.5) > np.floor(since * rate + 0.5)
        np.copyto(spikes, due * np.sign(self.held), where=np.isfinite(self.held), casting="unsafe")


def varied_layer(faults: ChipFaults, layer: int, rows: slice) -> Varied:
    """What the masks `rows` vary in a hidden layer; dead and saturated neurons are not held."""
    found = {
        name: array[rows][:, None, :]
        for name in ("leaks", "refractory", "held", "gains")
        if (array := faults.layer(name, layer)) is not None
    }
    if "held" in found:
        for name in ("dead", "stuck"):
            if (struck := faults.layer(name, layer)) is not None:
                found["held"] = np.where(struck[rows][:, None, :], np.nan, found["held"])
    return Varied(**found, window=faults.window)
