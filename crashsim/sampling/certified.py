"""Certify, then sample: intervals of rare events without asymptotics.

A certificate says that the event happens only where a linear envelope U reaches the threshold, but
for exceptions of a proved probability. Masks are drawn exactly from {U >= threshold}, whose
probability P_U is known by dynamic programming, and the network decides which of them fail. With
Clopper and Pearson's limits of the share that does, the probability lies in
``[P_U low, P_U high + exceptions]``: a confidence interval that holds for any number of samples,
however rare the event. The envelope is fixed before any mask is drawn. A mask whose outputs lie
within rounding of the threshold counts for the upper end, not for the lower.

It costs some 100 P_U / P samples for 10%; where the envelope is loose, the interval is wide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import crashsim_theory as theory
import numpy as np
from crashsim_theory import TheoryError
from numpy.typing import NDArray

from crashsim.analytic.rounding import resolution_of, rounding_of
from crashsim.arrays import Floats
from crashsim.campaign.tasks import Task, fold
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.metrics import predicted_class
from crashsim.results.estimate import Estimate, Quantity
from crashsim.sampling.intervals import proportion_interval
from crashsim.space import FaultSpace

SAMPLES = 8192  # at most, for each input and question
REL_WIDTH = 0.2  # relative half-width to stop at
_BATCH = 512  # masks in a block, of all events of a question together, about
_BLOCKS = 2**32  # of a question, more than are ever drawn
_NEGLIGIBLE = 1e-3  # share of the whole bound below which an event is not sampled
_TABLE_BYTES = 40_000_000  # of each event's dynamic programming

# Whether each event (K') happens in each of S points, (3, S, K'): as computed, whatever rounding
# did (surely), and for some rounding (possibly).
_Happens = Callable[[Points], NDArray[np.bool_]]


@dataclass(frozen=True)
class Tried:
    """The masks tried of each event of a question, (E,) each.

    Attributes:
        samples: masks.
        hits: those that failed,
        sure, possible: whatever rounding did, and for some rounding.
    """

    samples: NDArray[np.int64]
    hits: NDArray[np.int64]
    sure: NDArray[np.int64]
    possible: NDArray[np.int64]

    def __add__(self, other: Tried) -> Tried:
        return Tried(
            self.samples + other.samples,
            self.hits + other.hits,
            self.sure + other.sure,
            self.possible + other.possible,
        )


@dataclass(frozen=True)
class _Event:
    """One way to fail, disjoint from the others.

    Attributes:
        outside: probability, at most, of failing where nothing is sampled.
        sampler: of masks inside the envelope; None where nothing is sampled.
    """

    outside: float
    sampler: theory.ExceedanceSampler | None

    @property
    def reach(self) -> float:
        """Probability of the masks that are sampled."""
        return 0.0 if self.sampler is None else self.sampler.high

    def interval(self, samples: int, sure: int, possible: int, alpha: float) -> tuple[float, float]:
        """Of its probability, from masks tried and those that failed."""
        if self.sampler is None:
            return 0.0, self.outside
        share = proportion_interval(np.array([sure, possible], dtype=float), samples, alpha)
        return (
            self.sampler.low * float(share.low[0]),
            self.sampler.high * float(share.high[1]) + self.outside,
        )


@dataclass(frozen=True)
class _Masks(Task[Tried]):
    """Masks inside the envelopes of a question's events, in blocks of about 512.

    Attributes:
        events: the ways to fail.
        happens: which masks fail, in each way.
        seed, question: the random numbers depend on these and the block alone.
        samples: their number, about: every event has one mask more than its share of a block.
    """

    events: tuple[_Event, ...]
    happens: _Happens
    seed: int
    question: int
    samples: int

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.samples // _BATCH)

    def run(self, block: int) -> Tried:
        rng = generator(self.seed, Stream.CERTIFIED, self.question * _BLOCKS + block)
        size = min(_BATCH, self.samples - block * _BATCH)
        reach = sum(event.reach for event in self.events)
        tried = np.zeros((4, len(self.events)), dtype=np.int64)
        for i, event in enumerate(self.events):
            if event.sampler is None:
                continue
            count = 1 + int(size * event.reach / reach)
            masks = event.sampler.draw(count, rng)
            rows, columns = np.nonzero(masks)
            points = Points(count, np.zeros(masks.shape[1]), rows, columns, np.ones(len(rows)))
            tried[:, i] = count, *self.happens(points)[:, :, i].sum(1)
        return Tried(*tried)


@dataclass(frozen=True)
class _Run:
    """The events of one input and question, after the last look.

    Attributes:
        events: the ways to fail.
        tried: the masks.
        alpha: error probability left to the last look.
    """

    events: tuple[_Event, ...]
    tried: Tried
    alpha: float

    @property
    def samples(self) -> int:
        return int(self.tried.samples.sum())

    @property
    def value(self) -> float:
        """The probability as the samples say."""
        return sum(reach * hits / n for reach, hits, n in self._sampled)

    @property
    def square_error(self) -> float:
        """Squared standard error of the value."""
        return sum(reach**2 * hits * (n - hits) / n**3 for reach, hits, n in self._sampled)

    @property
    def _sampled(self) -> list[tuple[float, int, int]]:
        """Probability of its masks, hits and masks tried, of each event that is sampled."""
        counts = zip(
            self.events, self.tried.hits.tolist(), self.tried.samples.tolist(), strict=True
        )
        return [(event.reach, hits, n) for event, hits, n in counts if n]

    def interval(self, share: float = 1.0) -> tuple[float, float]:
        """With this share of the error probability, divided among the events sampled."""
        sampled = sum(event.sampler is not None for event in self.events)
        alpha = self.alpha * share / max(sampled, 1)
        tried = (self.tried.samples, self.tried.sure, self.tried.possible)
        ends = [
            event.interval(*counts, alpha)
            for event, *counts in zip(self.events, *(t.tolist() for t in tried), strict=True)
        ]
        return sum(low for low, _ in ends), min(1.0, sum(high for _, high in ends))

    def is_narrow(self, rel_width: float) -> bool:
        low, high = self.interval()
        return self.value > 0 and high - low <= 2 * rel_width * self.value


def certified_sampling(
    space: FaultSpace,
    certificates: Mapping[tuple[Quantity, int], theory.Certificate],
    epsilon: float | None,
    output: int,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    samples: int = SAMPLES,
    rel_width: float = REL_WIDTH,
) -> list[Estimate]:
    """``certified-sampling``: tails and class changes of the inputs that have a certificate.

    Args:
        space: in double precision, in which the network decides what fails.
        certificates: by quantity (``tail`` of one output, both sides; ``class-change``) and input.
        epsilon, output: of the tails.
        seed: the samples depend on it, the input and the question alone.
        confidence: of each interval.
        samples, rel_width: for each input and question, spend about this many samples at most and
            stop at this relative half-width; look j spends ``alpha / (j (j + 1))`` of the error
            probability.
    """
    found = []
    rounding = rounding_of(space)
    of_epsilon = resolution_of(space) * (epsilon or 0.0)
    thresholds = {"tail": epsilon, "class-change": 0.0}
    for quantity, threshold in thresholds.items():
        if threshold is None:
            continue
        is_tail = quantity == "tail"
        runs: dict[int, _Run] = {}
        for (its_quantity, b), certificate in certificates.items():
            if its_quantity != quantity:
                continue
            one = space.at_input(b)
            happens: _Happens = (
                _Tails(one, output, threshold, max(float(rounding[b, output]), of_epsilon))
                if is_tail
                else _Overtakings(one, rounding[b])
            )
            task = _Masks(_events(certificate), happens, seed, 2 * b + is_tail, samples)
            runs[b] = _sample(task, 1 - confidence, rel_width)
        if runs:
            level = epsilon if is_tail else None
            found += _estimates(quantity, runs, output if is_tail else "all", level, confidence)
    return found


@dataclass(frozen=True)
class _Tails:
    """Delta beyond epsilon upwards, and downwards; what is within rounding of it counts."""

    one: FaultSpace
    output: int
    epsilon: float
    rounding: float

    def __call__(self, points: Points) -> NDArray[np.bool_]:
        delta = (self.one.outputs(points) - self.one.clean())[:, 0, self.output]
        both = np.stack([delta, -delta], axis=1)
        possible = both >= self.epsilon - self.rounding
        return np.stack([possible, both >= self.epsilon + self.rounding, possible])


@dataclass(frozen=True)
class _Overtakings:
    """Each rival becoming the predicted class."""

    one: FaultSpace
    rounding: Floats

    def __call__(self, points: Points) -> NDArray[np.bool_]:
        top = int(predicted_class(self.one.clean()[0]))
        rivals = np.array([k for k in range(self.one.K) if k != top])
        outputs = self.one.outputs(points)[:, 0]
        computed = predicted_class(outputs)[:, None] == rivals
        lead = outputs[:, rivals] - outputs.max(1, keepdims=True)
        room = self.rounding[rivals] + self.rounding.max()
        others = np.sort(outputs, axis=1)[:, -2, None]
        sure = computed & (outputs[:, rivals] - others > room)
        return np.stack([computed, sure, computed | (lead >= -room)])


def _events(certificate: theory.Certificate) -> tuple[_Event, ...]:
    events = []
    for envelope in certificate.envelopes:
        if envelope.tail <= _NEGLIGIBLE * certificate.probability:
            events.append(_Event(envelope.probability, None))
            continue
        cells = max(256, _TABLE_BYTES // (8 * (envelope.surrogate.gains.size + 1)))
        try:
            sampler = theory.exceedance_sampler(
                envelope.surrogate, certificate.eps, min(cells, 16_000)
            )
        except TheoryError:  # the envelope never reaches the threshold
            sampler = None
        events.append(_Event(envelope.exceptions, sampler))
    return tuple(events)


def _sample(task: _Masks, alpha: float, rel_width: float) -> _Run:
    """Looks after 1, 2, 4, ... blocks, and after the last."""
    look = 0
    for at in fold(task, range(task.blocks)):
        if at.blocks < min(2**look, task.blocks):
            continue
        look += 1
        run = _Run(task.events, at.sums, alpha / (look * (look + 1)))
        if run.samples == 0 or at.blocks == task.blocks or run.is_narrow(rel_width):
            return run
    raise AssertionError("the last look returns")


def _estimates(
    quantity: str,
    runs: Mapping[int, _Run],
    output: int | Literal["all"],
    level: float | None,
    confidence: float,
) -> list[Estimate]:
    """For each input, and for their average."""

    def estimate(
        where: int | Literal["all"],
        value: float,
        ends: tuple[float, float],
        note: str,
        square_error: float,
    ) -> Estimate:
        return Estimate(
            "certified-sampling",
            quantity,
            where,
            output,
            value,
            *ends,
            kind="statistical",
            confidence=confidence,
            level=level,
            note=f"exact interval (certificate, Clopper-Pearson); {note}",
            worth=value * (1 - value) / square_error if square_error > 0 else None,
        )

    found = [
        estimate(b, run.value, run.interval(), f"{run.samples} samples", run.square_error)
        for b, run in runs.items()
    ]
    # Intervals that hold all at once are averaged: each has its share of the error probability.
    n = len(runs)
    every = list(runs.values())
    ends = [run.interval(1 / n) for run in every]
    mean = sum(run.value for run in every) / n
    average = sum(low for low, _ in ends) / n, sum(high for _, high in ends) / n
    samples = sum(run.samples for run in every)
    note = f"average over inputs {list(runs)}; {samples} samples"
    error = sum(run.square_error for run in every) / n**2
    found.append(estimate("all", mean, average, note, error * n))
    return found
