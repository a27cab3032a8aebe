"""Judging chips: labelled data of a score, what is asked of them, and the run that answers.

How far outputs move is looked at on few examples, one by one; metrics are those of whole chips, on
all examples, which stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from crashsim.analytic.gains import MEMORY
from crashsim.arguments import as_float, sample_count, shown, whole
from crashsim.errors import ArgumentError
from crashsim.metrics import RESERVED, AskedMetrics, OfSums, Targets
from crashsim.model.inputs import BatchAxis
from crashsim.model.labelled import Compared, InMemory, Labelled, read_labelled
from crashsim.model.loss import Given as AskedLoss
from crashsim.model.loss import check_asked
from crashsim.sampling.chips.run import asked_of, check_widths
from crashsim.sampling.chips.virtual import why_none
from crashsim.space import FaultSpace

WHOLE = 1000  # examples up to which movement is looked at on all of them,
LOOKED_AT = 400  # and on how many otherwise


@dataclass(frozen=True)
class Judging:
    """What is asked of chips.

    Attributes:
        examples: what they are judged on.
        asked: the metrics.
        widths: relative half-widths at which to stop, by metric.
        accept: the worst value with which a chip is accepted, by metric.
        targets: of the examples whose movement is looked at.
        is_whole: whether these are all.
        chips: their number, or the most of them; None: what crashsim chooses.
        virtual: number of chips besides that a surrogate alone judges; None: none.
    """

    examples: Labelled
    asked: AskedMetrics
    widths: Mapping[str, float] = field(default_factory=dict)
    accept: Mapping[str, float] = field(default_factory=dict)
    targets: Targets = None
    is_whole: bool = True
    chips: int | None = None
    virtual: int | None = None

    @property
    def of_inputs(self) -> AskedMetrics:
        """The metrics that are asked of each input, too: those of one's own and accuracies."""
        if not self.is_whole:
            return AskedMetrics()
        metrics = self.asked.metrics
        chosen = (m for m in metrics if not isinstance(m, OfSums) and m.name not in RESERVED)
        return AskedMetrics(tuple(chosen), self.targets)


@dataclass(frozen=True)
class Given:
    """The data of a score.

    Attributes:
        inputs: those whose movement is looked at, as a model takes them.
        examples: all, with their targets, if there are any.
        targets: of the inputs.
        is_whole: whether the inputs are all examples.
    """

    inputs: Any
    examples: Labelled
    targets: Targets = None
    is_whole: bool = True


def read_given(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    batch_axis: BatchAxis,
    moved: int | None = None,
    *,
    outputs: object = None,
    loss: AskedLoss = None,
) -> Given:
    """The data of a score, as the user gave them; ``moved``, ``outputs``, ``loss`` as of ``score``.

    Raises:
        ArgumentError: as ``read_labelled`` and ``check_asked``.
    """
    examples = read_labelled(inputs, targets, model, batch_axis)
    if check_asked(outputs, loss, examples.has_targets):
        examples = Compared(examples)
    most = None if moved is None else whole("moved", moved, 1)
    if most is None:
        is_light = isinstance(examples, InMemory) and examples.targets is None
        most = examples.count if is_light or examples.count <= WHOLE else LOOKED_AT
    first, of_first = examples.first(most)
    return Given(first, examples, of_first, len(first) == examples.count)


def judging_of(
    space: FaultSpace,
    given: Given,
    metrics: Iterable[Any] | None,
    widths: Mapping[str, float],
    accept: Mapping[str, float] | None,
    chips: int | None = None,
    virtual: int | None = None,
) -> Judging | None:
    """What is asked of chips; None where it is nothing.

    Args:
        space: of the inputs whose movement is looked at.
        given: the data.
        metrics: as asked for; None: what is usual for the targets.
        widths: relative half-widths by metric, each of which is asked for by that.
        accept, chips, virtual: as of ``Judging``.

    Raises:
        ArgumentError: a metric or number that makes no sense.
    """
    accepted = _checked(accept)
    of_metrics = {name: width for name, width in widths.items() if name != "variance"}
    wanted = None if metrics is None else _listed(metrics)
    if wanted is None and given.targets is None:
        wanted = []
    asked = AskedMetrics() if wanted == [] else asked_of(space, given.examples, wanted)
    there = [metric.name for metric in asked.metrics]
    if missing := [name for name in {**of_metrics, **accepted} if name not in there]:
        asked = AskedMetrics(asked.metrics + asked_of(space, given.examples, missing).metrics)
    if virtual is not None:
        virtual = sample_count("virtual", virtual, 2)
        if not asked.metrics:
            raise ArgumentError(f"virtual={virtual}: give metrics or targets, which chips have")
        if why := why_none(space, MEMORY):
            raise ArgumentError(f"virtual={virtual}: no virtual chips: {why}; leave it out")
    if not asked.metrics:
        return None
    wide = check_widths(of_metrics, [metric.name for metric in asked.metrics])
    return Judging(
        given.examples, asked, wide, accepted, given.targets, given.is_whole, chips, virtual
    )


def _listed(metrics: Iterable[Any]) -> list[Any]:
    if isinstance(metrics, str):
        return [metrics]
    try:
        return list(metrics)
    except TypeError:
        raise ArgumentError(f"metrics={shown(metrics)}; give a list of metrics") from None


def _checked(accept: Mapping[str, float] | None) -> dict[str, float]:
    if accept is not None and not isinstance(accept, Mapping):
        raise ArgumentError(f"accept={shown(accept)}; give a mapping such as {{'accuracy': 0.9}}")
    found = {}
    for name, limit in (accept or {}).items():
        number = as_float(limit)
        if not -float("inf") < number < float("inf"):
            raise ArgumentError(f"accept[{name!r}]={shown(limit)}; give a finite number")
        found[name] = number
    return found


def read_widths(rel_width: Any) -> dict[str, float]:
    """Relative widths by quantity; a number alone is that of the variance."""
    if rel_width is None:
        return {}
    if not isinstance(rel_width, Mapping):
        return {"variance": rel_width}
    if not rel_width:
        raise ArgumentError("rel_width={}: give a number, or a mapping such as {'accuracy': 0.02}")
    return dict(rel_width)
