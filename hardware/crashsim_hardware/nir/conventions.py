"""What NIR leaves open: the time step, the reset and the comparison of each library that writes it.

A NIR node is a differential equation; the library that wrote it runs a recursion. Which recursion
that is, is not in the file, so it is named here, once for each library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

from crashsim_hardware.errors import HardwareError

__all__ = ["CONVENTIONS", "DT", "Convention", "Reset", "convention_of", "rockpool_step"]

Floats = NDArray[Any]

Reset = Literal["subtract", "zero", "late-subtract", "late-zero"]
RESETS: tuple[Reset, ...] = ("subtract", "zero", "late-subtract", "late-zero")

DT = 1e-4
"""The step that snnTorch, nirtorch and NIR's paper assume where time constants are in seconds."""


@dataclass(frozen=True)
class Convention:
    """How a library runs the neurons that it writes.

    dt: its time step, in the unit of its time constants; None: by the rule of `read_nir`.
    reset: the only one it has; None: it has several, and does not write which.
    late: resets are applied one step after the spike,
    zero_at_once: but those of LIF neurons to zero outside of loops.
    strict: spikes where the membrane is above the threshold, not at it.
    many: several spikes a step.
    exponential: membranes decay by exp(-dt / tau) a step, not by 1 - dt / tau.
    jumps: a charge adds w_in to a synaptic current, not w_in dt / tau_syn.
    starts: where membranes start at "zero": there, at v_reset, or at v_leak.
    whole: charges enter a membrane as they are; its r tells the time step (`rockpool_step`).
    bounded: membranes never fall below minus the threshold.
    about: the same in words.
    """

    about: str
    dt: float | None = None
    reset: Reset | None = None
    late: bool = False
    zero_at_once: bool = False
    strict: bool = False
    many: bool = False
    exponential: bool = False
    jumps: bool = False
    whole: bool = False
    bounded: bool = False
    starts: Literal["zero", "v_reset", "v_leak"] = "zero"


CONVENTIONS: dict[str, Convention] = {
    "nir": Convention("forward Euler; spikes at the threshold; resets at once"),
    "snntorch": Convention(
        "forward Euler; spikes above the threshold; resets a step late, but LIF to zero at once",
        dt=DT, late=True, zero_at_once=True, strict=True,
    ),
    "spikingjelly": Convention(
        "forward Euler; spikes at the threshold; resets to v_reset at once",
        dt=DT, reset="zero", starts="v_reset",
    ),
    "sinabs": Convention(
        "exponential decay, tau in steps; as many spikes a step as thresholds; subtracts them",
        dt=1.0, reset="subtract", many=True, exponential=True,
    ),
    "sinabs-bounded": Convention(
        "as sinabs, with membranes kept above minus the threshold, as its from_nir has them",
        dt=1.0, reset="subtract", many=True, exponential=True, bounded=True,
    ),
    "norse": Convention(
        "forward Euler; spikes above the threshold; resets to v_reset at once",
        dt=1e-3, reset="zero", strict=True, jumps=True, starts="v_leak",
    ),
    "rockpool": Convention(
        "exponential decay; charges enter whole; as many spikes a step as thresholds; subtracts "
        "them",
        reset="subtract", many=True, exponential=True, whole=True,
    ),
}  # fmt: skip


def rockpool_step(tau: Floats, r: Floats) -> Floats:
    """The step dt of which rockpool wrote r = tau exp(-dt / tau) / dt."""
    return np.asarray(tau * lambertw(1.0 / r).real)


def convention_of(exporter: str | None, reset: str | None) -> Convention:
    """The convention of an exporter by name, with another reset where one is given.

    Raises HardwareError for names that are not known.
    """
    name = "nir" if exporter is None else exporter
    if not isinstance(name, str) or name not in CONVENTIONS:
        raise HardwareError(
            f"exporter must be one of {', '.join(CONVENTIONS)}, got {exporter!r:.80}"
        )
    if reset is not None and reset not in RESETS:
        raise HardwareError(f"reset must be one of {', '.join(RESETS)}, got {reset!r:.80}")
    return CONVENTIONS[name]
