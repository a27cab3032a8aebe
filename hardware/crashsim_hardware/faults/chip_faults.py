"""What can be broken on a chip, as arrays: one row per mask, so that runs pair mask by mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.arguments import as_numbers, is_number, probability, whole
from crashsim_hardware.chip import Chip, Projection, round_to_grid
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.streams import Stream, generator

__all__ = [
    "ChipFaults",
    "check_draw",
    "sample_core_deaths",
    "sample_dead",
    "sample_dead_inputs",
    "sample_dead_synapses",
    "sample_mismatch",
    "sample_stuck",
]

Bools = NDArray[np.bool_]
Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class ChipFaults:
    """M fault patterns ("masks") for one chip; every field may be left out.

    dead: per hidden layer (M, n_l) or None, True where a neuron never fires (activation 0).
    stuck: per hidden layer (M, n_l) or None, True where a neuron fires at its highest rate
        (activation ``Spiking.stuck_value``).
    thresholds: per hidden layer (M, n_l) or None, factor on the firing threshold (mismatch); the
        rate is divided by it. Reset by subtraction takes off the same charge.
    weights: per projection, the readout last, (M, *weight.shape) or None: what each mask reads
        instead of the stored ``Projection.weight``, in the same units (stuck cells, bit errors).
    dead_synapses: per projection, (M, *weight.shape) or None, True where a weight reads as 0.
    dead_inputs: (M, n_in) or None, True where an input line is cut: its current is 0.
    release_failure: probability that a spike is lost at a synapse, independently for every spike
        and every synapse. Constant input currents carry no spikes and lose none.
    weight_bits: weights stored with that many bits (the same on every mask).
    masks: M; needed only when no array says it.

    Raises HardwareError where the numbers of masks differ or a value has no meaning.
    """

    dead: Sequence[Any] | None = None
    stuck: Sequence[Any] | None = None
    thresholds: Sequence[Any] | None = None
    weights: Sequence[Any] | None = None
    dead_synapses: Sequence[Any] | None = None
    dead_inputs: Any = None
    release_failure: float = 0.0
    weight_bits: int | None = None
    masks: int | None = None

    def __post_init__(self) -> None:
        found: dict[int, str] = {}
        if self.masks is not None:
            found[whole("masks", self.masks, 1)] = "masks"
        for name in ("dead", "stuck", "thresholds", "weights", "dead_synapses"):
            arrays = getattr(self, name)
            if arrays is None:
                continue
            is_list = isinstance(arrays, Sequence) and not isinstance(arrays, str | bytes)
            if not is_list and np.ndim(arrays) == 0:
                raise HardwareError(f"{name} must be a list of arrays, got {arrays!r:.80}")
            kept: tuple[Floats | None, ...] = tuple(
                None if a is None else _of_masks(name, a) for a in arrays
            )
            object.__setattr__(self, name, kept)
            for array in kept:
                if array is not None:
                    found.setdefault(len(array), name)
        if self.dead_inputs is not None:
            cut = _of_masks("dead_inputs", self.dead_inputs)
            object.__setattr__(self, "dead_inputs", cut)
            found.setdefault(len(cut), "dead_inputs")
        if len(found) > 1:
            raise HardwareError(
                "all fault arrays need the same number of masks along their first axis, got "
                + " and ".join(f"{count} ({name})" for count, name in found.items())
            )
        object.__setattr__(self, "masks", whole("masks", next(iter(found), 1), 1))
        if not is_number(self.release_failure) or not 0.0 <= self.release_failure < 1.0:
            raise HardwareError(
                f"release_failure must be a probability in [0, 1), got {self.release_failure}"
            )
        for array in self.thresholds or ():
            if array is not None and not (array > 0.0).all():
                raise HardwareError(
                    "thresholds must be positive factors; clip the mismatch or use `dead` for "
                    "neurons whose threshold cannot be reached"
                )

    @property
    def count(self) -> int:
        """M, the number of masks."""
        return int(self.masks or 1)

    @property
    def empty(self) -> bool:
        """Whether no mask holds any fault."""
        if self.release_failure > 0.0 or self.weight_bits is not None or self.weights is not None:
            return False
        struck = (
            self.dead_inputs,
            *(self.dead or ()),
            *(self.stuck or ()),
            *(self.dead_synapses or ()),
        )
        shifted = (theta for theta in self.thresholds or () if theta is not None)
        return not any(array is not None and array.any() for array in struck) and all(
            (theta == 1.0).all() for theta in shifted
        )

    def check(self, chip: Chip) -> None:
        """Raises HardwareError unless every array fits a layer of `chip`."""
        inputs = (int(np.prod(chip.input_shape)),)
        if self.dead_inputs is not None and self.dead_inputs.shape[1:] != inputs:
            raise HardwareError(
                f"dead_inputs must have shape (M, {inputs[0]}), got {self.dead_inputs.shape}"
            )
        neurons = [(size,) for size in chip.sizes]
        weights = [None if p.weight is None else p.weight.shape for p in chip.projections]
        for name, shapes in (
            ("dead", neurons),
            ("stuck", neurons),
            ("thresholds", neurons),
            ("weights", weights),
            ("dead_synapses", weights),
        ):
            arrays = getattr(self, name) or ()
            if len(arrays) > len(shapes):
                raise HardwareError(
                    f"{name} has {len(arrays)} entries, "
                    f"but the chip has {len(shapes)} layers for it"
                )
            for index, array in enumerate(arrays):
                if array is not None and array.shape[1:] != shapes[index]:
                    raise HardwareError(
                        f"{name}[{index}] must have shape (M, *{shapes[index]}), got {array.shape}"
                    )

    def layer(self, name: str, index: int) -> Floats | None:
        """The array of field `name` at layer `index`, or None where there is no such fault."""
        arrays = getattr(self, name)
        return None if arrays is None or index >= len(arrays) else arrays[index]

    def read_weight(self, projection: Projection, index: int, rows: slice) -> Floats | None:
        """What the masks `rows` read at projection `index`, (m, *weight.shape); None: as stored."""
        stored, read, dead = (
            projection.weight,
            self.layer("weights", index),
            self.layer("dead_synapses", index),
        )
        if stored is None or (read is None and dead is None):
            return None
        weight = (
            stored[None] if read is None else round_to_grid(read[rows], projection.fraction_bits)
        )
        return weight if dead is None else np.where(dead[rows], 0.0, weight)

    def only(self, mask: int) -> ChipFaults:
        """One of the masks alone."""
        kept: dict[str, Any] = {
            name: None
            if arrays is None
            else [None if array is None else array[mask : mask + 1] for array in arrays]
            for name in ("dead", "stuck", "thresholds", "weights", "dead_synapses")
            for arrays in (getattr(self, name),)
        }
        cut = None if self.dead_inputs is None else self.dead_inputs[mask : mask + 1]
        return replace(self, **kept, dead_inputs=cut, masks=1)


def _of_masks(name: str, value: Any) -> Floats:
    """An array (M, ...) of numbers, or of truth values where the field says which are struck."""
    array = as_numbers(name, value)
    if array.ndim == 0:
        raise HardwareError(f"{name} must hold arrays (M, ...), one row per mask, got {value!r}")
    return array if name in ("thresholds", "weights") else array.astype(np.bool_)


def check_draw(chip: Chip, masks: int) -> None:
    """Raises HardwareError unless faults can be drawn for this number of masks of a chip."""
    if not isinstance(chip, Chip):
        raise HardwareError(f"chip must be a Chip, as convert returns, got {chip!r:.80}")
    whole("masks", masks, 1)


def _bernoulli(p: float, shape: tuple[int, ...], seed: int, stream: Stream, index: int) -> Bools:
    probability("p", p)
    return generator(seed, stream, index).random(shape) < p


def sample_dead(
    chip: Chip, p: float, masks: int, seed: int, layers: Sequence[int] | None = None
) -> ChipFaults:
    """Neurons of the hidden `layers` (default all) die independently with probability p."""
    return ChipFaults(dead=_neurons(chip, p, masks, seed, layers, stream=Stream.DEAD), masks=masks)


def sample_stuck(
    chip: Chip, p: float, masks: int, seed: int, layers: Sequence[int] | None = None
) -> ChipFaults:
    """Neurons of the hidden `layers` (default all) fire without pause with probability p each."""
    return ChipFaults(
        stuck=_neurons(chip, p, masks, seed, layers, stream=Stream.STUCK), masks=masks
    )


def _neurons(
    chip: Chip, p: float, masks: int, seed: int, layers: Sequence[int] | None, stream: Stream
) -> list[Bools | None]:
    check_draw(chip, masks)
    chosen = range(len(chip.sizes)) if layers is None else layers
    return [
        _bernoulli(p, (masks, size), seed, stream, index) if index in chosen else None
        for index, size in enumerate(chip.sizes)
    ]


def sample_dead_synapses(chip: Chip, p: float, masks: int, seed: int) -> ChipFaults:
    """Every stored weight, the readout's included, reads as 0 with probability p."""
    check_draw(chip, masks)
    arrays = [
        None
        if projection.weight is None
        else _bernoulli(p, (masks, *projection.weight.shape), seed, Stream.DEAD_SYNAPSE, index)
        for index, projection in enumerate(chip.projections)
    ]
    return ChipFaults(dead_synapses=arrays, masks=masks)


def sample_dead_inputs(chip: Chip, p: float, masks: int, seed: int) -> ChipFaults:
    """Input lines are cut independently with probability p."""
    check_draw(chip, masks)
    lines = (masks, int(np.prod(chip.input_shape)))
    return ChipFaults(dead_inputs=_bernoulli(p, lines, seed, Stream.DEAD_INPUT, 0), masks=masks)


def sample_mismatch(chip: Chip, std: float, masks: int, seed: int) -> ChipFaults:
    """Thresholds v_th (1 + std N(0, 1)), cut off at a tenth of v_th."""
    check_draw(chip, masks)
    if not is_number(std) or not 0.0 <= std < np.inf:
        raise HardwareError(f"mismatch: the relative std must be finite and >= 0, got {std}")
    arrays = [
        np.maximum(
            1.0 + std * generator(seed, Stream.MISMATCH, index).standard_normal((masks, size)), 0.1
        )
        for index, size in enumerate(chip.sizes)
    ]
    return ChipFaults(thresholds=arrays, masks=masks)


def sample_core_deaths(
    chip: Chip, p: float, masks: int, seed: int, core_size: int = 256
) -> ChipFaults:
    """Whole cores of `core_size` neurons die together, each with probability p.

    Neurons are placed core by core in layer order, C order within a layer, and no core is shared
    by two layers. Var Delta is then p (1 - p) times the sum over *cores* of the squared summed
    effects, not over neurons.
    """
    check_draw(chip, masks)
    core_size = whole("core_size", core_size, 1, 2**31)
    dead: list[Bools] = []
    for index, size in enumerate(chip.sizes):
        cores = -(-size // core_size)
        fallen = _bernoulli(p, (masks, cores), seed, Stream.CORE, index)
        dead.append(np.repeat(fallen, core_size, axis=1)[:, :size])
    return ChipFaults(dead=dead, masks=masks)
