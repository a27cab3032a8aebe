"""Spiking neurons with parameters of their own, one forward-Euler step at a time.

This is the neuron of NIR graphs: what the libraries that write them compute, step for step. All
quantities are per time step, charges and potentials in units of each neuron's threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.errors import HardwareError

__all__ = ["SteppedNeuron"]

Floats = NDArray[Any]

_ROUNDING = 1e-6  # of time constants that went through float32


@dataclass(frozen=True, eq=False)
class SteppedNeuron:
    """n leaky neurons; every parameter is an array (n,).

    With q the charge that arrives in this step and b the constant drive, one step is, without a
    synapse,

        v <- (1 - leak) v + per_charge (q + b) + rest

    and with one,

        u <- (1 - synapse) u + per_charge (q + b);   v <- (1 - leak) v + gain u + rest

    A spike is emitted where v >= 1 (``strict``: v > 1); the reset is v <- v - 1 ("subtract") or
    v <- floor ("zero").

    leak: dt / tau of the membrane, from 0 (none) to 1 (no memory).
    synapse: the same of the synaptic current, or None.
    per_charge: what a unit of charge adds.
    gain: of the synaptic current into the membrane; used with a synapse alone.
    rest: what the membrane gains in every step.
    floor: where a reset to "zero" puts the membrane, below the threshold.
    origin: where the membrane starts, to which the start of a run is added; None: at 0.
    bound: what the membrane is raised to after a step that left it lower; None: nothing.
    late: the reset is applied one step after the spike, when the membrane has been updated.
    strict: a membrane at its threshold does not fire yet.
    many: a membrane at k thresholds emits k spikes in one step.

    Raises HardwareError for a leak outside [0, 1], or a floor that is not below the threshold.
    """

    leak: Floats
    per_charge: Floats
    rest: Floats
    reset: Literal["subtract", "zero"]
    synapse: Floats | None = None
    gain: Floats | None = None
    floor: Floats | None = None
    origin: Floats | None = None
    bound: Floats | None = None
    late: bool = False
    strict: bool = False
    many: bool = False

    def __post_init__(self) -> None:
        for name, tau in (("leak", "tau of the membrane"), ("synapse", "tau of the synapse")):
            values = getattr(self, name)
            if values is None:
                continue
            if not ((values >= 0.0) & (values <= 1.0 + _ROUNDING)).all():
                raise HardwareError(
                    f"dt / {tau} must be from 0 to 1, got {values.min():.6g} to "
                    f"{values.max():.6g}; give a dt that no time constant is below"
                )
            object.__setattr__(self, name, np.minimum(values, 1.0))
        if self.floor is not None and not (self.floor < 1.0).all():
            raise HardwareError("a reset must put the membrane below its threshold")
        if self.many and self.reset == "zero":
            raise HardwareError("several spikes a step need a reset by subtraction")

    curve: ClassVar[Literal["linear"]] = "linear"
    refractory: ClassVar[int] = 0
    bipolar: ClassVar[bool] = False
    on_grid: ClassVar[bool] = False
    settling: ClassVar[int] = 0
    max_rate: ClassVar[float] = 1.0

    @property
    def fires_at(self) -> Literal[">", ">="]:
        """The comparison of membrane and threshold that is a spike."""
        return ">" if self.strict else ">="

    @property
    def is_integrator(self) -> bool:
        """Whether its rate is the rectified drive: no leak, no synapse, reset by subtraction."""
        perfect = self.synapse is None and not self.leak.any()
        return perfect and self.reset == "subtract" and not self.late

    def rate_line(self) -> tuple[Floats, Floats]:
        """Slope and shift (n,) of the mean-field line rate = slope (q + b) + shift."""
        slope = self.per_charge
        if self.synapse is not None:
            gain = 1.0 if self.gain is None else self.gain
            slope = slope * gain / np.where(self.synapse > 0.0, self.synapse, np.nan)
        return slope, self.rest - self.leak / 2.0
