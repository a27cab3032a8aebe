"""Point neurons, in the discrete time of a clocked chip and as brian2 equations.

One dataclass covers the family; four functions build its usual members. All quantities below are
per time step dt, charges and potentials in units of the threshold v_th, so that a weight of 1
means that one spike alone makes its target fire. The physical values (C, v_th, dt) belong to the
chip and enter the brian2 equations only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.errors import HardwareError
from crashsim_hardware.network import ACTIVATIONS

__all__ = [
    "PointNeuron",
    "current_based_lif",
    "current_to_frequency",
    "integrate_and_fire",
    "leaky_integrate_and_fire",
]

Curve = Literal["linear", "sigmoid", "tanh"]
Floats = NDArray[Any]


@dataclass(frozen=True)
class PointNeuron:
    """A spiking neuron that integrates a drive and fires at threshold.

    With q the charge its synapses delivered since the last step and b its constant drive, one step
    is, for delta synapses (``synapse`` None),

        v <- (1 - leak) (v + q) + b

    and with a synaptic low-pass filter of weight ``synapse`` = dt / tau_s,

        u <- u + synapse * q;   v <- (1 - leak) v + gain * curve(u);   u <- u + synapse * (b - u)

    then, unless refractory, a spike is emitted when v >= theta, and the reset is
    v <- v - theta ("subtract") or v <- 0 ("zero"). A "tanh" curve is signed: the neuron has an
    ON and an OFF output line (spikes of polarity +1 and -1), and v < 0 fires OFF and adds theta.

    leak: dt / tau_m, 0 for a perfect integrator.
    synapse: dt / tau_s, or None for delta synapses.
    curve: the static nonlinearity between filtered current and membrane.
    gain: membrane units per step at curve = 1.
    reset: "subtract" keeps the charge above threshold, "zero" loses it.
    refractory: whole steps after a spike in which none can follow. The membrane goes on
        integrating, so this only lowers the highest rate, to 1 / (1 + refractory) per step.
    """

    leak: float = 0.0
    synapse: float | None = None
    curve: Curve = "linear"
    gain: float = 1.0
    reset: Literal["subtract", "zero"] = "subtract"
    refractory: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.leak < 1.0:
            raise HardwareError(
                f"leak = dt / tau_m must be in [0, 1), got {self.leak}; use a tau_m above one dt"
            )
        if self.synapse is not None and not 0.0 < self.synapse <= 1.0:
            raise HardwareError(
                f"synapse = dt / tau_s must be in (0, 1], got {self.synapse}; use a tau_s of at "
                "least one dt"
            )
        if self.refractory < 0:
            raise HardwareError(f"refractory must be >= 0 steps, got {self.refractory}")

    @property
    def bipolar(self) -> bool:
        """Whether spikes carry a sign (ON and OFF lines)."""
        return self.curve == "tanh"

    @property
    def on_grid(self) -> bool:
        """Whether the dynamics is fixed-point arithmetic: sums only, no products or curves."""
        return self.leak == 0.0 and self.synapse is None

    @property
    def settling(self) -> int:
        """Steps before the synaptic filter follows a new input to 0.7%: 5 tau_s."""
        return 0 if self.synapse is None else int(np.ceil(5.0 / self.synapse))

    @property
    def max_rate(self) -> float:
        """Highest firing rate, in spikes per step."""
        return 1.0 / (1 + self.refractory)

    def rate(self, drive: Floats) -> Floats:
        """The rate curve: spikes per step under a constant total drive, in units of v_th per step.

        Exact for integrate-and-fire with reset by subtraction: clip(drive, 0, max_rate). With a
        leak it is the mean-field value for a membrane spread evenly over [0, v_th] (spike sum
        rule: rate = drive - leak / 2), 0 below the rheobase drive = leak. With reset to zero the
        first passage is counted in whole steps, ceil(n), with
        n = ln(1 - leak / drive) / ln(1 - leak), or 1 / drive without leak.
        """
        current = np.asarray(drive, dtype=np.float64)
        if self.synapse is not None:
            current = self.gain * ACTIVATIONS[self.curve](current)
        if self.bipolar:
            return np.clip(current, -self.max_rate, self.max_rate)
        if self.reset == "zero":
            above = current > self.leak
            safe = np.where(above, current, 1.0)
            if self.leak > 0.0:
                passage = np.log1p(-self.leak / np.maximum(safe, 1e-300)) / np.log1p(-self.leak)
            else:
                passage = 1.0 / safe
            whole = np.maximum(np.ceil(passage - 1e-9), 1 + self.refractory)
            return np.where(above, 1.0 / whole, 0.0)
        fired = np.where(current > self.leak, current - self.leak / 2, 0.0)
        return np.clip(fired, 0.0, self.max_rate)


def _steps(tau: float, dt: float, name: str) -> float:
    if not tau > 0:
        raise HardwareError(f"{name} must be a positive time in seconds, got {tau}")
    return dt / tau


def integrate_and_fire(
    *, refractory: int = 0, reset: Literal["subtract", "zero"] = "subtract"
) -> PointNeuron:
    """The perfect integrator, for ReLU: dv/dt = I / C, spike at v_th.

    With reset by subtraction its spike count in T steps is floor(v_0 + T I dt / (C v_th)) for a
    constant current: a rectified, linear count (Rueckauer et al., Front. Neurosci. 11:682, 2017).
    """
    return PointNeuron(refractory=refractory, reset=reset)


def leaky_integrate_and_fire(
    tau: float,
    dt: float,
    *,
    refractory: int = 0,
    reset: Literal["subtract", "zero"] = "subtract",
) -> PointNeuron:
    """dv/dt = I / C - v / tau: below the rheobase I = C v_th / tau it never fires.

    tau, dt: membrane time constant and time step, in seconds.
    """
    return PointNeuron(leak=_steps(tau, dt, "tau"), refractory=refractory, reset=reset)


def current_to_frequency(
    curve: Literal["sigmoid", "tanh"], tau: float, dt: float, *, refractory: int = 0
) -> PointNeuron:
    """A neuron with a saturating rate curve: dv/dt = v_th f_max curve(u), tau du/dt = I - u.

    u is the low-passed synaptic current in units of the pre-activation. The membrane integrates
    the *rate*, so the spike train is as regular as a clock's, not Poisson, and
    f_max = 1 / (dt + t_ref).
    A small ripple of u around its mean biases the rate by curve''(u) Var(u) / 2; a longer tau
    makes it smaller and the settling longer.

    tau, dt: synaptic time constant and time step, in seconds.
    """
    neuron = PointNeuron(synapse=_steps(tau, dt, "tau"), curve=curve, refractory=refractory)
    return replace(neuron, gain=neuron.max_rate)


def current_based_lif(
    tau_syn: float,
    tau_mem: float,
    dt: float,
    *,
    refractory: int = 0,
    reset: Literal["subtract", "zero"] = "subtract",
) -> PointNeuron:
    """A leaky integrator behind an exponential synapse: tau_s du/dt = I - u, dv/dt = u - v / tau_m.

    tau_syn, tau_mem, dt: time constants and time step, in seconds.
    """
    return PointNeuron(
        leak=_steps(tau_mem, dt, "tau_mem"),
        synapse=_steps(tau_syn, dt, "tau_syn"),
        refractory=refractory,
        reset=reset,
    )
