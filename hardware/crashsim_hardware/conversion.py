"""From a trained network to a chip: data-based normalisation (Rueckauer et al. 2017, section 2.2).

An activation a of layer l becomes a firing rate r = a / scale_l, in spikes per step, at most 1.
The membrane of a ReLU neuron then integrates, per step, (scale_{l-1} W s + b) / scale_l.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .chip import Chip, Physics, Projection, Spiking, round_to_grid
from .errors import HardwareError
from .network import Layer, Network, flat_inputs
from .neurons import (
    PointNeuron,
    current_to_frequency,
    integrate_and_fire,
    leaky_integrate_and_fire,
)
from .transforms import AveragePool, Scale, Shape, SumPool, Transform, chain, weight_of, with_weight

__all__ = ["convert", "fold"]

Floats = NDArray[Any]


def convert(
    network: Network,
    calibration: Any,
    steps: int = 100,
    *,
    headroom: float = 1.25,
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
    headroom: scale_l = headroom * (largest activation on `calibration`) for ReLU. Above 1, so
        that neither new inputs nor the crash of an inhibitory neuron drive a rate above f_max.
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
    _check(network, steps, headroom, refractory)
    dead_steps = round(refractory / physics.dt)
    activations = network.forward(np.asarray(calibration, dtype=np.float64)).hidden

    neurons = []
    for index, layer in enumerate(network.layers[:-1]):
        if layer.activation == "relu":
            if neuron == "lif":
                neurons.append(
                    leaky_integrate_and_fire(tau_mem, physics.dt, refractory=dead_steps)
                )
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
    spike = 1.0  # the first layer sees the inputs themselves
    for index, model in enumerate(neurons):
        if model.synapse is None:
            largest = float(activations[index].max())
            if not largest > 0.0:
                raise HardwareError(
                    f"hidden layer {index} never activates on the calibration inputs, so no scale "
                    "can be set; calibrate with inputs that reach it, or retrain the network"
                )
            scale = headroom * largest / model.max_rate
            # a delivered charge leaks once before it meets the threshold
            gain, extra = spike / scale / (1.0 - model.leak), model.leak / 2.0
            unit = scale
        else:
            scale, gain, extra, unit = 1.0 / model.max_rate, spike, 0.0, 1.0
        projection = _projection(
            network, index, gain, unit, extra, bits if model.on_grid else None
        )
        if index == 0 and model.leak > 0.0:  # constant currents do not wait for the next step
            projection = _projection(network, 0, spike / scale, unit, extra, None)
        hidden.append(Spiking(projection, model, scale, int(offsets[index])))
        spike = scale
    readout = _projection(network, len(neurons), 1.0, 1.0, 0.0, None)
    return Chip(tuple(hidden), readout, steps, network.input_shape, physics, network)


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
    network: Network, index: int, gain: float, unit: float, extra: float, bits: int | None
) -> Projection:
    """Layer `index`'s transforms times `gain`, its bias in `unit`s plus `extra`, on the grid."""
    layer: Layer = network.layers[index]
    shape = network.shapes[index]
    zero = np.zeros(math.prod(shape))
    bias = chain(layer.transforms, zero, shape) / unit + extra
    transforms = fold(layer.transforms, gain, bits)
    return Projection(transforms, round_to_grid(bias, bits), shape, bits)


def fold(
    transforms: tuple[Transform, ...], gain: float = 1.0, fraction_bits: int | None = None
) -> tuple[Transform, ...]:
    """Transforms times `gain`: averages become sums, and every factor goes into the one weight.

    Spikes are whole numbers and sums of them too, so that all rounding is in that weight.
    """
    factor = gain
    folded: list[Transform] = []
    for transform in transforms:
        if isinstance(transform, AveragePool):
            factor /= transform.area
            transform = SumPool(transform.kernel, transform.stride, transform.padding)
        folded.append(transform)
    for position, transform in enumerate(folded):
        weight = weight_of(transform)
        if weight is not None:
            stored = round_to_grid(weight * factor, fraction_bits)
            folded[position] = with_weight(transform, stored)
            return tuple(folded)
    return (*folded, Scale(round_to_grid(np.asarray(factor), fraction_bits)))


def input_currents(chip: Chip, x: Any) -> Floats:
    """The constant input currents of the first layer, in ampere: (B, n_1)."""
    inputs = np.asarray(x, dtype=np.float64)
    if chip.network is not None:
        inputs = flat_inputs(chip.network, inputs)
    drive: Floats = chip.hidden[0].projection.drive(inputs.reshape(len(inputs), -1))[0]
    return drive * chip.physics.charge / chip.physics.dt


