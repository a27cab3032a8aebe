"""A chip without loops as a torch model that computes its spikes, step by step.

Faults of the model are then faults of the chip, and Monte Carlo on it is the chip's own: leaks,
resets to zero, saturation and the length of the window are what they are, not a rate curve's.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from crashsim_hardware import Chip, SteppedNeuron
from crashsim_hardware.chip import INPUT, Spiking
from crashsim_hardware.engines.inputs import is_driven
from torch import Tensor, nn

from crashsim.chip.transforms import module_of
from crashsim.errors import ArgumentError

__all__ = ["SpikingModel", "can_be_stepped"]

_SLACK = 2.0**-31  # below the threshold at which a neuron fires, as in the chip's engines


def can_be_stepped(chip: Chip) -> str | None:
    """Why a chip has no such model; None where it has one."""
    if any(projection.pool is not None for projection in chip.projections):
        return "it takes maxima over neurons"
    for index, layer in enumerate(chip.hidden):
        feeds = [(source, delay) for _, source, delay in chip.feeds(index)]
        if any(source >= index for source, _ in feeds):
            return "its spikes run in loops"
        neuron = layer.neuron
        if not isinstance(neuron, SteppedNeuron) and (
            neuron.curve != "linear" or neuron.refractory or neuron.synapse is not None
        ):
            return f"the neurons of layer {index} are {neuron}"
    return None


class SpikingNeurons(nn.Module):
    """One layer of neurons, through all steps: charges (B, T, n) to spikes (B, T, n).

    driven: the charges are currents of the inputs.
    """

    keep: Tensor
    force: Tensor
    rest: Tensor
    drive: Tensor
    start: Tensor
    gain: Tensor
    floor: Tensor
    synaptic_keep: Tensor | None
    bound: Tensor | None

    def __init__(self, layer: Spiking, start: str, driven: bool) -> None:
        super().__init__()
        neuron, drive = layer.neuron, layer.projection.bias
        one = np.ones(layer.size)
        self.late = self.strict = self.many = False
        if isinstance(neuron, SteppedNeuron):
            self.late, self.strict, self.many = neuron.late, neuron.strict, neuron.many
            keep, force, rest = 1.0 - neuron.leak, neuron.per_charge, neuron.rest + 0.0 * one
            drive = neuron.per_charge * drive
            origin = 0.0 if neuron.origin is None else neuron.origin
            self._put("synaptic_keep", None if neuron.synapse is None else 1.0 - neuron.synapse)
            self._put("gain", one if neuron.gain is None else neuron.gain)
            self._put("floor", 0.0 * one if neuron.floor is None else neuron.floor)
            self._put("bound", neuron.bound)
        else:  # a delivered charge leaks once; the drive, of which inputs are part, does not
            keep, rest = (1.0 - neuron.leak) * one, 0.0 * one
            force = one if driven else keep
            origin = 0.0
            for name, value in (("synaptic_keep", None), ("gain", one), ("bound", None)):
                self._put(name, value)
            self._put("floor", 0.0 * one)
        self.subtracts = neuron.reset == "subtract"
        for name, value in (("keep", keep), ("force", force), ("rest", rest), ("drive", drive)):
            self._put(name, value)
        self._put("start", origin + (0.5 if start == "half" else 0.0) * one)

    def _put(self, name: str, value: Any) -> None:
        tensor = None if value is None else torch.from_numpy(np.array(value, dtype=np.float64))
        self.register_buffer(name, tensor)

    def forward(self, charge: Tensor) -> Tensor:
        v = self.start.expand(charge[:, 0].shape)
        u = torch.zeros_like(v)
        fired: Tensor | None = None
        sent = []
        for now in charge.unbind(1):
            arriving = self.force * now + self.drive
            if self.synaptic_keep is None:
                v = self.keep * v + arriving + self.rest
            else:
                u = self.synaptic_keep * u + arriving
                v = self.keep * v + self.gain * u + self.rest
            if self.late and fired is not None:
                v = self._reset(v, fired)
            above = v > 1.0 + _SLACK if self.strict else v >= 1.0 - _SLACK
            fired = above.to(v.dtype)
            if self.many:
                fired = fired * torch.clamp(torch.floor(v.detach() + _SLACK), min=1.0)
            if not self.late:
                v = self._reset(v, fired)
            if self.bound is not None:
                v = torch.maximum(v, self.bound)
            sent.append(fired)
        return torch.stack(sent, 1)

    def _reset(self, v: Tensor, fired: Tensor) -> Tensor:
        return v - fired if self.subtracts else torch.where(fired > 0, self.floor, v)


@dataclass(frozen=True)
class _Way:
    """Synapses from a layer of some shape: the name of their module."""

    name: str
    shape: tuple[int, ...]


class SpikingModel(nn.Module):
    """The chip in torch: its inputs to what its readout gives, (B, K).

    Inputs are constant currents (B, *shape), or trains (B, T, *shape) of as many steps as it runs.

    Its layers are ``relu1``, ``relu2``, ... as those of rate networks are; the weights into them
    ``linear1`` or ``conv2d1``, ...; further ways into a layer have a number more.
    """

    offset: Tensor

    def __init__(self, chip: Chip) -> None:
        super().__init__()
        self._chip_steps, self._shape = chip.total_steps, chip.input_shape
        self._feeds: list[list[tuple[_Way, int, int]]] = []
        last = len(chip.hidden)
        for index, layer in enumerate(chip.hidden):
            ways = []
            for place, source, delay in chip.feeds(index):
                name = f"{index + 1}" if place == index else f"{index + 1}_{place - last}"
                ways.append((self._add_way(chip, place, name), source, delay))
            self._feeds.append(ways)
            self.add_module(
                f"relu{index + 1}", SpikingNeurons(layer, chip.start, is_driven(chip, index))
            )
        self._readout = self._add_way(chip, last, f"{last + 1}")
        self.register_buffer("offset", torch.from_numpy(np.array(chip.readout.bias)))

    def _add_way(self, chip: Chip, place: int, suffix: str) -> _Way:
        """The synapses of a projection, under the name of what multiplies."""
        projection = chip.projections[place]
        parts = OrderedDict((f"part{i}", module_of(t)) for i, t in enumerate(projection.transforms))
        weighted = [m for m in parts.values() if isinstance(m, nn.Linear | nn.Conv2d)]
        kind = type(weighted[0]).__name__.lower() if weighted else "wiring"
        name = f"{kind}{suffix}"
        alone = len(parts) == 1
        self.add_module(name, next(iter(parts.values())) if alone else nn.Sequential(parts))
        return _Way(name, projection.shape)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == len(self._shape) + 2 and x.shape[1] != self._chip_steps:
            raise ArgumentError(
                f"inputs: trains of {x.shape[1]} steps, and the chip runs {self._chip_steps}; give "
                "steps (--steps) as many as they have"
            )
        spikes: list[Tensor] = []
        for index, ways in enumerate(self._feeds):
            charges = [self._charge(x, spikes, *way) for way in ways]
            spikes.append(getattr(self, f"relu{index + 1}")(sum(charges[1:], charges[0])))
        outputs: Tensor = self._through(self._readout, spikes[-1].mean(1)) + self.offset
        return outputs

    def _through(self, way: _Way, s: Tensor) -> Tensor:
        """Spikes (N, n_in) as charges (N, n_out)."""
        found: Tensor = getattr(self, way.name)(s.reshape(len(s), *way.shape))
        return found.reshape(len(s), -1)

    def _charge(
        self, x: Tensor, spikes: list[Tensor], way: _Way, source: int, delay: int
    ) -> Tensor:
        """What arrives in every step, (B, T, n_out)."""
        steps = self._chip_steps
        if source == INPUT:
            if x.ndim == len(self._shape) + 2:
                found = self._through(way, x.flatten(0, 1)).unflatten(0, (len(x), steps))
            else:
                found = self._through(way, x)[:, None].expand(-1, steps, -1)
        else:
            found = self._through(way, spikes[source].flatten(0, 1)).unflatten(0, (len(x), steps))
        return nn.functional.pad(found, (0, 0, delay, 0))[:, :steps] if delay else found
