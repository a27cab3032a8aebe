"""From a trained network to a chip: data-based normalisation (Rueckauer et al. 2017, section 2.2).

An activation a of neuron i becomes a firing rate r = a / scale_i, in spikes per step, at most 1.
The membrane of a ReLU neuron then integrates, per step, (sum_j W_ij scale_j s_j + b_i) / scale_i.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .arguments import as_numbers, whole
from .chip import Chip, Physics, Projection, Spiking, round_to_grid
from .errors import HardwareError
from .network import Network, NeuronLayer
from .neurons.point_neuron import (
    current_to_frequency,
    integrate_and_fire,
    leaky_integrate_and_fire,
)
from .transforms import (
    AvgPool2d,
    Conv2d,
    Linear,
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
    spike = np.ones(math.prod(network.input_shape))  # the first layer sees the inputs themselves
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
        projection = _projection(
            network, index, spike, 1.0 / unit, 1.0 - waits, model.leak / 2.0, grid
        )
        hidden.append(Spiking(projection, model, scale, int(offsets[index])))
        spike = scale
    outputs = np.ones(math.prod(network.shapes[-1]))
    readout = _projection(network, len(neurons), spike, outputs, 1.0, 0.0, None)
    return Chip(tuple(hidden), readout, steps, network.input_shape, physics, network)


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
    for index, layer in enumerate(network.layers):
        weighted = [t for t in layer.transforms if weight_of(t) is not None]
        if len(weighted) > 1:
            raise HardwareError(
                f"layer {index} has {len(weighted)} weighted transforms in a row and no neurons "
                "between them; a chip has one synapse between two neurons: multiply them together"
            )


def _projection(
    network: Network,
    index: int,
    spike: Floats,
    per_unit: Floats,
    kept: float,
    extra: float,
    bits: int | None,
) -> Projection:
    """Layer `index` for spikes worth `spike` (n_in,) into membranes of 1 / `per_unit` (n_out,)."""
    layer: NeuronLayer = network.layers[index]
    shape = network.shapes[index]
    bias = chain(layer.transforms, np.zeros(math.prod(shape)), shape) * per_unit + extra
    transforms, gain = fold(layer.transforms, shape, spike, per_unit / kept, bits)
    return Projection(transforms, round_to_grid(bias, bits), shape, bits, gain)


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
