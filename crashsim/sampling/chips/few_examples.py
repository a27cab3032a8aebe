"""A metric's mean over chips from few examples of each: those that may change, and some others.

The linear surrogate says of every example how often it changes. A real chip is judged on those that
change most, and on one of several groups of the others, drawn for that chip; what this group shows
beyond the surrogate counts for all others (``example_strata``). With virtual chips,

    E real = E virtual + E (real - virtual),

where the difference is estimated without bias whatever the surrogate is worth. Its values have the
bounds of a whole chip's, so intervals are those of as many chips, at a fraction of the passes.
Shares of chips and percentiles need whole chips: ``crashsim.sampling.chips.run.chip_metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crashsim.analytic.gains import MEMORY
from crashsim.arguments import as_float, callback, check_seed, instance, sample_count, shown
from crashsim.arrays import Floats
from crashsim.campaign.identity import digest
from crashsim.campaign.store import Store, store_of
from crashsim.campaign.tasks import Task, fold
from crashsim.errors import ArgumentError, NotApplicableError
from crashsim.metrics import AskedMetrics, OfSums, bounds_of
from crashsim.model.labelled import InMemory, Labelled
from crashsim.results.estimate import Interval
from crashsim.sampling.chips.drawn import (
    DrawnChips,
    chips_per_block,
    chosen,
    probability_of_none,
    struck,
)
from crashsim.sampling.chips.example_strata import Strata, StratifiedMean
from crashsim.sampling.chips.run import DEFAULT_CHIPS, asked_of, labelled_of
from crashsim.sampling.chips.task import outputs_of, pieces_of
from crashsim.sampling.chips.virtual import Surrogate, fitting, why_none
from crashsim.sampling.identity import identity_of, identity_of_examples
from crashsim.sampling.intervals import scalar_interval
from crashsim.space import FaultSpace

VIRTUAL = 10  # for each real chip, unless said
_PILOT = 10  # one virtual chip in so many chooses examples and cuts, and serves nothing else


@dataclass(frozen=True)
class MeanOfFew:
    """A metric's mean over chips, given the examples.

    Attributes:
        metric: its name.
        mean: with its interval, ().
        clean: without faults.
        confidence: of the interval.
        chips: that were drawn; the struck ones were judged.
        always: examples that every chip meets.
        examples: all.
        passes: of one example, by struck chips.
        whole: passes that as many whole chips would take.
    """

    metric: str
    mean: Interval
    clean: float
    confidence: float
    chips: int
    always: int
    examples: int
    passes: int
    whole: int


@dataclass(frozen=True)
class _Judged:
    """Sums over the examples that each struck chip met: (n, 2), and the passes so far."""

    pieces: tuple[Floats, ...] = ()
    chips: int = 0
    rows: int = 0

    def __add__(self, other: _Judged) -> _Judged:
        return _Judged(self.pieces + other.pieces, self.chips + other.chips, self.rows + other.rows)


@dataclass(frozen=True)
class _FewExamples(Task[_Judged]):
    """Chips on the examples that they meet, block by block.

    Attributes:
        source: of the chips.
        parts_met: the examples of each label.
        strata: which they are.
        asked: the metric.
        examples: digest of all of them.
    """

    source: DrawnChips
    parts_met: tuple[InMemory, ...]
    strata: Strata
    asked: AskedMetrics
    examples: str

    made_of: ClassVar = (_Judged,)

    def identity(self) -> Mapping[str, str]:
        return {
            "work": "chips, judged on few examples",
            **identity_of(self.source.space),
            "examples": self.examples,
            "strata": digest(self.strata.label.tolist()),
            "metrics": digest(self.asked),
            **self.source.identity(),
        }

    def is_whole(self, block: int) -> bool:
        return self.source.is_whole(block)

    def run(self, block: int) -> _Judged:
        return reduce(add, self.parts(block))

    def parts(self, block: int) -> Iterator[_Judged]:
        points = self.source.points(block)
        which = struck(points)
        own, group = chosen(points, which), self.groups(block)[which]
        sums, rows = np.zeros((len(which), 2)), 0
        for label, met in enumerate(self.parts_met):
            here = np.arange(len(which)) if label == 0 else np.flatnonzero(group == label)
            if not len(here) or not met.count:
                continue
            part = chosen(own, here)
            for inputs, targets in met.pieces(pieces_of(self.source.space)):
                space = self.source.space.at_examples(inputs)
                asked = self.asked.at(targets)
                for start, stop, outputs in outputs_of(space, part):
                    found = asked.columns(outputs, space.clean())[..., 0].sum(1)
                    sums[here[start:stop], min(label, 1)] += found
                rows += part.count * len(inputs)
        yield _Judged((sums,), points.count, rows)

    def groups(self, block: int) -> NDArray[np.int64]:
        """Which group each chip of a block meets."""
        return self.strata.groups(self.source.seed, block, self.source.per_block)


def mean_of_few(
    space: FaultSpace,
    data: Any = None,
    *,
    targets: Any = None,
    metric: Any = None,
    samples: int = DEFAULT_CHIPS,
    virtual: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    executor: Executor | None = None,
    store: str | Path | Store | None = None,
) -> MeanOfFew:
    """A metric's mean over chips, each judged on the examples that may change and some others.

    Args:
        space, data, targets, samples, seed, confidence, executor, store: as of ``chip_metrics``.
        metric: one that is a mean over examples between bounds, such as ``accuracy`` (by default
            what is usual for the targets).
        virtual: number of chips that the surrogate alone judges, by default ten for each real one.
        memory: bytes that gains may take, about, by default 2 GiB.
        progress: called with the number of chips done and their number.

    Raises:
        ArgumentError: an argument out of its range; a metric without bounds, or of sums.
        NotApplicableError: the outputs have no derivative by the faults, or too many gains.
    """
    instance("space", space, FaultSpace, "a FaultSpace")
    callback("progress", progress)
    seed, chips = check_seed(seed), sample_count("samples", samples, 2)
    others = sample_count("virtual", VIRTUAL * chips if virtual is None else virtual, 20)
    if not 0 < as_float(confidence) < 1:
        raise ArgumentError(f"confidence={shown(confidence)}; give a number between 0 and 1")
    memory = MEMORY if memory is None else memory
    if why := why_none(space, memory):
        raise NotApplicableError(f"virtual chips: {why}")
    examples = labelled_of(space, data, targets)
    asked = _one(asked_of(space, examples, None if metric is None else [metric]))
    per_block = chips_per_block(examples.count)
    real = DrawnChips(space, seed, chips, per_block)
    alone = DrawnChips(space, seed, others, per_block, are_virtual=True)
    surrogates = _Surrogates(space, examples, asked, memory)
    pilots = replace(alone, chips=max(others // _PILOT, 2))
    strata = Strata.by_risk(surrogates.risks(pilots), seed)
    said, of_real = surrogates.sums([alone, real], strata)
    parts = tuple(_met(examples, strata.label == k, space) for k in range(len(strata.sizes)))
    task = _FewExamples(real, parts, strata, asked, identity_of_examples(examples))
    found = _Judged()
    for at in fold(task, range(real.blocks), executor, store=store_of(store)):
        found = at.sums
        if progress:
            progress(found.chips, chips)
    first = sum(len(struck(pilots.points(block))) for block in range(pilots.blocks))
    groups = [task.groups(b)[struck(real.points(b))] for b in range(real.blocks)]
    levels = StratifiedMean.of(strata, said[:first], bounds_of(asked.metrics[0]))
    judged = np.concatenate(found.pieces)
    struck_mean = levels.mean(
        said[first:], of_real, judged, np.concatenate(groups), 1 - float(confidence)
    )
    none = probability_of_none(space.placements)
    ends = (
        none * surrogates.clean + (1 - none) * float(end)
        for end in (struck_mean.value, struck_mean.low, struck_mean.high)
    )
    return MeanOfFew(
        asked.metrics[0].name,
        scalar_interval(*ends),
        surrogates.clean,
        float(confidence),
        chips,
        int(strata.sizes[0]),
        examples.count,
        found.rows,
        len(judged) * examples.count,
    )


@dataclass
class _Surrogates:
    """What the surrogate says of chips, a few examples at a time.

    Attributes:
        space, examples, asked: what is judged, on what, by which metric.
        memory: bytes that gains may take.
        clean: the metric without faults, once chips were judged.
    """

    space: FaultSpace
    examples: Labelled
    asked: AskedMetrics
    memory: int
    clean: float = 0.0

    def risks(self, source: DrawnChips) -> Floats:
        """(B,) how often each example's part in the metric changes, of struck chips."""
        found: list[Floats] = []
        for surrogate in self._pieces():
            clean, changed, chips = surrogate.clean_columns[:, 0], np.zeros(1), 0
            for columns in surrogate.judged(source):
                changed = changed + (columns[..., 0] != clean).sum(0)
                chips += len(columns)
            found.append(np.broadcast_to(changed / max(chips, 1), clean.shape))
        return np.concatenate(found)

    def sums(self, sources: list[DrawnChips], strata: Strata) -> list[Floats]:
        """(n, 1 + G) sums over the examples of each label, of struck chips of each source."""
        totals: list[Any] = [0.0] * len(sources)
        start, clean = 0, 0.0
        for surrogate in self._pieces():
            count = len(surrogate.clean_columns)
            label = strata.label[start : start + count]
            members = np.eye(len(strata.sizes))[label]
            clean += float(surrogate.clean_columns[:, 0].sum())
            start += count
            for k, source in enumerate(sources):
                parts = [np.zeros((0, len(strata.sizes)))]
                parts += [columns[..., 0] @ members for columns in surrogate.judged(source)]
                totals[k] = totals[k] + np.concatenate(parts)
        self.clean = clean / start
        return totals

    def _pieces(self) -> Iterator[Surrogate]:
        size = min(pieces_of(self.space), fitting(self.space, self.memory))
        for inputs, targets in self.examples.pieces(size):
            yield Surrogate.of(self.space.at_examples(inputs), self.asked.at(targets), self.memory)


def _met(examples: Labelled, which: NDArray[np.bool_], space: FaultSpace) -> InMemory:
    """Some of the examples, held."""
    numbers, size = np.flatnonzero(which), pieces_of(space)
    if not len(numbers):
        inputs, targets = examples.first(1)
        return InMemory(inputs.part(0, 0), None if targets is None else targets[:0])
    every = [targets for _, targets in examples.pieces(size) if targets is not None]
    chosen_targets = np.concatenate(every)[numbers] if every else None
    return InMemory(examples.among(numbers, size), chosen_targets)


def _one(asked: AskedMetrics) -> AskedMetrics:
    """The metric. Raises ArgumentError where it is no mean over examples between bounds."""
    metric = asked.metrics[0]
    bounds = bounds_of(metric)
    if isinstance(metric, OfSums) or not np.isfinite(bounds).all() or asked.widths[0] != 1:
        raise ArgumentError(
            f"metric={metric.name!r}: few examples tell means over examples between bounds alone; "
            "judge whole chips (chip_metrics)"
        )
    return AskedMetrics(asked.metrics[:1])
