"""Metrics over chips: how accurate the faulty network is, over chips and examples.

Each chip is one sample of the faults (the same that Monte Carlo draws), and meets all examples,
which are read a few at a time. Chips without a fault are known: they are as the clean network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crashsim.arguments import as_float, callback, check_seed, instance, sample_count, shown
from crashsim.campaign.store import Store, store_of
from crashsim.campaign.tasks import fold
from crashsim.errors import ArgumentError, Interrupted
from crashsim.metrics import AskedMetrics, bounds_of, read_targets, usual
from crashsim.metrics.losses import of_losses
from crashsim.model.labelled import Compared, InMemory, Labelled, read_labelled
from crashsim.results.estimates import Estimates, estimates_of
from crashsim.sampling.chips.drawn import (
    DrawnChips,
    SingleChips,
    chips_per_block,
    probability_of_none,
    rare_strikes,
)
from crashsim.sampling.chips.found import FoundChips
from crashsim.sampling.chips.sums import ChipSums
from crashsim.sampling.chips.task import Chips, pieces_of
from crashsim.sampling.chips.virtual import VirtualChips, judge_by_surrogate
from crashsim.sampling.exact_strata import StrikeLaw
from crashsim.space import FaultSpace

DEFAULT_CHIPS = 1000
MOST_CHIPS = 1_000_000  # where a width is asked for

StopReason = Literal["samples", "relative width", "budget", "interrupted"]
Progress = Callable[[int, int], None]
Widths = Mapping[str, float]


@dataclass(frozen=True)
class ChipRun:
    """What a run over chips found.

    Attributes:
        found: the metrics' laws.
        stopped: as of ``MonteCarlo``.
        confidence: of each interval; higher than asked for where the run looked several times at
            its result to decide when to stop.
    """

    found: FoundChips
    stopped: StopReason
    confidence: float

    @property
    def chips(self) -> int:
        """The number of chips, those without a fault among them."""
        singles = self.found.singles
        return self.found.sums.chips + (0 if singles is None else singles.chips)

    def estimates(self) -> Estimates:
        """Each metric's mean over chips, given the examples."""
        found = Estimates()
        for number, metric in enumerate(self.found.asked.metrics):
            mean = self.found.mean(number, 1 - self.confidence)
            found += estimates_of(
                "monte-carlo", metric.name, "statistical", pooled=mean, confidence=self.confidence
            )
        return found


def chip_metrics(
    space: FaultSpace,
    data: Any = None,
    *,
    targets: Any = None,
    metrics: Iterable[Any] | AskedMetrics | None = None,
    samples: int | None = None,
    rel_width: Widths | None = None,
    one_exact: bool | None = None,
    virtual: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Progress | None = None,
    executor: Executor | None = None,
    store: str | Path | Store | None = None,
) -> ChipRun:
    """Judges faulty chips on labelled examples.

    Args:
        space: the model and its faults. Its inputs serve where there are no other ``data``.
        data: examples, with or without targets; see ``crashsim.model.labelled.read_labelled``.
        targets: (B, ...) where the data do not hold them.
        metrics: names, events, means, and functions of (outputs, targets); by default what is usual
            for such targets (``crashsim.metrics.named.usual``).
        samples: number of chips, by default 1,000; with ``rel_width`` the most.
        rel_width: stop when these metrics' intervals have at most these half-widths, relative to
            their values. The run looks after 1, 2, 4, 8, ... blocks of chips, from where it could
            stop at all; look j spends ``alpha / (j (j + 1))`` of ``alpha = 1 - confidence``.
        one_exact: judge each single fault, which counts with its probability, and draw chips with
            two faults or more. By default where faults are so rare that most chips hold one at
            most, and single ones are at most half of the chips. Otherwise chip j is sample j of
            ``monte_carlo``.
        virtual: number of chips, besides, that the linear surrogate of the outputs alone judges, at
            the cost of a sparse product. Means, percentiles and shares are then those of these
            chips, corrected by how the real ones differ from the surrogate: without bias, however
            wrong it is (``crashsim.sampling.chips.two_levels``). Ten or more for each real chip
            serve best. They are judged first, in this process, whichever the executor.
        seed: the chips depend on this alone.
        confidence: of the intervals.
        progress: called with the number of chips done and the most there will be.
        executor: that runs the blocks; the result is the same whichever it is, and without one.
        store: a folder that keeps finished blocks: the same call resumes, or adds chips.

    Raises:
        ArgumentError: an argument out of its range; or the function of a metric fails.
        NotApplicableError: ``virtual`` chips where the outputs have no derivative by the faults, or
            too many gains (``crashsim.sampling.chips.virtual``).
        Interrupted: Ctrl-C; its ``partial`` is the result of the chips that were finished.
    """
    instance("space", space, FaultSpace, "a FaultSpace")
    callback("progress", progress)
    seed = check_seed(seed)
    if not 0 < as_float(confidence) < 1:
        raise ArgumentError(f"confidence={shown(confidence)}; give a number between 0 and 1")
    examples = labelled_of(space, data, targets)
    asked = asked_of(space, examples, metrics)
    widths = check_widths(rel_width, [metric.name for metric in asked.metrics])
    most = None if samples is None else sample_count("samples", samples, 1)
    others = None if virtual is None else sample_count("virtual", virtual, 2)
    if others and widths and not most:
        most = others  # each is judged by the surrogate, too
    most = most or (MOST_CHIPS if widths else DEFAULT_CHIPS)
    strikes = None if one_exact is False else rare_strikes(space, most, bool(one_exact))
    alpha = 1 - float(confidence)
    run = _Run(space, examples, asked, seed, most, alpha, widths, strikes, others)
    try:
        run.draw(executor, store_of(store), progress)
    except KeyboardInterrupt as stop:
        if not run.sums.chips:
            raise
        run.stopped = "interrupted"
        message = f"interrupted after {run.sums.chips} chips; partial holds their result"
        raise Interrupted(message, run.result()) from stop
    return run.result()


def labelled_of(space: FaultSpace, data: Any, targets: Any) -> Labelled:
    """The examples: those given, or the space's own inputs."""
    if isinstance(data, Labelled):
        return data
    if data is None:
        held = space.examples.targets
        known = held.cpu().numpy() if targets is None and held is not None else targets
        return InMemory(space.examples, read_targets(known, space.B))
    found = read_labelled(data, targets, space.model)
    if space.loss is None:
        return found
    if not found.has_targets:
        raise ArgumentError("targets: the space's loss compares outputs with targets; give them")
    return Compared(found)


def asked_of(
    space: FaultSpace, examples: Labelled, metrics: Iterable[Any] | AskedMetrics | None
) -> AskedMetrics:
    """The metrics, tried on the first examples; of a space whose output is a loss, that alone."""
    if isinstance(metrics, AskedMetrics):
        return metrics
    if space.loss is not None:
        metrics = of_losses(metrics, space.least_loss)
    inputs, targets = examples.first(pieces_of(space))
    first = space.at_examples(inputs)
    if metrics is None:
        metrics = usual(first.clean(), space.output_shape, targets)
    asked = AskedMetrics.of(metrics, targets, first.clean(), space.output_shape)
    if not asked.metrics:
        raise ArgumentError("metrics: give one, or targets= to have those that are usual")
    return asked.at(None)


def check_widths(rel_width: Widths | None, names: list[str]) -> dict[str, float]:
    """The relative widths by metric. Raises ArgumentError for what is none."""
    found = {}
    for name, width in (rel_width or {}).items():
        if name not in names:
            raise ArgumentError(
                f"rel_width: {name!r} is not measured; choose among {', '.join(names)}"
            )
        if not 0 < as_float(width) < 1:
            raise ArgumentError(
                f"rel_width[{name!r}]={shown(width)}; give a number between 0 and 1, such as 0.02"
            )
        found[name] = float(width)
    return found


@dataclass
class _Run:
    """A run: its chips so far, and when it stops."""

    space: FaultSpace
    examples: Labelled
    asked: AskedMetrics
    seed: int
    most: int
    alpha: float
    widths: dict[str, float]
    strikes: StrikeLaw | None = None
    others: int | None = None
    sums: ChipSums = field(default_factory=ChipSums)
    singles: ChipSums | None = None
    stopped: StopReason = "samples"
    looks: int = 0
    virtual: VirtualChips | None = None

    def __post_init__(self) -> None:
        self.none = probability_of_none(self.space.placements)
        self.chances = np.zeros(0) if self.strikes is None else self.strikes.weights[1:]
        if self.widths:
            self.stopped = "budget"

    def draw(
        self, executor: Executor | None, store: Store | None, progress: Progress | None
    ) -> None:
        """Judges chips until the run stops."""
        count, told = self.examples.count, 0
        per_block, before = chips_per_block(count), 0
        if self.strikes is not None:
            each = SingleChips(self.space, self.strikes, per_block)
            before = each.chips
            chips = Chips(each, self.examples, self.asked)
            for at in fold(chips, range(each.blocks), executor, store=store):
                told = self._tell(progress, told, at.sums, 0)
            self.singles = at.sums
        source = DrawnChips(self.space, self.seed, self.most - before, per_block, self.strikes)
        if self.others is not None:
            alike = replace(source, chips=self.others, are_virtual=True)
            self.virtual = judge_by_surrogate(source, alike, self.examples, self.asked)
        task, next_look = Chips(source, self.examples, self.asked), 1
        for at in fold(task, range(source.blocks), executor, store=store):
            self.sums = at.sums
            told = self._tell(progress, told, at.sums, before)
            if self.widths and at.blocks == next_look:
                next_look *= 2
                if self._is_narrow():
                    self.stopped = "relative width"
                    return
        if progress and told < self.most:
            progress(self.most, self.most)

    def _tell(self, progress: Progress | None, told: int, sums: ChipSums, before: int) -> int:
        """Tells how many chips are done, if there are more than were told of."""
        done = before + max(sums.chips, sums.rows // self.examples.count)
        done = min(done, self.most)
        if progress and done > told:
            progress(done, self.most)
        return max(done, told)

    @property
    def found(self) -> FoundChips:
        """What follows from the chips so far."""
        return FoundChips(
            self.sums, self.asked, self.none, self.singles, self.chances, self.virtual
        )

    def _is_narrow(self) -> bool:
        """Looks whether the intervals are as narrow as was asked for, if they can be at all."""
        numbers = {metric.name: i for i, metric in enumerate(self.asked.metrics)}
        if any(self._is_hopeless(numbers[name], width) for name, width in self.widths.items()):
            return False
        self.looks += 1
        alpha = self.alpha / (self.looks * (self.looks + 1))
        for name, width in self.widths.items():
            mean = self.found.mean(numbers[name], alpha)
            if not mean.high - mean.low <= 2 * width * abs(mean.value):
                return False
        return True

    def _is_hopeless(self, number: int, width: float) -> bool:
        """Whether so few chips leave too much unseen, whatever they show."""
        low, high = bounds_of(self.asked.metrics[number])
        if not np.isfinite(high - low):
            return False
        rest = 1 - self.none - self.chances.sum()
        unseen = rest * (high - low) * -np.log(self.alpha) / max(self.sums.chips, 1)
        return bool(unseen > 2 * width * max(abs(low), abs(high)))

    def result(self) -> ChipRun:
        """What was found, with the error that the looks have left."""
        alpha = self.alpha
        if self.widths:
            look = self.looks + (self.stopped != "relative width")
            alpha /= look * (look + 1)
        return ChipRun(self.found, self.stopped, 1 - alpha)
