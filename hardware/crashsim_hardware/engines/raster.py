"""Spike trains of the clean and the crashed chip, for a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Chip, quantise
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.faults.chip_faults import ChipFaults

from .block import Phases, blocks
from .inputs import flat_signals
from .running import Engine, as_faults, simulator

__all__ = ["Raster", "Spikes", "raster"]

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Spikes:
    """The spikes of one layer.

    times: (S,) in seconds from the start of the run, the layer's latency included.
    neurons: (S,) indices in the layer.
    polarity: (S,) +1, or -1 on the OFF line of a signed neuron.
    rates: (n,) in hertz.
    activations: (n,), the rates in the network's units.
    """

    times: Floats
    neurons: NDArray[np.intp]
    polarity: NDArray[np.int8]
    rates: Floats
    activations: Floats


@dataclass(frozen=True, eq=False)
class Raster:
    """One input on the chip without and with faults, layer by layer.

    clean, crashed: per hidden layer.
    dead: per hidden layer (n,), True where a neuron is dead.
    duration: of the whole run, in seconds.
    """

    clean: tuple[Spikes, ...]
    crashed: tuple[Spikes, ...]
    dead: tuple[NDArray[np.bool_], ...]
    duration: float


def raster(
    chip: Chip,
    x: Any,
    faults: Any,
    *,
    mask: int = 0,
    engine: Engine = "numpy",
    seed: int = 0,
    phases: Phases | None = None,
) -> Raster:
    """Spikes of `chip` for one input, clean and under mask `mask` of `faults`.

    x: (*input_shape), a constant current, or (T, *input_shape), a train.

    Both runs start from the same phases. Raises HardwareError for a mask out of range.
    """
    inputs = flat_signals(chip, np.asarray(x, dtype=np.float64)[None])
    broken = as_faults(chip, faults)
    if not 0 <= mask < broken.count:
        raise HardwareError(f"mask must be from 0 to {broken.count - 1}, got {mask}")
    one = broken.only(mask)
    faulty = chip if one.weight_bits is None else quantise(chip, one.weight_bits)

    def spikes(chip: Chip, faults: ChipFaults) -> tuple[Spikes, ...]:
        start = chip.start if phases is None else phases
        work = blocks(chip, inputs, faults, phases=start, seed=seed, replica=0, copies=1)
        with simulator(chip, engine) as simulate:
            activity = simulate(next(work), trains=True)
        if activity.trains is None:
            raise HardwareError(f"engine {engine!r} recorded no spike trains")
        return tuple(_spikes(chip, i, train[:, 0, 0]) for i, train in enumerate(activity.trains))

    dead = tuple(
        np.zeros(size, dtype=bool) if (d := one.layer("dead", i)) is None else d[0]
        for i, size in enumerate(chip.sizes)
    )
    latency = len(chip.hidden) - 1
    return Raster(
        clean=spikes(chip, ChipFaults(masks=1)),
        crashed=spikes(faulty, one),
        dead=dead,
        duration=(chip.total_steps + latency) * chip.physics.dt,
    )


def _spikes(chip: Chip, index: int, train: NDArray[np.int8]) -> Spikes:
    layer, dt = chip.hidden[index], chip.physics.dt
    steps, neurons = np.nonzero(train)
    mean = train.sum(axis=0, dtype=np.float64) / len(train)
    return Spikes(
        times=(steps + layer.offset + index) * dt,
        neurons=neurons,
        polarity=train[steps, neurons],
        rates=mean / dt,
        activations=mean * layer.scale,
    )
