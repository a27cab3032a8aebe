"""Writing chips of stepped neurons: graphs read from another library's file, or one's own.

NIR says neither resets by subtraction nor late ones, so each spiking node carries its rules as
metadata, which `read_nir` follows. The branches, loops and delays of a chip are nodes and edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import INPUT, Chip, Projection, Spiking
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.stepped_neuron import SteppedNeuron
from crashsim_hardware.rate_network import attach_bias

from .rules import RULES, rules_text
from .transforms import node_of

__all__ = ["stepped_graph"]

Floats = NDArray[Any]


def stepped_graph(nir: Any, chip: Chip) -> Any:
    """`chip` as a `nir.NIRGraph` with dt as metadata, in units of each neuron's threshold.

    Raises HardwareError, naming the layer, for what NIR has no node for.
    """
    building = _Graph(nir, chip)
    for index, layer in enumerate(chip.hidden):
        building.layer(index, layer)
    return building.finish()


class _Graph:
    """Nodes and edges so far."""

    def __init__(self, nir: Any, chip: Chip) -> None:
        self.nir, self.chip = nir, chip
        self.nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(chip.input_shape)})}
        self.edges: list[tuple[str, str]] = []
        self.names = self._named()

    def _named(self) -> list[str]:
        """A name for every layer: its own, where no other has it."""
        names: list[str] = []
        for index, layer in enumerate(self.chip.hidden):
            name = layer.name.replace(".", "_") or f"neurons_{index}"
            taken = name in (*names, "input", "output")
            names.append(f"{name}_{index}" if taken else name)
        return names

    def _source(self, index: int) -> str:
        return "input" if index == INPUT else self.names[index]

    def layer(self, index: int, layer: Spiking) -> None:
        name = self.names[index]
        shape = layer.projection.output_shape
        self.nodes[name] = _neurons(self.nir, layer.neuron, shape, self.chip.physics.dt, name)
        for number, (place, source, delay) in enumerate(self.chip.feeds(index)):
            # spikes that go back take a step by themselves
            waits = delay - (1 if source >= index else 0)
            self._way(place, self._source(source), name, waits, f"{name}_in{number}")

    def _way(self, place: int, source: str, target: str, delay: int, prefix: str) -> None:
        """Nodes of a projection, from a source to a target, with edges between them."""
        projection, before = self.chip.projections[place], source
        if delay:
            dt = self.chip.physics.dt
            before = self._add(f"{prefix}_delay", before, self._delay(projection, delay * dt))
        shape = projection.shape
        for number, transform in enumerate(self._transforms(projection, target)):
            node, shape = node_of(self.nir, transform, shape)
            before = self._add(f"{prefix}_{number}", before, node)
        self.edges.append((before, target))

    def _delay(self, projection: Projection, seconds: float) -> Any:
        return self.nir.Delay(np.full(projection.shape, seconds))

    def _transforms(self, projection: Projection, target: str) -> Any:
        if not projection.bias.any():
            return projection.transforms
        return attach_bias(
            projection.transforms, projection.bias, projection.shape, 1.0, f"{target!r}"
        )

    def _add(self, name: str, before: str, node: Any) -> str:
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        self.edges.append((before, name))
        return name

    def finish(self) -> Any:
        nir, chip = self.nir, self.chip
        shape = chip.readout.output_shape
        self.nodes["output"] = nir.Output({"output": np.array(shape)})
        last = self.names[-1]
        try:
            transforms, bias = self._transforms(chip.readout, "the readout"), None
        except HardwareError:  # no weight carries it: a membrane's rest does
            transforms, bias = chip.readout.transforms, chip.readout.bias.reshape(shape)
        before, now = last, chip.readout.shape
        for number, transform in enumerate(transforms):
            node, now = node_of(nir, transform, now)
            before = self._add(f"readout_{number}", before, node)
        if bias is not None:
            one = np.ones(shape)
            leaky = nir.LI(tau=one * chip.physics.dt, r=one, v_leak=bias)
            before = self._add("readout_rest", before, leaky)
        self.edges.append((before, "output"))
        metadata: dict[str, Any] = {"dt": chip.physics.dt, RULES: "by node", "start": chip.start}
        return nir.NIRGraph(self.nodes, self.edges, metadata=metadata, type_check=False)


def _neurons(nir: Any, neuron: Any, shape: tuple[int, ...], dt: float, name: str) -> Any:
    if not isinstance(neuron, SteppedNeuron):
        raise HardwareError(f"layer {name!r}: NIR has no node for a {type(neuron).__name__}")
    one = np.ones(shape)

    def each(values: Any) -> Floats:
        return np.asarray(values, dtype=np.float64).reshape(shape)

    if neuron.reset == "zero" and neuron.floor is None:
        plain = neuron.synapse is None and (neuron.leak == 1.0).all() and not neuron.rest.any()
        if plain and neuron.strict and not neuron.late:
            return nir.Threshold(1.0 / each(neuron.per_charge))
    back = 0.0 * one if neuron.floor is None else each(neuron.floor)
    common: dict[str, Any] = {"v_threshold": one, "v_reset": back}
    common["metadata"] = {RULES: rules_text(neuron, name)}
    if not neuron.leak.any() and neuron.synapse is None and not neuron.rest.any():
        return nir.IF(r=each(neuron.per_charge / dt), **common)
    if not neuron.leak.all():
        raise HardwareError(
            f"layer {name!r} has neurons without a leak that NIR's LIF and CubaLIF cannot be"
        )
    common |= {"v_leak": each(neuron.rest / neuron.leak)}
    if neuron.synapse is None:
        return nir.LIF(
            tau=each(dt / neuron.leak), r=each(neuron.per_charge / neuron.leak), **common
        )
    gain = 1.0 if neuron.gain is None else neuron.gain
    return nir.CubaLIF(
        tau_syn=each(dt / neuron.synapse),
        tau_mem=each(dt / neuron.leak),
        r=each(gain / neuron.leak),
        w_in=each(neuron.per_charge / neuron.synapse),
        **common,
    )
