"""Synaptic operations: what spikes cost on the chip, and what its simulation costs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chip import INPUT, Chip, Projection
from .transforms import AvgPool2d, SumPool2d, Transform, weight_of, with_weight

__all__ = ["most_operations", "synaptic_operations"]

Floats = NDArray[Any]

_PER_NEURON = 10
"""Operations that a step of a neuron takes, beside what arrives at its synapses."""


def _counting(transform: Transform) -> Transform:
    """A transform that sums how many spikes cross its synapses, each of which weighs 1."""
    if isinstance(transform, AvgPool2d):
        return SumPool2d(transform.kernel, transform.stride, transform.padding)
    weight = weight_of(transform)
    return transform if weight is None else with_weight(transform, (weight != 0.0) * 1.0)


def operations_through(projection: Projection, spikes: Floats) -> Floats:
    """Synapses that spikes (..., n_in) cross on their way, (...): one operation each."""
    counting = replace(projection, transforms=tuple(map(_counting, projection.transforms)))
    total: Floats = counting.charge(np.abs(spikes)).sum(axis=-1)
    return total


def synaptic_operations(chip: Chip, counts: tuple[Floats, ...]) -> Floats:
    """Synaptic operations (...) of spike counts (..., n_l) by hidden layer, the readout included.

    An operation is a spike that arrives at a target neuron through a weight that is not 0. What the
    inputs send is not counted: they are currents. Of a maximum over neurons, as many
    spikes pass as the one sends that fires most.
    """
    total = operations_through(chip.readout, chip.readout.pooled(counts[-1]))
    for index in range(len(chip.hidden)):
        for place, source, _ in chip.feeds(index):
            if source != INPUT:
                projection = chip.projections[place]
                total = total + operations_through(projection, projection.pooled(counts[source]))
    return total


def most_operations(chip: Chip) -> float:
    """What one step of one copy of the chip costs to simulate, if every neuron spikes."""
    total = 0.0
    for index in range(len(chip.hidden)):
        for place, source, _ in chip.feeds(index):
            if source != INPUT:
                projection = chip.projections[place]
                total += float(operations_through(projection, np.ones(math.prod(projection.shape))))
    return total + _PER_NEURON * sum(chip.sizes)
