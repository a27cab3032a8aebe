"""A curve without sampling: what the exact law of linear surrogates predicts at each rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from crashsim_theory import LinearSurrogate, TheoryError
from numpy.typing import NDArray

from crashsim.analytic.first_order import (
    Analysis,
    Surrogate,
    coordinates_of,
    double_precision,
    mean_point_taylor,
)
from crashsim.analytic.gains import are_served
from crashsim.analytic.surrogates.class_chances import class_chances
from crashsim.analytic.surrogates.surrogate_law import single_changes
from crashsim.arrays import Floats
from crashsim.errors import NotApplicableError
from crashsim.metrics import predicted_class
from crashsim.metrics.layout import check_classes, layout_of
from crashsim.model.labelled import Labelled
from crashsim.results.curve.curve_record import CurveRecord
from crashsim.space import FaultSpace
from crashsim.sweeping.class_changes import Changes, ClassChanges
from crashsim.sweeping.rates import at_rate

METRICS = ("accuracy", "error-rate", "class-change")
_DENSE = 2**21  # gains of the examples that are looked at together
_FACTORED = 16  # examples, where they have more gains than that each
_MOST_SINGLES = 2**26  # outputs of single faults that are run for want of derivatives


@dataclass(frozen=True)
class Prediction:
    """What theory says of a metric.

    Attributes:
        values: (R,) at each rate.
        clean: without faults.
        told: what it rests on.
        is_served: whether it is the law of a surrogate that judges chips, too.
        error: (R,) standard error by which examples were looked at.
    """

    values: Floats
    clean: float
    told: str
    is_served: bool
    error: Floats


def predict(
    space: FaultSpace,
    rates: Sequence[float],
    examples: Labelled,
    metric: str,
    seed: int,
    memory: int,
    progress: Callable[[str, int, int], None],
) -> Prediction:
    """A metric at each rate, from the law of each example's margins, averaged.

    Args:
        space: the model and its faults, at any rate.
        rates: the least first.
        examples: with their targets.
        metric: one of ``METRICS``.
        seed: of what several rival classes share.
        memory: bytes that gains may take.
        progress: is told of the examples that are done.

    Raises:
        NotApplicableError: there is no such law; says why.
    """
    if metric not in METRICS:
        raise NotApplicableError(
            f"theory predicts {', '.join(METRICS)}, and not {metric!r}; measure it"
        )
    if space.K < 2 or len(space.output_shape) > 1:
        raise NotApplicableError("theory predicts classes of one position; measure it")
    by_singles = space.strikes_words or not space.has_derivatives
    if by_singles and space.N * space.K * examples.count > _MOST_SINGLES:
        why = "bits of exponents are struck" if space.strikes_words else space.why_no_derivatives
        raise NotApplicableError(f"no linear surrogate of so many faults is to be had: {why}")
    try:
        is_served = not by_singles and are_served(space)
        if not is_served:
            found = _by_every_example(space, rates, examples, metric, seed, memory, progress)
        else:
            changes = ClassChanges(space, tuple(rates), examples, seed, memory, progress)
            found = changes.found(lambda part, targets: right_classes(metric, part, targets))
    except TheoryError as error:
        raise NotApplicableError(str(error)) from error
    moved, spread = found.moved / examples.count, found.error / examples.count
    unfaulted = found.clean / examples.count
    what = "of single-fault changes" if by_singles else "at the mean point"
    told = (
        f"predicted without sampling: the exact law of the margins' linear surrogate {what} (an "
        "estimate: single faults are to be small changes)"
    )
    if found.looked_at < examples.count:
        told += (
            f"; {found.looked_at} of {examples.count} examples looked at, which moves a value "
            f"by up to {spread.max():.2g} (one standard error)"
        )
    if metric == "class-change":
        return Prediction(moved, 0.0, told, is_served, spread)
    if metric == "error-rate":
        return Prediction(1 - unfaulted + moved, 1 - unfaulted, told, is_served, spread)
    return Prediction(unfaulted - moved, unfaulted, told, is_served, spread)


def right_classes(metric: str, part: FaultSpace, targets: Any) -> NDArray[np.int64] | None:
    """The right classes of some examples; None: those that are predicted."""
    if metric == "class-change" or targets is None:
        return None
    # Those of earlier examples do not speak for these.
    check_classes(metric, layout_of(metric, part.output_shape, targets), targets)
    found: NDArray[np.int64] = targets.reshape(part.B).astype(np.int64)
    return found


def _by_every_example(
    space: FaultSpace,
    rates: Sequence[float],
    examples: Labelled,
    metric: str,
    seed: int,
    memory: int,
    progress: Callable[[str, int, int], None],
) -> Changes:
    """The same by dense surrogates at every rate, of any law that is known by its outcomes."""
    wide = double_precision(space)
    size = max(_DENSE // (space.N * space.K), _FACTORED)
    by_singles = space.strikes_words or not space.has_derivatives
    moved, clean, done = np.zeros(len(rates)), 0, 0
    for inputs, targets in examples.pieces(size):
        part = wide.at_examples(inputs)
        right = right_classes(metric, part, targets)
        if right is not None:
            clean += int((predicted_class(part.clean()) == right).sum())
        surrogate = single_changes(part) if by_singles else None
        for i, rate in enumerate(rates):
            there = at_rate(part, rate)
            lost, gained = class_chances(there, _surrogate(there, surrogate, memory), right, seed)
            moved[i] += lost.sum() - gained.sum()
        done += part.B
        progress("prediction", done, examples.count)
    return Changes(moved, np.zeros(len(rates)), clean, done)


def disagreements(curve: CurveRecord) -> list[str]:
    """A warning where the prediction lies outside the band of what was measured."""
    off = [
        f"{point['rate']:.3g}"
        for point in curve.points
        if point["predicted"] is not None
        and curve.is_measured
        and not point["band_low"] <= point["predicted"] <= point["band_high"]
    ]
    if not off:
        return []
    return [
        f"the prediction lies outside the measured band at {curve.parameter} = {', '.join(off)}: "
        "single faults are no small changes there; trust what was measured"
    ]


def _surrogate(space: FaultSpace, singles: Surrogate | None, memory: int) -> Surrogate:
    """The linear surrogate of Delta at a rate."""
    if singles is not None:
        assert isinstance(singles, LinearSurrogate)
        return LinearSurrogate(singles.shift, singles.gains, coordinates_of(space))
    analysis = Analysis()
    mean_point_taylor(space, analysis, memory)
    assert analysis.surrogate is not None  # faults strike independently
    return analysis.surrogate
