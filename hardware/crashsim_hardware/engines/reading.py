"""How a column of synapses is read in a step: with noise of its cells, through a converter.

With s the spikes that arrive and w the weights, a column's sum is

    q = sum_i (w_i + r w_max N_i) s_i = sum_i w_i s_i + r w_max sqrt(sum_i s_i^2) N

where the N are independent and standard normal in every step, and a converter of b bits gives
round(q / u) u with u = full scale / (2^(b - 1) - 1), and no more than the full scale.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Projection, round_to_grid
from crashsim_hardware.noticing import notice
from crashsim_hardware.transforms import AvgPool2d, Transform, chain, output_shape, weight_of

from .block import Block

__all__ = ["Reading", "full_scale"]

Floats = NDArray[Any]


def full_scale(projection: Projection) -> float:
    """The largest sum that unsigned spikes, at most one of each neuron, can cause in one step."""
    spikes, weight = np.ones(math.prod(projection.shape)), projection.weight
    if weight is None:
        return float(projection.charge(spikes).max(initial=0.0))
    parts = (np.maximum(weight, 0.0), np.maximum(-weight, 0.0))
    return max(
        float(projection.with_weight(part).charge(spikes).max(initial=0.0)) for part in parts
    )


class Reading:
    """What the readers of one projection make of the sums of its weights."""

    def __init__(self, projection: Projection, block: Block, index: int) -> None:
        self._block, self._index = block, index
        self._bits = projection.fraction_bits
        self._noise: float = 0.0
        if block.read_noise > 0.0 and projection.weight is not None:
            self._noise = block.read_noise * float(np.abs(projection.weight).max(initial=0.0))
            self._before, self._cells, self._after = _parts(projection)
        self._shape = projection.shape
        self._top = self._unit = 0.0
        if block.adc_bits is not None:
            self._top = float(2 ** (block.adc_bits - 1) - 1)
            self._unit = block.adc_range * full_scale(projection) / self._top
        # a range below the full scale is meant to clip
        self._may_warn = block.adc_range >= 1.0

    def __call__(self, charge: Floats, spikes: Floats, step: int) -> Floats:
        """The charges (m, b, n_out) as read, of spikes (m, b, n_in)."""
        if self._noise > 0.0:
            normal = self._block.normals(self._index, step, charge.shape[-1])
            charge = charge + self._noise * np.sqrt(self._counted(spikes)) * normal
        if self._unit > 0.0:
            words = np.round(charge / self._unit)
            if self._may_warn and spikes.max(initial=0.0) > 1.0:
                self._warn_of_clipping(np.abs(words).max(initial=0.0))
            charge = np.clip(words, -self._top, self._top) * self._unit
        return round_to_grid(charge, self._bits)

    def _warn_of_clipping(self, largest: float) -> None:
        if largest > self._top:
            notice(
                "adc_bits: neurons send several spikes in a step, and a sum of theirs is more than "
                "the largest of single spikes, where the converter cuts it off; give a larger "
                "adc_range"
            )
            self._may_warn = False

    def _counted(self, spikes: Floats) -> Floats:
        """How many spikes each column sums, (m, b, n_out): their squares, where several come."""
        signal, shape = spikes.astype(np.float64), self._shape
        if self._before:
            signal = chain(self._before, signal, shape, None, bias=False)
            for transform in self._before:
                shape = output_shape(transform, shape)
        counted = chain(self._cells, signal**2, shape, None, bias=False)
        # a mean of n independent sums has the n-th part of their mean variance
        areas = (t.area for t in self._after if isinstance(t, AvgPool2d))
        return counted / math.prod(areas)


Parts = tuple[tuple[Transform, ...], tuple[Transform, ...], tuple[Transform, ...]]


def _parts(projection: Projection) -> Parts:
    """What comes before the weights; the weights as ones, and what is after; the latter alone."""
    transforms = projection.transforms
    first = next(i for i, t in enumerate(transforms) if weight_of(t) is not None)
    weight = projection.weight
    assert weight is not None
    ones = projection.with_weight(np.ones_like(weight)).transforms
    return transforms[:first], ones[first:], transforms[first + 1 :]
