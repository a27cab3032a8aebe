"""From a torch model to a network of plain arrays, and to a chip of spiking neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import crashsim_hardware as chips
import numpy as np
from crashsim_hardware import Chip, HardwareError

from crashsim.arrays import Floats
from crashsim.model import layers as torch_layers
from crashsim.model.layers import Layer, UnsupportedLayerError, layers_of
from crashsim.space import FaultSpace

STEPS = 100


def chip_of(
    space: FaultSpace, steps: int = STEPS, calibration: Floats | None = None
) -> tuple[Chip, list[Layer]]:
    """The model as a chip, and the layers it came from.

    Args:
        space: of the model.
        steps: length of the readout window.
        calibration: (B, ...) inputs that set the scales of rates; None: the space's own.

    Raises:
        UnsupportedLayerError: a layer that no chip of this kind has; names it.
    """
    network, found = chip_network(space)
    typical = space.inputs.double().cpu().numpy() if calibration is None else calibration
    try:
        return chips.convert(network, typical, steps), found
    except HardwareError as error:
        raise UnsupportedLayerError(f"model: {error}") from error


def chip_network(space: FaultSpace) -> tuple[chips.Network, list[Layer]]:
    """The model as the chip's network, and the layers it came from.

    Raises:
        UnsupportedLayerError: a layer that no chip of this kind has; names it.
    """
    found = layers_of(space.model, space.inputs)
    network_layers: list[chips.NeuronLayer] = []
    transforms: list[Any] = []
    is_image = len(space.inputs.shape) > 2
    for layer in found:
        operation = layer.operation
        if isinstance(operation, torch_layers.Activation):
            if operation.name not in ("relu", "sigmoid", "tanh"):
                raise UnsupportedLayerError(
                    f"model: {operation.name} at {layer.module!r} has no spiking neuron; "
                    "the chip has relu, sigmoid and tanh"
                )
            network_layers.append(chips.NeuronLayer(tuple(transforms), operation.name))  # type: ignore[arg-type]
            transforms = []
            continue
        if isinstance(operation, torch_layers.Linear) and is_image:
            transforms.append(chips.Flatten())
        flat = isinstance(operation, torch_layers.Linear | torch_layers.Flatten)
        is_image = is_image and not flat
        transforms.append(_transform(layer, transforms))
        if isinstance(operation, torch_layers.ChannelScale):
            del transforms[-2]  # folded into the scale's predecessor
    network_layers.append(chips.NeuronLayer(tuple(transforms), "linear"))
    try:
        return chips.Network(network_layers, tuple(space.inputs.shape[1:])), found
    except HardwareError as error:
        raise UnsupportedLayerError(f"model: {error}") from error


def _transform(layer: Layer, before: Sequence[Any]) -> Any:
    operation = layer.operation
    if isinstance(operation, torch_layers.Linear):
        return chips.Linear(operation.weight, operation.bias)
    if isinstance(operation, torch_layers.Conv2d):
        return chips.Conv2d(
            operation.weight, operation.bias, operation.stride, operation.padding,
            operation.dilation, operation.groups,
        )  # fmt: skip
    if isinstance(operation, torch_layers.Flatten):
        return chips.Flatten()
    if isinstance(operation, torch_layers.AvgPool2d):
        return chips.AvgPool2d(operation.kernel, operation.stride, operation.padding)
    previous = before[-1] if before else None
    if isinstance(operation, torch_layers.ChannelScale) and isinstance(
        previous, chips.Linear | chips.Conv2d
    ):
        scale, bias = operation.scale, np.zeros(len(operation.scale))
        bias = bias if previous.bias is None else previous.bias
        column = scale.reshape(-1, *[1] * (previous.weight.ndim - 1))
        weight, shifted = column * previous.weight, scale * bias + operation.shift
        if isinstance(previous, chips.Linear):
            return chips.Linear(weight, shifted)
        return chips.Conv2d(
            weight, shifted, previous.stride, previous.padding, previous.dilation, previous.groups
        )
    what = type(operation).__name__
    raise UnsupportedLayerError(
        f"model: {what} at {layer.module or 'the top level'!r} cannot be put on the chip; it "
        "takes Linear, Conv2d, batch normalisation behind them, average pooling and flatten"
    )
