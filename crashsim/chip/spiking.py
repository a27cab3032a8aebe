"""Runs faults on a spiking model of neuromorphic hardware, beside the network.

The model's layers go to ``crashsim_hardware`` as plain arrays and are converted into a chip of
spiking neurons; the masks sampled for Monte Carlo break the chip's neurons and synapses, so the
two can be compared mask by mask.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import crashsim_hardware as chips
import numpy as np
from crashsim_hardware import Chip, ChipFaults, HardwareError
from crashsim_hardware.engines.running import Engine
from crashsim_hardware.noticing import collecting

from crashsim.arguments import MOST_STEPS, callback, check_seed, fraction, instance, one_of, whole
from crashsim.arrays import Floats
from crashsim.chip.chip_faults import Breaks
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.placement import Placement
from crashsim.errors import ArgumentError
from crashsim.metrics import CLASS_CHANGE, predicted_class
from crashsim.model import layers as torch_layers
from crashsim.model.layers import Layer, UnsupportedLayerError, layers_of
from crashsim.results.estimate import Interval
from crashsim.results.estimates import Estimates, estimates_of
from crashsim.results.schema import (
    ChipFacts,
    DeviceFacts,
    LayerRasterFacts,
    RasterFacts,
    RateFacts,
    SpikeFacts,
)
from crashsim.sampling.intervals import (
    Spread,
    clustered_proportion_interval,
    half_width,
    mean_interval,
    proportion_interval,
    variance_interval,
)
from crashsim.space import FaultSpace

MASKS = 400
STEPS = 100
_RASTER_NEURONS = 120  # per layer, so that the picture stays small


@dataclass(frozen=True)
class ChipRun:
    """The result of a run of the chip under faults: estimates, facts, warnings.

    Attributes:
        estimates: ``hardware`` mean, variance and class change.
        facts: plain data for JSON and reports: ``steps``, ``masks``, ``engine``; how the clean
            chip compares with the network (``clean_error``: root mean square over the outputs'
            own; ``clean_agreement``: share of equal classes); how faults compare under the same
            masks (``slope`` of E Delta, ``variance_ratio``, ``correlation`` of E Delta,
            ``mask_correlation`` of Delta); ``device``, if one was named; and for the pictures
            ``raster``, ``rates`` (spike rates as activations, against the network's).
        warnings: of the conversion and of a window too short for the effect.
    """

    estimates: Estimates
    facts: ChipFacts
    warnings: list[str] = field(default_factory=list)


def chip_network(space: FaultSpace) -> tuple[chips.Network, list[Layer]]:
    """The model as the chip's network, and the layers it came from.

    Raises:
        UnsupportedLayerError: a layer that no chip of this kind has; names it.
    """
    found = layers_of(space.model, space.inputs)
    network_layers: list[chips.NeuronLayer] = []
    transforms: list[Any] = []
    is_image = len(space.inputs.shape) > 2
    for layer in found:
        operation = layer.operation
        if isinstance(operation, torch_layers.Activation):
            if operation.name not in ("relu", "sigmoid", "tanh"):
                raise UnsupportedLayerError(
                    f"model: {operation.name} at {layer.module!r} has no spiking neuron; "
                    "the chip has relu, sigmoid and tanh"
                )
            network_layers.append(chips.NeuronLayer(tuple(transforms), operation.name))  # type: ignore[arg-type]
            transforms = []
            continue
        if isinstance(operation, torch_layers.Linear) and is_image:
            transforms.append(chips.Flatten())
        flat = isinstance(operation, torch_layers.Linear | torch_layers.Flatten)
        is_image = is_image and not flat
        transforms.append(_transform(layer, transforms))
        if isinstance(operation, torch_layers.ChannelScale):
            del transforms[-2]  # folded into the scale's predecessor
    network_layers.append(chips.NeuronLayer(tuple(transforms), "linear"))
    try:
        return chips.Network(network_layers, tuple(space.inputs.shape[1:])), found
    except HardwareError as error:
        raise UnsupportedLayerError(f"model: {error}") from error


def _transform(layer: Layer, before: Sequence[Any]) -> Any:
    operation = layer.operation
    if isinstance(operation, torch_layers.Linear):
        return chips.Linear(operation.weight, operation.bias)
    if isinstance(operation, torch_layers.Conv2d):
        return chips.Conv2d(
            operation.weight, operation.bias, operation.stride, operation.padding,
            operation.dilation, operation.groups,
        )  # fmt: skip
    if isinstance(operation, torch_layers.Flatten):
        return chips.Flatten()
    if isinstance(operation, torch_layers.AvgPool2d):
        return chips.AvgPool2d(operation.kernel, operation.stride, operation.padding)
    previous = before[-1] if before else None
    if isinstance(operation, torch_layers.ChannelScale) and isinstance(
        previous, chips.Linear | chips.Conv2d
    ):
        scale, bias = operation.scale, np.zeros(len(operation.scale))
        bias = bias if previous.bias is None else previous.bias
        column = scale.reshape(-1, *[1] * (previous.weight.ndim - 1))
        weight, shifted = column * previous.weight, scale * bias + operation.shift
        if isinstance(previous, chips.Linear):
            return chips.Linear(weight, shifted)
        return chips.Conv2d(
            weight, shifted, previous.stride, previous.padding, previous.dilation, previous.groups
        )
    what = type(operation).__name__
    raise UnsupportedLayerError(
        f"model: {what} at {layer.module or 'the top level'!r} cannot be put on the chip; it "
        "takes Linear, Conv2d, batch normalisation behind them, average pooling and flatten"
    )


def run_chip(
    space: FaultSpace,
    *,
    masks: int = MASKS,
    steps: int = STEPS,
    seed: int = 0,
    confidence: float = 0.95,
    engine: Engine = "brian2",
    device: chips.Device | None = None,
    breaks: Breaks | None = None,
    chip: Chip | None = None,
) -> ChipRun:
    """Converts the model, breaks the chip, and compares it with the network mask by mask.

    Args:
        space: its inputs also set the conversion's scales.
        masks: number of fault patterns; for the space's own faults, the first that Monte Carlo
            draws from the same seed.
        steps: length of the readout window in time steps of 1 ms.
        seed: of masks and initial membrane phases.
        confidence: of the intervals.
        engine: ``brian2``, or ``numpy`` for the same spikes faster.
        device: break the chip as this device breaks, instead of the space's faults.
        breaks: or with these faults of the chip's own (``crashsim.chip.chip_faults``).
        chip: the chip to break, where the model came from one; else the model is converted.

    Raises:
        UnsupportedLayerError: the model cannot be converted.
        ArgumentError: faults the chip cannot have, or counts out of range.
    """
    instance("space", space, FaultSpace, "a FaultSpace")
    masks, steps = whole("masks", masks, 2, MOST_STEPS), whole("steps", steps, 2, MOST_STEPS)
    seed = check_seed(seed)
    confidence = fraction("confidence", confidence)
    one_of("engine", engine, get_args(Engine))
    if device is not None:
        instance("device", device, chips.Device, "a device, as crashsim_hardware.device returns")
    callback("breaks", breaks)
    if chip is not None:
        instance("chip", chip, Chip, "the chip that read_chip returned")
    chip, found = (
        chip_of(space, steps) if chip is None else (chip, layers_of(space.model, space.inputs))
    )
    network = chip.network or chips.rate_network(chip)
    chip = replace(chip, network=network)
    inputs = space.inputs.double().cpu().numpy()
    with collecting() as noticed:
        try:
            if device is not None:
                broken = device.sample(chip, masks, seed)
            elif breaks is not None:
                broken = breaks(chip, masks, seed)
            else:
                broken = chip_faults(space, chip, found, masks, seed)
            gap = chips.spiking_gap(
                chip, inputs, broken, seed=seed, confidence=confidence, engine=engine
            )
            clean = chips.run(chip, inputs, engine=engine, record=True)
            drawn = chips.raster(chip, inputs[0], broken, mask=telling_mask(broken), engine=engine)
        except HardwareError as error:
            raise ArgumentError(f"hardware: {error}") from error
    facts: ChipFacts = {
        "engine": engine,
        "steps": steps,
        "masks": masks,
        "copy_runs": 2 * masks * len(inputs),
        "device": None if device is None else device_facts(device),
        "slope": gap.slope,
        "variance_ratio": gap.variance_ratio,
        "correlation": gap.correlation,
        "variance_correlation": gap.variance_correlation,
        # Masks that are all alike do not correlate with anything.
        "mask_correlation": gap.mask_correlation if gap.variance_ratio > 0 else math.nan,
        "network_mean": gap.mean.tolist(),
        "network_variance": gap.variance.tolist(),
        "clean_error": _clean_error(space, clean.outputs[0]),
        "clean_agreement": _clean_agreement(space, clean.outputs[0]),
        "rates": _rates(network, inputs, clean),
        "raster": raster_facts(drawn),
    }
    released = broken.random
    estimates = chip_estimates(space.clean(), gap.statistics, confidence, released)
    assert clean.counts is not None
    silent = silent_layers(chip, clean.counts) if chip.convention else []
    return ChipRun(estimates, facts, [*silent, *noticed])


def silent_layers(chip: Chip, counts: tuple[Floats, ...]) -> list[str]:
    """A warning for each layer without a spike on any input, in counts (M, B, n) by layer."""
    return [
        f"layer {(layer.name or index)!r} never fires on these inputs in {chip.steps} steps, so "
        "faults in it and before it show no effect; is the time step right, and are the inputs "
        "scaled as the graph expects? (--dt, --exporter)"
        for index, (layer, count) in enumerate(zip(chip.hidden, counts, strict=True))
        if not count.any()
    ]


def chip_of(space: FaultSpace, steps: int = STEPS) -> tuple[Chip, list[Layer]]:
    """The model as a chip, its scales set by the space's inputs; and the layers it came from.

    Raises:
        UnsupportedLayerError: a layer that no chip of this kind has; names it.
    """
    network, found = chip_network(space)
    try:
        return chips.convert(network, space.inputs.double().cpu().numpy(), steps), found
    except HardwareError as error:
        raise UnsupportedLayerError(f"model: {error}") from error


def chip_faults(
    space: FaultSpace, chip: Chip, found: Sequence[Layer], masks: int, seed: int
) -> ChipFaults:
    """The space's faults on the chip: the masks that Monte Carlo draws first from this seed.

    Raises:
        ArgumentError: a fault or site that the chip does not have.
    """
    neurons = [la.site for la in found if isinstance(la.operation, torch_layers.Activation)]
    weights = _weights_by_projection(found)
    dead: list[Any] = [None] * len(chip.sizes)
    synapses: list[Any] = [None] * len(chip.projections)
    cut: Any = None
    e = sample_points(space.placements, seed, masks).dense()
    for p in space.placements:
        struck = e[:, p.start : p.stop] != 0
        crash = p.fault.zeroes and p.fault.is_binary and p.acts_once
        if crash and p.site.key in neurons and p.site.kind == "activation":
            index = neurons.index(p.site.key)
            dead[index] = _either(dead[index], p.fault.by_unit(struck, p.site.shape))
        elif crash and p.site.module in weights and p.site.kind == "parameter":
            index = weights[p.site.module]
            synapses[index] = _either(synapses[index], struck.reshape(masks, *p.site.shape))
        elif crash and p.site.kind == "input":
            cut = _either(cut, p.fault.by_unit(struck, p.site.shape))
        else:
            raise ArgumentError(_cannot(p))
    return ChipFaults(dead=dead, dead_synapses=synapses, dead_inputs=cut, masks=masks)


def _cannot(p: Placement) -> str:
    return (
        f"faults: the chip cannot have {p.fault} at {p.site.name!r}; it has neuron crashes at "
        "activations and the input, and weight crashes; or name a device"
    )


def _either(first: Any, second: Any) -> Any:
    return second if first is None else first | second


def _weights_by_projection(found: Sequence[Layer]) -> dict[str, int]:
    """Index of the projection that each weight is in, for layers with a single weight."""
    names: list[list[str]] = [[]]
    for layer in found:
        if isinstance(layer.operation, torch_layers.Activation):
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


def chip_estimates(
    exact: Floats, found: chips.CrashStatistics, confidence: float, released: bool
) -> Estimates:
    """Mean, variance and class change of the chip, with ``exact`` (B, K) as outputs without faults.

    ``released``: each run is random: releases fail, or reads are noisy.
    """
    alpha = 1 - confidence
    n = found.masks
    delta = found.outputs - found.clean
    note = f"{found.steps} time steps, {n} masks"
    mean = _values(found.mean)
    half = half_width(Spread.of(delta.mean(1)), n, alpha)
    estimates = estimates_of(
        "hardware", "mean", "statistical", per_input=mean,
        pooled=mean_interval(mean.value.mean(0), half),
        confidence=confidence, note=note,
    )  # fmt: skip
    pooled, total = _pooled_variance(found, alpha, released)
    estimates += estimates_of(
        "hardware", "variance", "statistical", per_input=_values(found.variance),
        pooled=pooled, total=total,
        confidence=confidence, note=note,
    )  # fmt: skip
    if exact.shape[1] > 1:
        # A single read, as a chip is used; so spiking noise is in it.
        reads = found.reads[0] - found.clean + exact
        changed = CLASS_CHANGE.happens(reads, exact, None)
        shares = changed.mean(1)
        estimates += estimates_of(
            "hardware", "class-change", "statistical",
            per_input=proportion_interval(changed.sum(0), n, alpha),
            pooled=clustered_proportion_interval(
                np.asarray(shares.mean()), np.asarray(shares.var(ddof=1)), n, len(exact), alpha
            ),
            confidence=confidence, note=f"{note}; one read each, spiking noise included",
        )  # fmt: skip
    return estimates


def _pooled_variance(
    found: chips.CrashStatistics, alpha: float, released: bool
) -> tuple[Interval, Interval]:
    """Var Delta averaged over inputs: of each output (K,), and of all together ().

    The covariance of two reads of each mask, in which spiking noise cancels. Failing releases would
    cancel too: there the average of the inputs' own estimates, whose intervals' ends are averaged
    as if all erred together.
    """
    if released:
        v = found.variance
        each = Interval(v.value.mean(0), v.low.mean(0), v.high.mean(0))
        return each, Interval(v.value.mean(0).sum(), v.low.mean(0).sum(), v.high.mean(0).sum())
    n = found.masks
    first, second = (reads - reads.mean(0) for reads in found.reads)
    products = (first * second * (n / (n - 1))).mean(1)
    products = np.concatenate([products, products.sum(1, keepdims=True)], axis=1)
    half = half_width(Spread.of(products), n, alpha)
    interval = variance_interval(np.maximum(products.mean(0), 0), half)
    return interval[:-1], interval[-1]


def _values(moment: chips.Moment) -> Interval:
    return Interval(moment.value, moment.low, moment.high)


def _clean_error(space: FaultSpace, outputs: Floats) -> float:
    """How far the clean chip is from the network, over the spread of the network's outputs."""
    exact = space.clean()
    size = math.sqrt(float(((exact - exact.mean(0)) ** 2).mean())) or math.nan
    return math.sqrt(float(((outputs - exact) ** 2).mean())) / size


def _clean_agreement(space: FaultSpace, outputs: Floats) -> float:
    """Share of inputs for which the clean chip names the network's class."""
    return float((predicted_class(outputs) == predicted_class(space.clean())).mean())


def _rates(network: chips.Network, inputs: Floats, clean: chips.RunResult) -> list[RateFacts]:
    """Activations of the network and of the chip, a few hundred per layer."""
    assert clean.rates is not None
    exact = network.forward(inputs).hidden
    found: list[RateFacts] = []
    for truth, rates in zip(exact, clean.rates, strict=True):
        thin = max(1, truth.size // 400)
        found.append(
            {
                "network": truth.ravel()[::thin].tolist(),
                "chip": rates[0].ravel()[::thin].tolist(),
            }
        )
    return found


def raster_facts(drawn: chips.Raster) -> RasterFacts:
    """Spikes of the clean and the crashed chip, thinned to some neurons of each layer."""
    layers: list[LayerRasterFacts] = []
    for clean, crashed, dead in zip(drawn.clean, drawn.crashed, drawn.dead, strict=True):
        n = len(dead)
        # Dead neurons first, then evenly spread ones: the picture is about the dead.
        order = np.argsort(~dead, kind="stable")
        kept = np.sort(order[np.unique(np.linspace(0, n - 1, min(n, _RASTER_NEURONS)).astype(int))])
        row = np.full(n, -1)
        row[kept] = np.arange(len(kept))
        layers.append(
            {
                "neurons": len(kept),
                "dead": row[dead & (row >= 0)].tolist(),
                "clean": _thin_spikes(clean, row),
                "crashed": _thin_spikes(crashed, row),
            }
        )
    return {"duration": drawn.duration, "layers": layers}


def _thin_spikes(spikes: chips.Spikes, row: Any) -> SpikeFacts:
    rows = row[spikes.neurons]
    kept = rows >= 0
    return {
        "times": np.round(spikes.times[kept], 6).tolist(),
        "rows": rows[kept].tolist(),
    }


def device_facts(device: chips.Device) -> DeviceFacts:
    return {
        "name": device.name,
        "title": device.title,
        "citation": device.citation,
        "url": device.url,
        "parameters": [
            {"name": p.name, "value": p.value, "status": p.status, "note": p.note}
            for p in device.parameters
        ],
    }
