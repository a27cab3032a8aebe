"""What a sample of faulty weights costs: added to the layers' outputs, patched or stacked.

Where few inputs are run, a call of each layer costs most, and samples that share it are cheap:
what their struck weights do is added to the outputs. With many inputs a sample fills its calls by
itself, and adding costs as many numbers as the struck weights touch, patching as many as they are.

Counted in multiplications of a matrix product (a sixtieth of a nanosecond on one thread of an
AVX-512 CPU), never timed, so the choice is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.flops import Operations
from crashsim.injection.sparse.affected_samples import WRITE

_CALL = 6e5  # a call of a layer or operation
_LAYER = 1e7  # to add the changes of a layer's weights, however few, for all samples of a call
_PASS = 6e6  # to put a sample's weights in and out, and to call the model
_PATCH = 4e3  # a change that is put in and taken out
_SCATTER = 250  # to add a change to one number of an output, wherever it lies,
_GATHER = 4  # and where the changes of an output are summed together;
_SORT = 3e3  # for which each is put in order
_MAPPED = 2  # times as long as a plain pass takes one of torch.vmap, but for its calls


@dataclass(frozen=True)
class Work:
    """Of some operations of a model, on a single input.

    Attributes:
        operations: multiplications in layers and matrix products.
        written: numbers that they write.
        calls: how many they are.
    """

    operations: float
    written: float
    calls: int

    @classmethod
    def of_pass(cls, faulty: FaultyModel) -> Work:
        """The model as a whole."""
        with torch.no_grad(), faulty.model.at_work(), Operations() as counter:
            faulty.model.outputs(faulty.examples.part(0, 1).clone())
        return cls(counter.total / 2, counter.written, counter.calls)

    def of(self, inputs: int) -> float:
        """What they cost on some inputs, but for the calls."""
        return inputs * (self.operations + WRITE * self.written)


@dataclass(frozen=True)
class Struck:
    """The weights of one layer that a sample changes.

    Attributes:
        number: how many, about.
        positions: of the output in which each acts, for one input.
        shared: whether all samples read the same inputs there, in many places.
    """

    number: float
    positions: float
    shared: bool


def cost_of_adding(
    changed: Work, layers: Mapping[str, Struck], inputs: int, together: int
) -> float:
    """A sample whose changes are added to the outputs.

    Args:
        changed: the operations behind the first fault.
        layers: the struck ones.
        inputs: how many there are.
        together: how many rows (samples times inputs) share a call.
    """
    passes = -(-inputs // together) / max(1, together // inputs)
    cost = changed.of(inputs) + passes * (_CALL * changed.calls + _LAYER * len(layers))
    for layer in layers.values():
        touched = layer.number * layer.positions * inputs
        cost += _SCATTER * touched if not layer.shared else _GATHER * touched + _SORT * layer.number
    return cost


def cost_of_patching(every: Work, struck: float, inputs: int, together: int) -> float:
    """A sample whose weights are changed for a pass of its own.

    Args:
        every: all operations of the model.
        struck: number of changes.
        inputs, together: as above.
    """
    calls = -(-inputs // together)
    return every.of(inputs) + calls * (_PASS + _CALL * every.calls + _PATCH * struck)


def cost_of_stacking(every: Work, weights: int, inputs: int, together: int) -> float:
    """A sample whose struck parameters, this many, are written out beside those of others.

    Args:
        every: all operations of the model.
        weights: numbers in the struck parameters.
        inputs: how many there are.
        together: how many samples share a pass.
    """
    return _MAPPED * every.of(inputs) + 4 * WRITE * weights + _CALL * every.calls / together
