"""A converted chip: layers of spiking neurons, fixed-point synapses, a linear readout."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .arguments import whole
from .errors import HardwareError
from .network import Network
from .neurons.own_neuron import OwnNeuron
from .neurons.point_neuron import PointNeuron
from .neurons.stepped_neuron import SteppedNeuron
from .transforms import (
    Flatten,
    MaxPool2d,
    Shape,
    Transform,
    chain,
    output_shape,
    weight_of,
    with_weight,
)

__all__ = [
    "INPUT",
    "Chip",
    "Physics",
    "Projection",
    "Spiking",
    "Wire",
    "quantise",
    "round_to_grid",
]

INPUT = -1
"""The source of what comes from the inputs, where others are indices of hidden layers."""

Floats = NDArray[Any]


@dataclass(frozen=True)
class Physics:
    """The physical scale of the membrane: what turns units of v_th and dt into volts and amperes.

    capacitance in farad, threshold in volt, dt in second. Counts do not depend on the first two.
    """

    capacitance: float = 100e-12
    threshold: float = 20e-3
    dt: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("capacitance", "threshold", "dt"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise HardwareError(f"{name} must be a positive number in SI units, got {value!r}")

    @property
    def charge(self) -> float:
        """Coulomb per unit of weight: C v_th, what lifts a membrane from rest to threshold."""
        return self.capacitance * self.threshold


def round_to_grid(values: Floats, fraction_bits: int | None) -> Floats:
    """The nearest multiples of 2**-fraction_bits; unchanged when fraction_bits is None."""
    if fraction_bits is None:
        return values
    return np.round(np.ldexp(values, fraction_bits)) * 2.0**-fraction_bits


@dataclass(frozen=True, eq=False)
class Projection:
    """The synapses into one layer: charge = transforms(spikes) + a constant drive.

    transforms: without biases, at most one of them weighted; weights in v_th per spike (or in
        output units, into the readout).
    bias: (n_out,) constant drive per step.
    shape: of the layer the spikes come from.
    gain: chip weight per network weight, broadcast against the weight; None for a chip that was
        not converted from a network.
    pool: the maximum over windows of the layer that spikes come from, before all transforms: a
        window sends a spike whenever the largest count of spikes in it rises, so that it sends as
        many as the neuron that fires most. `shape` is then that of what is sent.
    unpooled: the shape before it.
    fraction_bits: weights and drives are multiples of 2**-fraction_bits, so sums of them are exact
        in any order: the three engines can agree to the last spike. None for real numbers.
    """

    transforms: tuple[Transform, ...]
    bias: Floats
    shape: Shape
    fraction_bits: int | None = None
    gain: Floats | None = None
    pool: MaxPool2d | None = None
    unpooled: Shape = ()

    def pooled(self, values: Floats) -> Floats:
        """What passes the pool of constant signals (..., n) of the layer before, (..., n_in)."""
        return values if self.pool is None else chain((self.pool,), values, self.unpooled)

    @property
    def weight(self) -> Floats | None:
        """The stored weight of the one weighted transform, if there is one."""
        weights = (weight_of(transform) for transform in self.transforms)
        return next((weight for weight in weights if weight is not None), None)

    @property
    def output_shape(self) -> Shape:
        """The shape of the layer the charge goes to."""
        shape = self.shape
        for transform in self.transforms:
            shape = output_shape(transform, shape)
        return shape

    def with_weight(self, weight: Floats) -> Projection:
        """The same wiring with other stored weights."""
        return replace(
            self,
            transforms=tuple(
                transform if weight_of(transform) is None else with_weight(transform, weight)
                for transform in self.transforms
            ),
        )

    def charge(self, spikes: Floats, weight: Floats | None = None) -> Floats:
        """Charges (..., n_out) of spikes (..., n_in), without the constant drive.

        weight: (M, *weight.shape), what is read instead of the stored weight; then spikes are
        (M or 1, B, n_in).
        """
        return chain(self.transforms, spikes, self.shape, weight, bias=False)

    def matrix(self) -> Floats:
        """The whole map as one (n_in, n_out) matrix, for spikes from the left."""
        return self.charge(np.eye(math.prod(self.shape)))

    def drive(self, x: Floats, weight: Floats | None = None) -> Floats:
        """Constant drive (M or 1, B, n_out) of analog inputs x (M or 1, B, n_in), on the grid."""
        return round_to_grid(self.charge(self.pooled(x), weight) + self.bias, self.fraction_bits)


@dataclass(frozen=True, eq=False)
class Spiking:
    """One hidden layer on the chip: its synapses, its neurons, and what a spike is worth.

    scale: (n,), activation of the network's neuron at one spike per step: a = scale * rate.
    offset: steps after the start of the run before these neurons may emit: the settling of the
        synaptic filters up to here (latency not counted).
    source: hidden layer that the projection comes from, or INPUT; None: the layer before.
    delay: steps that spikes take on the way, beyond the latency of a layer.
    name: of the neurons, as the graph that they were read from calls them.
    """

    projection: Projection
    neuron: PointNeuron | SteppedNeuron | OwnNeuron
    scale: Floats
    offset: int = 0
    source: int | None = None
    delay: int = 0
    name: str = ""

    @property
    def size(self) -> int:
        """Neurons in the layer."""
        return int(self.projection.bias.size)

    @property
    def stuck_value(self) -> Floats:
        """The activation that a neuron firing at its highest rate stands for, (n,)."""
        return self.scale * self.neuron.max_rate


@dataclass(frozen=True, eq=False)
class Wire:
    """Synapses into a layer that has others too: a branch that merges, or a loop.

    source: hidden layer, or INPUT.
    target: hidden layer.
    projection: without a constant drive; that of the target layer has it all.
    delay: spikes of step t arrive in step t + delay of the target's window; at least 1 where the
        source is not before the target.
    """

    source: int
    target: int
    projection: Projection
    delay: int = 0


@dataclass(frozen=True, eq=False)
class Chip:
    """A network on spiking hardware.

    Layer l+1 integrates from one step after layer l starts (spikes take one step to arrive) to one
    step after it stops, so every spike counts and a constant rate is read without the (T - 1) / T
    bias of a common window. Outputs are the readout of the mean rates.

    hidden: spiking layers, first to last. The first is driven by analog inputs as constant
        currents.
    readout: linear and non-spiking; maps spikes per step to the outputs.
    steps: length T of the readout window, in steps of physics.dt.
    input_shape: of one input.
    physics: capacitance, threshold and time step.
    network: the network it was converted from; None if it was read from a graph without one.
    start: where membranes are before the first step, unless a run says otherwise: at "half" of
        their threshold, or at "zero".
    wires: connections beyond the one projection of each layer.
    convention: how a graph was read, in words; empty for a chip that was converted.
    """

    hidden: tuple[Spiking, ...]
    readout: Projection
    steps: int
    input_shape: Shape
    physics: Physics
    network: Network | None = None
    start: Literal["half", "zero"] = "half"
    wires: tuple[Wire, ...] = ()
    convention: str = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons in each hidden layer."""
        return tuple(layer.size for layer in self.hidden)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The synapses into every hidden layer, into the readout, and of every wire."""
        return (
            *(layer.projection for layer in self.hidden),
            self.readout,
            *(wire.projection for wire in self.wires),
        )

    @property
    def reads_neurons(self) -> bool:
        """Whether the outputs are the last layer's own neurons, with no weights between."""
        plain = all(isinstance(transform, Flatten) for transform in self.readout.transforms)
        return plain and self.readout.pool is None and not self.readout.bias.any()

    def source(self, index: int) -> int:
        """The hidden layer, or INPUT, that feeds the projection of hidden layer `index`."""
        source = self.hidden[index].source
        return index - 1 if source is None else source

    def feeds(self, index: int) -> tuple[tuple[int, int, int], ...]:
        """What comes into hidden layer `index`: projection, source and delay of each."""
        first = len(self.hidden) + 1
        return (
            (index, self.source(index), self.hidden[index].delay),
            *(
                (first + place, wire.source, wire.delay)
                for place, wire in enumerate(self.wires)
                if wire.target == index
            ),
        )

    @property
    def f_max(self) -> float:
        """The highest firing rate of the chip, in hertz: 1 / (dt + t_ref)."""
        return max(layer.neuron.max_rate for layer in self.hidden) / self.physics.dt

    @property
    def total_steps(self) -> int:
        """Steps of one run, latency not counted."""
        return self.steps + self.hidden[-1].offset

    def duration(self, layer: int) -> int:
        """Steps in which hidden layer `layer` emits and its spikes are counted."""
        return self.total_steps - self.hidden[layer].offset

    def rates(self, counts: tuple[Floats, ...]) -> tuple[Floats, ...]:
        """Spike counts (..., n_l) as activations in the network's units, layer by layer."""
        return tuple(
            layer.scale / self.duration(index) * count
            for index, (layer, count) in enumerate(zip(self.hidden, counts, strict=True))
        )

    def read(self, last: Floats, weight: Floats | None = None) -> Floats:
        """Outputs (..., K) from the counts of the last hidden layer (..., n_L)."""
        index = len(self.hidden) - 1
        rates = self.readout.pooled(last / self.duration(index))
        return self.readout.charge(rates, weight) + self.readout.bias

    def to_brian2(self, x: Any, faults: Any = None, *, mask: int = 0) -> Any:
        """The chip as a `brian2.Network`, for one input under one mask: see `to_brian2`."""
        from .export.brian2_export import to_brian2

        return to_brian2(self, x, faults, mask=mask)

    def to_script(self, path: Any, x: Any, faults: Any = None, *, mask: int = 0) -> None:
        """Writes a script that runs the chip with brian2 and numpy alone: see `to_script`."""
        from .export.brian2_export import to_script

        to_script(self, path, x, faults, mask=mask)


def quantise(chip: Chip, bits: int) -> Chip:
    """The chip with its weights stored in `bits` bits each.

    Uniform symmetric quantisation per weight array: w -> s round(w / s), with
    s = max|w| / (2**(bits - 1) - 1). Drives (biases) keep their precision. Raises HardwareError
    for fewer than 2 bits.
    """
    if not isinstance(chip, Chip):
        raise HardwareError(f"chip must be a Chip, as convert returns, got {chip!r:.80}")
    bits = whole("weight_bits (a sign and a magnitude)", bits, 2, 64)

    def coarse(projection: Projection) -> Projection:
        if projection.weight is None:
            return projection
        weight = quantised(projection.weight, bits)
        return projection.with_weight(round_to_grid(weight, projection.fraction_bits))

    hidden = tuple(replace(layer, projection=coarse(layer.projection)) for layer in chip.hidden)
    wires = tuple(replace(wire, projection=coarse(wire.projection)) for wire in chip.wires)
    return replace(chip, hidden=hidden, readout=coarse(chip.readout), wires=wires)


def quantised(weight: Floats, bits: int) -> Floats:
    """`weight` on the symmetric uniform grid of `bits` bits that just holds its largest entry."""
    step = np.abs(weight).max(initial=0.0) / (2 ** (bits - 1) - 1)
    return weight if step == 0.0 else step * np.round(weight / step)
