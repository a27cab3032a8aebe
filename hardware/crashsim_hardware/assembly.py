"""A chip from layers of neurons and the synapses into them, without a network or a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from .arguments import whole
from .chip import Chip, Physics, Projection, Spiking
from .errors import HardwareError
from .neurons.own_neuron import OwnNeuron
from .neurons.point_neuron import PointNeuron
from .neurons.stepped_neuron import SteppedNeuron
from .transforms import Shape, Transform, chain, output_shape, weight_of, with_weight

__all__ = ["assemble"]

Neuron = PointNeuron | SteppedNeuron | OwnNeuron
Maps = Transform | Sequence[Transform]


def assemble(
    layers: Sequence[tuple[Maps, Neuron]],
    readout: Maps,
    input_shape: Shape | int,
    *,
    steps: int = 100,
    start: Literal["half", "zero"] = "zero",
    physics: Physics | None = None,
) -> Chip:
    """A chip of layers in a row.

    Parameters
    ----------
    layers: the linear maps into each layer, and its neurons. Weights are in thresholds per spike,
        biases in thresholds per step; at most one map of a layer has weights.
    readout: the linear maps from the rates of the last layer, in spikes per step, to the outputs.
    input_shape: of one input.
    steps: length of the readout window. start: membranes before the first step.

    Raises HardwareError for maps that do not fit each other.
    """
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise HardwareError(f"layers must be pairs of maps and neurons, got {layers!r:.80}")
    whole("steps", steps, 1)
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    first = shape
    hidden: list[Spiking] = []
    for index, pair in enumerate(layers):
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise HardwareError(f"layer {index} must be a pair (maps, neuron), got {pair!r:.80}")
        maps, neuron = pair
        if not isinstance(neuron, PointNeuron | SteppedNeuron | OwnNeuron):
            raise HardwareError(f"layer {index} needs a neuron, got {neuron!r:.80}")
        projection = _projection(maps, shape, f"layer {index}")
        shape = projection.output_shape
        if isinstance(neuron, SteppedNeuron) and neuron.leak.size != math.prod(shape):
            raise HardwareError(
                f"layer {index} has {math.prod(shape)} neurons, and parameters of "
                f"{neuron.leak.size}"
            )
        before = hidden[-1].offset if hidden else 0
        offset = before + (neuron.settling if hidden else 0)
        hidden.append(Spiking(projection, neuron, np.ones(math.prod(shape)), offset))
    last = _projection(readout, shape, "the readout")
    return Chip(tuple(hidden), last, steps, first, physics or Physics(), start=start)


def _projection(maps: Any, shape: Shape, where: str) -> Projection:
    """Maps with biases as synapses and a constant drive."""
    transforms = tuple(maps) if isinstance(maps, list | tuple) else (maps,)
    after = shape
    try:
        for transform in transforms:
            after = output_shape(transform, after)
        drive = chain(transforms, np.zeros(math.prod(shape)), shape)
    except (HardwareError, AttributeError) as error:
        raise HardwareError(f"{where}: {error}") from None
    stored = [(t, weight_of(t)) for t in transforms]
    if sum(weight is not None for _, weight in stored) > 1:
        raise HardwareError(f"{where}: two maps have weights; multiply them into one")
    bare = tuple(t if weight is None else with_weight(t, weight) for t, weight in stored)
    return Projection(bare, np.asarray(drive, dtype=np.float64), shape)
