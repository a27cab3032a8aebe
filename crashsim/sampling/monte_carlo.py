"""Monte Carlo crash injection: sample faults, run the network, count.

One sample is one draw of all fault coordinates, applied to every input at once (as on one chip).
So samples are independent of each other, inputs within a sample are not: what is averaged over
inputs gets its interval from the spread over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from crashsim_theory import LinearSurrogate
from numpy.typing import NDArray

from crashsim.arguments import as_float, callback, check_seed, instance, sample_count, shown
from crashsim.arrays import Floats
from crashsim.coordinates.drawing import sample_block
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError, Interrupted
from crashsim.noticing import notice
from crashsim.results.estimate import Estimate, Values
from crashsim.sampling.control_variates import Control
from crashsim.sampling.exact_strata import FewFaults, few_faults
from crashsim.sampling.from_sums import Moments
from crashsim.sampling.intervals import proportion_interval
from crashsim.sampling.tally import Tally
from crashsim.space import FaultSpace

DEFAULT_SAMPLES = 10_000
DEFAULT_BUDGET = 1_000_000  # samples, where a relative width is asked for
_KEEP_VALUES = 2**26  # Deltas kept for quantiles and histograms: 256 MiB
_FEWEST_KEPT = 200  # samples kept, whatever their size
_STEP_VALUES = 2**22  # Deltas computed at once
_MATERIAL = 1.1  # upper end over value, beyond which an interval that is not trusted is told
_TOLD = 10  # times in a run, at least, that progress is told and samples are kept
_PILOT = 128  # samples, at most, that fix the centre,
_PILOT_VALUES = 2**23  # and Deltas of theirs

StopReason = Literal["samples", "relative width", "budget", "interrupted"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MonteCarlo:
    """What a Monte Carlo run found.

    Attributes:
        samples: number of samples n.
        stopped: why it stopped: the number of ``samples`` asked for was reached, or the
            ``relative width``, or the ``budget`` was spent first, or it was ``interrupted``, and
            this is the partial result of ``samples`` that had been drawn.
        mean, variance: of Delta, (B, K).
        covariance: of Delta across outputs, (B, K, K); None beyond 64 outputs.
        estimates: everything, as estimates.
        kept: (n', B, K) the first n' <= n samples of Delta (all, unless there were too many).
        confidence: of each interval. It is higher than asked for where the run looked several
            times at its result to decide when to stop.
        few: the outcomes that were summed exactly, where ``few_exact`` was asked for; then samples
            are given that two or more faults struck, with probability ``few.rest``.
    """

    samples: int
    stopped: StopReason
    mean: Floats
    variance: Floats
    covariance: Floats | None
    estimates: list[Estimate]
    kept: NDArray[np.float32]
    confidence: float
    few: FewFaults | None = None

    def tail(self, row: int, output: int, epsilon: Floats) -> Values:
        """P(|Delta| >= epsilon) of one input and output for several epsilon (E,), pointwise."""
        size = np.sort(np.abs(self.kept[:, row, output]))
        hits = (len(size) - np.searchsorted(size, epsilon)).astype(float)
        sampled = proportion_interval(hits, len(size), 1 - self.confidence)
        if self.few is None:
            return sampled
        known = np.abs(self.few.deltas[:, row, output])[:, None] >= epsilon
        exact, rest = self.few.weights @ known, self.few.rest
        assert sampled.low is not None
        assert sampled.high is not None
        ends = (sampled.value, sampled.low, sampled.high)
        return Values(*(np.minimum(exact + rest * end, 1.0) for end in ends))

    def law(self, row: int, output: int) -> tuple[Floats, Floats]:
        """Delta of one input and output: outcomes and their probabilities, each (n,)."""
        sampled = self.kept[:, row, output].astype(float)
        masses = np.full(len(sampled), 1 / len(sampled))
        if self.few is None:
            return sampled, masses
        outcomes = np.concatenate([self.few.deltas[:, row, output], sampled])
        return outcomes, np.concatenate([self.few.weights, self.few.rest * masses])


def monte_carlo(
    space: FaultSpace,
    *,
    epsilon: float | None = None,
    samples: int | None = None,
    rel_width: float | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Progress | None = None,
    control: LinearSurrogate | None = None,
    few_exact: bool = False,
) -> MonteCarlo:
    """Samples Delta under random faults.

    Args:
        space: the model, its inputs and faults.
        epsilon: also estimate P(|Delta| >= epsilon).
        samples: number of samples; with ``rel_width``, the most to spend.
        rel_width: stop when the interval of every output's variance, pooled over inputs, has at
            most this half-width relative to its value. The run looks after 1, 2, 4, 8, ... blocks;
            look j spends ``alpha / (j (j + 1))`` of the error probability ``alpha = 1 -
            confidence``, so the final intervals hold although the run chose its end.
        seed: the samples depend on this alone.
        confidence: of the intervals.
        progress: called with the number of samples done and the most there will be, at least
            after every tenth of them.
        control: a linear surrogate of Delta, (B, K), as control variate: means and variances then
            get the narrower intervals of what it leaves over. Where few samples hold two or more
            faults, which are all it can learn that from, give ``few_exact`` too.
        few_exact: sum the outcomes of no fault and of each single one exactly (N forward passes),
            and sample given that two or more struck. Worth it where those are rare.

    Raises:
        ArgumentError: an argument out of its range.
        Interrupted: Ctrl-C, or ``progress`` raised KeyboardInterrupt; its ``partial`` is the result
            of a run of as many samples as were drawn, if there are two at least.
    """
    instance("space", space, FaultSpace, "a FaultSpace")
    callback("progress", progress)
    budget = check_sampling(samples, rel_width, epsilon, confidence)
    seed = check_seed(seed)
    # Fractions and numpy's numbers are taken for what they are.
    confidence, rel_width = float(confidence), None if rel_width is None else float(rel_width)
    epsilon = None if epsilon is None else float(epsilon)
    few = few_faults(space) if few_exact else None
    most_kept = min(budget, max(_FEWEST_KEPT, _KEEP_VALUES // (space.B * space.K)))
    leading = Control.of(space, control, few) if control else None
    run = _Run(space, lambda: Tally(space, epsilon, leading, few, most_kept))
    alpha, look, next_look = 1 - confidence, 0, 1
    stopped: StopReason = "samples" if rel_width is None else "budget"
    block = 0
    interrupt: KeyboardInterrupt | None = None
    try:
        while run.n < budget:
            drawn = few.sample_block(seed, block) if few else None
            points = drawn or sample_block(space.placements, seed, block)
            points = points.part(0, min(points.count, budget - run.n))
            for part in _steps(space, points, budget, run.until_aimed):
                run.add(part)
                if progress:
                    progress(run.n, budget)
            block += 1
            if rel_width is not None and block == next_look:
                look, next_look = look + 1, next_look * 2
                alpha = (1 - confidence) / (look * (look + 1))
                if _is_narrow(run.tally(), alpha, rel_width):
                    stopped = "relative width"
                    break
    except KeyboardInterrupt as stop:
        if run.n < 2:
            raise
        stopped, interrupt = "interrupted", stop
    if rel_width is not None and stopped != "relative width":
        look += 1  # the end of the budget is one more look
        alpha = (1 - confidence) / (look * (look + 1))
    try:
        found = _result(space, run.tally(), alpha, stopped, few)
    except KeyboardInterrupt as stop:
        interrupt = stop
        found = _result(space, run.tally(), alpha, "interrupted", few)
    if interrupt is not None:
        raise Interrupted(
            f"interrupted after {found.samples} samples; partial holds their result", found
        ) from interrupt
    return found


class _Run:
    """The samples drawn so far.

    The first ones fix the centre of the sums, so they are evaluated, once, before they are counted:
    their number depends on the space alone, so that the sums of n samples are the same however many
    were asked for, and an interrupt may come at any line.

    Args:
        space: to evaluate.
        make: a tally of no samples.
    """

    def __init__(self, space: FaultSpace, make: Callable[[], Tally]) -> None:
        self._space, self._make = space, make
        self._pilot = max(2, min(_PILOT, _PILOT_VALUES // (space.B * space.K)))
        self._first: list[tuple[Points, Floats]] = []
        self._tally: Tally | None = None

    @property
    def n(self) -> int:
        if self._tally is not None:
            return self._tally.n
        return sum(points.count for points, _ in self._first)

    @property
    def until_aimed(self) -> int:
        """The number of samples without which the centre is not fixed."""
        return max(0, self._pilot - self.n)

    def add(self, points: Points) -> None:
        outputs = self._space.outputs(points)
        if self._tally is not None:
            self._tally.add(points, outputs)
            return
        self._first.append((points, outputs))
        if not self.until_aimed:
            self.tally()

    def tally(self) -> Tally:
        """Of all samples."""
        if self._tally is None:
            tally = self._make()  # kept once all of them are in it
            tally.aim(self._first)
            for points, outputs in self._first:
                tally.add(points, outputs)
            self._tally = tally
            self._first.clear()
        return self._tally


def _is_narrow(tally: Tally, alpha: float, rel_width: float) -> bool:
    pooled = tally.found.moments(alpha).pooled_variance
    assert pooled.low is not None
    assert pooled.high is not None
    return bool((pooled.high - pooled.low <= 2 * rel_width * pooled.value).all())


def _result(
    space: FaultSpace, tally: Tally, alpha: float, stopped: StopReason, few: FewFaults | None
) -> MonteCarlo:
    estimates, moments = tally.found.estimates(alpha), tally.found.moments(alpha)
    if told := _too_few(space, tally, moments):
        notice(f"samples={tally.n}: {told}", stacklevel=4)
    return MonteCarlo(
        samples=tally.n,
        stopped=stopped,
        mean=moments.mean.value,
        variance=moments.variance.value,
        covariance=tally.found.covariance,
        estimates=estimates,
        kept=tally.kept,
        confidence=1 - alpha,
        few=few,
    )


def _too_few(space: FaultSpace, tally: Tally, moments: Moments) -> str | None:
    """What so many samples cannot show, if that matters."""
    if not (space.moments.k2 > 0).any():
        return None
    if (moments.variance.value == 0).all():
        return "no sample moved any output, so only upper limits are known; ask for more samples"
    if seldom := tally.seldom_struck:
        sites = ", ".join(f"{name} (about {many:.2g})" for name, many in seldom)
        return (
            f"faults at {sites} strike too few times in them to show what they do, so Monte "
            "Carlo's intervals may be too narrow; ask for more samples"
        )
    pooled = moments.pooled_variance
    assert pooled.high is not None
    assert pooled.enough is not None
    wide = pooled.high > _MATERIAL * pooled.value
    if (wide & ~pooled.enough)[-1]:
        return (
            "few of them make up most of the variance, so Monte Carlo's intervals may be too "
            "narrow; ask for more samples"
        )
    return None


def _steps(space: FaultSpace, points: Points, budget: int, cut: int) -> Iterator[Points]:
    """Points a few at a time, so that their outputs stay small and progress is told; and cut."""
    most = max(1, min(_STEP_VALUES // (space.B * space.K), budget // _TOLD))
    edges = [0]
    for end in sorted({min(cut, points.count), points.count} - {0}):
        begin, count = edges[-1], -(-(end - edges[-1]) // most)
        edges += [begin + (end - begin) * i // count for i in range(1, count + 1)]
    for start, stop in pairwise(edges):
        yield points.part(start, stop)


def check_sampling(
    samples: int | None, rel_width: float | None, epsilon: float | None, confidence: float
) -> int:
    """The number of samples to spend at most, if the arguments make sense."""
    if samples is not None:
        samples = sample_count("samples", samples, 2)
    if rel_width is not None and not _is_share(rel_width):
        raise ArgumentError(
            f"rel_width={shown(rel_width)}; give a number between 0 and 1, such as 0.02"
        )
    if not _is_share(confidence):
        raise ArgumentError(f"confidence={shown(confidence)}; give a number between 0 and 1")
    check_epsilon(epsilon)
    return samples or (DEFAULT_SAMPLES if rel_width is None else DEFAULT_BUDGET)


def _is_share(value: Any) -> bool:
    # In its difference from 1, too: an interval of all but no probability has no ends.
    share = as_float(value)
    return 0 < share < 1 and 0 < 1 - share < 1


def check_epsilon(epsilon: float | None) -> None:
    """ArgumentError unless epsilon is None or a positive finite number."""
    if epsilon is None:
        return
    if not 0 < as_float(epsilon) < np.inf:
        raise ArgumentError(
            f"epsilon={shown(epsilon)}; give a positive number in the units of the outputs"
        )
