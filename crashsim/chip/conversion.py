"""From a torch model to a network of plain arrays, and to a chip of spiking neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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

    The layers are in the order of the network's ways: those of its layers of neurons, then of each
    residual connection its own mark and the layers of its shortcut.

    Raises:
        UnsupportedLayerError: a layer that no chip of this kind has; names it.
    """
    reading = _Reading(is_image=len(space.inputs.shape) > 2)
    reading.add(layers_of(space.model, space.inputs))
    reading.neurons("linear")
    try:
        network = chips.Network(reading.layers, tuple(space.inputs.shape[1:]))
    except HardwareError as error:
        raise UnsupportedLayerError(f"model: {error}") from error
    return network, [*reading.found, *reading.shortcuts]


@dataclass
class _Reading:
    """A network half read.

    transforms: since the last neurons. skips: that lead to the next ones. found, shortcuts: the
    layers that were read, on the way through all neurons and beside it.
    """

    is_image: bool
    layers: list[chips.NeuronLayer] = field(default_factory=list)
    transforms: list[Any] = field(default_factory=list)
    skips: list[chips.Skip] = field(default_factory=list)
    found: list[Layer] = field(default_factory=list)
    shortcuts: list[Layer] = field(default_factory=list)

    def neurons(self, activation: Any) -> None:
        """All that was read since the last neurons leads to these."""
        self.layers.append(chips.NeuronLayer(tuple(self.transforms), activation, tuple(self.skips)))
        self.transforms, self.skips = [], []

    def add(self, layers: Sequence[Layer]) -> None:
        for layer in layers:
            operation = layer.operation
            if isinstance(operation, torch_layers.Residual):
                self._residual(layer, operation)
                continue
            self.found.append(layer)
            if isinstance(operation, torch_layers.Activation):
                if operation.name not in ("relu", "sigmoid", "tanh"):
                    raise UnsupportedLayerError(
                        f"model: {operation.name} at {layer.module!r} has no spiking neuron; "
                        "the chip has relu, sigmoid and tanh"
                    )
                self.neurons(operation.name)
            elif self.skips:
                raise UnsupportedLayerError(
                    f"model: {type(operation).__name__} at {layer.module or 'the top level'!r} "
                    "follows a residual sum; on the chip a sum of paths is what a neuron gets: it "
                    "needs an activation right behind it"
                )
            else:
                self._wire(layer)

    def _wire(self, layer: Layer) -> None:
        operation, transforms = layer.operation, self.transforms
        if isinstance(operation, torch_layers.Linear) and self.is_image:
            transforms.append(chips.Flatten())
        flat = isinstance(operation, torch_layers.Linear | torch_layers.Flatten)
        self.is_image = self.is_image and not flat
        transforms.append(_transform(layer, transforms))
        if isinstance(operation, torch_layers.ChannelScale):
            del transforms[-2]  # folded into the scale's predecessor

    def _residual(self, layer: Layer, sum_of: torch_layers.Residual) -> None:
        source, before, is_image = len(self.layers) - 1, list(self.transforms), self.is_image
        if any(isinstance(t, chips.Linear | chips.Conv2d) for t in before) or self.skips:
            raise UnsupportedLayerError(
                f"model: the residual connection at {layer.module or 'the top level'!r} starts "
                "from a sum; on the chip it starts from neurons: it needs an activation before it"
            )
        self.add(sum_of.branch)
        after, self.transforms = self.transforms, before
        self.is_image = is_image
        for short in sum_of.shortcut:
            self._wire(short)
        self.skips.append(chips.Skip(source, tuple(self.transforms)))
        self.transforms = after
        self.shortcuts += [layer, *sum_of.shortcut]


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
    if isinstance(operation, torch_layers.MaxPool2d):
        return chips.MaxPool2d(operation.kernel, operation.stride, operation.padding)
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
        "takes Linear, Conv2d, batch normalisation behind them, pooling and flatten"
    )
