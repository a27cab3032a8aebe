"""The chip's dynamics in plain numpy: the oracle of the other engines, and their speed limit.

The layers are feed-forward and their windows aligned, so that the one-step latency between two
layers drops out: in the time of its own window each layer sees the spikes of the layer before at
once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import INPUT, Chip, Projection, Spiking
from crashsim_hardware.network import ACTIVATIONS
from crashsim_hardware.neurons.point_neuron import PointNeuron
from crashsim_hardware.neurons.stepped_neuron import SteppedNeuron

from .block import Activity, Block, connections, matrices, tolerance
from .inputs import is_driven
from .numpy_own import OwnPopulation
from .numpy_stepping import SteppedPopulation
from .reading import Reading
from .varied import Varied

__all__ = ["Delivery", "exact_precision", "has_mismatch", "simulate"]

Floats = NDArray[Any]


MATRIX = 1 << 22
"""Largest projection, in entries, that is expanded to one matrix for the BLAS."""


class Delivery:
    """Spikes (m, b, n_in) -> charges (m, b, n_out) through one projection, ready to be repeated.

    gain: (m, 1, n_in), what a spike of each source is worth, or None for 1.
    """

    def __init__(
        self,
        projection: Projection,
        block: Block,
        index: int,
        dtype: type[np.floating[Any]],
        gain: Floats | None = None,
    ) -> None:
        self._projection, self._block, self._index, self._dtype = projection, block, index, dtype
        self._gain = gain
        self._fired: Floats = np.zeros(())  # by the neurons before the pool, so far
        self._largest: Floats = np.zeros(())  # of them in each window
        self._reading = Reading(projection, block, index) if block.noisy else None
        weight = block.weights[index]
        self._intact: Delivery | None = None
        if block.synapse_window is not None and weight is not None:
            stored = replace(block, weights=(None,) * len(block.weights))
            self._intact = Delivery(projection, stored, index, dtype, gain)
        self._weight = None if weight is None else weight.astype(dtype)
        shared = 1 if weight is None else block.masks
        entries = int(np.prod(projection.shape)) * projection.bias.size
        self._matrix: Floats | None = None
        if block.release_failure > 0.0:
            self._source, self._target = connections(projection)
            weights = matrices(projection, weight)[..., self._source, self._target]
            self._weights = weights if weights.ndim == 1 else weights[:, None]
        elif entries * shared <= MATRIX:
            self._matrix = matrices(projection, weight).astype(dtype)
            self._charge = np.empty((block.masks, block.inputs, projection.bias.size), dtype)

    def __call__(self, spikes: Floats, step: int) -> Floats:
        """The charges of spikes that arrive in a step of the layer they lead to."""
        if self._gain is not None:
            spikes = spikes * self._gain
        if self._projection.pool is not None:
            spikes = self._passed(spikes)
        if self._intact is not None and self._block.weight(self._index, step) is None:
            return self._intact._read(spikes, step)
        return self._read(spikes, step)

    def _read(self, spikes: Floats, step: int) -> Floats:
        charge = self._summed(spikes, step)
        return charge if self._reading is None else self._reading(charge, spikes, step)

    def _passed(self, spikes: Floats) -> Floats:
        """What the pool passes of the spikes (m, b, n) of the layer before, (m, b, n_in)."""
        before = self._largest
        self._fired = self._fired + spikes
        self._largest = self._projection.pooled(self._fired)
        return self._largest - before

    def _summed(self, spikes: Floats, step: int) -> Floats:
        if self._block.release_failure > 0.0:
            return self._released(spikes, step)
        if self._matrix is None:
            return self._projection.charge(spikes, self._weight)
        if self._matrix.ndim == 3:
            return np.matmul(spikes, self._matrix, out=self._charge)
        flat = spikes.reshape(-1, spikes.shape[-1])
        np.matmul(flat, self._matrix, out=self._charge.reshape(len(flat), -1))
        return self._charge

    def _released(self, spikes: Floats, step: int) -> Floats:
        m, b, n_out = self._block.masks, self._block.inputs, self._projection.bias.size
        crossed = self._block.survivals(self._index, step, len(self._source))
        charge = spikes[..., self._source] * self._weights * crossed
        rows = np.arange(m * b)[:, None] * n_out + self._target
        total = np.bincount(rows.ravel(), charge.ravel(), minlength=m * b * n_out)
        return total.reshape(m, b, n_out).astype(self._dtype)


class _Population:
    """The neurons of one layer, all copies."""

    def __init__(
        self,
        layer: Spiking,
        neuron: PointNeuron,
        block: Block,
        index: int,
        dtype: type[np.floating[Any]],
    ) -> None:
        self.neuron = neuron
        self.offset = layer.offset
        self.varied = block.varied[index] if block.varied else Varied()
        leak = self.varied.leak(neuron.leak)
        self.keep: Any = 1.0 - leak if np.any(leak) else None
        self.pause = self.varied.pause(neuron.refractory)
        self.strike = block.strike(index)
        self.drive = block.drives[index].astype(dtype)
        self.changing = False
        self.v = block.phases[index].astype(dtype)
        if neuron.synapse is not None:
            # the drive has been on for ever: the filter starts where it would settle
            self.u = np.broadcast_to(block.drives[index], self.v.shape).astype(np.float64)
            self.push = neuron.gain * ACTIVATIONS[neuron.curve](block.drives[index])
        # where float32 holds, sums are exact and a tie needs no tolerance
        self.slack = 0.0 if dtype is np.float32 else tolerance(layer.projection.fraction_bits)
        theta = block.thresholds[index]
        self.theta: Any = dtype(1.0) if theta is None else theta.astype(dtype)
        # only a mismatched threshold makes the charge of a reset differ from 1
        self.unit: Any = None
        if has_mismatch(theta):
            self.unit = np.where(np.isfinite(self.theta), self.theta, dtype(1))
        self.floor: Any = None
        if neuron.bipolar:
            stopped = theta is not None
            floor = np.where(np.isfinite(self.theta), 0.0, -np.inf) if stopped else 0.0
            self.floor = np.asarray(floor - self.slack, dtype=dtype)
        self.theta = np.asarray(self.theta - dtype(self.slack), dtype=dtype)
        self.ready = np.zeros(self.v.shape, np.int64) if np.any(self.pause) else None
        self.fired = np.empty(self.v.shape, np.bool_)
        self.spikes = np.zeros_like(self.v)
        self.count = np.zeros_like(self.v)

    def set_drive(self, drive: Floats) -> None:
        """The drive of the next step, where it changes with time."""
        self.drive, self.changing = drive.astype(self.v.dtype), True

    def step(self, charge: Floats | None, now: int) -> Floats | None:
        """One step of the window; the signed spikes, or None before the layer may emit."""
        neuron, v = self.neuron, self.v
        emitting = now >= self.offset
        if neuron.synapse is None:
            if charge is not None:
                v += charge
            if self.keep is not None:
                v *= self.keep
            v += self.drive
        else:
            if charge is not None:
                self.u += neuron.synapse * charge
            if emitting:
                if self.keep is not None:
                    v *= self.keep
                settled = charge is None and not self.changing
                v += self.push if settled else neuron.gain * ACTIVATIONS[neuron.curve](self.u)
            if charge is not None or self.changing:
                self.u += neuron.synapse * (self.drive - self.u)
        return self._fire(now) if emitting else None

    def _fire(self, now: int) -> Floats:
        v, spikes = self.v, self.spikes
        np.greater_equal(v, self.theta, out=self.fired)
        if self.ready is not None:
            self.fired &= self.ready <= now
        np.copyto(spikes, self.fired)
        if self.floor is not None:
            below = v < self.floor
            if self.ready is not None:
                below &= self.ready <= now
            spikes -= below
            self.fired |= below
        if self.ready is not None:
            np.copyto(self.ready, now + 1 + self.pause, where=self.fired)
        if self.neuron.reset == "zero":
            v[self.fired] = 0.0
        elif self.unit is None:
            v -= spikes
        else:
            v -= spikes * self.unit
        self.varied.hold(spikes, now, self.offset)
        if self.strike is not None:
            spikes = self.strike.sent(spikes, now)
        self.count += spikes
        return spikes


def has_mismatch(theta: Floats | None) -> bool:
    """Whether a threshold differs from 1 in a neuron that can still reach it."""
    return theta is not None and bool(np.any(np.isfinite(theta) & (theta != 1.0)))


def exact_precision(chip: Chip, block: Block) -> type[np.floating[Any]]:
    """float32 if every sum of the run is exact in its 24 bits, else float64.

    On fixed-point layers both give the same spikes; float32 is twice as fast.
    """
    if block.by_step or block.uneven or any(map(has_mismatch, block.thresholds)):
        return np.float64
    if chip.wires:  # of which the reach below knows nothing
        return np.float64
    if block.train is not None:  # only the drives of its first step are known here
        return np.float64
    if any(weight is not None for weight in block.weights[1:]):
        return np.float64
    for index, layer in enumerate(chip.hidden):
        bits = layer.projection.fraction_bits
        if bits is None or not layer.neuron.on_grid:
            return np.float64
        up, down = float(block.drives[index].max()), -float(block.drives[index].min())
        if index:
            up, down = _reach(layer.projection)
        # per step a membrane falls by at most `down`, and rises by `up` less the spike it fires
        climb = up if layer.neuron.refractory else max(up - 1.0, 0.0)
        furthest = 2.0 + up + chip.duration(index) * max(climb, down)
        if furthest * 2.0**bits >= 2.0**24:
            return np.float64
    return np.float32


def _reach(projection: Projection) -> tuple[float, float]:
    """The largest rise and fall of a target in one step, over all patterns of unsigned spikes."""
    spikes, weight = np.ones(int(np.prod(projection.shape))), projection.weight
    if weight is None:
        return float((projection.charge(spikes) + projection.bias).max()), 0.0
    rise = projection.with_weight(np.maximum(weight, 0.0)).charge(spikes) + projection.bias
    fall = projection.with_weight(np.maximum(-weight, 0.0)).charge(spikes) - projection.bias
    return float(rise.max()), float(fall.max())


class _Feed:
    """One way into a layer: what arrives in a step, from another layer or from the inputs."""

    def __init__(
        self,
        chip: Chip,
        block: Block,
        place: int,
        source: int,
        delay: int,
        dtype: type[np.floating[Any]],
    ) -> None:
        self.source, self.delay = source, delay
        self.chip, self.block, self.place = chip, block, place
        spiking = source != INPUT
        self.delivery: Delivery | None = None
        if spiking:
            gain = block.gain(source)
            self.delivery = Delivery(chip.projections[place], block, place, dtype, gain)

    def arriving(self, spikes: list[Floats | None], past: list[_Past], now: int) -> Floats | None:
        """The charge of step `now`, or None; `spikes` are those of the layers before."""
        if self.delivery is None:
            if now < self.delay:
                return None
            return self.block.current(self.chip, self.place, now, self.delay)
        sent = past[self.source].before(self.delay) if self.delay else spikes[self.source]
        return None if sent is None else self.delivery(sent, now)


class _Past:
    """The last spikes of a layer, as many steps back as something needs them."""

    def __init__(self, depth: int) -> None:
        self.kept: deque[Floats] = deque(maxlen=depth)

    def keep(self, spikes: Floats | None) -> None:
        """Called once a step."""
        if self.kept.maxlen and spikes is not None:
            self.kept.append(spikes.copy())

    def before(self, steps: int) -> Floats | None:
        """The spikes of so many steps ago, or None."""
        return self.kept[-steps] if steps <= len(self.kept) else None


def _populations(
    chip: Chip, block: Block, dtype: type[np.floating[Any]]
) -> list[_Population | SteppedPopulation | OwnPopulation]:
    found: list[_Population | SteppedPopulation | OwnPopulation] = []
    for index, layer in enumerate(chip.hidden):
        if isinstance(layer.neuron, PointNeuron):
            found.append(_Population(layer, layer.neuron, block, index, dtype))
        elif isinstance(layer.neuron, SteppedNeuron):
            found.append(SteppedPopulation(layer, layer.neuron, block, index))
        else:
            found.append(OwnPopulation(layer, layer.neuron, block, index))
    return found


def simulate(
    chip: Chip,
    block: Block,
    *,
    trains: bool = False,
    firsts: bool = False,
    told: Callable[[], None] | None = None,
) -> Activity:
    """Run one block.

    trains: keep every spike. firsts: keep when each neuron of the last layer first fired. told:
    called after each step.
    """
    dtype = exact_precision(chip, block)
    layers = _populations(chip, block, dtype)
    feeds = [
        [
            _Feed(chip, block, place, source, delay, dtype)
            for place, source, delay in chip.feeds(index)
            if source != INPUT or place in block.currents
        ]
        for index in range(len(layers))
    ]
    depths = [0] * len(layers)
    for feed in (feed for into in feeds for feed in into if feed.source != INPUT):
        depths[feed.source] = max(depths[feed.source], feed.delay)
    past = [_Past(depth) for depth in depths]
    readout, wire = None, None
    if block.by_step:
        readout = np.zeros((block.masks, block.inputs, chip.readout.bias.size))
        last_gain = block.gain(len(layers) - 1)
        wire = Delivery(chip.readout, block, len(layers), dtype, last_gain)
    kept: list[list[NDArray[np.int8]]] = [[] for _ in layers]
    first = np.full(layers[-1].v.shape, -1)
    changing = [
        index for index in range(len(layers)) if block.train is not None and is_driven(chip, index)
    ]
    spikes: list[Floats | None] = [None] * len(layers)
    for now in range(chip.total_steps):
        for index in changing:
            layers[index].set_drive(block.drive(chip, index, now))
        for index, population in enumerate(layers):
            charge: Floats | None = None
            for feed in feeds[index]:
                arrived = feed.arriving(spikes, past, now)
                if arrived is not None:
                    charge = arrived if charge is None else charge + arrived
            spikes[index] = sent = population.step(charge, now)
            if trains and sent is not None:
                kept[index].append(sent.astype(np.int8 if sent.max(initial=0) < 128 else np.int32))
        for before, sent in zip(past, spikes, strict=True):
            before.keep(sent)
        last = spikes[-1]
        if firsts and last is not None:
            first[(last != 0) & (first < 0)] = now - chip.hidden[-1].offset
        if readout is not None and wire is not None and last is not None:
            readout += wire(last, now)
        if told is not None:
            told()
    return Activity(
        tuple(population.count.astype(np.float64) for population in layers),
        readout,
        tuple(np.stack(steps) for steps in kept) if trains else None,
        layers[-1].v.astype(np.float64),
        first if firsts else None,
    )
