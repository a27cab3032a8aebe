"""``sweep``: a metric of faulty chips at several rates of faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from crashsim.analytic.gains import MEMORY
from crashsim.arguments import (
    as_float,
    callback,
    check_seed,
    instance,
    number,
    sample_count,
    shown,
    whole,
)
from crashsim.campaign.store import Store, store_of
from crashsim.campaign.tasks import fold
from crashsim.coordinates.placement import Faults
from crashsim.errors import ArgumentError, Interrupted, NotApplicableError
from crashsim.faults import NeuronCrash
from crashsim.metrics import AskedMetrics, bounds_of
from crashsim.model.inputs import BatchAxis, ModelInputs
from crashsim.model.labelled import Labelled
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.model.twins.resetting import Reset
from crashsim.noticing import collecting, notice
from crashsim.results.curve.curve_record import PointFacts
from crashsim.results.estimate import Interval
from crashsim.results.schema import RangeFacts
from crashsim.sampling.chips.facts import PERCENTILES, is_lower_better
from crashsim.sampling.chips.found import FoundChips
from crashsim.sampling.chips.run import asked_of
from crashsim.scoring.judging import read_given
from crashsim.scoring.provenance import describe_fault, describe_model, describe_placed, versions
from crashsim.space import FaultSpace
from crashsim.sweeping.curve import Curve
from crashsim.sweeping.nested import NestedChips
from crashsim.sweeping.predicted import Prediction, disagreements, predicted_point
from crashsim.sweeping.predicted import predict as predict_curve
from crashsim.sweeping.rates import parameter_of, read_rates
from crashsim.sweeping.task import ChipsByRate, CurveSums, chips_per_block

CHIPS = 300  # unless another number is asked for
CONFIDENCE = 0.95
_LOSS = 0.01  # of accuracy that a chip may show and still be accepted, unless said
_MOST_CHIPS = 0.95  # share of them that is to reach the target
_FIRST = 32  # examples with which the model is looked at

Progress = Callable[[str, int, int], None]


def sweep(
    model: nn.Module,
    inputs: ModelInputs,
    faults: Faults | None = None,
    sites: str = "hidden",
    *,
    rates: Any,
    metric: Any = None,
    chips: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    targets: Any = None,
    target: float | None = None,
    predict: bool | Literal["beside"] = False,
    memory: int = MEMORY,
    confidence: float = CONFIDENCE,
    progress: Progress | None = None,
    executor: Executor | None = None,
    store: str | Path | Store | None = None,
    names: Mapping[str, str] | None = None,
    readout: str | int | None = None,
    reset: Reset | None = None,
    batch_axis: BatchAxis = 0,
    steps_axis: StepsAxis | None = None,
) -> Curve:
    """A metric of faulty chips, such as accuracy, against the rate of faults, with a band.

    Every chip is judged on all examples at every rate. Its faults are nested: what is struck at one
    rate is struck at every larger one, so that the curve is that of the same chips getting worse,
    and a chip that is the same at two rates runs once.

    Args:
        model, inputs, faults, sites: as of ``score``; ``inputs`` with targets are a pair (x, y), a
            mapping, a ``Dataset`` or ``DataLoader``. The faults' own rate (``p``, ``std``) gives
            way to those of the curve; of faults whose rates differ, the largest does, and all keep
            their ratios.
        rates: numbers above 0, in any order; or a text such as ``"1e-6:1e-2:9"``, nine rates at
            equal ratios.
        metric: a name (``crashsim.metrics.NAMES``), an ``Event``, a ``Mean``, or a function of
            (outputs, targets). By default what is usual for the targets, ``accuracy`` of classes;
            without targets ``class-change``.
        chips: their number, 300 if not given. ``samples`` is another name for it.
        seed: the chips depend on it and on the largest rate.
        targets: (B, ...) where the inputs do not hold them.
        target: the worst value of the metric that is accepted: also estimate the share of chips
            that reach it at every rate, and the largest rates at which their mean and 95% of them
            do. By default, of accuracies, a hundredth below the clean one.
        predict: True: no chip is judged, theory predicts the curve of ``accuracy``, ``error-rate``
            or ``class-change``: an estimate without intervals. ``"beside"``: measure it, and show
            what theory predicts beside that; where it lies outside the band, a warning says so.
        memory: bytes that theory's gains may take, about.
        confidence: of the intervals, and of the band over all rates.
        progress: called with ``"chips"``, the number done and their number.
        executor: that runs blocks of chips; the result is the same without one.
        store: a folder that keeps finished blocks: the same call resumes, or adds chips.
        names: what to call the ``model`` and the ``inputs`` in reports.
        readout, reset, batch_axis, steps_axis: as of ``score``.

    Raises:
        CrashsimError: an argument makes no sense, or the model cannot be analysed.
        Interrupted: Ctrl-C; its ``partial`` is the curve of the chips that were finished.

    Example:
        >>> import torch, crashsim
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))
        >>> x, y = torch.randn(8, 4), torch.arange(8) % 3
        >>> fault = crashsim.NeuronCrash(p=0.1)
        >>> curve = crashsim.sweep(net.eval(), (x, y), fault, rates=[0.01, 0.1], chips=50)
        >>> [point["rate"] for point in curve.points]
        [0.01, 0.1]
    """
    callback("progress", progress)
    seed, listed = check_seed(seed), read_rates(rates)
    count = _chip_count(chips, samples)
    if not 0 < as_float(confidence) < 1:
        raise ArgumentError(f"confidence={shown(confidence)}; give a number between 0 and 1")
    if target is not None:
        target = number("target", target, "a value of the metric, such as 0.9")
    if predict not in (False, True, "beside"):
        raise ArgumentError(f"predict={shown(predict)}; give True, False or 'beside'")
    memory = whole("memory", memory, 2**20, 2**50)
    if names is not None:
        instance("names", names, Mapping, "a mapping such as {'model': 'mine'}")
    with collecting() as noticed:
        given = read_given(model, inputs, targets, batch_axis, _FIRST)
        space = FaultSpace(
            model,
            given.inputs,
            NeuronCrash(p=0.01) if faults is None else faults,
            sites,
            readout=readout,
            reset=reset,
            batch_axis=batch_axis,
            steps_axis=steps_axis,
        )
        parameter = parameter_of(space)
        asked = _asked(space, given.examples, metric)
        per_block = chips_per_block(given.examples.count, len(listed))
        source = NestedChips.of(space, listed, seed, count, per_block)
        run = _Run(source, given.examples, asked)
        told = progress or (lambda *_: None)
        stop = None
        try:
            if predict is not False:
                run.predict(space, memory, told, is_alone=predict is True)
            if predict is not True:
                run.draw(executor, store_of(store), told)
        except KeyboardInterrupt as error:
            if not run.sums.by_rate:  # nothing was measured
                raise
            stop = error
    curve = Curve(
        model=describe_model(space, names or {}),
        inputs={
            "source": (names or {}).get("inputs"),
            "count": given.examples.count,
            "shape": space.examples.shapes(),
        },
        faults=[describe_fault(p) for p in source.space.placements],
        sites=[describe_placed(p) for p in source.space.placements],
        coordinates=space.N,
        parameter=parameter,
        seed=seed,
        confidence=float(confidence),
        versions=versions(),
        warnings=noticed + run.doubts,
        partial=stop is not None,
        **run.facts(1 - float(confidence), target),
    )
    curve = replace(curve, warnings=[*curve.warnings, *disagreements(curve)])
    level = curve.points[0]["accepted"]
    if level is not None and curve.is_measured:
        met = [curve.tolerable_rate(level["level"], share) for share in (None, _MOST_CHIPS)]
        curve = replace(curve, tolerated=[one.facts() for one in met])
    if stop is not None:
        message = f"interrupted after {curve.chips} chips; partial holds their curve"
        raise Interrupted(message, curve) from stop
    for message in curve.warnings:
        notice(message)
    return curve


def _chip_count(chips: int | None, samples: int | None) -> int:
    if chips is not None and samples is not None:
        raise ArgumentError(
            f"chips={shown(chips)}, samples={shown(samples)}: two names for one number; give one"
        )
    name, given = ("samples", samples) if chips is None else ("chips", chips)
    return CHIPS if given is None else sample_count(name, given, 1)


def _asked(space: FaultSpace, examples: Labelled, metric: Any) -> AskedMetrics:
    """The one metric."""
    if isinstance(metric, list | tuple):
        raise ArgumentError(f"metric={shown(metric)}: a curve is of one metric; give one")
    if metric is None and not examples.has_targets:
        metric = "class-change"
    asked = asked_of(space, examples, None if metric is None else [metric])
    return AskedMetrics(asked.metrics[:1])


@dataclass
class _Run:
    """A curve under way: its chips so far."""

    source: NestedChips
    examples: Labelled
    asked: AskedMetrics
    sums: CurveSums = field(default_factory=CurveSums)
    prediction: Prediction | None = None
    doubts: list[str] = field(default_factory=list)

    def predict(
        self, space: FaultSpace, memory: int, progress: Progress, *, is_alone: bool
    ) -> None:
        """Asks theory. Raises NotApplicableError where it cannot tell and is asked alone."""
        rates, metric = self.source.rates, self.asked.metrics[0].name
        try:
            self.prediction = predict_curve(
                space, rates, self.examples, metric, self.source.seed, memory, progress
            )
        except NotApplicableError as error:
            if is_alone:
                raise
            self.doubts.append(f"no prediction: {error}")

    def draw(self, executor: Executor | None, store: Store | None, progress: Progress) -> None:
        """Judges all chips."""
        task, told, most = ChipsByRate(self.source, self.examples, self.asked), 0, self.source.chips
        for at in fold(task, range(self.source.blocks), executor, store=store):
            self.sums = at.sums
            done = min(round(self.sums.done), most)
            if done > told:
                told = done
                progress("chips", done, most)

    def facts(self, alpha: float, accept: float | None) -> dict[str, Any]:
        """What was measured, as fields of a curve."""
        if not self.sums.by_rate:
            return self._predicted()
        metric = self.asked.metrics[0]
        found = [
            FoundChips(sums, self.asked, none)
            for sums, none in zip(self.sums.by_rate, self.source.without_fault, strict=True)
        ]
        clean, lower = float(found[0].clean[0]), is_lower_better(metric.name)
        if accept is None and metric.name.startswith(("accuracy", "top-")):
            accept = max(clean - _LOSS, 0.0)
        least, most = (end if np.isfinite(end) else None for end in bounds_of(metric))
        return {
            "metric": metric.name,
            "lower_is_better": lower,
            "least": least,
            "most": most,
            "clean": clean,
            "chips": self.sums.by_rate[0].chips,
            "rows": self.sums.rows,
            "points": [
                {**_point(rate, one, alpha, alpha / len(found), accept, lower), "predicted": value}
                for rate, one, value in zip(
                    self.source.rates, found, self._predicted_values(), strict=True
                )
            ],
            "prediction": "" if self.prediction is None else self.prediction.told,
        }

    def _predicted_values(self) -> list[float | None]:
        if self.prediction is None:
            return [None] * len(self.source.rates)
        return [float(value) for value in self.prediction.values]

    def _predicted(self) -> dict[str, Any]:
        """What was predicted alone, as fields of a curve."""
        assert self.prediction is not None
        metric = self.asked.metrics[0]
        least, most = bounds_of(metric)
        return {
            "metric": metric.name,
            "lower_is_better": is_lower_better(metric.name),
            "least": least,
            "most": most,
            "clean": self.prediction.clean,
            "chips": 0,
            "rows": 0,
            "points": [
                predicted_point(rate, float(value), none)
                for rate, value, none in zip(
                    self.source.rates,
                    self.prediction.values,
                    self.source.without_fault,
                    strict=True,
                )
            ],
            "prediction": self.prediction.told,
        }


def _point(
    rate: float, found: FoundChips, alpha: float, shared: float, accept: float | None, lower: bool
) -> PointFacts:
    """A rate's numbers; ``shared`` is the error that the band may make there (Bonferroni)."""
    law, clean = found.law(0), float(found.clean[0])
    mean, band = law.mean(alpha), law.mean(shared)
    values, counts = np.unique(law.sampled, return_counts=True)
    population = found.over_examples(0, alpha, mean)
    accepted = None
    if accept is not None:
        share = law.at_most(accept, alpha) if lower else law.at_least(accept, alpha)
        accepted = {"level": accept, **_range(share)}
    return {
        "rate": rate,
        "kind": "statistical",
        **_range(mean),
        "band_low": float(band.low),
        "band_high": float(band.high),
        "predicted": None,
        "change": _range(mean, clean),
        "population": None if population is None else _range(population),
        "percentiles": [
            {"level": level, **_range(law.quantile(level, alpha))} for level in PERCENTILES
        ],
        "accepted": accepted,  # type: ignore[typeddict-item]
        "struck": len(law.sampled),
        "without_fault": found.none,
        "not_finite": int((~np.isfinite(law.sampled)).sum()),
        "values": values.tolist(),
        "counts": counts.tolist(),
    }


def _range(interval: Interval, less: float = 0.0) -> RangeFacts:
    value, low, high = (float(end) - less for end in (interval.value, interval.low, interval.high))
    return RangeFacts(value=value, low=low, high=high)
