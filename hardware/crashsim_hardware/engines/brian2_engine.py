"""The chip in brian2, with physical units.

One NeuronGroup per layer holds all copies of it, copy by copy. Spikes travel in one of two ways:

- dense: one matrix product per projection and step, in a network operation of the synapses slot;
- `Synapses` objects, one synapse per connection and copy, brian2's own event-driven delivery.

Equations, for delta synapses (I the constant current, C and v_th as in `Physics`):

    dv/dt = I / C - v / tau_m                          v += w v_th per spike

and for filtered ones (u dimensionless, F = gain v_th / dt):

    du/dt = (drive - u) / tau_s                        u += (dt / tau_s) w per spike
    dv/dt = F curve(u) - v / tau_m

each integrated by forward Euler: for the perfect integrator that is exact, and for the others it
is the definition of the digital neuron (`PointNeuron`). Layer l runs during its own window.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import INPUT, Chip
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.point_neuron import PointNeuron
from crashsim_hardware.neurons.stepped_neuron import SteppedNeuron

from .block import Activity, Block, connections, matrices, tolerance
from .brian2_loading import brian2_at_rest
from .brian2_stepping import set_stepped, stepped_group
from .numpy_engine import Delivery, exact_precision, has_mismatch

__all__ = ["equations", "session"]

Floats = NDArray[Any]

_CURVES = {"linear": "u", "sigmoid": "1 / (1 + exp(-u))", "tanh": "tanh(u)"}


def equations(neuron: PointNeuron) -> str:
    """The brian2 equations of `neuron`; parameters are set per neuron, constants per chip."""
    leak = " - (active / tau_m) * v" if neuron.leak else ""
    if neuron.synapse is None:
        model = f"dv/dt = (active / C) * I{leak} : volt\nI : amp\n"
    else:
        model = (
            f"du/dt = (drive - u) / tau_s : 1\ndrive : 1\n"
            f"dv/dt = (active * F) * ({_CURVES[neuron.curve]}){leak} : volt\n"
        )
    model += "active = int(t_in_timesteps >= start) * int(t_in_timesteps < stop) : 1 (shared)\n"
    model += "theta : volt\nunit : volt\n"
    if neuron.bipolar:
        model += "theta_off : volt\npolarity : 1\n"
    return model


@contextmanager
def session(chip: Chip, *, synapses: bool) -> Iterator[_Session]:
    """An engine for `chip`: a network is as large as its block, and reused for equal blocks."""
    with brian2_at_rest() as brian2:
        yield _Session(brian2, chip, synapses)


class _Session:
    """Keeps the network built last, as long as blocks of its kind follow."""

    def __init__(self, brian2: Any, chip: Chip, synapses: bool) -> None:
        self._brian2, self._chip, self._synapses = brian2, chip, synapses
        self._key: tuple[Any, ...] | None = None
        self._network: _Copies | None = None

    def __call__(self, block: Block, *, trains: bool = False) -> Activity:
        mismatched = any(map(has_mismatch, block.thresholds))
        key = (block.masks, block.inputs, block.release_failure > 0.0, mismatched)
        if self._network is None or key != self._key:
            self._network = _Copies(self._brian2, self._chip, block, self._synapses)
            self._key = key
        return self._network.simulate(block, trains)


class _Copies:
    """One brian2 Network that holds masks x inputs copies of the chip."""

    def __init__(self, brian2: Any, chip: Chip, block: Block, synapses: bool) -> None:
        self._brian2, self._chip, self._synapses = brian2, chip, synapses
        self._dt = chip.physics.dt * brian2.second
        self._v_th = chip.physics.threshold
        clock = brian2.Clock(dt=self._dt)
        # the last layer's window starts one step of latency per layer late, and ends the run
        self._run_steps = len(chip.hidden) - 1 + chip.total_steps
        self._shapes = [(block.masks, block.inputs, size) for size in chip.sizes]
        # gathering every neuron's own reset costs time that equal thresholds need not pay
        self._unit = "unit" if any(map(has_mismatch, block.thresholds)) else "v_th"
        self._groups = [
            self._group(index, int(np.prod(shape)), clock)
            for index, shape in enumerate(self._shapes)
        ]
        self._wires: list[Any] = []
        objects = list(self._groups)
        self._ways = _ways(chip)
        if synapses:
            if block.release_failure > 0.0 and (chip.wires or any(w.wait for w in self._ways)):
                raise HardwareError(
                    "where spikes take branches, loops or delays, releases fail with "
                    "engine='brian2' or 'numpy' alone"
                )
            self._wires = [
                self._synapse(
                    way.place, self._groups[way.source], self._groups[way.target], block, clock,
                    way.source, way.target, way.wait,
                )
                for way in self._ways
            ]  # fmt: skip
            if block.release_failure > 0.0:
                outputs = block.masks * block.inputs * chip.readout.bias.size
                self._readout = brian2.NeuronGroup(outputs, "y : 1", clock=clock)
                objects.append(self._readout)
                last = len(self._groups)
                self._wires.append(
                    self._synapse(last, self._groups[-1], self._readout, block, clock, last - 1)
                )
            objects += self._wires
        operation = brian2.NetworkOperation
        # before the reset, while v still tells ON from OFF
        objects.append(operation(self._observe, clock=clock, when="after_thresholds"))
        if not synapses or block.currents:
            objects.append(operation(self._deliver, clock=clock, when="synapses"))
        self._network = brian2.Network(*objects)
        # brian2 resets last; a reset to zero would then wipe out the charge that just arrived
        self._network.schedule = ["start", "groups", "thresholds", "resets", "synapses", "end"]
        self._network.store()
        gc.freeze()  # the network is garbage-free too: see brian2_at_rest

    def _group(self, index: int, size: int, clock: Any) -> Any:
        brian2, layer, physics = self._brian2, self._chip.hidden[index], self._chip.physics
        neuron = layer.neuron
        if isinstance(neuron, SteppedNeuron):
            return stepped_group(brian2, self._chip, index, neuron, size, clock)
        constants: dict[str, Any] = {
            "start": index + layer.offset,
            "stop": index + self._chip.total_steps,
            "C": physics.capacitance * brian2.farad,
            "v_th": physics.threshold * brian2.volt,
            "F": neuron.gain * physics.threshold * brian2.volt / self._dt,
        }
        if neuron.leak:
            constants["tau_m"] = self._dt / neuron.leak
        if neuron.synapse is not None:
            constants["tau_s"] = self._dt / neuron.synapse
        fires = "v >= theta or v < theta_off" if neuron.bipolar else "v >= theta"
        if neuron.reset == "zero":
            reset = "v = 0*volt"
        else:
            reset = f"v -= polarity * {self._unit}" if neuron.bipolar else f"v -= {self._unit}"
        # brian2 lets a neuron fire again `refractory` after a spike, PointNeuron one step later
        silent = (neuron.refractory + 1) * self._dt if neuron.refractory else False
        return brian2.NeuronGroup(
            size,
            equations(neuron),
            threshold=f"active > 0 and ({fires})",
            reset=reset,
            refractory=silent,
            method="euler",
            namespace=constants,
            clock=clock,
        )

    def _synapse(
        self,
        index: int,
        source: Any,
        target: Any,
        block: Block,
        clock: Any,
        sender: int,
        receiver: int | None = None,
        wait: int = 0,
    ) -> Any:
        """Synapses of projection `index`, in the order (copy, connection)."""
        brian2, projection = self._brian2, self._chip.projections[index]
        presynaptic = self._chip.hidden[sender].neuron
        receiving = None if receiver is None else self._chip.hidden[receiver].neuron
        effect = "crossed * w" if block.release_failure > 0.0 else "w"
        if presynaptic.bipolar:
            effect += " * polarity_pre"
        constants: dict[str, Any] = {}
        if receiving is None:
            on_pre = f"y_post += {effect}"
        elif isinstance(receiving, SteppedNeuron):
            on_pre = f"q_post += {effect}"
        elif (filtered := receiving.synapse) is not None:
            on_pre, constants = f"u_post += jump * {effect}", {"jump": filtered}
        else:
            on_pre, constants = f"v_post += v_th * {effect}", {"v_th": self._v_th * brian2.volt}
        wires = brian2.Synapses(
            source, target, "w : 1\ncrossed : 1", on_pre=on_pre, namespace=constants, clock=clock,
            delay=wait * self._dt if wait else None,
        )  # fmt: skip
        pre, post = connections(projection)
        copies = np.arange(block.masks * block.inputs)[:, None]
        n_in = int(np.prod(projection.shape))
        wires.connect(
            i=(copies * n_in + pre).ravel(), j=(copies * projection.bias.size + post).ravel()
        )
        return wires

    def simulate(self, block: Block, trains: bool) -> Activity:
        """Set the block's state, run, and read the counts."""
        chip = self._chip
        self._network.restore()
        self._block, self._trains = block, trains
        self._set_state(block)
        self._kept: list[list[NDArray[np.int8]]] = [[] for _ in self._shapes]
        dtype = exact_precision(chip, block)
        self._spikes = [np.zeros(shape, dtype) for shape in self._shapes]
        self._count = [np.zeros(shape, dtype) for shape in self._shapes]
        if self._synapses:
            self._set_synapses(block)
        self._arrived = [np.empty(int(np.prod(shape))) for shape in self._shapes]
        if not self._synapses:
            self._delivery = [
                Delivery(chip.projections[way.place], block, way.place, dtype) for way in self._ways
            ]
            self._read = Delivery(chip.readout, block, len(self._groups), dtype)
        released = block.release_failure > 0.0
        self._received = np.zeros((block.masks, block.inputs, chip.readout.bias.size))
        self._now = 0
        self._pending: dict[int, list[tuple[int, Floats]]] = {}
        self._add_currents(0)
        self._network.run(self._run_steps * self._dt, namespace={})
        readout = None
        if released:
            readout = self._received
            if self._synapses:
                readout = np.array(self._readout.y[:]).reshape(self._received.shape)
        return Activity(
            tuple(count.astype(np.float64) for count in self._count),
            readout,
            tuple(np.stack(steps) for steps in self._kept) if trains else None,
        )

    def _set_state(self, block: Block) -> None:
        physics = self._chip.physics
        for index, (group, shape) in enumerate(zip(self._groups, self._shapes, strict=True)):
            layer = self._chip.hidden[index]
            if isinstance(layer.neuron, SteppedNeuron):
                set_stepped(group, self._chip, block, index, layer.neuron, shape)
                continue

            def whole(values: Any, shape: tuple[int, ...] = shape) -> Floats:
                return np.broadcast_to(values, shape).reshape(-1)

            theta = block.thresholds[index]
            theta = np.ones(1) if theta is None else theta
            slack = tolerance(layer.projection.fraction_bits)
            _assign(group, "v", whole(block.phases[index]) * self._v_th)
            _assign(group, "theta", whole(theta - slack) * self._v_th)
            _assign(group, "unit", whole(np.where(np.isfinite(theta), theta, 1.0)) * self._v_th)
            if layer.neuron.bipolar:
                off = np.where(np.isfinite(theta), 0.0, -np.inf) - slack
                _assign(group, "theta_off", whole(off) * self._v_th)
            drive = whole(block.drives[index])
            if layer.neuron.synapse is None:
                _assign(group, "I", drive * (physics.charge / physics.dt))
            else:
                _assign(group, "drive", drive)
                _assign(group, "u", drive)

    def _set_synapses(self, block: Block) -> None:
        places = [way.place for way in self._ways]
        if len(self._wires) > len(places):
            places.append(len(self._groups))
        for index, wires in zip(places, self._wires, strict=True):
            projection = self._chip.projections[index]
            source, target = connections(projection)
            weights = matrices(projection, block.weights[index])[..., source, target]
            if weights.ndim == 2:
                weights = weights[:, None]
            shape = (block.masks, block.inputs, len(source))
            _assign(wires, "w", np.broadcast_to(weights, shape).reshape(-1))

    def _observe(self) -> None:
        """Count the spikes of this step, and tell their polarity."""
        self._emitting: list[tuple[int, int]] = []
        now, self._now = self._now, self._now + 1
        for index, group in enumerate(self._groups):
            layer = self._chip.hidden[index]
            step = now - index  # in the time of the layer's own window
            if not layer.offset <= step < self._chip.total_steps:
                continue
            fired = group.spikes
            polarity: Any = 1
            if layer.neuron.bipolar:
                values = group.variables
                v, off = (values[name].get_value()[fired] for name in ("v", "theta_off"))
                polarity = np.where(v < off, -1, 1)
                values["polarity"].get_value()[fired] = polarity
            spikes = self._spikes[index]
            spikes.fill(0)
            spikes.reshape(-1)[fired] = polarity
            self._count[index] += spikes
            if self._trains:
                self._kept[index].append(spikes.astype(np.int8))
            if self._synapses:
                if self._block.release_failure > 0.0 and index < len(self._wires):
                    size = self._wires[index].variables["w"].get_value().size
                    per_copy = size // (self._block.masks * self._block.inputs)
                    crossed = self._block.survivals(index + 1, step, per_copy)
                    _assign(self._wires[index], "crossed", crossed.reshape(-1).astype(float))
            else:
                self._emitting.append((index, step))

    def _deliver(self) -> None:
        """Carry this step's spikes on with one product for each way, to arrive when they do."""
        for index, step in self._emitting if not self._synapses else ():
            for way, delivery in zip(self._ways, self._delivery, strict=True):
                if way.source == index:
                    charge = delivery(self._spikes[index], step + way.delay)
                    if way.wait:
                        arrival = self._pending.setdefault(self._now + way.wait, [])
                        arrival.append((way.target, charge.copy()))
                    else:
                        self._add(way.target, charge)
            if index + 1 == len(self._groups) and self._block.release_failure > 0.0:
                self._received += self._read(self._spikes[index], step)
        for target, charge in self._pending.pop(self._now, ()):
            self._add(target, charge)
        self._add_currents(self._now)

    def _add_currents(self, now: int) -> None:
        """What the inputs send besides the drives, into the layers whose step `now` is next."""
        for target in range(len(self._groups)):
            for place, _, delay in self._chip.feeds(target):
                if place in self._block.currents and now - target >= delay:
                    current = self._block.currents[place]
                    self._add(target, np.broadcast_to(current, self._shapes[target]))

    def _add(self, target: int, charge: Floats) -> None:
        neuron, worth = self._chip.hidden[target].neuron, 1.0
        if isinstance(neuron, SteppedNeuron):
            name = "q"
        elif neuron.synapse is None:
            name, worth = "v", self._v_th
        else:
            name, worth = "u", neuron.synapse
        state = self._groups[target].variables[name].get_value()
        state += np.multiply(charge.reshape(-1), worth, out=self._arrived[target], dtype=np.float64)


@dataclass(frozen=True)
class _Way:
    """How spikes get from a layer to another: through which projection, and when they arrive.

    delay: in the time of the layers' windows. wait: in brian2's time, in which the window of a
    layer starts a step after that of the layer before, beyond the step that spikes always take.
    """

    place: int
    source: int
    target: int
    delay: int
    wait: int


def _ways(chip: Chip) -> list[_Way]:
    found = [
        _Way(place, source, target, delay, delay + target - source - 1)
        for target in range(len(chip.hidden))
        for place, source, delay in chip.feeds(target)
        if source != INPUT
    ]
    if any(way.wait < 0 for way in found):
        raise HardwareError(
            "spikes run in a loop over several layers, whose windows brian2 runs one after the "
            "other; use engine='numpy'"
        )
    return found


def _assign(owner: Any, name: str, values: Floats) -> None:
    # straight into the state array: the values are already in SI base units
    owner.variables[name].set_value(values)
