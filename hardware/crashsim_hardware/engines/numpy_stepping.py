"""Populations of stepped neurons in plain numpy: one step of `SteppedNeuron`, for all copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Spiking
from crashsim_hardware.neurons.stepped_neuron import SteppedNeuron

from .block import Block, tolerance
from .varied import Varied

__all__ = ["SteppedPopulation"]

Floats = NDArray[Any]


class SteppedPopulation:
    """The neurons of one layer, all copies, in double precision."""

    def __init__(self, layer: Spiking, neuron: SteppedNeuron, block: Block, index: int) -> None:
        self.neuron = neuron
        self.offset = layer.offset
        self.varied = block.varied[index] if block.varied else Varied()
        self.keep = 1.0 - self.varied.leak(neuron.leak)
        self.strike = block.strike(index)
        self.drive = neuron.per_charge * block.drives[index]
        self.v = block.phases[index].astype(np.float64)
        if neuron.origin is not None:
            self.v += neuron.origin
        self.u = np.zeros_like(self.v)
        self.synaptic_keep = None if neuron.synapse is None else 1.0 - neuron.synapse
        self.gain = 1.0 if neuron.gain is None else neuron.gain
        self.rest = neuron.rest
        self.floor = 0.0 if neuron.floor is None else neuron.floor
        theta = block.thresholds[index]
        theta = np.ones(1) if theta is None else theta
        self.unit = np.where(np.isfinite(theta), theta, 1.0)
        slack = tolerance(layer.projection.fraction_bits)
        self.theta = theta + slack if neuron.strict else theta - slack
        self.pause = self.varied.pause(neuron.refractory)
        self.ready = np.zeros(self.v.shape, np.int64) if np.any(self.pause) else None
        self.spikes = np.zeros_like(self.v)
        self.count = np.zeros_like(self.v)

    def set_drive(self, drive: Floats) -> None:
        """The drive of the next step, where it changes with time."""
        self.drive = self.neuron.per_charge * drive

    def step(self, charge: Floats | None, now: int) -> Floats:
        """One step; the spikes of it."""
        self.v *= self.keep
        if self.synaptic_keep is None:
            current = self.v
        else:
            current = self.u
            self.u *= self.synaptic_keep
        if charge is not None:
            current += self.neuron.per_charge * charge
        current += self.drive
        if current is self.u:
            self.v += self.gain * self.u
        self.v += self.rest
        if self.neuron.late:
            self._reset()
        above = self.v > self.theta if self.neuron.strict else self.v >= self.theta
        if self.ready is not None:
            above &= self.ready <= now
            np.copyto(self.ready, now + 1 + self.pause, where=above)
        np.copyto(self.spikes, above)
        if self.neuron.many:
            whole = np.floor((self.v + (self.unit - self.theta)) / self.unit)
            self.spikes *= np.where(np.isfinite(self.theta), np.maximum(whole, 1.0), 1.0)
        if not self.neuron.late:
            self._reset()
        if self.neuron.bound is not None:
            np.maximum(self.v, self.neuron.bound, out=self.v)
        sent = self.spikes  # which a late reset needs as they are
        if self.varied.held is not None:
            sent = sent.copy()
            self.varied.hold(sent, now, self.offset)
        if self.strike is not None:
            sent = self.strike.sent(sent, now)
        self.count += sent
        return sent

    def _reset(self) -> None:
        if self.neuron.reset == "subtract":
            self.v -= self.spikes * self.unit
        else:
            self.v = np.where(self.spikes > 0.0, self.floor, self.v)
