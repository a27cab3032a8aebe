"""NIR nodes that spike, as neurons of the chip in units of their thresholds and of a time step."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.stepped_neuron import SteppedNeuron
from crashsim_hardware.transforms import Shape

from .conventions import Convention, Reset

__all__ = ["flat", "is_spiking", "neuron_of", "time_constants"]

Floats = NDArray[Any]


def is_spiking(nir: Any, node: Any) -> bool:
    """Whether a node emits spikes."""
    return isinstance(node, nir.IF | nir.LIF | nir.CubaLIF | nir.Threshold)


def time_constants(nir: Any, node: Any) -> list[Floats]:
    """All time constants of a node."""
    names = ("tau", "tau_mem", "tau_syn")
    found = [getattr(node, name) for name in names if getattr(node, name, None) is not None]
    return [np.asarray(values, dtype=np.float64).reshape(-1) for values in found]


def flat(values: Any, shape: Shape, name: str) -> Floats:
    """One value per neuron, (n,), from a scalar or an array of the layer's shape."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise HardwareError(f"node {name!r} has a parameter that is not finite")
    if array.size == 1:
        return np.full(math.prod(shape), float(array.reshape(-1)[0]))
    if array.size != math.prod(shape):
        raise HardwareError(f"node {name!r}: parameters of shape {array.shape} do not fit {shape}")
    return array.reshape(-1)


def neuron_of(
    nir: Any,
    name: str,
    node: Any,
    shape: Shape,
    dt: float,
    convention: Convention,
    reset: Reset,
    looped: bool,
) -> SteppedNeuron:
    """The neurons of a node; raises HardwareError, naming it, for what they cannot be.

    looped: whether its spikes come back to it at once.
    """

    def each(values: Any) -> Floats:
        return flat(values, shape, name)

    def decay(tau: Any) -> Floats:
        values = each(tau)
        if not (values > 0.0).all():
            raise HardwareError(f"node {name!r} has a time constant that is not positive")
        share: Floats = -np.expm1(-dt / values) if convention.exponential else dt / values
        return share

    field = "threshold" if isinstance(node, nir.Threshold) else "v_threshold"
    threshold = each(getattr(node, field))
    if not (threshold > 0.0).all():
        raise HardwareError(f"node {name!r} has a threshold that is not positive")
    kind: Literal["subtract", "zero"] = "subtract" if reset.endswith("subtract") else "zero"
    at_once = kind == "zero" and isinstance(node, nir.LIF) and not looped
    late = convention.late and not (convention.zero_at_once and at_once)
    late = late or reset.startswith("late-")
    rules: dict[str, Any] = {"late": late, "strict": convention.strict, "many": convention.many}
    none = np.zeros_like(threshold)
    if isinstance(node, nir.Threshold):
        return SteppedNeuron(none + 1.0, 1.0 / threshold, none, "zero", strict=True)
    back = none if getattr(node, "v_reset", None) is None else each(node.v_reset)
    if back.any() and kind == "subtract":
        raise HardwareError(
            f"node {name!r} resets to a potential (v_reset) that is not 0, which a reset by "
            'subtraction does not use; give reset="zero"'
        )
    begin = {"v_reset": back, "v_leak": each(getattr(node, "v_leak", 0.0)), "zero": none}
    rules |= {"reset": kind, "floor": back / threshold}
    rules["bound"] = none - 1.0 if convention.bounded else None
    rules["origin"] = begin[convention.starts] / threshold
    try:
        if isinstance(node, nir.IF):
            return SteppedNeuron(none, each(node.r) * dt / threshold, none, **rules)
        leak = decay(node.tau if isinstance(node, nir.LIF) else node.tau_mem)
        force, rest = leak * each(node.r) / threshold, leak * each(node.v_leak) / threshold
        force = 1.0 / threshold if convention.whole else force
        if isinstance(node, nir.LIF):
            return SteppedNeuron(leak, force, rest, **rules)
        synapse = decay(node.tau_syn)
        if convention.whole:
            return SteppedNeuron(leak, 1.0 - synapse, rest, synapse=synapse, gain=force, **rules)
        charge = each(node.w_in) if convention.jumps else synapse * each(node.w_in)
        return SteppedNeuron(leak, charge, rest, synapse=synapse, gain=force, **rules)
    except HardwareError as error:
        raise HardwareError(f"node {name!r}: {error}") from None
