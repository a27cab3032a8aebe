"""The plain parts of a score: what its dictionaries hold, for whoever reads them.

They are declared so that a saved score can be checked against them (``results/json_reading.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    NotRequired,  # which pydantic asks for before Python 3.12
)

from typing_extensions import TypedDict

from crashsim.metrics import MOST, RESERVED


class _OrNull:
    """JSON says null for what is no finite number. (pydantic loads where files are read alone.)"""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def number(data: Any) -> Any:
            return math.nan if data is None else data

        return core_schema.no_info_before_validator_function(number, handler(source))


Number = Annotated[float, _OrNull()]

_EMPTY = 1_000_000  # numbers of a table that may be missing
_METHODS = 1000  # that a score may have: reports take time for each

ModelFacts = TypedDict(
    "ModelFacts",
    {
        "name": str,
        "class": str,
        "parameters": int,
        "dtype": str,
        "readout": NotRequired[str],
        "loss": NotRequired[str],  # which is read in place of the outputs
    },
)


class InputFacts(TypedDict):
    source: str | None
    count: int
    shape: list[int] | dict[str, list[int]]  # without the batch; by name, where there are several


class OwnRates(TypedDict):
    """Rates of their own for each unit, in short; ``sha256`` of them as double precision."""

    shape: list[int]
    min: float
    mean: float
    max: float
    sha256: str


class FaultFacts(TypedDict):
    fault: str
    site: str
    p: NotRequired[float]
    std: NotRequired[float]
    rate: NotRequired[float]  # of a law that is neither Bernoulli nor Normal, whose
    parameter: NotRequired[str]  # name for it this is
    group: NotRequired[str | int]
    value: NotRequired[float]
    bits: NotRequired[int | str | list[int]]  # the width of fixed point, or which bits
    format: NotRequired[str]  # of the stored words
    scale: NotRequired[str | float]
    upset: NotRequired[str | int]
    to: NotRequired[int]  # what bits are stuck at
    guarded: NotRequired[int]  # bits that a code, copies or spares guard
    immense: NotRequired[bool]  # some of the bits make numbers immense or not finite
    rates: NotRequired[OwnRates]  # p, std or rate is then their mean
    count: NotRequired[int]  # the exact number that is struck
    of: NotRequired[int]  # of this number of coordinates, of this site and others


class SiteFacts(TypedDict):
    name: str
    kind: str
    shape: list[int]
    fault: str
    coordinates: int
    share: float | None
    steps: NotRequired[int]  # or calls in which the same neurons are struck, if several


class CoordinateFacts(TypedDict):
    site: str
    index: list[int]  # of a flipped bit the weight's and the bit's, the least significant 0
    share: Number


class FormulaFacts(TypedDict):
    text: str
    latex: str


class ParameterFacts(TypedDict):
    name: str
    value: float | None
    status: str
    note: str


class DeviceFacts(TypedDict):
    name: str
    title: str
    citation: str
    url: str
    parameters: list[ParameterFacts]


class SpikeFacts(TypedDict):
    times: list[Number]
    rows: list[int]


class LayerRasterFacts(TypedDict):
    neurons: int
    dead: list[int]
    clean: SpikeFacts
    crashed: SpikeFacts


class RasterFacts(TypedDict):
    duration: Number
    layers: list[LayerRasterFacts]


class RateFacts(TypedDict):
    network: list[Number]
    chip: list[Number]


class ActivityFacts(TypedDict):
    """Of one inference, on average over inputs; with faults also over ``masks`` of them.

    Signed spikes of the neurons of one layer that cancel in its counts are not counted.
    """

    neurons: int
    masks: int
    spikes: Number
    spikes_broken: Number
    operations: Number  # spikes that arrive at a neuron
    operations_broken: Number


class ChipFacts(TypedDict):
    engine: str
    steps: int
    masks: int
    copy_runs: int
    device: DeviceFacts | None
    slope: float | None
    variance_ratio: float | None
    correlation: float | None
    variance_correlation: float | None
    mask_correlation: float | None
    network_mean: list[list[Number]]
    network_variance: list[list[Number]]
    clean_error: Number
    clean_agreement: Number
    rates: list[RateFacts]
    raster: RasterFacts
    convention: NotRequired[str]
    inputs: NotRequired[int]
    readout: NotRequired[str]
    calibration: NotRequired[str]  # which inputs set the scales of rates
    activity: NotRequired[ActivityFacts]


class RangeFacts(TypedDict):
    """A number with its interval."""

    value: Number
    low: Number
    high: Number


class LevelFacts(RangeFacts):
    """The same at a level: a quantile's probability, or a metric's value that is asked for."""

    level: Number


class MetricFacts(TypedDict):
    """A metric over chips.

    ``mean`` and ``change`` (from ``clean``) are over chips, given the examples; ``population``
    and ``population_change`` over chips and examples, where these make sense. ``accepted`` is the
    share of chips with at least ``level`` (at most, where lower is better). Of ``not_finite`` chips
    the metric is no finite number.
    """

    name: str
    clean: Number
    mean: RangeFacts
    change: RangeFacts
    population: RangeFacts | None
    population_change: RangeFacts | None
    percentiles: list[LevelFacts]
    accepted: LevelFacts | None
    lower_is_better: bool
    not_finite: int


class ChipsFacts(TypedDict):
    """Chips, each one sample of the faults, that were judged on all examples.

    ``struck`` of the ``chips`` have a fault; ``without_fault`` is the probability of none, exactly.
    Where each single fault was judged once, ``with_one_fault`` is the probability of one, and the
    other chips were drawn among those with two or more.
    ``rows`` counts forward passes of one example.
    """

    chips: int
    struck: int
    without_fault: Number
    with_one_fault: NotRequired[Number]
    examples: int
    confidence: Number
    stopped: str
    rows: int
    metrics: list[MetricFacts]


@dataclass(frozen=True)
class Curves:
    """P(|Delta| >= epsilon) against epsilon, of one input and output.

    Attributes:
        input, output: the pair with the largest variance.
        epsilon: grid.
        methods: by method, the probabilities; NaN where a method was not evaluated.
        low, high: Monte Carlo's interval, pointwise.
    """

    input: int
    output: int
    epsilon: list[Number]
    methods: dict[str, list[Number]]
    low: list[Number] | None = None
    high: list[Number] | None = None


@dataclass(frozen=True)
class Histogram:
    """Delta of one input and output: counts, and what theory predicts for each bin.

    Where the outcomes of few faults are known exactly, counts are their expected numbers.

    Attributes:
        input, output: the pair with the largest variance.
        edges: (n + 1,) bins.
        counts: (n,) samples in each bin.
        saddlepoint, normal: (n,) expected counts; the normal law has the surrogate's moments.
    """

    input: int
    output: int
    edges: list[Number]
    counts: list[Number]
    saddlepoint: list[Number] | None = None
    normal: list[Number] | None = None


def unfit(score: Any) -> str | None:
    """What does not fit together in a score whose parts are well formed; None if all does."""
    if len(score.faults) != len(score.sites):
        return f"{len(score.faults)} faults at {len(score.sites)} sites"
    for i, fault in enumerate(score.faults):
        if "p" not in fault and "std" not in fault and "rate" not in fault:
            return f"faults[{i}] has neither p nor std"
    for i, site in enumerate(score.sites):
        if site["share"] is not None and not -0.01 <= site["share"] <= 1.01:
            return f"sites[{i}].share is {site['share']}, no share of the whole"
    for k in score.named_outputs:
        if not 0 <= k < score.outputs:
            return f"named_outputs holds {k}, of {score.outputs} outputs"
    for i, e in enumerate(score.estimates):
        if e.input != "all" and not 0 <= e.input < score.inputs["count"]:
            return f"estimates[{i}].input is {e.input}, of {score.inputs['count']} inputs"
        if isinstance(e.output, int) and not 0 <= e.output < score.outputs:
            return f"estimates[{i}].output is {e.output}, of {score.outputs} outputs"
        if e.quantity == "tail" and score.epsilon is None:
            return f"estimates[{i}] is a tail, and epsilon is null"
    methods = {m.name for m in score.methods} | {e.method for e in score.estimates}
    if len(methods) > _METHODS:
        return f"estimates of {len(methods)} methods, more than {_METHODS}"
    own = {e.quantity for e in score.estimates}.difference(RESERVED)
    if len(own) > MOST:
        return f"estimates of {len(own)} metrics, of at most {MOST}"
    return _too_wide(score) or _unlike_pictures(score)


def _too_wide(score: Any) -> str | None:
    """Estimates so far apart that a table of them, by input and output, would be all but empty."""
    if score.left_out:
        return None  # no tables are made of them
    last: dict[tuple[str, str], tuple[int, int]] = {}
    for e in score.estimates:
        row, column = (n if isinstance(n, int) else 0 for n in (e.input, e.output))
        before = last.get((e.method, e.quantity), (0, 0))
        last[e.method, e.quantity] = (max(row, before[0]), max(column, before[1]))
    most = _EMPTY + 100 * len(score.estimates)
    for (method, quantity), (row, column) in last.items():
        if (row + 1) * (column + 1) > most:
            return f"a {quantity} by {method} for input {row} and output {column}, and few others"
    return None


def _unlike_pictures(score: Any) -> str | None:
    """Lists of a picture that are not equally long."""
    curves, bars, chip = score.curves, score.histogram, score.hardware
    groups: list[tuple[str, list[Any]]] = []
    if curves:
        lists = [curves.epsilon, *curves.methods.values(), curves.low, curves.high]
        groups.append(("curves", lists))
    if bars:
        lists = [bars.edges[1:], bars.counts, bars.saddlepoint, bars.normal]
        groups.append(("histogram", lists))
    if chip:
        for i, layer in enumerate(chip["raster"]["layers"]):
            if layer["neurons"] < 0:
                return f"hardware.raster.layers[{i}].neurons is {layer['neurons']}"
        rows = [chip["network_mean"], chip["network_variance"]]
        groups.append(("hardware.network_mean and network_variance", rows))
        groups.append(("hardware.network_mean and network_variance", rows[0] + rows[1]))
        groups += [(f"hardware.rates[{i}]", [*r.values()]) for i, r in enumerate(chip["rates"])]
        groups += [
            (f"hardware.raster.layers[{i}]", [layer[which]["times"], layer[which]["rows"]])
            for i, layer in enumerate(chip["raster"]["layers"])
            for which in ("clean", "crashed")
        ]
    for name, lists in groups:
        lengths = {len(found) for found in lists if found is not None}
        if len(lengths) > 1 or (lengths == {0} and "raster" not in name):
            return f"{name} has lists of lengths {sorted(lengths)}, which should be equal"
    return None
