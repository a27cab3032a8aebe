"""Phase-change memory: programming noise, drift and read noise as measured on a million devices.

The laws and their coefficients are those that Nandakumar et al. (ICECS 2019) and Joshi et al.
(Nature Communications 11:2473, 2020) fitted to devices of IBM, as IBM's aihwkit publishes them
(`PCMLikeNoiseModel` and docs/source/pcm_inference.rst). Conductances are relative to 25 uS, the
largest; ln is the natural logarithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cells import CellEffect, check_number, compensate

__all__ = ["PcmDrift", "PcmProgramming", "drift_exponents", "phase_change"]

Floats = NDArray[Any]

START = 20.0
"""Seconds after programming at which the fits were first read: t_0."""
READ = 250e-9
"""Seconds that one read takes."""

_OFF = 1e-7  # of a conductance whose logarithm is taken


@dataclass(frozen=True)
class PcmProgramming:
    """Programming noise: g + s N(0, 1), with s = (0.26348 + 1.9650 g - 1.1731 g^2) / 25, and no
    less than 0. scale: a factor on s."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("PcmProgramming: scale", self.scale)

    def __call__(self, cells: Floats, target: Floats, rng: np.random.Generator) -> Floats:
        std = (0.26348 + 1.9650 * cells - 1.1731 * cells**2) / 25.0
        programmed = cells + self.scale * std * rng.standard_normal(cells.shape)
        return np.maximum(programmed, 0.0)


def drift_exponents(target: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the drift exponent nu of cells that were to hold `target`.

    mean = -0.0155 ln g + 0.0244, from 0.049 to 0.1; deviation = -0.0125 ln g - 0.0059, from 0.008
    to 0.045.
    """
    log = np.log(np.maximum(target, _OFF))
    mean = np.clip(-0.0155 * log + 0.0244, 0.049, 0.1)
    return mean, np.clip(-0.0125 * log - 0.0059, 0.008, 0.045)


@dataclass(frozen=True)
class PcmDrift:
    """Drift g_t = g ((t + t_0) / t_0)^-nu, with nu = |mean + deviation N(0, 1)| of
    `drift_exponents`; and 1/f noise of the reading, g_t (1 + Q sqrt(ln((t + t_0 + t_r) / (2 t_r)))
    N(0, 1)), no less than 0, with Q = 0.0088 / g^0.65, at most 0.2, and t_r = 250 ns.

    time: t, seconds since the cells were first read, t_0 = 20 s after programming.
    scale: a factor on nu.
    read: a factor on the noise of the reading, which is drawn once for a mask.
    compensated: as in `Drift`.
    """

    time: float
    scale: float = 1.0
    read: float = 0.0
    compensated: bool = False

    def __post_init__(self) -> None:
        for name in ("time", "scale", "read"):
            check_number(f"PcmDrift: {name}", getattr(self, name))

    def __call__(self, cells: Floats, target: Floats, rng: np.random.Generator) -> Floats:
        mean, deviation = drift_exponents(target)
        nu = self.scale * np.abs(mean + deviation * rng.standard_normal(cells.shape))
        held: Floats = cells * ((self.time + START) / START) ** -nu
        if self.read > 0.0:
            q = np.minimum(0.0088 / np.maximum(cells**0.65, 1e-3), 0.2)
            std = q * math.sqrt(math.log((self.time + START + READ) / (2.0 * READ)))
            noise = self.read * std * rng.standard_normal(cells.shape)
            held = np.maximum(held * (1.0 + noise), 0.0)
        return compensate(held, cells) if self.compensated else held


def phase_change(
    time: float,
    *,
    compensated: bool = False,
    programming: float = 1.0,
    drift: float = 1.0,
    read: float = 1.0,
) -> list[CellEffect]:
    """The effects of phase-change cells read `time` seconds after t_0; factors on each of them."""
    return [PcmProgramming(programming), PcmDrift(time, drift, read, compensated)]
