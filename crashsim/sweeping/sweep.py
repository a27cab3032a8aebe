"""``sweep``: a metric of faulty chips at several rates of faults."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

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
from crashsim.coordinates.placement import Faults
from crashsim.errors import ArgumentError, Interrupted
from crashsim.faults import NeuronCrash
from crashsim.metrics import AskedMetrics
from crashsim.model.inputs import BatchAxis, ModelInputs
from crashsim.model.labelled import Labelled
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.model.twins.resetting import Reset
from crashsim.noticing import collecting, notice
from crashsim.sampling.chips.run import asked_of
from crashsim.scoring.judging import read_given
from crashsim.scoring.provenance import describe_fault, describe_model, describe_placed, versions
from crashsim.space import FaultSpace
from crashsim.sweeping.adaptive import CHIPS as PILOTS
from crashsim.sweeping.adaptive import read_span
from crashsim.sweeping.checked import CHIPS as CHECK
from crashsim.sweeping.curve import Curve
from crashsim.sweeping.nested import NestedChips
from crashsim.sweeping.predicted import disagreements
from crashsim.sweeping.rates import parameter_of, read_rates
from crashsim.sweeping.run import MOST_CHIPS, CurveRun, Progress
from crashsim.sweeping.task import chips_per_block

CHIPS = 300  # unless another number is asked for
CONFIDENCE = 0.95
_FIRST = 32  # examples with which the model is looked at


def sweep(
    model: nn.Module,
    inputs: ModelInputs,
    faults: Faults | None = None,
    sites: str = "hidden",
    *,
    rates: Any,
    adaptive: bool | int = False,
    metric: Any = None,
    chips: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    targets: Any = None,
    target: float | None = None,
    predict: bool | Literal["beside"] = False,
    check: int = CHECK,
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
            equal ratios. ``"1e-6:1e-2"`` without a number asks for adaptive ones.
        adaptive: True, or a number of rates (12 by default): choose them between the least and the
            largest of ``rates``, where the curve falls and where the target is missed. A pilot of
            32 chips of other random numbers tells where, at about two rates a decade; the chips of
            the curve are drawn when its rates are fixed, so that its band holds all the same.
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
            or ``class-change``: an estimate; ``check`` chips say how far it may be off.
            ``"beside"``: measure it, and show what theory predicts beside that; where it lies
            outside the band, a warning says so.
        check: number of chips that check a curve that is predicted alone, on some 48 examples: by
            inference and by the surrogate whose law is predicted. 0: none, and no interval.
        memory: bytes that theory's gains may take, about.
        confidence: of the intervals, and of the band over all rates.
        progress: called with ``"chips"`` (before, of adaptive rates, ``"pilot"``), the number done
            and their number.
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
    seed, span = check_seed(seed), read_span(rates, adaptive)
    listed = read_rates(rates) if span is None else span.coarse
    count = _chip_count(chips, samples)
    if not 0 < as_float(confidence) < 1:
        raise ArgumentError(f"confidence={shown(confidence)}; give a number between 0 and 1")
    if target is not None:
        target = number("target", target, "a value of the metric, such as 0.9")
    if predict not in (False, True, "beside"):
        raise ArgumentError(f"predict={shown(predict)}; give True, False or 'beside'")
    check = whole("check", check, 0, 10_000)
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
        told, kept, stop = progress or (lambda *_: None), store_of(store), None

        def under_way(rates: tuple[float, ...], chips: int, are_pilots: bool = False) -> CurveRun:
            size = chips_per_block(given.examples.count, len(rates))
            chosen = NestedChips.of(space, rates, seed, chips, size, are_pilots)
            return CurveRun(chosen, given.examples, asked)

        pilot = None
        if span is not None:
            pilot = under_way(listed, PILOTS, are_pilots=True)
            if predict is True:
                pilot.predict(space, memory, told, is_alone=True)
            else:
                pilot.draw(executor, kept, told)
            listed = span.chosen(pilot.outline(target))
        run = under_way(listed, count)
        try:
            if predict is not False:
                run.predict(space, memory, told, is_alone=predict is True)
            if predict is True:
                run.check(check, memory, 1 - float(confidence))
            else:
                run.draw(executor, kept, told)
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
        faults=[describe_fault(p) for p in run.source.space.placements],
        sites=[describe_placed(p) for p in run.source.space.placements],
        coordinates=space.N,
        parameter=parameter,
        seed=seed,
        confidence=float(confidence),
        versions=versions(),
        warnings=noticed + run.doubts,
        partial=stop is not None,
        pilot=None if pilot is None else pilot.of_pilot(),
        **run.facts(1 - float(confidence), target),
    )
    curve = replace(curve, warnings=[*curve.warnings, *disagreements(curve)])
    level = curve.points[0]["accepted"]
    if level is not None and curve.is_measured:
        met = [curve.tolerable_rate(level["level"], share) for share in (None, MOST_CHIPS)]
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
