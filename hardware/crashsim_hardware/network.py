"""A feed-forward network as plain arrays, and its exact forward pass under faults.

This is what the chip is converted from and the reference it is compared with. Nothing here knows
spikes, and nothing here imports brian2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .arguments import as_numbers
from .errors import HardwareError
from .transforms import (
    AvgPool2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Scale,
    Shape,
    SumPool2d,
    Transform,
    chain,
    output_shape,
    weight_of,
)

__all__ = [
    "Activation",
    "AvgPool2d",
    "Conv2d",
    "Flatten",
    "Forward",
    "Linear",
    "MaxPool2d",
    "Network",
    "NeuronLayer",
    "Scale",
    "Skip",
    "SumPool2d",
]

Activation = Literal["relu", "sigmoid", "tanh", "linear"]
Floats = NDArray[Any]


def _sigmoid(z: Floats) -> Floats:
    # exp of a non-positive number on both sides, so that no input overflows
    e = np.exp(-np.abs(z))
    y: Floats = np.where(z >= 0, 1.0, e) / (1.0 + e)
    return y


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "relu": lambda z: np.maximum(z, 0.0),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "linear": lambda z: z,
}


@dataclass(frozen=True)
class Skip:
    """A further way into a layer, beside that from the layer before: a residual connection.

    source: the hidden layer that it comes from, before the one it leads to; -1: the inputs.
    transforms: linear maps; none is the identity.
    """

    source: int
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))


@dataclass(frozen=True)
class NeuronLayer:
    """a = activation(transforms(s)): linear maps into one population of neurons.

    Pooling and flattening that follow a layer's neurons belong to the *next* layer: they are
    wiring. "linear" marks the readout, which does not spike. What comes by `skips` is added before
    the activation.
    """

    transforms: tuple[Transform, ...]
    activation: Activation = "relu"
    skips: tuple[Skip, ...] = ()

    def __post_init__(self) -> None:
        transforms = self.transforms
        single = isinstance(transforms, Linear | Conv2d | SumPool2d | Flatten | Scale)
        if not single and not isinstance(transforms, tuple | list):
            raise HardwareError(f"transforms must be one or a list of them, got {transforms!r:.80}")
        object.__setattr__(self, "transforms", (transforms,) if single else tuple(transforms))
        if not isinstance(self.activation, str) or self.activation not in get_args(Activation):
            raise HardwareError(
                f"activation must be one of {', '.join(get_args(Activation))}, "
                f"got {self.activation!r}"
            )


@dataclass(frozen=True)
class Forward:
    """Activations of every hidden layer, (..., n_l) each, and the outputs, (..., K)."""

    hidden: tuple[Floats, ...]
    outputs: Floats


@dataclass(frozen=True)
class Network:
    """Layers in order; the last one, with activation "linear", is the readout.

    Parameters
    ----------
    layers: hidden layers, then the readout.
    input_shape: of one input, (features,) or (channels, height, width).

    Raises HardwareError where a layer does not fit the shape it is given.
    """

    layers: Sequence[NeuronLayer]
    input_shape: Shape
    shapes: tuple[Shape, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.layers:
            raise HardwareError("a Network needs at least a readout layer, got layers=[]")
        shape = tuple(int(n) for n in self.input_shape)
        if not shape or min(shape) < 1:
            raise HardwareError(f"input_shape must be positive sizes, got {self.input_shape!r}")
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "input_shape", shape)
        shapes = [shape]
        for index, layer in enumerate(self.layers):
            for transform in layer.transforms:
                try:
                    shape = output_shape(transform, shape)
                except HardwareError as error:
                    raise HardwareError(f"layer {index}: {error}") from None
            shapes.append(shape)
        object.__setattr__(self, "shapes", tuple(shapes))
        layers = [
            replace(layer, skips=tuple(_checked_skip(self, index, skip) for skip in layer.skips))
            if layer.skips
            else layer
            for index, layer in enumerate(self.layers)
        ]
        object.__setattr__(self, "layers", tuple(layers))

    @property
    def skips(self) -> tuple[tuple[int, Skip], ...]:
        """All further ways, each with the layer that it leads to."""
        return tuple((i, skip) for i, layer in enumerate(self.layers) for skip in layer.skips)

    @property
    def paths(self) -> tuple[tuple[int, tuple[Transform, ...]], ...]:
        """Every way into a layer: its source (-1: the inputs) and its transforms.

        First those of the layers in order, the readout's last; then the skips.
        """
        own = [(index - 1, layer.transforms) for index, layer in enumerate(self.layers)]
        return (*own, *((skip.source, skip.transforms) for _, skip in self.skips))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons in each hidden layer."""
        return tuple(math.prod(shape) for shape in self.shapes[1:-1])

    def forward(
        self,
        x: Floats,
        dead: Sequence[Floats | None] | None = None,
        *,
        gain: Sequence[Floats | None] | None = None,
        offset: Sequence[Floats | None] | None = None,
        weights: Sequence[Floats | None] | None = None,
        dead_inputs: Floats | None = None,
    ) -> Forward:
        """The exact network on x (B, *input_shape), clean or under faults.

        Without faults the results are (B, n). With them they are (M, B, n): hidden layer l gives
        ``gain[l] * a + offset[l]``, each (M, n_l) or None, and ``dead[l]`` (M, n_l), True where
        the output is 0. ``weights[l]`` replaces the weight of layer l (readout included; then those
        of the skips), with or without a leading axis of masks. ``dead_inputs`` (M, n_in) is True
        where an input is 0.
        """
        inputs = flat_inputs(x, self.input_shape)
        faulty = any(f is not None for f in (dead, gain, offset, weights, dead_inputs))
        s = inputs[None] if faulty else inputs
        if dead_inputs is not None:
            s = s * ~np.asarray(dead_inputs, dtype=bool)[:, None, :]
        hidden: list[Floats] = []
        first = s
        for index, layer in enumerate(self.layers):
            weight = _at(weights, index)
            z = chain(layer.transforms, s, self.shapes[index], weight)
            for place, (target, skip) in enumerate(self.skips):
                if target == index:
                    came = hidden[skip.source] if skip.source >= 0 else first
                    other = _at(weights, len(self.layers) + place)
                    z = z + chain(skip.transforms, came, self.shapes[skip.source + 1], other)
            s = ACTIVATIONS[layer.activation](z)
            if index == len(self.layers) - 1:
                break
            if (factor := _at(gain, index)) is not None:
                s = s * factor[:, None, :]
            if (shift := _at(offset, index)) is not None:
                s = s + shift[:, None, :]
            if (mask := _at(dead, index)) is not None:
                s = s * ~np.asarray(mask, dtype=bool)[:, None, :]
            hidden.append(s)
        return Forward(tuple(hidden), s)


def _checked_skip(network: Network, index: int, skip: Skip) -> Skip:
    """The skip, with weights: those of the identity are synapses too, which can fail."""
    if not -1 <= skip.source < index or index == len(network.layers) - 1:
        raise HardwareError(
            f"layer {index} has a skip from {skip.source}; a skip leads from -1 (the inputs) or a "
            "hidden layer before to a hidden one"
        )
    shape = network.shapes[skip.source + 1]
    for transform in skip.transforms:
        shape = output_shape(transform, shape)
    if math.prod(shape) != math.prod(network.shapes[index + 1]):
        raise HardwareError(
            f"layer {index}: a skip of shape {shape} does not fit {network.shapes[index + 1]}"
        )
    if any(weight_of(transform) is not None for transform in skip.transforms):
        return skip
    ones = Scale(np.ones((shape[0], *(1,) * (len(shape) - 1))))
    return replace(skip, transforms=(*skip.transforms, ones))


def _at(items: Sequence[Floats | None] | None, index: int) -> Floats | None:
    return None if items is None or index >= len(items) else items[index]


def flat_inputs(x: Any, shape: Shape) -> Floats:
    """x (B, *shape) as float64 (B, n); raises HardwareError for another shape, or NaN."""
    inputs = as_numbers("inputs", x)
    if inputs.ndim == 0 or inputs.shape[1:] != shape or len(inputs) == 0:
        raise HardwareError(
            f"inputs must have shape (B, {', '.join(map(str, shape))}) with B >= 1, "
            f"got {inputs.shape}"
        )
    if not np.isfinite(inputs).all():
        raise HardwareError("inputs contain NaN or infinity; clean them before the chip sees them")
    return inputs.reshape(len(inputs), -1)
