"""How far each single fault moves a chip: a map over every neuron, or every synapse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import whole
from .chip import Chip
from .engines.inputs import flat_signals
from .engines.running import Engine, Progress, run
from .errors import HardwareError
from .faults.chip_faults import ChipFaults

__all__ = ["SINGLE_FAULTS", "Criticality", "CriticalityMap", "Worst", "criticality"]

Floats = NDArray[Any]

MASKS = 256
"""Faults that are run at once, at most."""
WEIGHTS = 1 << 24
"""Weights that the masks of one run may read, at most about: bounds the memory."""


@dataclass(frozen=True)
class Worst:
    """One of the faults that move a chip the most: which, where, and how far."""

    fault: str
    layer: str
    index: tuple[int, ...]
    moved: float
    changed: float


@dataclass(frozen=True, eq=False)
class CriticalityMap:
    """One kind of fault at one place after the other of one layer.

    fault: its name, of `SINGLE_FAULTS`.
    layer: the name of the neurons; of synapses, of the neurons they lead to, or "readout".
    moved: the shape of the layer (or of its weights), the mean over inputs of the largest change of
        an output, in output units.
    changed: the same shape, the share of inputs for which another output is the largest.
    """

    fault: str
    layer: str
    moved: Floats
    changed: Floats


@dataclass(frozen=True, eq=False)
class Criticality:
    """The maps of all kinds of faults and layers; exact for these inputs and this start of chip.

    outputs: (B, K) without faults.
    """

    maps: tuple[CriticalityMap, ...]
    outputs: Floats

    def worst(self, count: int = 10) -> list[Worst]:
        """The faults that move the outputs the most, those that change more classes first."""
        whole("count", count, 1)
        found: list[Worst] = []
        for each in self.maps:
            order = np.lexsort((-each.moved.ravel(), -each.changed.ravel()))[:count]
            for place in order:
                index = tuple(int(i) for i in np.unravel_index(place, each.moved.shape))
                moved, changed = float(each.moved[index]), float(each.changed[index])
                found.append(Worst(each.fault, each.layer, index, moved, changed))
        return sorted(found, key=lambda w: (-w.changed, -w.moved))[:count]


def criticality(
    chip: Chip,
    inputs: Any,
    faults: Sequence[str] = ("dead-neuron", "saturated-neuron"),
    *,
    engine: Engine = "numpy",
    progress: Progress | None = None,
) -> Criticality:
    """Runs every single fault of the named kinds on its own, from the chip's own start.

    Parameters
    ----------
    inputs: as `run` takes them.
    faults: names of `SINGLE_FAULTS`. Those of synapses take a run for each weight.
    engine: as in `run`.
    progress: told faults done, and their number.

    Raises HardwareError for a kind that is not known, or inputs that do not fit.
    """
    if isinstance(faults, str) or not faults or any(name not in SINGLE_FAULTS for name in faults):
        raise HardwareError(f"faults must be some of {', '.join(SINGLE_FAULTS)}, got {faults!r}")
    flat_signals(chip, inputs)
    clean = run(chip, inputs, engine=engine).outputs[0]
    places = [(name, layer) for name in faults for layer in range(_layers(chip, name))]
    shapes = [_shape(chip, name, layer) for name, layer in places]
    total, done = sum(int(np.prod(shape)) for shape in shapes if shape), 0
    maps: list[CriticalityMap] = []
    for (name, layer), shape in zip(places, shapes, strict=True):
        if shape is None:
            continue
        moved, changed = np.empty(int(np.prod(shape))), np.empty(int(np.prod(shape)))
        for rows, broken in _single(chip, name, layer, shape):
            outputs = run(chip, inputs, broken, engine=engine).outputs
            moved[rows] = np.abs(outputs - clean).max(axis=-1).mean(axis=-1)
            classes = outputs.argmax(axis=-1) != clean.argmax(axis=-1)
            changed[rows] = classes.mean(axis=-1)
            done += broken.count
            if progress is not None:
                progress(done, total)
        label = _label(chip, name, layer)
        maps.append(CriticalityMap(name, label, moved.reshape(shape), changed.reshape(shape)))
    return Criticality(tuple(maps), clean)


Strikes = Callable[[Chip, int, NDArray[np.bool_]], ChipFaults]


def _of_neurons(field: str) -> Strikes:
    def build(chip: Chip, layer: int, struck: NDArray[np.bool_]) -> ChipFaults:
        arrays: list[Any] = [None] * len(chip.hidden)
        arrays[layer] = struck
        fields: dict[str, Any] = {field: arrays}
        return ChipFaults(**fields)

    return build


def _of_synapses(read: Callable[[Floats], Floats]) -> Strikes:
    def build(chip: Chip, place: int, struck: NDArray[np.bool_]) -> ChipFaults:
        arrays: list[Any] = [None] * len(chip.projections)
        weight = chip.projections[place].weight
        assert weight is not None
        arrays[place] = np.where(struck, read(weight), weight)
        return ChipFaults(weights=arrays)

    return build


def _top_bit(weight: Floats) -> Floats:
    """The weight with the sign bit of its 8-bit word flipped."""
    step = np.abs(weight).max(initial=0.0) / 127.0
    flip = np.where(np.round(weight / (step or 1.0)) < 0, 128.0, -128.0)
    flipped: Floats = weight + flip * step
    return flipped


SINGLE_FAULTS: dict[str, Strikes] = {
    "dead-neuron": _of_neurons("dead"),
    "saturated-neuron": _of_neurons("stuck"),
    "dead-synapse": _of_synapses(np.zeros_like),
    "saturated-synapse": _of_synapses(lambda w: np.full_like(w, np.abs(w).max(initial=0.0))),
    "inverted-synapse": _of_synapses(np.negative),
    "top-bit-flip": _of_synapses(_top_bit),
}
"""Single faults by name: of a neuron, or of a stored weight (bits are those of 8-bit words)."""


def _is_of_neurons(name: str) -> bool:
    return name.endswith("neuron")


def _layers(chip: Chip, name: str) -> int:
    return len(chip.hidden) if _is_of_neurons(name) else len(chip.projections)


def _shape(chip: Chip, name: str, layer: int) -> tuple[int, ...] | None:
    if _is_of_neurons(name):
        return chip.hidden[layer].projection.output_shape
    weight = chip.projections[layer].weight
    return None if weight is None else weight.shape


def _label(chip: Chip, name: str, layer: int) -> str:
    count = len(chip.hidden)
    if layer == count:
        return "readout"
    target = layer if layer < count else chip.wires[layer - count - 1].target
    label = chip.hidden[target].name or f"layer {target}"
    if layer < count:
        return label
    source = chip.wires[layer - count - 1].source
    return f"{label} from {'inputs' if source < 0 else chip.hidden[source].name or source}"


def _single(
    chip: Chip, name: str, layer: int, shape: tuple[int, ...]
) -> Iterator[tuple[slice, ChipFaults]]:
    """Masks of one fault each, some at once, with the places that they strike."""
    places = int(np.prod(shape))
    flat = (places,) if _is_of_neurons(name) else shape
    height = max(1, min(MASKS, WEIGHTS // places))
    for first in range(0, places, height):
        rows = slice(first, min(first + height, places))
        struck = np.zeros((rows.stop - first, places), dtype=np.bool_)
        struck[np.arange(rows.stop - first), np.arange(first, rows.stop)] = True
        yield rows, SINGLE_FAULTS[name](chip, layer, struck.reshape(-1, *flat))
