"""The chip in brian2, with physical units.

One NeuronGroup per layer holds all copies of it, copy by copy. Spikes travel in one of two ways:

- dense: one matrix product per projection and step, in a network operation of the synapses slot;
- `Synapses` objects, one synapse per connection and copy, brian2's own event-driven delivery.

The neurons' equations are in `brian2_description`. Layer l runs during its own window.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Chip
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.point_neuron import PointNeuron
from crashsim_hardware.neurons.stepped_neuron import SteppedNeuron

from .block import Activity, Block, check_listed, connections, matrices
from .brian2_description import Constants, Way, arrays_of, model_of, quantity, receiving, ways
from .brian2_loading import brian2_at_rest
from .inputs import is_driven
from .numpy_engine import Delivery, exact_precision, has_mismatch
from .varied import Varied

__all__ = ["session"]

Floats = NDArray[Any]


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

    def __call__(
        self,
        block: Block,
        *,
        trains: bool = False,
        firsts: bool = False,
        told: Callable[[], None] | None = None,
    ) -> Activity:
        mismatched = any(map(has_mismatch, block.thresholds))
        held_for_some = any(v.held is not None and v.window is not None for v in block.varied)
        struck = any(block.strikes) or held_for_some or block.synapse_window is not None
        if self._synapses and struck:
            raise HardwareError(
                "neurons and synapses that are struck for some steps need engine='brian2' or "
                "'numpy': Synapses carry what a neuron fires, with the same weight in all steps"
            )
        kinds = tuple(varied.kinds for varied in block.varied)
        released, changing = block.release_failure > 0.0, block.train is not None
        key = (block.masks, block.inputs, released, block.by_step, mismatched, kinds, changing)
        if self._network is None or key != self._key:
            self._network = _Copies(self._brian2, self._chip, block, self._synapses)
            self._key = key
        return self._network.simulate(block, trains, firsts, told)


def _check_synapses(chip: Chip, block: Block, found: Sequence[Way]) -> None:
    """Raises HardwareError for what Synapses cannot carry."""
    if block.noisy:
        raise HardwareError(
            "Synapses deliver spikes one by one, and reads with noise or a converter are of whole "
            "columns; use engine='brian2' or 'numpy'"
        )
    if block.release_failure > 0.0 and (chip.wires or any(way.wait for way in found)):
        raise HardwareError(
            "where spikes take branches, loops or delays, releases fail with engine='brian2' or "
            "'numpy' alone"
        )
    if any(projection.pool is not None for projection in chip.projections):
        raise HardwareError(
            "a maximum over neurons is no set of Synapses; use engine='brian2' or 'numpy'"
        )
    for way in found:
        check_listed(chip.projections[way.place])
    if block.release_failure > 0.0:
        check_listed(chip.readout)


class _Copies:
    """One brian2 Network that holds masks x inputs copies of the chip."""

    def __init__(self, brian2: Any, chip: Chip, block: Block, synapses: bool) -> None:
        self._brian2, self._chip, self._synapses = brian2, chip, synapses
        self._ways = ways(chip)
        if synapses:  # before anything is made, of which brian2 would say that nothing uses it
            _check_synapses(chip, block, self._ways)
        self._dt = chip.physics.dt * brian2.second
        self._v_th = chip.physics.threshold
        clock = brian2.Clock(dt=self._dt)
        # the last layer's window starts one step of latency per layer late, and ends the run
        self._run_steps = len(chip.hidden) - 1 + chip.total_steps
        self._varied = block.varied or tuple(Varied() for _ in chip.hidden)
        self._shapes = [(block.masks, block.inputs, size) for size in chip.sizes]
        # gathering every neuron's own reset costs time that equal thresholds need not pay
        self._units = any(map(has_mismatch, block.thresholds))
        self._groups = [
            self._group(index, int(np.prod(shape)), clock)
            for index, shape in enumerate(self._shapes)
        ]
        self._wires: list[Any] = []
        objects = list(self._groups)
        if synapses:
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
        if block.train is not None:
            objects.append(operation(self._drive, clock=clock, when="start", order=-1))
        if not synapses or block.currents:
            objects.append(operation(self._deliver, clock=clock, when="synapses"))
        self._network = brian2.Network(*objects)
        # brian2 resets last; a reset to zero would then wipe out the charge that just arrived
        self._network.schedule = ["start", "groups", "thresholds", "resets", "synapses", "end"]
        self._network.store()
        gc.freeze()  # the network is garbage-free too: see brian2_at_rest

    def _group(self, index: int, size: int, clock: Any) -> Any:
        brian2 = self._brian2
        model = model_of(
            self._chip, index, self._varied[index], held=self._synapses, units=self._units
        )
        constants = {name: quantity(brian2, *value) for name, value in model.constants.items()}
        silent = model.refractory
        group = brian2.NeuronGroup(
            size,
            model.equations,
            threshold=model.threshold,
            reset=model.reset,
            refractory=silent * brian2.second
            if isinstance(silent, float) and silent
            else silent or False,
            method="euler",
            namespace=constants,
            clock=clock,
        )
        if model.step:
            group.run_regularly(model.step, clock=clock, when="start")
        return group

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
        effect = "crossed * weight" if block.release_failure > 0.0 else "weight"
        if presynaptic.bipolar:
            effect += " * polarity_pre"
        on_pre = f"y_post += {effect}"
        named: Constants = {}
        if receiver is not None:
            on_pre, named = receiving(self._chip, receiver, effect)
        constants = {name: quantity(brian2, *value) for name, value in named.items()}
        wires = brian2.Synapses(
            source, target, "weight : 1\ncrossed : 1", on_pre=on_pre, namespace=constants,
            clock=clock, delay=wait * self._dt if wait else None,
        )  # fmt: skip
        pre, post = connections(projection)
        copies = np.arange(block.masks * block.inputs)[:, None]
        n_in = int(np.prod(projection.shape))
        wires.connect(
            i=(copies * n_in + pre).ravel(), j=(copies * projection.bias.size + post).ravel()
        )
        return wires

    def simulate(
        self, block: Block, trains: bool, firsts: bool, told: Callable[[], None] | None
    ) -> Activity:
        """Set the block's state, run, and read the counts."""
        chip = self._chip
        self._network.restore()
        self._block, self._trains, self._told = block, trains, told
        if block.varied:
            self._varied = block.varied
        self._set_state(block)
        self._kept: list[list[NDArray[np.int8]]] = [[] for _ in self._shapes]
        self._first = np.full(self._shapes[-1], -1) if firsts else None
        dtype = exact_precision(chip, block)
        self._spikes = [np.zeros(shape, dtype) for shape in self._shapes]
        self._count = [np.zeros(shape, dtype) for shape in self._shapes]
        if self._synapses:
            self._set_synapses(block)
        self._arrived = [np.empty(int(np.prod(shape))) for shape in self._shapes]
        if not self._synapses:
            self._delivery = [
                Delivery(
                    chip.projections[way.place], block, way.place, dtype, block.gain(way.source)
                )
                for way in self._ways
            ]
            last = len(self._groups)
            self._read = Delivery(chip.readout, block, last, dtype, block.gain(last - 1))
        self._received = np.zeros((block.masks, block.inputs, chip.readout.bias.size))
        self._now = 0
        self._pending: dict[int, list[tuple[int, Floats]]] = {}
        self._add_currents(0)
        self._network.run(self._run_steps * self._dt, namespace={})
        readout = None
        if block.by_step:
            readout = self._received
            if self._synapses:
                readout = np.array(self._readout.y[:]).reshape(self._received.shape)
        return Activity(
            tuple(count.astype(np.float64) for count in self._count),
            readout,
            tuple(np.stack(steps) for steps in self._kept) if trains else None,
            self._membrane(),
            self._first,
        )

    def _membrane(self) -> Floats:
        """Of the last layer, in thresholds."""
        stepped = not isinstance(self._chip.hidden[-1].neuron, PointNeuron)
        values = np.array(self._groups[-1].variables["v"].get_value()).reshape(self._shapes[-1])
        return values if stepped else values / self._v_th

    def _set_state(self, block: Block) -> None:
        for index, (group, shape) in enumerate(zip(self._groups, self._shapes, strict=True)):
            arrays = arrays_of(self._chip, block, index, held=self._synapses)
            for name, (values, _) in arrays.items():
                if name in group.variables:
                    _assign(group, name, np.broadcast_to(values, shape).reshape(-1))

    def _set_drive(self, index: int, drive: Floats) -> None:
        neuron, physics = self._chip.hidden[index].neuron, self._chip.physics
        group = self._groups[index]
        if isinstance(neuron, SteppedNeuron):
            drive = neuron.per_charge * drive
        values = np.broadcast_to(drive, self._shapes[index]).reshape(-1)
        if isinstance(neuron, PointNeuron) and neuron.synapse is None:
            _assign(group, "I", values * (physics.charge / physics.dt))
        else:
            _assign(group, "drive", values)

    def _drive(self) -> None:
        """Inputs that change with time: the drive of the step that begins."""
        for index in range(len(self._groups)):
            step = self._now - index
            if is_driven(self._chip, index) and 0 <= step < self._chip.total_steps:
                self._set_drive(index, self._block.drive(self._chip, index, step))

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
            if (gain := block.gain(self._sender(index))) is not None:
                weights = weights * gain[..., source]
            shape = (block.masks, block.inputs, len(source))
            _assign(wires, "weight", np.broadcast_to(weights, shape).reshape(-1))

    def _sender(self, place: int) -> int:
        """The hidden layer whose spikes go through a projection."""
        if place == len(self._groups):
            return place - 1
        return next(way.source for way in self._ways if way.place == place)

    def _observe(self) -> None:
        """Count the spikes of this step, and tell their polarity."""
        self._emitting: list[tuple[int, int]] = []
        now, self._now = self._now, self._now + 1
        if self._told is not None and now >= len(self._groups) - 1:
            self._told()
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
                if self._synapses and self._varied[index].held is not None:
                    held = values["held"].get_value()[fired]
                    polarity = np.where(held == 0.0, polarity, np.sign(held)).astype(np.int64)
                values["polarity"].get_value()[fired] = polarity
            spikes = self._spikes[index]
            spikes.fill(0)
            spikes.reshape(-1)[fired] = polarity
            self._varied[index].hold(spikes, step, layer.offset)
            if (strike := self._block.strike(index)) is not None:
                spikes[...] = strike.sent(spikes, step)
            if self._first is not None and index + 1 == len(self._groups):
                self._first[(spikes != 0) & (self._first < 0)] = step - layer.offset
            self._count[index] += spikes
            if self._trains:
                self._kept[index].append(spikes.astype(np.int8))
            if self._synapses:
                if self._block.release_failure > 0.0 and index < len(self._wires):
                    size = self._wires[index].variables["weight"].get_value().size
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
            if index + 1 == len(self._groups) and self._block.by_step:
                self._received += self._read(self._spikes[index], step)
        for target, charge in self._pending.pop(self._now, ()):
            self._add(target, charge)
        self._add_currents(self._now)

    def _add_currents(self, now: int) -> None:
        """What the inputs send besides the drives, into the layers whose step `now` is next."""
        for target in range(len(self._groups)):
            for place, _, delay in self._chip.feeds(target):
                step = now - target  # in the time of the layer's own window
                arrives = delay <= step < self._chip.total_steps
                if place in self._block.currents and arrives:
                    current = self._block.current(self._chip, place, step, delay)
                    self._add(target, np.broadcast_to(current, self._shapes[target]))

    def _add(self, target: int, charge: Floats) -> None:
        neuron, worth = self._chip.hidden[target].neuron, 1.0
        if not isinstance(neuron, PointNeuron):
            name = "q"
        elif neuron.synapse is None:
            name, worth = "v", self._v_th
        else:
            name, worth = "u", neuron.synapse
        state = self._groups[target].variables[name].get_value()
        state += np.multiply(charge.reshape(-1), worth, out=self._arrived[target], dtype=np.float64)


def _assign(owner: Any, name: str, values: Floats) -> None:
    # straight into the state array: the values are already in SI base units
    owner.variables[name].set_value(values)
