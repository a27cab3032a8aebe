"""From a chip back to a network: what the theory can work on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .chip import Chip, Projection, Spiking
from .errors import HardwareError
from .network import Network, NeuronLayer
from .neurons.own_neuron import OwnNeuron
from .neurons.stepped_neuron import SteppedNeuron
from .noticing import notice
from .transforms import AvgPool2d, Conv1d, Conv2d, Linear, Scale, Shape, SumPool2d, Transform, chain

__all__ = ["attach_bias", "rate_network"]

Floats = NDArray[Any]


def rate_network(chip: Chip) -> Network:
    """The network whose activations are the chip's mean rates, in spikes per step.

    Exact in the limit of long windows for perfect integrators with reset by subtraction, which
    become ReLU, and for sigmoid and tanh neurons; for leaky ones it is the mean-field line
    drive - leak / 2. Saturation at the highest rate is left out. Raises HardwareError for reset to
    zero, whose rate curve is no activation of a network layer.
    """
    if chip.wires or any(layer.source is not None or layer.delay for layer in chip.hidden):
        raise HardwareError(
            "the chip has branches, loops or delays: no chain of layers has its rates, so the "
            "theory has no network to work on"
        )
    layers = []
    for index, layer in enumerate(chip.hidden):
        neuron, projection = layer.neuron, layer.projection
        if isinstance(neuron, OwnNeuron):
            raise HardwareError(
                f"hidden layer {index} has neurons of your own, whose rates are no activation that "
                "the theory knows"
            )
        if neuron.reset == "zero":
            raise HardwareError(
                f"hidden layer {index} resets to zero and loses the charge above threshold: its "
                "rate curve is no ReLU, so the theory has no network to work on"
            )
        gain, shift, activation = _line(layer, index)
        if np.any(neuron.leak):
            notice(
                f"hidden layer {index} is leaky; its rate curve is replaced by the line "
                "drive - leak / 2 above the rheobase",
                stacklevel=2,
            )
        layers.append(NeuronLayer(_with_bias(projection, gain, shift, index), activation))
    layers.append(NeuronLayer(_with_bias(chip.readout, 1.0, 0.0, len(layers)), "linear"))
    return Network(layers, chip.input_shape)


def _line(layer: Spiking, index: int) -> tuple[float, Any, Literal["relu", "sigmoid", "tanh"]]:
    """A layer's rate over its charge and drive: a gain, a shift, and what is applied to both."""
    neuron = layer.neuron
    assert not isinstance(neuron, OwnNeuron)
    if isinstance(neuron, SteppedNeuron):
        slope, shift = neuron.rate_line()
        if not np.allclose(slope, slope[0], rtol=1e-9, atol=0.0):
            raise HardwareError(
                f"hidden layer {index} has neurons of different gain, which its network cannot say"
            )
        # the drive is in units of charge
        return float(slope[0]), shift + (slope - 1.0) * layer.projection.bias, "relu"
    gain = 1.0 - neuron.leak if neuron.synapse is None and index else 1.0
    if neuron.curve == "linear":
        return gain, -neuron.leak / 2.0, "relu"
    if neuron.gain != 1.0:
        raise HardwareError(f"hidden layer {index} has a scaled {neuron.curve} curve")
    return gain, -neuron.leak / 2.0, neuron.curve


def _with_bias(
    projection: Projection, gain: float, shift: Any, index: int
) -> tuple[Transform, ...]:
    """The projection's transforms, weights times `gain`, with its drive put back as a bias."""
    return attach_bias(
        projection.transforms, projection.bias + shift, projection.shape, gain, f"layer {index}"
    )


def attach_bias(
    transforms: tuple[Transform, ...], bias: Floats, shape: Shape, gain: float, where: str
) -> tuple[Transform, ...]:
    """`transforms` times `gain` with a flat `bias` (n_out,) carried by the weighted transform.

    Raises HardwareError where no bias of that transform gives it.
    """
    result: list[Transform] = []
    for position, transform in enumerate(transforms):
        if isinstance(transform, Linear):
            value = bias if bias.size == len(transform.weight) else None
            transform = Linear(transform.weight * gain, value)
        elif isinstance(transform, Conv1d):
            each = bias.reshape(len(transform.weight), -1)[:, 0]
            transform = replace(transform, weight=transform.weight * gain, bias=each)
        elif isinstance(transform, Conv2d):
            # a sum over a window adds the bias once per cell
            pools = [t for t in transforms[position + 1 :] if isinstance(t, SumPool2d)]
            area = math.prod(
                1 if isinstance(t, AvgPool2d) else int(np.prod(t.kernel)) for t in pools
            )
            each = bias.reshape(len(transform.weight), -1)[:, 0] / area
            transform = replace(transform, weight=transform.weight * gain, bias=each)
        elif isinstance(transform, Scale):
            transform = Scale(transform.scale * gain)
        result.append(transform)
    produced = chain(tuple(result), np.zeros(math.prod(shape)), shape)
    if not np.allclose(produced, bias, rtol=1e-12, atol=1e-12):
        raise HardwareError(
            f"{where}: its constant drives differ within a channel (or have no weights to go "
            "with), and no bias of the layer can say that"
        )
    return tuple(result)
