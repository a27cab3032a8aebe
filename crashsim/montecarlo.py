"""Monte Carlo crash injection: sample faults, run the network, count.

One sample is one draw of all fault coordinates, applied to every input at once (as on one chip).
So samples are independent of each other, inputs within a sample are not: what is averaged over
inputs gets its interval from the spread over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from crashsim_theory import LinearSurrogate
from numpy.typing import NDArray

from crashsim.arguments import callback, instance, is_number, is_whole
from crashsim.control import Control
from crashsim.errors import ArgumentError
from crashsim.estimate import Estimate, Values
from crashsim.few import FewFaults, few_faults
from crashsim.intervals import proportion_interval
from crashsim.noticing import notice
from crashsim.points import Floats, Points, check_seed, sample_block
from crashsim.space import FaultSpace
from crashsim.tally import Tally

DEFAULT_SAMPLES = 10_000
DEFAULT_BUDGET = 1_000_000  # samples, where a relative width is asked for
_KEEP_VALUES = 2**26  # Deltas kept for quantiles and histograms: 256 MiB
_FEWEST_KEPT = 200  # samples kept, whatever their size
_STEP_VALUES = 2**22  # Deltas computed at once
_PILOT = 128  # samples, at most a tenth of the run, that fix the centre

StopReason = Literal["samples", "relative width", "budget", "interrupted"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MonteCarlo:
    """What a Monte Carlo run found.

    Attributes:
        samples: number of samples n.
        stopped: why it stopped: the number of ``samples`` asked for was reached, or the
            ``relative width``, or the ``budget`` was spent first, or it was ``interrupted``.
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
        progress: called with the number of samples done and the most there will be.
        control: a linear surrogate of Delta, (B, K), as control variate: means and variances then
            get the narrower intervals of what it leaves over. Where few samples hold two or more
            faults, which are all it can learn that from, give ``few_exact`` too.
        few_exact: sum the outcomes of no fault and of each single one exactly (N forward passes),
            and sample given that two or more struck. Worth it where those are rare.

    Raises:
        ArgumentError: an argument out of its range.
    """
    instance("space", space, FaultSpace, "a FaultSpace")
    callback("progress", progress)
    budget = check_sampling(samples, rel_width, epsilon, confidence)
    seed = check_seed(seed)
    few = few_faults(space) if few_exact else None
    most_kept = min(budget, max(_FEWEST_KEPT, _KEEP_VALUES // (space.B * space.K)))
    leading = Control.of(space, control, few) if control else None
    tally = Tally(space, epsilon, leading, few, most_kept)
    alpha, look, next_look = 1 - confidence, 0, 1
    stopped: StopReason = "samples" if rel_width is None else "budget"
    block = 0
    try:
        while tally.n < budget:
            drawn = few.sample_block(seed, block) if few else None
            points = drawn or sample_block(space.placements, seed, block)
            points = points.part(0, min(points.count, budget - tally.n))
            if block == 0:
                first = points.part(0, max(1, min(points.count, budget // 10, _PILOT)))
                tally.aim(list(_steps(space, first)))
            for part in _steps(space, points):
                tally.add(part)
            block += 1
            if progress:
                progress(tally.n, budget)
            if rel_width is not None and block == next_look:
                look, next_look = look + 1, next_look * 2
                alpha = (1 - confidence) / (look * (look + 1))
                if _is_narrow(tally, alpha, rel_width):
                    stopped = "relative width"
                    break
    except KeyboardInterrupt:
        if tally.n < 2:
            raise
        stopped = "interrupted"
    if rel_width is not None and stopped != "relative width":
        look += 1  # the end of the budget is one more look
        alpha = (1 - confidence) / (look * (look + 1))
    return _result(space, tally, alpha, stopped, few)


def _is_narrow(tally: Tally, alpha: float, rel_width: float) -> bool:
    _, pooled = tally.variances(alpha)
    assert pooled.low is not None
    assert pooled.high is not None
    return bool((pooled.high - pooled.low <= 2 * rel_width * pooled.value).all())


def _result(
    space: FaultSpace, tally: Tally, alpha: float, stopped: StopReason, few: FewFaults | None
) -> MonteCarlo:
    estimates = tally.estimates(alpha)
    mean, _ = tally.means(alpha)
    variance, _ = tally.variances(alpha)
    if (space.moments.k2 > 0).any() and (variance.value == 0).all():
        notice(
            f"samples={tally.n}: no sample moved any output, so only upper limits are known; "
            "ask for more samples",
            stacklevel=4,
        )
    return MonteCarlo(
        tally.n, stopped, mean.value, variance.value, tally.covariance, estimates,
        tally.kept, 1 - alpha, few,
    )  # fmt: skip


def _steps(space: FaultSpace, points: Points) -> Iterator[Points]:
    """Points a few at a time, so that their outputs stay small."""
    step = max(1, _STEP_VALUES // (space.B * space.K))
    for start in range(0, points.count, step):
        yield points.part(start, min(start + step, points.count))


def check_sampling(
    samples: int | None, rel_width: float | None, epsilon: float | None, confidence: float
) -> int:
    """The number of samples to spend at most, if the arguments make sense."""
    if samples is not None and (not is_whole(samples) or samples < 2):
        raise ArgumentError(f"samples={samples!r}; give an integer of at least 2")
    if rel_width is not None and not _is_share(rel_width):
        raise ArgumentError(f"rel_width={rel_width!r}; give a number between 0 and 1, such as 0.02")
    if not _is_share(confidence):
        raise ArgumentError(f"confidence={confidence!r}; give a number between 0 and 1")
    check_epsilon(epsilon)
    return samples or (DEFAULT_SAMPLES if rel_width is None else DEFAULT_BUDGET)


def _is_share(value: Any) -> bool:
    # In its difference from 1, too: an interval of all but no probability has no ends.
    return is_number(value) and bool(0 < value < 1) and bool(0 < 1 - value < 1)


def check_epsilon(epsilon: float | None) -> None:
    """ArgumentError unless epsilon is None or a positive finite number."""
    if epsilon is None:
        return
    if not is_number(epsilon) or not 0 < epsilon < np.inf:
        raise ArgumentError(
            f"epsilon={epsilon!r}; give a positive number in the units of the outputs"
        )
