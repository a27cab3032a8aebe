"""Populations of neurons of one's own in plain numpy: one step of `OwnNeuron`, for all copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Spiking
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.own_neuron import OwnNeuron

from .block import Block, tolerance
from .varied import Varied

__all__ = ["OwnPopulation"]

Floats = NDArray[Any]


class OwnPopulation:
    """The neurons of one layer, all copies, in double precision."""

    def __init__(self, layer: Spiking, neuron: OwnNeuron, block: Block, index: int) -> None:
        self.neuron, self.offset = neuron, layer.offset
        self.strike = block.strike(index)
        self.varied = block.varied[index] if block.varied else Varied()
        if self.varied.leaks is not None:
            raise HardwareError(
                f"hidden layer {index}: neurons of your own have no leak that a fault could vary"
            )
        self.drive: Any = block.drives[index]
        shape = block.phases[index].shape
        self.states = {
            name: np.full(shape, float(neuron.initial.get(name, 0.0)))
            for name in neuron.derivatives
        }
        self.states["v"] = self.states["v"] + block.phases[index]
        theta = block.thresholds[index]
        slack = tolerance(layer.projection.fraction_bits)
        self.theta = (np.ones(1) if theta is None else theta) - slack
        self.pause = self.varied.pause(neuron.refractory)
        self.ready = np.zeros(shape, np.int64) if np.any(self.pause) else None
        self.spikes, self.count = np.zeros(shape), np.zeros(shape)

    @property
    def v(self) -> Floats:
        """The membranes."""
        return self.states["v"]

    def set_drive(self, drive: Floats) -> None:
        """The drive from now on."""
        self.drive = drive

    def step(self, charge: Floats | None, now: int) -> Floats:
        """One step; the spikes of it."""
        neuron, (right, threshold, resets) = self.neuron, self.neuron.code
        known = {**neuron.parameters, **self.states, "theta": self.theta}
        given = {"charge": 0.0 if charge is None else charge, "drive": self.drive}
        changes = {name: neuron.evaluate(code, {**known, **given}) for name, code in right.items()}
        for name, change in changes.items():
            self.states[name] = self.states[name] + change
        known |= self.states
        fires = np.broadcast_to(neuron.evaluate(threshold, known), self.spikes.shape)
        if self.ready is not None:
            fires = fires & (self.ready <= now)
            np.copyto(self.ready, now + 1 + self.pause, where=fires)
        for name, code in resets:
            value = np.where(fires, neuron.evaluate(code, known), self.states[name])
            self.states[name] = known[name] = value
        np.copyto(self.spikes, fires)
        self.varied.hold(self.spikes, now, self.offset)
        sent = self.spikes if self.strike is None else self.strike.sent(self.spikes, now)
        self.count += sent
        return sent
