"""From a trained network to a chip: data-based normalisation (Rueckauer et al. 2017, section 2.2).

An activation a of neuron i becomes a firing rate r = a / scale_i, in spikes per step, at most 1.
The membrane of a ReLU neuron then integrates, per step, (sum_j W_ij scale_j s_j + b_i) / scale_i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .arguments import as_numbers, whole
from .chip import Chip, Physics, Projection, Spiking, Wire, round_to_grid
from .errors import HardwareError
from .network import Network
from .neurons.point_neuron import (
    current_to_frequency,
    integrate_and_fire,
    leaky_integrate_and_fire,
)
from .transforms import (
    AvgPool2d,
    Conv2d,
    Linear,
    MaxPool2d,
    Scale,
    Shape,
    SumPool2d,
    Transform,
    chain,
    output_shape,
    weight_of,
    with_weight,
)

__all__ = ["convert", "fold"]

Floats = NDArray[Any]


def convert(
    network: Network,
    calibration: Any,
    steps: int = 100,
    *,
    headroom: float = 1.25,
    normalisation: Literal["neuron", "layer"] = "neuron",
    neuron: Literal["if", "lif"] = "if",
    refractory: float = 0.0,
    tau_mem: float = 0.1,
    tau_syn: float = 0.02,
    physics: Physics | None = None,
    fraction_bits: int | None = None,
) -> Chip:
    """`network` as a spiking chip.

    Parameters
    ----------
    network: hidden layers of relu, sigmoid or tanh neurons and a linear readout. ReLU becomes
        integrate-and-fire, sigmoid and tanh a current-to-frequency neuron.
    calibration: (B, *input_shape), typical inputs; they set the scales.
    steps: T, the length of the readout window in time steps. The error of a rate falls as 1 / T.
    headroom: scale = headroom * (largest activation on `calibration`) for ReLU. Above 1, so
        that neither new inputs nor the crash of an inhibitory neuron drive a rate above f_max.
    normalisation: the largest activation of each neuron ("neuron"; of each channel behind a
        convolution, whose weights are shared) or of the whole layer ("layer"). By neuron the
        spiking noise is about half. No neuron gets less than a quarter of its layer's scale: one
        that is silent on `calibration` may wake up when others crash.
    neuron: "if" or "lif" for ReLU. A leaky membrane loses leak / 2 = dt / (2 tau_mem) of its drive
        per step on average (spread evenly over [0, v_th]); the conversion adds this back to every
        bias. Below the corrected rheobase a silent zone of leak / 2 remains.
    refractory: absolute refractory period in seconds; lowers f_max to 1 / (dt + refractory), and
        the scales make room for it.
    tau_mem: membrane time constant of "lif", in seconds.
    tau_syn: synaptic time constant of sigmoid and tanh neurons, in seconds. Each layer behind
        another waits 5 tau_syn for its filter to settle.
    physics: capacitance, threshold and time step; default 100 pF, 20 mV, 1 ms.
    fraction_bits: of the fixed-point weights of integrate-and-fire layers, in units of v_th.
        Default log2(T) + 7: rounding stays a hundred times below the resolution 1 / T.

    Raises HardwareError where the network cannot be converted, naming the layer.
    """
    physics = physics or Physics()
    if not isinstance(network, Network):
        raise HardwareError(f"network must be a Network, got {network!r:.80}")
    steps = whole("steps", steps, 1, 2**31)
    calibration = as_numbers("calibration", calibration)
    _check(network, steps, headroom, refractory)
    dead_steps = round(refractory / physics.dt)
    activations = network.forward(calibration).hidden

    neurons = []
    for index, layer in enumerate(network.layers[:-1]):
        if layer.activation == "relu":
            if neuron == "lif":
                neurons.append(leaky_integrate_and_fire(tau_mem, physics.dt, refractory=dead_steps))
            elif neuron == "if":
                neurons.append(integrate_and_fire(refractory=dead_steps))
            else:
                raise HardwareError(f'neuron must be "if" or "lif", got {neuron!r}')
        elif layer.activation in ("sigmoid", "tanh"):
            neurons.append(
                current_to_frequency(layer.activation, tau_syn, physics.dt, refractory=dead_steps)
            )
        else:
            raise HardwareError(
                f"layer {index} is hidden but linear: its activations have no sign or bound a "
                "spiking neuron could carry; merge it into the next layer's weights"
            )

    offsets = np.cumsum([0, *(model.settling for model in neurons[1:])])
    bits = fraction_bits
    if bits is None:
        bits = math.ceil(math.log2(steps + int(offsets[-1]))) + 7

    hidden: list[Spiking] = []
    # what a spike of each layer is worth; the first one sees the inputs themselves
    worth = [np.ones(math.prod(network.input_shape))]
    wires: list[Wire] = []
    for index, model in enumerate(neurons):
        size = network.sizes[index]
        if model.synapse is None:
            scale = (
                headroom
                / model.max_rate
                * _largest(network, index, activations[index], normalisation)
            )
            unit = scale
            # a constant current is in the membrane at once; a delivered charge leaks one step
            waits = model.leak if index else 0.0
        else:
            scale, unit, waits = np.full(size, 1.0 / model.max_rate), np.ones(size), 0.0
        grid = bits if model.on_grid else None
        own = _Ways(network, index, 1.0 / unit, grid)
        further = [
            own.projection(skip.transforms, skip.source, worth[skip.source + 1], 1.0 - model.leak)
            for skip in network.layers[index].skips
        ]
        # all of the constant drive is that of the first way
        extra = model.leak / 2.0 + sum((way.bias for way in further), np.zeros(size))
        transforms = network.layers[index].transforms
        projection = own.projection(transforms, index - 1, worth[index], 1.0 - waits, extra)
        hidden.append(Spiking(projection, model, scale, int(offsets[index])))
        wires += [
            Wire(skip.source, index, replace(way, bias=np.zeros(size)))
            for skip, way in zip(network.layers[index].skips, further, strict=True)
        ]
        worth.append(scale)
    last = _Ways(network, len(neurons), np.ones(math.prod(network.shapes[-1])), None)
    readout = last.projection(network.layers[-1].transforms, len(neurons) - 1, worth[-1], 1.0)
    return Chip(
        tuple(hidden), readout, steps, network.input_shape, physics, network, wires=tuple(wires)
    )


def _largest(network: Network, index: int, activations: Floats, normalisation: str) -> Floats:
    """What each neuron of hidden layer `index` is normalised by, (n,)."""
    if normalisation not in ("neuron", "layer"):
        raise HardwareError(f'normalisation must be "neuron" or "layer", got {normalisation!r}')
    peak = activations.max(axis=0)
    overall = float(peak.max())
    if not overall > 0.0:
        raise HardwareError(
            f"hidden layer {index} never activates on the calibration inputs, so no scale can be "
            "set; calibrate with inputs that reach it, or retrain the network"
        )
    if normalisation == "layer":
        return np.full(peak.size, overall)
    rows = _rows(network.layers[index].transforms, network.shapes[index])
    shared = peak.reshape(rows, -1).max(axis=1)  # neurons that share a weight share a scale
    return np.repeat(np.maximum(shared, overall / 4.0), peak.size // rows)


def _rows(transforms: tuple[Transform, ...], shape: Shape) -> int:
    """How many neurons or channels of a layer have weights of their own."""
    rows = shape[0]
    for transform in transforms:
        shape = output_shape(transform, shape)
        if weight_of(transform) is not None:
            rows = shape[0]
    return rows


def _check(network: Network, steps: int, headroom: float, refractory: float) -> None:
    if len(network.layers) < 2:
        raise HardwareError("the network has no hidden layer, so there is nothing that could spike")
    if network.layers[-1].activation != "linear":
        raise HardwareError(
            f'the last layer must be a "linear" readout, got {network.layers[-1].activation!r}; '
            "take the outputs before the final nonlinearity"
        )
    if steps < 1:
        raise HardwareError(f"steps must be at least 1, got {steps}")
    if not headroom >= 1.0:
        raise HardwareError(
            f"headroom must be >= 1 (rates saturate below), got {headroom}; 1.25 is usual"
        )
    if not refractory >= 0.0:
        raise HardwareError(f"refractory must be >= 0 seconds, got {refractory}")
    for place, (_, transforms) in enumerate(network.paths):
        weighted = [t for t in transforms if weight_of(t) is not None]
        if len(weighted) > 1:
            what = "layer" if place < len(network.layers) else "skip"
            raise HardwareError(
                f"{what} {place % len(network.layers)} has {len(weighted)} weighted transforms in "
                "a row and no neurons between them; a chip has one synapse between two neurons: "
                "multiply them together"
            )


@dataclass(frozen=True, eq=False)
class _Ways:
    """The synapses into one layer, whose membranes are worth 1 / `per_unit` (n_out,).

    bits: of the grid of weights and drives.
    """

    network: Network
    index: int
    per_unit: Floats
    bits: int | None

    def projection(
        self,
        transforms: tuple[Transform, ...],
        source: int,
        spike: Floats,
        kept: float,
        extra: Any = 0.0,
    ) -> Projection:
        """One way, from `source`, whose spikes are worth `spike` (n_in,).

        kept: of a charge, until the neuron compares. extra: (n_out,) added to the biases.
        """
        before = shape = self.network.shapes[source + 1]
        pool, wiring = None, transforms
        if wiring and isinstance(wiring[0], MaxPool2d):
            pool, wiring, shape = wiring[0], wiring[1:], output_shape(wiring[0], before)
            spike = np.repeat(_leading(spike, before, before), math.prod(shape[1:]))
        if any(isinstance(transform, MaxPool2d) for transform in wiring):
            raise HardwareError(
                f"layer {self.index} has a maximum behind other wiring; on a chip only neurons' "
                "spikes can be compared: put max pooling right behind an activation"
            )
        bias = chain(wiring, np.zeros(math.prod(shape)), shape) * self.per_unit + extra
        stored, gain = fold(wiring, shape, spike, self.per_unit / kept, self.bits)
        bias = round_to_grid(bias, self.bits)
        unpooled = () if pool is None else before
        return Projection(stored, bias, shape, self.bits, gain, pool, unpooled)


def fold(
    transforms: tuple[Transform, ...],
    shape: Shape,
    source: Floats,
    target: Floats,
    fraction_bits: int | None = None,
) -> tuple[tuple[Transform, ...], Floats]:
    """diag(target) transforms diag(source) for layers of `shape`, with every factor in one weight.

    source (n_in,) and target (n_out,) must be constant within a channel. Averages become sums:
    spikes are whole numbers and sums of them too, so that all rounding is in that weight. Also
    returns the factor on that weight, broadcast against it.
    """
    start = shape
    areas = [t.area for t in transforms if isinstance(t, AvgPool2d)]
    factor = 1.0 / math.prod(areas)
    folded: list[Transform] = []
    weighted: int | None = None
    before = after = shape
    for position, transform in enumerate(transforms):
        if isinstance(transform, AvgPool2d):
            transform = SumPool2d(transform.kernel, transform.stride, transform.padding)
        folded.append(transform)
        entering, shape = shape, output_shape(transform, shape)
        if weight_of(transform) is not None:
            weighted, before, after = position, entering, shape
    if weighted is None:
        folded.append(Scale(np.ones(shape[:1] + (1,) * (len(shape) - 1))))
        weighted, before, after = len(folded) - 1, shape, shape
    columns, rows = _leading(source, start, before), _leading(target, shape, after)
    transform = folded[weighted]
    if isinstance(transform, Linear):
        gain = rows[:, None] * columns
    elif isinstance(transform, Conv2d):
        groups = transform.groups
        channels = np.repeat(columns.reshape(groups, -1), len(rows) // groups, axis=0)
        gain = rows[:, None, None, None] * channels[:, :, None, None]
    elif isinstance(transform, Scale):
        gain = (rows * columns).reshape(-1, *(1,) * (len(before) - 1))
    else:
        raise HardwareError(f"{type(transform).__name__} carries no weight")
    gain = gain * factor
    weight = transform.scale if isinstance(transform, Scale) else transform.weight
    folded[weighted] = with_weight(transform, round_to_grid(weight * gain, fraction_bits))
    return tuple(folded), gain


def _leading(values: Floats, shape: Shape, wanted: Shape) -> Floats:
    """Flat values of a layer of `shape` as one value per leading entry of `wanted`.

    Between the two lie only pooling, which changes the extent of a channel, and flattening, which
    turns (C, H, W) into C H W features channel by channel: both repeat or drop equal values.
    """
    if len(shape) == len(wanted) == 1:
        return values
    channels = shape[0] if len(shape) == 3 else wanted[0]
    each = values.reshape(channels, -1)[:, 0]
    return each if len(wanted) == 3 else np.repeat(each, wanted[0] // channels)
