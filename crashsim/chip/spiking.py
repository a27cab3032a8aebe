"""Runs faults on a spiking model of neuromorphic hardware, beside the network.

The model's layers go to ``crashsim_hardware`` as plain arrays and are converted into a chip of
spiking neurons; the masks sampled for Monte Carlo break the chip's neurons and synapses, so the
two can be compared mask by mask.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import crashsim_hardware as chips
import numpy as np
from crashsim_hardware import Chip, ChipFaults, HardwareError
from crashsim_hardware.engines.running import Engine
from crashsim_hardware.noticing import collecting

from crashsim.arguments import MOST_STEPS, callback, check_seed, fraction, instance, one_of, whole
from crashsim.arrays import Floats
from crashsim.chip.chip_estimates import chip_estimates
from crashsim.chip.chip_facts import activity_facts, device_facts, raster_facts, rate_facts
from crashsim.chip.chip_faults import Breaks
from crashsim.chip.conversion import STEPS, chip_of
from crashsim.chip.laws import NeuronOutputs, changed_weights
from crashsim.chip.plan import MOST_OPERATIONS, plan_run
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.placement import Placement
from crashsim.errors import ArgumentError
from crashsim.faults import Fault
from crashsim.metrics import predicted_class
from crashsim.model import layers as torch_layers
from crashsim.model.layers import Layer, UnsupportedLayerError, layers_of
from crashsim.results.estimates import Estimates
from crashsim.results.schema import ChipFacts
from crashsim.space import FaultSpace

__all__ = [
    "ChipRun",
    "Told",
    "check_width",
    "chip_faults",
    "chip_of",
    "run_chip",
    "saturated_layers",
    "silent_layers",
    "telling_mask",
]

Told = Callable[[str, int, int], None]
"""What is told of progress: a name, how much is done, of how much."""


@dataclass(frozen=True)
class ChipRun:
    """The result of a run of the chip under faults: estimates, facts, warnings.

    Attributes:
        estimates: ``hardware`` mean, variance and class change.
        facts: plain data for JSON and reports: ``steps``, ``masks``, ``engine``; how the clean
            chip compares with the network (``clean_error``: root mean square over the outputs'
            own; ``clean_agreement``: share of equal classes); how faults compare under the same
            masks (``slope`` of E Delta, ``variance_ratio``, ``correlation`` of E Delta,
            ``mask_correlation`` of Delta); ``device``, if one was named; ``activity`` (spikes and
            synaptic operations of an inference); and for the pictures ``raster``, ``rates`` (spike
            rates as activations, against the network's).
        warnings: of the conversion and of a window too short for the effect.
    """

    estimates: Estimates
    facts: ChipFacts
    warnings: list[str] = field(default_factory=list)


def run_chip(
    space: FaultSpace,
    *,
    masks: int | None = None,
    steps: int = STEPS,
    seed: int = 0,
    confidence: float = 0.95,
    engine: Engine = "numpy",
    device: chips.Device | None = None,
    breaks: Breaks | None = None,
    chip: Chip | None = None,
    calibration: Any = None,
    rel_width: float | None = None,
    budget: float = MOST_OPERATIONS,
    all_inputs: bool = False,
    progress: Told | None = None,
) -> ChipRun:
    """Converts the model, breaks the chip, and compares it with the network mask by mask.

    Args:
        space: model, inputs and faults.
        masks: number of fault patterns; for the space's own faults, the first that Monte Carlo
            draws from the same seed. None: 400, or as many as the budget affords.
        steps: length of the readout window in time steps of 1 ms.
        seed: of masks and initial membrane phases.
        confidence: of the intervals.
        engine: ``numpy``, or ``brian2`` for the same spikes, slower.
        device: break the chip as this device breaks, instead of the space's faults.
        breaks: or with these faults of the chip's own (``crashsim.chip.chip_faults``).
        chip: the chip to break, where the model came from one; else the model is converted.
        calibration: (B, ...) inputs that set the scales of the conversion; None: the space's own.
        rel_width: stop once the variance over all outputs is known to this relative half-width.
        budget: synaptic operations; where the run takes more, fewer masks and inputs are run, as
            ``crashsim.chip.plan`` says, and a warning says which.
        all_inputs: none of them are left out.
        progress: called with "chip", what is done and the whole, about a hundred times.

    Raises:
        UnsupportedLayerError: the model cannot be converted.
        ArgumentError: faults the chip cannot have, or counts out of range.
    """
    instance("space", space, FaultSpace, "a FaultSpace")
    masks = None if masks is None else whole("masks", masks, 2, MOST_STEPS)
    steps = whole("steps", steps, 2, MOST_STEPS)
    seed, confidence = check_seed(seed), fraction("confidence", confidence)
    rel_width = check_width(rel_width)
    one_of("engine", engine, get_args(Engine))
    if device is not None:
        instance("device", device, chips.Device, "a device, as crashsim_hardware.device returns")
    callback("breaks", breaks)
    callback("progress", progress)
    if chip is not None:
        instance("chip", chip, Chip, "the chip that read_chip returned")
        if chip.network is None:
            raise UnsupportedLayerError(
                "model: it is the chip itself, spike for spike: there is no network beside it"
            )
    typical = None if calibration is None else np.asarray(calibration, dtype=np.float64)
    converts = chip is None
    chip, found = (
        (chip, layers_of(space.model, space.inputs))
        if chip is not None
        else chip_of(space, steps, typical)
    )
    network = chip.network
    assert network is not None
    inputs = space.inputs.double().cpu().numpy()
    planned = plan_run(chip, len(inputs), masks, budget=budget, keeps_inputs=all_inputs)
    masks, inputs = planned.masks, inputs[: planned.inputs]
    exact = space.clean()[: planned.inputs]
    with collecting() as noticed:
        try:
            if device is not None:
                broken = device.sample(chip, masks, seed)
            elif breaks is not None:
                broken = breaks(chip, masks, seed)
            else:
                broken = chip_faults(space, chip, found, masks, seed)
            gap = chips.spiking_gap(
                chip, inputs, broken, seed=seed, confidence=confidence, engine=engine,
                rel_width=rel_width, progress=progress and _named(progress),
            )  # fmt: skip
            clean = chips.run(chip, inputs, engine=engine, record=True)
            drawn = chips.raster(chip, inputs[0], broken, mask=telling_mask(broken), engine=engine)
            activity = activity_facts(chip, inputs, broken, clean, engine)
        except HardwareError as error:
            raise ArgumentError(f"hardware: {error}") from error
    statistics = gap.statistics
    facts: ChipFacts = {
        "engine": engine,
        "steps": steps,
        "masks": statistics.masks,
        "copy_runs": 2 * statistics.masks * len(inputs),
        "device": None if device is None else device_facts(device),
        "slope": gap.slope,
        "variance_ratio": gap.variance_ratio,
        "correlation": gap.correlation,
        "variance_correlation": gap.variance_correlation,
        # Masks that are all alike do not correlate with anything.
        "mask_correlation": gap.mask_correlation if gap.variance_ratio > 0 else math.nan,
        "network_mean": gap.mean.tolist(),
        "network_variance": gap.variance.tolist(),
        "clean_error": _clean_error(exact, clean.outputs[0]),
        "clean_agreement": _clean_agreement(exact, clean.outputs[0]),
        "rates": rate_facts(network, inputs, clean),
        "raster": raster_facts(drawn),
        "inputs": len(inputs),
        "activity": activity,
        "calibration": _calibrated(converts, typical),
    }
    estimates = chip_estimates(exact, statistics, broken.random)
    assert clean.counts is not None
    silent = silent_layers(chip, clean.counts) if chip.convention else []
    note = planned.note()
    return ChipRun(estimates, facts, [*silent, *([note] if note else []), *noticed])


def _named(progress: Told) -> Callable[[int, int], None]:
    return lambda done, total: progress("chip", done, total)


def _calibrated(converts: bool, typical: Floats | None) -> str:
    if not converts:
        return "none: the graph's own weights"
    return "the inputs themselves" if typical is None else f"{len(typical)} other inputs"


def check_width(rel_width: Any) -> float | None:
    """Raises ArgumentError unless it is None or a positive number."""
    if rel_width is None:
        return None
    is_number = isinstance(rel_width, int | float) and not isinstance(rel_width, bool)
    if not is_number or not 0 < rel_width < math.inf:
        raise ArgumentError(f"rel_width={rel_width!r}: give a positive number, such as 0.1")
    return float(rel_width)


def silent_layers(chip: Chip, counts: tuple[Floats, ...]) -> list[str]:
    """A warning for each layer without a spike on any input, in counts (M, B, n) by layer."""
    return [
        f"layer {(layer.name or index)!r} never fires on these inputs in {chip.steps} steps, so "
        "faults in it and before it show no effect; is the time step right, and are the inputs "
        "scaled as the graph expects? (--dt, --exporter)"
        for index, (layer, count) in enumerate(zip(chip.hidden, counts, strict=True))
        if not count.any()
    ]


def saturated_layers(chip: Chip, inputs: Floats) -> list[str]:
    """A warning for each layer of a graph whose network has rates that its neurons cannot fire at.

    A ReLU goes on where a neuron fires in every step already.
    """
    network = chip.network
    if network is None or not chip.convention or inputs[:1].size != math.prod(chip.input_shape):
        return []
    hidden = network.forward(inputs.reshape(len(inputs), *chip.input_shape)).hidden
    told = []
    for index, (layer, rates) in enumerate(zip(chip.hidden, hidden, strict=True)):
        top = layer.neuron.max_rate
        beyond = float((rates > top * (1.0 + 1e-9)).mean())
        if beyond > 0.0 and not getattr(layer.neuron, "many", False):
            told.append(
                f"layer {(layer.name or index)!r}: {100 * beyond:.2g}% of its rates are above "
                f"{top:g} spike a step (up to {rates.max():.3g}), and its neurons fire no faster; "
                "what is said here is of the network of rates, which goes on where they end: "
                "`crashsim hardware` (or --hardware) has the chip's own numbers"
            )
    return told


def chip_faults(
    space: FaultSpace, chip: Chip, found: Sequence[Layer], masks: int, seed: int
) -> ChipFaults:
    """The space's faults on the chip: the masks that Monte Carlo draws first from this seed.

    Raises:
        ArgumentError: a fault or site that the chip does not have.
    """
    neurons = [la.site for la in found if isinstance(la.operation, torch_layers.Activation)]
    weights = _weights_by_projection(found)
    outputs = NeuronOutputs(chip, masks)
    synapses: list[Any] = [None] * len(chip.projections)
    read: list[Any] = [None] * len(chip.projections)
    cut: Any = None
    points = sample_points(space.placements, seed, masks).dense()
    for p in space.placements:
        e, fault = points[:, p.start : p.stop], p.fault
        crash = fault.zeroes and fault.is_binary
        if not p.acts_once:
            raise ArgumentError(_cannot(p))
        if p.site.key in neurons and p.site.kind == "activation":
            units = fault.by_unit(e, p.site.shape)
            outputs.strike(neurons.index(p.site.key), fault, units, p.site.name)
        elif p.site.module in weights and p.site.kind == "parameter":
            index = weights[p.site.module]
            if crash:
                synapses[index] = _either(synapses[index], (e != 0).reshape(masks, *p.site.shape))
            else:
                read[index] = _read(chip, index, read[index], fault, _raw(found, p), e)
        elif crash and p.site.kind == "input":
            cut = _either(cut, fault.by_unit(e != 0, p.site.shape))
        else:
            raise ArgumentError(_cannot(p))
    return ChipFaults(
        weights=read, dead_synapses=synapses, dead_inputs=cut, masks=masks, **outputs.fields()
    )


def _raw(found: Sequence[Layer], p: Placement) -> Floats:
    """The weight of a parameter's layer as the module holds it."""
    layer = next(la for la in found if la.weight == p.site.module)
    return np.asarray(layer.operation.weight, dtype=np.float64)  # type: ignore[union-attr]


def _read(
    chip: Chip, index: int, before: Floats | None, fault: Fault, raw: Floats, e: Floats
) -> Floats:
    """What the chip reads of a weight that a fault changes, on top of other changes."""
    projection = chip.projections[index]
    assert chip.network is not None
    assert projection.weight is not None
    _, transforms = chip.network.paths[index]
    own = next(w for t in transforms if (w := getattr(t, "weight", None)) is not None)
    # a batch normalisation behind a layer is multiplied into its weights, row by row
    flat, kept = raw.reshape(len(raw), -1), own.reshape(len(raw), -1)
    place = np.abs(flat).argmax(1)[:, None]
    largest = np.take_along_axis(flat, place, 1)
    factor = np.take_along_axis(kept, place, 1) / np.where(largest == 0.0, 1.0, largest)
    rows = factor.reshape(-1, *(1,) * (raw.ndim - 1))
    change = (changed_weights(fault, raw, e) - raw) * rows * projection.gain
    stored = projection.weight if before is None else before
    return np.asarray(stored + change)


def _cannot(p: Placement) -> str:
    return (
        f"faults: the chip cannot have {p.fault} at {p.site.name!r}; it has faults of activations, "
        "faults of weights that are a layer's own, and cut input lines; or name a device"
    )


def _either(first: Any, second: Any) -> Any:
    return second if first is None else first | second


def _weights_by_projection(found: Sequence[Layer]) -> dict[str, int]:
    """Index of the projection that each weight is in, for layers with a single weight."""
    names: list[list[str]] = [[]]
    for layer in found:  # a residual connection begins a way of its own
        if isinstance(layer.operation, torch_layers.Activation | torch_layers.Residual):
            names.append([])
        elif layer.weight and not isinstance(layer.operation, torch_layers.ChannelScale):
            names[-1].append(layer.weight)
    shared = Counter(name for group in names for name in group)  # a module may be called twice
    return {
        group[0]: i for i, group in enumerate(names) if len(group) == 1 and shared[group[0]] == 1
    }


def telling_mask(broken: ChipFaults) -> int:
    """A mask to draw, with more dead neurons than three in four others."""
    counts = sum(
        (np.asarray(d).sum(1) for d in broken.dead or () if d is not None),
        start=np.zeros(broken.count),
    )
    return int(np.argsort(counts, kind="stable")[3 * broken.count // 4])


def _clean_error(exact: Floats, outputs: Floats) -> float:
    """How far the clean chip is from the network, over the spread of the network's outputs."""
    size = math.sqrt(float(((exact - exact.mean(0)) ** 2).mean())) or math.nan
    return math.sqrt(float(((outputs - exact) ** 2).mean())) / size


def _clean_agreement(exact: Floats, outputs: Floats) -> float:
    """Share of inputs for which the clean chip names the network's class."""
    return float((predicted_class(outputs) == predicted_class(exact)).mean())
