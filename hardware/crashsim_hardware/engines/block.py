"""One rectangular block of work, masks x inputs, with every number an engine needs.

All randomness is drawn here, before any engine runs: engines are deterministic functions of a
block, which is why they can be compared spike by spike, and why a result does not depend on how
the work was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import INPUT, Chip, Projection, round_to_grid
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.faults.chip_faults import ChipFaults
from crashsim_hardware.streams import Stream, generator

from .inputs import Train, is_driven
from .varied import Varied, varied_layer
from .windows import Strike

__all__ = ["MASKS", "Activity", "Block", "Phases", "blocks"]

Floats = NDArray[Any]
Phases = Literal["half", "random", "zero"]

MASKS = 64
"""Masks that share one stream of random numbers; blocks start at multiples of it."""

LISTED = 1 << 24
"""Pairs of neurons, at most, that are searched for synapses one by one."""


@dataclass(frozen=True, eq=False)
class Block:
    """Copies of a chip, for masks x inputs = (m, b); everything in units of v_th and dt.

    drives: per hidden layer, constant drive, broadcastable to (m, b, n_l).
    currents: by projection, what the inputs send through it besides: (m or 1, b, n), from the
        step on that the projection's delay says.
    phases: per hidden layer, membrane at the start, (m, b, n_l).
    thresholds: per hidden layer, (m, 1, n_l) or None for 1 everywhere; +inf never fires, -inf
        always does.
    weights: per projection, what is read instead of the stored weight, (m, *weight.shape), or
        None.
    release_failure: probability that a spike is lost at a synapse.
    train: the inputs where drives change with time: then drives and currents are those of the first
        step, and `drive` and `current` say the others.
    synapse_window: the steps of the layer they lead to in which `weights` are read, from the first
        to before the second; None: all.
    strikes: per hidden layer, neurons that are dead or stuck for some steps, or None.
    first_mask, first_input: where the block lies, for `survivals` and `normals`.
    replica: which of several independent draws of those they are.
    varied: per hidden layer, what else differs from mask to mask in its neurons.
    added: per hidden layer, what constant currents on the lines of other neurons add to its drive,
        (m, 1, n_l), in `drives` already; None for nothing.
    offset_readout: (m, 1, K), what those of the last layer add to the outputs; None for nothing.
    read_noise, adc_bits, adc_range: as in `ChipFaults`.
    """

    masks: int
    inputs: int
    drives: tuple[Floats, ...]
    phases: tuple[Floats, ...]
    thresholds: tuple[Floats | None, ...]
    weights: tuple[Floats | None, ...]
    release_failure: float
    first_mask: int
    first_input: int
    seed: int
    currents: Mapping[int, Floats] = field(default_factory=dict)
    train: Train | None = None
    strikes: tuple[Strike | None, ...] = ()
    synapse_window: tuple[int, int] | None = None

    def weight(self, place: int, step: int) -> Floats | None:
        """What is read instead of the stored weight of a projection in a step of its target's."""
        if self.synapse_window is None:
            return self.weights[place]
        start, stop = self.synapse_window
        return self.weights[place] if start <= step < stop else None

    def drive(self, chip: Chip, layer: int, step: int) -> Floats:
        """The drive of a hidden layer in a step of its window."""
        if self.train is None or not is_driven(chip, layer):
            return self.drives[layer]
        projection = chip.hidden[layer].projection
        drive = projection.drive(self.train.at(step), self.weight(layer, step))
        added = self.added[layer] if self.added else None
        return drive if added is None else round_to_grid(drive + added, projection.fraction_bits)

    def current(self, chip: Chip, place: int, step: int, delay: int) -> Floats:
        """What the inputs send through projection `place`, to arrive in `step`."""
        if self.train is None:
            return self.currents[place]
        projection = chip.projections[place]
        x = projection.pooled(self.train.at(step - delay))
        charge = projection.charge(x, self.weight(place, step))
        return round_to_grid(charge, projection.fraction_bits)

    def strike(self, layer: int) -> Strike | None:
        """The window of faults at a hidden layer."""
        return self.strikes[layer] if self.strikes else None

    varied: tuple[Varied, ...] = ()
    added: tuple[Floats | None, ...] = ()
    offset_readout: Floats | None = None
    read_noise: float = 0.0
    adc_bits: int | None = None
    adc_range: float = 1.0
    replica: int = 0

    @property
    def by_step(self) -> bool:
        """Whether the readout must be summed step by step."""
        return self.release_failure > 0.0 or self.noisy or self.synapse_window is not None

    @property
    def noisy(self) -> bool:
        """Whether sums of weights are read with noise or through a converter."""
        return self.read_noise > 0.0 or self.adc_bits is not None

    @property
    def uneven(self) -> bool:
        """Whether neurons send other than spikes of worth 1 of their own making."""
        offset = self.offset_readout is not None or any(a is not None for a in self.added)
        return offset or any(
            varied.gains is not None or any(varied.kinds) for varied in self.varied
        )

    def gain(self, layer: int) -> Floats | None:
        """What a spike of a hidden layer is worth, (m, 1, n_l), or None for 1."""
        return self.varied[layer].gains if 0 <= layer < len(self.varied) else None

    def survivals(self, projection: int, step: int, synapses: int) -> NDArray[np.bool_]:
        """Which spikes cross which synapse in `step`: (m, b, synapses), True for a release."""
        drawn = np.empty((self.masks, self.inputs, synapses), dtype=np.bool_)
        for b in range(self.inputs):
            for start in range(0, self.masks, MASKS):
                stop = min(start + MASKS, self.masks)
                stream = generator(
                    self.seed,
                    Stream.RELEASE,
                    (self.replica << 32) + (self.first_mask + start) // MASKS,
                    self.first_input + b,
                    (projection << 32) + step,
                )
                uniform = stream.random((stop - start, synapses), dtype=np.float32)
                drawn[start:stop, b] = uniform >= self.release_failure
        return drawn

    def normals(self, projection: int, step: int, columns: int) -> Floats:
        """Standard normal noise of one read of each column in `step`: (m, b, columns)."""
        drawn = np.empty((self.masks, self.inputs, columns))
        for b in range(self.inputs):
            for start in range(0, self.masks, MASKS):
                stop = min(start + MASKS, self.masks)
                stream = generator(
                    self.seed,
                    Stream.READ_NOISE,
                    (self.replica << 32) + (self.first_mask + start) // MASKS,
                    self.first_input + b,
                    (projection << 32) + step,
                )
                drawn[start:stop, b] = stream.standard_normal((stop - start, columns))
        return drawn


@dataclass(frozen=True, eq=False)
class Activity:
    """What an engine returns for a block.

    counts: per hidden layer, spikes (ON minus OFF), (m, b, n_l).
    readout: (m, b, K), the charge that reached the readout, when release fails at random; None
        when the readout is a function of the counts.
    trains: per hidden layer, signed spikes (duration, m, b, n_l) as int8, when recorded.
    membrane: of the last layer after the last step, (m, b, n_L).
    first: the step of the last layer's window in which each neuron first fired, (m, b, n_L), or -1.
    """

    counts: tuple[Floats, ...]
    readout: Floats | None = None
    trains: tuple[NDArray[np.int8], ...] | None = None
    membrane: Floats | None = None
    first: NDArray[np.int64] | None = None


def tolerance(fraction_bits: int | None) -> float:
    """How far below its threshold a neuron already fires.

    Half a grid step on fixed-point layers, where no membrane can lie in between: rounding of the
    physical units (20 mV is not a binary fraction) can then never turn a tie into a miss.
    """
    return 2.0 ** -(31 if fraction_bits is None else fraction_bits + 1)


def blocks(
    chip: Chip,
    inputs: Floats,
    faults: ChipFaults,
    *,
    phases: Phases,
    seed: int,
    replica: int,
    copies: int,
    rows: tuple[int, int] | None = None,
) -> Iterator[Block]:
    """Blocks of at most about `copies` copies that together cover masks x inputs.

    inputs: (B, n_in), or (B, T, n_in). rows: the masks from rows[0], a multiple of MASKS, to before
    rows[1]; None: all.
    """
    if phases not in ("half", "random", "zero"):
        raise HardwareError(f'phases must be "half", "random" or "zero", got {phases!r}')
    if seed < 0:
        raise HardwareError(f"seed must be >= 0, got {seed}")
    start, stop = (0, faults.count) if rows is None else rows
    width = max(1, min(len(inputs), copies // min(stop - start, MASKS)))
    height = max(MASKS, copies // width // MASKS * MASKS)
    for first_mask in range(start, stop, height):
        part = slice(first_mask, min(first_mask + height, stop))
        thresholds = tuple(
            _thresholds(chip, faults, layer, part) for layer in range(len(chip.hidden))
        )
        weights = tuple(
            faults.read_weight(projection, index, part)
            for index, projection in enumerate(chip.projections)
        )
        varied = tuple(varied_layer(faults, layer, part) for layer in range(len(chip.hidden)))
        added, offset_readout = _offsets(chip, faults, part, weights)
        for first_input in range(0, len(inputs), width):
            given = inputs[first_input : first_input + width]
            cut = None if faults.dead_inputs is None else faults.dead_inputs[part]
            train = Train(given if inputs.ndim == 3 else given[:, None], cut)
            x = train.at(0)
            window = faults.synapse_window
            first = weights if window is None or window[0] == 0 else (None,) * len(weights)
            drives, currents = _from_inputs(chip, x, first)
            for index, extra in enumerate(added):
                if extra is not None:
                    bits = chip.hidden[index].projection.fraction_bits
                    drives[index] = round_to_grid(drives[index] + extra, bits)
            m, b = part.stop - part.start, x.shape[1]
            yield Block(
                masks=m,
                inputs=b,
                drives=tuple(drives),
                phases=tuple(
                    _phases(
                        chip,
                        layer,
                        thresholds[layer],
                        phases,
                        seed,
                        replica,
                        m,
                        b,
                        part.start,
                        first_input,
                    )
                    for layer in range(len(chip.hidden))
                ),
                thresholds=thresholds,
                weights=weights,
                release_failure=faults.release_failure,
                first_mask=part.start,
                first_input=first_input,
                seed=seed,
                currents=currents,
                train=train if inputs.ndim == 3 or window is not None else None,
                synapse_window=window,
                strikes=tuple(_strike(chip, faults, i, part) for i in range(len(chip.hidden))),
                varied=varied,
                added=tuple(added),
                offset_readout=offset_readout,
                read_noise=faults.read_noise,
                adc_bits=faults.adc_bits,
                adc_range=faults.adc_range,
                replica=replica,
            )


def _from_inputs(
    chip: Chip, x: Floats, weights: tuple[Floats | None, ...]
) -> tuple[list[Floats], dict[int, Floats]]:
    """Constant drives of the hidden layers, and the currents that come by other ways."""
    drives: list[Floats] = []
    currents: dict[int, Floats] = {}
    for index, layer in enumerate(chip.hidden):
        driven = is_driven(chip, index)
        bias = layer.projection.bias[None, None]
        drives.append(layer.projection.drive(x, weights[index]) if driven else bias)
        for place, source, _ in chip.feeds(index):
            if source == INPUT and not (driven and place == index):
                projection = chip.projections[place]
                current = projection.charge(projection.pooled(x), weights[place])
                currents[place] = round_to_grid(current, projection.fraction_bits)
    return drives, currents


def _offsets(
    chip: Chip, faults: ChipFaults, rows: slice, weights: tuple[Floats | None, ...]
) -> tuple[list[Floats | None], Floats | None]:
    """What constant currents on neurons' lines add to the drives of layers, and to the readout."""
    carried = [
        None if (array := faults.layer("offsets", layer)) is None else array[rows][:, None, :]
        for layer in range(len(chip.hidden))
    ]
    added: list[Floats | None] = []
    for index in range(len(chip.hidden)):
        total: Floats | None = None
        for place, source, _ in chip.feeds(index):
            if source != INPUT and (sent := carried[source]) is not None:
                if chip.projections[place].pool is not None:
                    raise HardwareError(
                        "constant currents on neurons' lines have no counts whose maximum could "
                        "pass a pool; leave offsets out"
                    )
                charge = chip.projections[place].charge(sent, weights[place])
                total = charge if total is None else total + charge
        added.append(total)
    last = carried[-1]
    return added, None if last is None else chip.readout.charge(last, weights[len(chip.hidden)])


def _thresholds(chip: Chip, faults: ChipFaults, layer: int, rows: slice) -> Floats | None:
    dead, stuck, factor = (
        None if (array := faults.layer(name, layer)) is None else array[rows]
        for name in ("dead", "stuck", "thresholds")
    )
    if faults.window is not None:  # they are struck step by step
        dead = stuck = None
    if dead is None and stuck is None and factor is None:
        return None
    size = (rows.stop - rows.start, chip.hidden[layer].size)
    theta = np.ones(size)
    if factor is not None:
        # never round to a threshold of zero
        bits = chip.hidden[layer].projection.fraction_bits
        theta = np.maximum(round_to_grid(factor, bits), 0.0 if bits is None else 2.0**-bits)
    if stuck is not None:
        theta = np.where(stuck, -np.inf, theta)
    if dead is not None:  # a neuron that is both is dead
        theta = np.where(dead, np.inf, theta)
    return theta[:, None, :]


def _strike(chip: Chip, faults: ChipFaults, layer: int, rows: slice) -> Strike | None:
    if faults.window is None:
        return None
    dead, stuck = (
        None if (array := faults.layer(name, layer)) is None else array[rows][:, None, :]
        for name in ("dead", "stuck")
    )
    if dead is None and stuck is None:
        return None
    return Strike(dead, stuck, *faults.window, pause=1 + chip.hidden[layer].neuron.refractory)


def _phases(
    chip: Chip,
    layer: int,
    theta: Floats | None,
    phases: Phases,
    seed: int,
    replica: int,
    m: int,
    b: int,
    first_mask: int,
    first_input: int,
) -> Floats:
    size = chip.hidden[layer].size
    if phases != "random":
        fraction = np.full((m, b, size), 0.5 if phases == "half" else 0.0)
    else:
        fraction = np.empty((m, b, size))
        for start in range(0, m, MASKS):
            for column in range(b):
                place = (first_mask + start) // MASKS, first_input + column
                stream = generator(seed, Stream.PHASE, *place, (replica << 32) + layer)
                stop = min(start + MASKS, m)
                fraction[start:stop, column] = stream.random((stop - start, size))
    if theta is not None and not np.isin(theta, (1.0, np.inf, -np.inf)).all():
        fraction = fraction * np.where(np.isfinite(theta), theta, 1.0)
    bits = chip.hidden[layer].projection.fraction_bits
    # floor, not nearest: a phase of a full threshold would be a spike that no input caused
    return fraction if bits is None else np.floor(np.ldexp(fraction, bits)) * 2.0**-bits


def check_listed(projection: Projection) -> None:
    """Raises HardwareError for a projection whose synapses cannot be listed one by one."""
    entries = int(np.prod(projection.shape)) * projection.bias.size
    if entries > LISTED:
        raise HardwareError(
            f"a projection from {projection.shape} to {projection.output_shape} has up to "
            f"{entries:,} synapses, too many to simulate one by one; use engine='brian2' or "
            "'numpy' without release failure"
        )


def connections(projection: Projection) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Source and target neuron of every physical synapse, (S,) each, in C order of (in, out).

    Raises HardwareError for layers too large to list.
    """
    check_listed(projection)
    source, target = np.nonzero(projection.matrix())
    return source, target


def matrices(projection: Projection, weight: Floats | None) -> Floats:
    """The projection as (n_in, n_out), or (m, n_in, n_out) when every mask reads its own weight."""
    if weight is None:
        return projection.matrix()
    n_in = int(np.prod(projection.shape))
    eye = np.broadcast_to(np.eye(n_in), (len(weight), n_in, n_in))
    return projection.charge(eye, weight)
