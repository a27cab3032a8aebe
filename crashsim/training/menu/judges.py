"""How ways to harden are judged: by a metric over faulty chips, or by how far outputs move."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import nn

from crashsim.errors import ArgumentError
from crashsim.metrics import AskedMetrics, usual
from crashsim.model.labelled import Labelled
from crashsim.results.hardening.record import Answer
from crashsim.results.schema import LevelFacts, RangeFacts
from crashsim.sampling.chips.facts import is_lower_better
from crashsim.sampling.chips.run import asked_of, chip_metrics
from crashsim.sampling.chips.task import pieces_of
from crashsim.space import FaultSpace
from crashsim.training.menu.ways import FaultsBySite
from crashsim.training.verification import verify

LOOKED_AT = 32  # examples with which a model is read
MOVED = 64  # examples whose movement is looked at


@dataclass(frozen=True)
class Judged:
    """What was measured of a network.

    Attributes:
        clean: the metric without faults.
        mean: over chips.
        accepted: the share of chips that reach the target, if that is asked.
        reaches: the target.
        population: the mean over chips and examples like these; None where it is not known.
    """

    clean: float
    mean: RangeFacts
    accepted: LevelFacts | None
    reaches: Answer
    population: RangeFacts | None = None


class Judge(Protocol):
    """Measures a network under faults."""

    @property
    def metric_name(self) -> str: ...

    @property
    def lower_is_better(self) -> bool: ...

    def __call__(
        self, space: FaultSpace, examples: Labelled, seed: int, alpha: float, effort: int
    ) -> Judged:
        """The network of a space on examples, with error probability ``alpha``.

        ``effort`` is how many times as many chips as usual are drawn.
        """


@dataclass(frozen=True)
class ByMetric:
    """A metric of whole chips, each judged on all examples.

    Attributes:
        metric: as of ``crashsim.sweep``.
        metric_name: how it is called.
        lower_is_better: whether less of it is.
        target: the worst value that is accepted; None: none is asked for.
        share: of chips that are to reach it; None: their mean is.
        chips: their number.
        executor: that runs blocks of chips.
    """

    metric: Any
    metric_name: str
    lower_is_better: bool
    target: float | None
    share: float | None
    chips: int
    executor: Executor | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        metric: Any,
        space: FaultSpace,
        examples: Labelled,
        lower_is_better: bool | None,
        **options: Any,
    ) -> ByMetric:
        """A judge by what is asked: by default what is usual for the targets.

        Raises:
            ArgumentError: a metric that makes no sense for these outputs and targets.
        """
        if isinstance(metric, list | tuple):
            raise ArgumentError(f"metric={metric!r}: ways are judged by one metric; give one")
        if metric is None and not examples.has_targets:
            metric = "class-change"
        asked = asked_of(space, examples, None if metric is None else [metric])
        name = asked.metrics[0].name
        lower = is_lower_better(name) if lower_is_better is None else lower_is_better
        return cls(metric if metric is not None else name, name, lower, **options)

    def __call__(
        self, space: FaultSpace, examples: Labelled, seed: int, alpha: float, effort: int
    ) -> Judged:
        run = chip_metrics(
            space, examples, metrics=[self.metric], samples=self.chips * effort, seed=seed,
            confidence=1 - alpha, executor=self.executor,
        )  # fmt: skip
        law, clean = run.found.law(0), float(run.found.clean[0])
        mean = _range(law.mean(alpha))
        of_all = run.found.of_population(0, alpha)
        population = None if of_all is None else _range(of_all[0])
        if self.target is None:
            return Judged(clean, mean, None, "open", population)
        reached = law.at_most if self.lower_is_better else law.at_least
        accepted = LevelFacts(level=self.target, **_range(reached(self.target, alpha)))
        if self.share is None:
            answer = _answer(mean, self.target, self.lower_is_better)
        else:
            answer = _answer(_plain(accepted), self.share, False)
        return Judged(clean, mean, accepted, answer, population)


@dataclass(frozen=True)
class ByMovement:
    """P(some output moves by epsilon or more), averaged over examples, is to be delta at most.

    Attributes:
        epsilon: in units of the outputs.
        delta: probability.
        samples: of the faults at most.
    """

    epsilon: float
    delta: float
    samples: int = 400_000
    lower_is_better: bool = True

    @property
    def metric_name(self) -> str:
        return f"P(|Δ| ≥ {self.epsilon:g})"

    def __call__(
        self, space: FaultSpace, examples: Labelled, seed: int, alpha: float, effort: int
    ) -> Judged:
        moved = space.at_examples(examples.first(MOVED)[0])
        most = self.samples if effort > 1 else max(5_000, self.samples // 4)
        found = verify(moved, self.epsilon, self.delta, 1, seed, 1 - alpha, most)
        mean = RangeFacts(value=found.failure, low=found.low, high=found.high)
        return Judged(0.0, mean, None, _answer(mean, self.delta, True))


def _range(interval: Any) -> RangeFacts:
    value, low, high = (float(end) for end in (interval.value, interval.low, interval.high))
    return RangeFacts(value=value, low=low, high=high)


def _plain(level: LevelFacts) -> RangeFacts:
    return RangeFacts(value=level["value"], low=level["low"], high=level["high"])


def _answer(found: RangeFacts, limit: float, lower_is_better: bool) -> Answer:
    good, bad = found["low"], found["high"]
    if lower_is_better:
        good, bad, limit = -found["high"], -found["low"], -limit
    return "yes" if good >= limit else "no" if bad < limit else "open"


def accuracy_without_faults(space: FaultSpace, examples: Labelled) -> float | None:
    """Share of examples that the clean network classifies rightly; None where there are no classes.

    Raises:
        ArgumentError: targets that do not fit the outputs.
    """
    inputs, targets = examples.first(pieces_of(space))
    first = space.at_examples(inputs)
    metrics = usual(first.clean(), space.output_shape, targets)
    if not metrics or metrics[0].name != "accuracy":
        return None
    asked, right, count = AskedMetrics(metrics[:1]), 0.0, 0
    for part, wanted in examples.pieces(pieces_of(space)):
        clean = space.at_examples(part).clean()
        right += float(asked.at(wanted).columns(clean[None], clean)[0, :, 0].sum())
        count += len(part)
    return right / count


def space_of(
    model: nn.Module, examples: Labelled, faults: FaultsBySite, options: Mapping[str, Any]
) -> FaultSpace:
    """The faults of a network that is ready to run."""
    few: Any = examples.first(LOOKED_AT)[0]  # read before
    return FaultSpace(model, few, dict(faults), **options)


def goodness(judge: Judge, judged: Judged) -> float:
    """How good a network is under faults, for an order: more is better."""
    value = judged.mean["value"]
    if not np.isfinite(value):
        return -np.inf
    return -value if judge.lower_is_better else value
