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
from dataclasses import dataclass, replace
from typing import Literal

import crashsim_theory as theory
import numpy as np
from crashsim_theory import Certificate, TheoryError
from numpy.typing import NDArray

from crashsim.analytic.rounding import resolution_of, rounding_of
from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.coordinates.streams import Stream, generator
from crashsim.metrics import predicted_class
from crashsim.results.estimate import Estimate, Quantity
from crashsim.sampling.intervals import proportion_interval
from crashsim.space import FaultSpace

SAMPLES = 8192  # at most, for each input and question
REL_WIDTH = 0.2  # relative half-width to stop at
_FEWEST = 512
_NEGLIGIBLE = 1e-3  # share of the whole bound below which an event is not sampled
_TABLE_BYTES = 40_000_000  # of each event's dynamic programming

# Whether each event (K') happens in each of S points, (3, S, K'): as computed, whatever rounding
# did (surely), and for some rounding (possibly).
_Happens = Callable[[Points], NDArray[np.bool_]]


@dataclass(frozen=True)
class _Event:
    """One way to fail, disjoint from the others, with the masks tried.

    Attributes:
        outside: probability, at most, of failing where nothing is sampled.
        sampler: of masks inside the envelope; None where nothing is sampled.
        samples, hits: masks tried, and those that failed,
        sure, possible: whatever rounding did, and for some rounding.
    """

    outside: float
    sampler: theory.ExceedanceSampler | None
    samples: int = 0
    hits: int = 0
    sure: int = 0
    possible: int = 0

    @property
    def reach(self) -> float:
        """Probability of the masks that are sampled."""
        return 0.0 if self.sampler is None else self.sampler.high

    def interval(self, alpha: float) -> tuple[float, float]:
        if self.sampler is None:
            return 0.0, self.outside
        hits = np.array([self.sure, self.possible], dtype=float)
        share = proportion_interval(hits, self.samples, alpha)
        assert share.low is not None
        assert share.high is not None
        return (
            self.sampler.low * float(share.low[0]),
            self.sampler.high * float(share.high[1]) + self.outside,
        )


@dataclass(frozen=True)
class _Run:
    """The events of one input and question, after the last look.

    Attributes:
        alpha: error probability left to the last look.
    """

    events: tuple[_Event, ...]
    alpha: float

    @property
    def samples(self) -> int:
        return sum(event.samples for event in self.events)

    @property
    def value(self) -> float:
        return sum(e.reach * e.hits / e.samples for e in self.events if e.samples)

    @property
    def square_error(self) -> float:
        """Squared standard error of the value."""
        sampled = [e for e in self.events if e.samples]
        return sum(e.reach**2 * e.hits * (e.samples - e.hits) / e.samples**3 for e in sampled)

    def interval(self, share: float = 1.0) -> tuple[float, float]:
        """With this share of the error probability, divided among the events sampled."""
        sampled = sum(event.sampler is not None for event in self.events)
        ends = [event.interval(self.alpha * share / max(sampled, 1)) for event in self.events]
        return sum(low for low, _ in ends), min(1.0, sum(high for _, high in ends))

    def is_narrow(self, rel_width: float) -> bool:
        low, high = self.interval()
        return self.value > 0 and high - low <= 2 * rel_width * self.value


def certified_sampling(
    space: FaultSpace,
    certificates: Mapping[tuple[Quantity, int], Certificate],
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
        samples, rel_width: for each input and question, spend at most so many samples and stop at
            this relative half-width; look j spends ``alpha / (j (j + 1))`` of the error
            probability.
    """
    found = []
    rounding = rounding_of(space)
    of_epsilon = resolution_of(space) * (epsilon or 0.0)
    for quantity in ("tail", "class-change"):
        runs: dict[int, _Run] = {}
        for (its_quantity, b), certificate in certificates.items():
            if its_quantity != quantity:
                continue
            is_tail = quantity == "tail"
            threshold = epsilon if is_tail else 0.0
            assert threshold is not None
            one = space.at_input(b)
            happens = (
                _tails(one, output, threshold, max(float(rounding[b, output]), of_epsilon))
                if is_tail
                else _overtakings(one, rounding[b])
            )
            rng = generator(seed, Stream.CERTIFIED, 2 * b + is_tail)
            events = _events(certificate)
            runs[b] = _sample(events, happens, rng, 1 - confidence, samples, rel_width)
        if runs:
            where = output if quantity == "tail" else "all"
            level = epsilon if quantity == "tail" else None
            found += _estimates(quantity, runs, where, level, confidence)  # type: ignore[arg-type]
    return found


def _tails(one: FaultSpace, output: int, epsilon: float, rounding: float) -> _Happens:
    """Delta beyond epsilon upwards, and downwards; what is within rounding of it counts."""

    def happens(points: Points) -> NDArray[np.bool_]:
        delta = (one.outputs(points) - one.clean())[:, 0, output]
        both = np.stack([delta, -delta], axis=1)
        possible = both >= epsilon - rounding
        return np.stack([possible, both >= epsilon + rounding, possible])

    return happens


def _overtakings(one: FaultSpace, rounding: Floats) -> _Happens:
    """Each rival becoming the predicted class."""
    top = int(predicted_class(one.clean()[0]))
    rivals = np.array([k for k in range(one.K) if k != top])

    def happens(points: Points) -> NDArray[np.bool_]:
        outputs = one.outputs(points)[:, 0]
        computed = predicted_class(outputs)[:, None] == rivals
        lead = outputs[:, rivals] - outputs.max(1, keepdims=True)
        room = rounding[rivals] + rounding.max()
        others = np.sort(outputs, axis=1)[:, -2, None]
        sure = computed & (outputs[:, rivals] - others > room)
        return np.stack([computed, sure, computed | (lead >= -room)])

    return happens


def _events(certificate: Certificate) -> tuple[_Event, ...]:
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


def _sample(
    events: tuple[_Event, ...],
    happens: _Happens,
    rng: np.random.Generator,
    alpha: float,
    samples: int,
    rel_width: float,
) -> _Run:
    reach = sum(event.reach for event in events)
    look = 0
    while True:
        look += 1
        tried = sum(event.samples for event in events)
        batch = min(max(tried, _FEWEST), samples - tried)  # the sample doubles
        events = tuple(
            event
            if event.sampler is None
            else _tried(event, i, happens, rng, 1 + int(batch * event.reach / reach))
            for i, event in enumerate(events)
        )
        run = _Run(events, alpha / (look * (look + 1)))
        if reach == 0 or run.samples >= samples or run.is_narrow(rel_width):
            return run


def _tried(
    event: _Event, index: int, happens: _Happens, rng: np.random.Generator, count: int
) -> _Event:
    """The event after ``count`` more masks."""
    assert event.sampler is not None
    masks = event.sampler.draw(count, rng)
    rows, columns = np.nonzero(masks)
    points = Points(count, np.zeros(masks.shape[1]), rows, columns, np.ones(len(rows)))
    hits, sure, possible = (int(n) for n in happens(points)[:, :, index].sum(1))
    return replace(
        event,
        samples=event.samples + count,
        hits=event.hits + hits,
        sure=event.sure + sure,
        possible=event.possible + possible,
    )


def _estimates(
    quantity: Quantity,
    runs: Mapping[int, _Run],
    output: int | Literal["all"],
    level: float | None,
    confidence: float,
) -> list[Estimate]:
    """For each input, and for their average."""

    def estimate(
        where: int | Literal["all"], value: float, ends: tuple[float, float], note: str,
        square_error: float,
    ) -> Estimate:  # fmt: skip
        worth = value * (1 - value) / square_error if square_error > 0 else None
        return Estimate(
            "certified-sampling", quantity, where, output, value, *ends, "statistical",
            confidence, level, f"exact interval (certificate, Clopper-Pearson); {note}", worth,
        )  # fmt: skip

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
