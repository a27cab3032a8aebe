"""What can be broken on a chip, as arrays: one row per mask, so that runs pair mask by mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.arguments import as_numbers, is_number, whole
from crashsim_hardware.chip import Chip, Projection, round_to_grid
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.point_neuron import PointNeuron

__all__ = ["ChipFaults", "check_draw"]

Bools = NDArray[np.bool_]
Floats = NDArray[Any]

BY_LAYER: Mapping[str, type] = MappingProxyType(
    {
        "dead": np.bool_,
        "stuck": np.bool_,
        "held": np.float64,
        "thresholds": np.float64,
        "leaks": np.float64,
        "refractory": np.float64,
        "gains": np.float64,
        "offsets": np.float64,
    }
)
BY_PROJECTION: Mapping[str, type] = MappingProxyType(
    {"weights": np.float64, "dead_synapses": np.bool_}
)
ARRAYS: Mapping[str, type] = MappingProxyType({**BY_LAYER, **BY_PROJECTION})


@dataclass(frozen=True, eq=False)
class ChipFaults:
    """M fault patterns ("masks") for one chip; every field may be left out.

    Of neurons, each a list with an array (M, n_l) or None per hidden layer:

    dead: True where a neuron never fires (activation 0).
    stuck: True where a neuron is saturated: it fires at its highest rate, in every step unless it
        is refractory (activation ``Spiking.stuck_value``).
    held: the rate that a neuron is stuck at, in spikes per step, whatever it receives, in spikes at
        equal distances; NaN where it is not. Negative on the OFF line of a signed neuron. A neuron
        of several of these is dead, or else saturated.
    thresholds: factor on the firing threshold (mismatch); the rate is divided by it. Reset by
        subtraction takes off the same charge.
    leaks: factor on the leak of the membrane, which stays at most 1.
    refractory: whole steps after a spike in which none can follow, in place of the neuron's own.
    gains: factor on what each spike that a neuron sends is worth.
    offsets: what a neuron's line carries besides its spikes: a constant current, in spikes per
        step.

    Of synapses, per projection, the readout and the wires last:

    weights: (M, *weight.shape) or None: what each mask reads instead of the stored
        ``Projection.weight``, in the same units (cells of conductance, stuck cells, bit errors).
    dead_synapses: (M, *weight.shape) or None, True where a weight reads as 0.

    And of the whole chip:

    dead_inputs: (M, n_in) or None, True where an input line is cut: its current is 0.
    release_failure: probability that a spike is lost at a synapse, independently for every spike
        and every synapse. Constant input currents carry no spikes and lose none, nor do neurons
        whose spikes are the outputs, with no weights between.
    read_noise: standard deviation of each weight from one read to the next, relative to the largest
        of its array: in every step each spike is weighted anew. Constant input currents are not
        read by spikes and have none.
    adc_bits: bits of the converter that reads each column's sum of weights in each step; None for
        the sum itself. Neurons that are the outputs are counted, with no converter.
    adc_range: largest sum that the converter tells from larger ones, relative to the largest that
        spikes can cause in one step, one of each neuron; above 1 where neurons send several.
    weight_bits: weights stored with that many bits (the same on every mask).
    window: steps (start, stop), from start to before stop, in which `dead`, `stuck` and `held`
        neurons are so, counted from the first of each layer's own; None: in all. Their outputs are
        struck, and their membranes go on: the spikes of a dead neuron are lost.
    synapse_window: the same for `weights` and `dead_synapses`, counted from the first step of the
        layer that the synapses lead to (the readout's, of the last layer). Other faults last.
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
    held: Sequence[Any] | None = None
    leaks: Sequence[Any] | None = None
    refractory: Sequence[Any] | None = None
    gains: Sequence[Any] | None = None
    offsets: Sequence[Any] | None = None
    read_noise: float = 0.0
    adc_bits: int | None = None
    adc_range: float = 1.0
    window: tuple[int, int] | None = None
    synapse_window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        found: dict[int, str] = {}
        if self.masks is not None:
            found[whole("masks", self.masks, 1)] = "masks"
        for name in ARRAYS:
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
        self._check_numbers()
        self._check_arrays()
        self._check_windows()

    def _check_numbers(self) -> None:
        if not is_number(self.release_failure) or not 0.0 <= self.release_failure < 1.0:
            raise HardwareError(
                f"release_failure must be a probability in [0, 1), got {self.release_failure}"
            )
        if not is_number(self.read_noise) or not 0.0 <= self.read_noise < np.inf:
            raise HardwareError(
                f"read_noise must be a finite standard deviation >= 0, got {self.read_noise!r}"
            )
        if self.adc_bits is not None:
            whole("adc_bits (a sign and a magnitude)", self.adc_bits, 2, 32)
        if not is_number(self.adc_range) or not 0.0 < self.adc_range < np.inf:
            raise HardwareError(
                "adc_range must be relative to the largest sum of single spikes, above 0, "
                f"got {self.adc_range!r}"
            )

    def _check_arrays(self) -> None:
        for array in self._present("thresholds"):
            if not (array > 0.0).all():
                raise HardwareError(
                    "thresholds must be positive factors; clip the mismatch or use `dead` for "
                    "neurons whose threshold cannot be reached"
                )
        for array in self._present("leaks"):
            if not ((array >= 0.0) & (array < np.inf)).all():
                raise HardwareError("leaks must be finite factors >= 0")
        for array in self._present("refractory"):
            if not ((array >= 0.0) & (array < 2**31) & (array == np.floor(array))).all():
                raise HardwareError("refractory must be whole numbers of steps >= 0")
        for name in ("gains", "offsets", "weights"):
            for array in self._present(name):
                if not np.isfinite(array).all():
                    raise HardwareError(f"{name} contain NaN or infinity")

    def _present(self, name: str) -> list[Floats]:
        return [array for array in getattr(self, name) or () if array is not None]

    def _check_windows(self) -> None:
        if self.window is not None:
            if self.dead is None and self.stuck is None and self.held is None:
                raise HardwareError(
                    "window: dead, stuck and held neurons are so for some steps, and there are "
                    "none; other faults last"
                )
            object.__setattr__(self, "window", _steps("window", self.window))
        if self.synapse_window is not None:
            if self.weights is None and self.dead_synapses is None:
                raise HardwareError(
                    "synapse_window: weights and dead_synapses are so for some steps, and there "
                    "are none; other faults last"
                )
            if self.offsets is not None:
                raise HardwareError(
                    "synapse_window: constant currents on lines cross the same synapses in all "
                    "steps; leave offsets or the window out"
                )
            steps = _steps("synapse_window", self.synapse_window)
            object.__setattr__(self, "synapse_window", steps)

    @property
    def count(self) -> int:
        """M, the number of masks."""
        return int(self.masks or 1)

    @property
    def by_step(self) -> bool:
        """Whether something differs from step to step, so that counts do not tell the readout."""
        noisy = self.read_noise > 0.0 or self.adc_bits is not None
        return self.release_failure > 0.0 or noisy or self.synapse_window is not None

    @property
    def random(self) -> bool:
        """Whether two runs under the same mask differ: releases fail, or reads are noisy."""
        return self.release_failure > 0.0 or self.read_noise > 0.0

    @property
    def alike(self) -> bool:
        """Whether the faults are such that all masks hold the same: weights that all read alike.

        Neurons or synapses struck alike on all masks do not tell: other masks may be spared.
        """
        struck = any(self._present(name) for name in ARRAYS if name != "weights")
        if self.random or self.empty or struck or self.dead_inputs is not None:
            return False
        return all((array == array[:1]).all() for array in self._present("weights"))

    @property
    def empty(self) -> bool:
        """Whether no mask holds any fault."""
        if self.by_step or self.weight_bits is not None or self._present("weights"):
            return False
        harmless = {"thresholds": 1.0, "leaks": 1.0, "gains": 1.0}
        if any(np.isfinite(held).any() for held in self._present("held")):
            return False
        if self._present("refractory"):
            return False
        if self.dead_inputs is not None and self.dead_inputs.any():
            return False
        names = ("dead", "stuck", "dead_synapses", "offsets", *harmless)
        return not any(
            (array != harmless.get(name, 0.0)).any()
            for name in names
            for array in self._present(name)
        )

    def check(self, chip: Chip) -> None:
        """Raises HardwareError unless every array fits a layer of `chip`."""
        for window in (self.window, self.synapse_window):
            if window is not None and window[0] >= chip.total_steps:
                raise HardwareError(
                    f"the window {window} begins after the last of the {chip.total_steps} steps"
                )
        inputs = (int(np.prod(chip.input_shape)),)
        if self.dead_inputs is not None and self.dead_inputs.shape[1:] != inputs:
            raise HardwareError(
                f"dead_inputs must have shape (M, {inputs[0]}), got {self.dead_inputs.shape}"
            )
        neurons = [(size,) for size in chip.sizes]
        weights = [None if p.weight is None else p.weight.shape for p in chip.projections]
        for name in ARRAYS:
            shapes: Sequence[Any] = neurons if name in BY_LAYER else weights
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
        self._check_rates(chip)

    def _check_rates(self, chip: Chip) -> None:
        for index, layer in enumerate(chip.hidden):
            held = self.layer("held", index)
            if held is None or not np.isfinite(held).any():
                continue
            top, neuron = layer.neuron.max_rate, layer.neuron
            signed = isinstance(neuron, PointNeuron) and neuron.bipolar
            least, most = np.nanmin(held), np.nanmax(held)
            if least < (-top if signed else 0.0) or most > top:
                raise HardwareError(
                    f"held[{index}] goes from {least:.4g} to {most:.4g} spikes per step; neurons "
                    f"of layer {index} fire from {-top if signed else 0:.4g} to {top:.4g}"
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
            for name in ARRAYS
            for arrays in (getattr(self, name),)
        }
        cut = None if self.dead_inputs is None else self.dead_inputs[mask : mask + 1]
        return replace(self, **kept, dead_inputs=cut, masks=1)


def _steps(name: str, window: Any) -> tuple[int, int]:
    try:
        start, stop = window
    except (TypeError, ValueError):
        raise HardwareError(f"{name} must be two steps (start, stop), got {window!r:.80}") from None
    start = whole(f"the start of the {name}", start, 0)
    return start, whole(f"the stop of the {name}", stop, start + 1)


def _of_masks(name: str, value: Any) -> Floats:
    """An array (M, ...) of numbers, or of truth values where the field says which are struck."""
    array = as_numbers(name, value)
    if array.ndim == 0:
        raise HardwareError(f"{name} must hold arrays (M, ...), one row per mask, got {value!r}")
    return array.astype(ARRAYS.get(name, np.bool_), copy=False)


def check_draw(chip: Chip, masks: int) -> None:
    """Raises HardwareError unless faults can be drawn for this number of masks of a chip."""
    if not isinstance(chip, Chip):
        raise HardwareError(f"chip must be a Chip, as convert returns, got {chip!r:.80}")
    whole("masks", masks, 1)
