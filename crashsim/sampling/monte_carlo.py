"""Monte Carlo crash injection: sample faults, run the network, count.

One sample is one draw of all fault coordinates, applied to every input at once (as on one chip).
So samples are independent of each other, inputs within a sample are not: what is averaged over
inputs gets its interval from the spread over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from crashsim_theory import LinearSurrogate
from numpy.typing import NDArray

from crashsim.analytic.rounding import least_reaching
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.arguments import (
    as_float,
    callback,
    check_seed,
    instance,
    named_outputs,
    sample_count,
    shown,
)
from crashsim.arrays import Floats
from crashsim.campaign.store import Store, store_of
from crashsim.campaign.tasks import fold
from crashsim.errors import ArgumentError, Interrupted
from crashsim.metrics import RESERVED, AskedMetrics, OfSums
from crashsim.metrics.losses import of_losses
from crashsim.noticing import notice
from crashsim.results.estimate import MOST_OUTPUTS, Interval
from crashsim.results.estimates import Estimates
from crashsim.sampling.control_variates import Control
from crashsim.sampling.dense import DENSE, DenseTally, FromDense
from crashsim.sampling.exact_strata import FewFaults, few_faults
from crashsim.sampling.from_sums import FromSums, Moments
from crashsim.sampling.intervals import ENOUGH, proportion_interval
from crashsim.sampling.samples import Draws, First, Samples
from crashsim.sampling.tally import Tally
from crashsim.space import FaultSpace

if TYPE_CHECKING:
    from crashsim.sampling.chips.run import ChipRun

DEFAULT_SAMPLES = 10_000
DEFAULT_BUDGET = 1_000_000  # samples, where a relative width is asked for
_KEEP_VALUES = 2**26  # Deltas kept for quantiles and histograms: 256 MiB
_FEWEST_KEPT = 200  # samples kept, whatever their size
_MATERIAL = 1.1  # upper end over value, beyond which an interval that is not trusted is told

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
        kept: (n', B, K) the first n' <= n samples of Delta (all, unless there were too many); of
            very many outputs, (n', B, K') those of the ``outputs``.
        outputs: (K',) which outputs have quantiles, and a law to draw: all up to 64, else those
            that were named and those that vary most.
        confidence: of each interval. It is higher than asked for where the run looked several
            times at its result to decide when to stop.
        few: the outcomes that were summed exactly, where ``few_exact`` was asked for; then samples
            are given that two or more faults struck, with probability ``few.rest``.
        chips: metrics over chips, where they were judged on examples of their own.
    """

    samples: int
    stopped: StopReason
    mean: Floats
    variance: Floats
    covariance: Floats | None
    estimates: Estimates
    kept: NDArray[np.float32]
    confidence: float
    few: FewFaults | None = None
    outputs: tuple[int, ...] = ()
    chips: ChipRun | None = None

    def tail(self, row: int, output: int, epsilon: Floats) -> Interval:
        """P(|Delta| >= epsilon) of one input and output for several epsilon (E,), pointwise."""
        size = np.sort(np.abs(self._drawn(row, output)))
        hits = (len(size) - np.searchsorted(size, epsilon)).astype(float)
        sampled = proportion_interval(hits, len(size), 1 - self.confidence)
        if self.few is None:
            return sampled
        known = np.abs(self.few.deltas[:, row, output])[:, None] >= epsilon
        exact, rest = self.few.weights @ known, self.few.rest
        ends = (sampled.value, sampled.low, sampled.high)
        return Interval(*(np.minimum(exact + rest * end, 1.0) for end in ends))

    def _drawn(self, row: int, output: int) -> NDArray[np.float32]:
        """(n',) samples of one input and output."""
        is_part = self.kept.shape[2] < self.mean.shape[1]
        drawn: NDArray[np.float32] = self.kept[
            :, row, self.outputs.index(output) if is_part else output
        ]
        return drawn

    def law(self, row: int, output: int) -> tuple[Floats, Floats]:
        """Delta of one input and output: outcomes and their probabilities, each (n,)."""
        sampled = self._drawn(row, output).astype(float)
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
    control: LinearSurrogate | FactoredSurrogate | None = None,
    few_exact: bool = False,
    targets: Any = None,
    metrics: Iterable[Any] | None = None,
    executor: Executor | None = None,
    outputs: Iterable[int] | None = None,
    store: str | Path | Store | None = None,
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
        targets: (B, ...) what metrics compare the outputs with.
        metrics: also estimate these events and means of one's own (``crashsim.metrics``); their
            estimates have the metric's name as quantity.
        executor: that runs the blocks of samples (``crashsim.campaign.tasks``); the result is the
            same whichever it is, and without one.
        store: a folder that keeps finished blocks: the same call resumes, or adds samples.
        outputs: that get quantiles, and with very many outputs estimates for each input, beside
            those that vary most.

    Raises:
        ArgumentError: an argument out of its range; or the function of a metric fails.
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
    if space.loss is not None and metrics:
        metrics = of_losses(metrics, space.least_loss)
    asked = AskedMetrics.of(metrics, targets, space.clean(), space.output_shape)
    for metric in asked.metrics:
        if isinstance(metric, OfSums) or metric.name in RESERVED:
            raise ArgumentError(
                f"metrics: {metric.name!r} is judged over all examples of a chip; ask "
                "crashsim.score for it"
            )
    if control is not None and space.counts:
        raise ArgumentError(
            "control: its mean and variance are those of faults that strike independently; leave "
            "it out where an exact number of them strikes (count=)"
        )
    named = named_outputs(outputs, space.K) or ()
    is_dense = space.B * space.K > DENSE
    if is_dense and (control is not None or few_exact):
        raise ArgumentError(
            f"{'control' if control is not None else 'few_exact'}: not for {space.B} inputs times "
            f"{space.K} outputs, more than {DENSE}; leave it out, or give fewer inputs"
        )
    few = few_faults(space) if few_exact else None
    about = budget if rel_width is None else min(budget, DEFAULT_SAMPLES)
    leading = Control.of(space, control, few, seed, about) if control else None
    reach = np.inf if epsilon is None else least_reaching(space, epsilon)
    tally = (
        DenseTally.of(space.clean(), reach, asked, named)
        if is_dense
        else Tally.of(space.clean(), reach, leading, few, asked)
    )
    run = _Run(Draws(space, few, seed, budget), tally, epsilon, 1 - confidence, rel_width, named)
    interrupt: KeyboardInterrupt | None = None
    try:
        run.draw(executor, store_of(store), progress)
    except KeyboardInterrupt as stop:
        if not run.can_stop_here():
            raise
        interrupt = stop
    try:
        found = _result(run)
    except KeyboardInterrupt as stop:
        run.stopped, interrupt = "interrupted", stop
        found = _result(run)
    if interrupt is not None:
        raise Interrupted(
            f"interrupted after {found.samples} samples; partial holds their result", found
        ) from interrupt
    return found


class _Run:
    """A run: its samples so far, and when it stops.

    Args:
        draws: the samples, as many as there are at most.
        tally: what is counted of them.
        epsilon: of the tails.
        alpha: error probability of the final intervals.
        rel_width: to stop at, or None.
        named: outputs that get quantiles, whatever they do.

    Attributes:
        space: that is evaluated.
        few: the outcomes that are summed exactly.
        stopped: why it ended, or will end.
    """

    def __init__(
        self,
        draws: Draws,
        tally: Tally | DenseTally,
        epsilon: float | None,
        alpha: float,
        rel_width: float | None,
        named: Sequence[int] = (),
    ) -> None:
        self.space, self.few = draws.space, draws.few
        self.stopped: StopReason = "samples" if rel_width is None else "budget"
        self._draws, self._first, self._tally = draws, First(draws), tally
        is_dense, k = isinstance(tally, DenseTally), self.space.K
        each = self.space.B * (max(MOST_OUTPUTS, len(named)) if is_dense else k)
        self._kept, self._named = max(_FEWEST_KEPT, _KEEP_VALUES // each), tuple(named)
        self._epsilon, self._alpha, self._rel_width = epsilon, alpha, rel_width
        self._look = 0
        # One value, so that an interrupt finds sums about the centre that goes with them.
        self._counted: Any = (tally, tally.none())
        self._found: FromSums | FromDense | None = None

    @property
    def n(self) -> int:
        """The number of samples that are counted."""
        return int(self._counted[1].n)

    @property
    def alpha(self) -> float:
        """Error probability of each interval: the end is one more look, but for a width reached."""
        if self._rel_width is None:
            return self._alpha
        look = self._look + (self.stopped != "relative width")
        return self._alpha / (look * (look + 1))

    @property
    def found(self) -> FromSums | FromDense:
        """What follows from the samples so far."""
        if self._found is None or self._found.n != self.n:
            facts: Any = {
                "is_random": self.space.is_random,
                "is_seldom_struck": bool(self.seldom_struck),
                "may_overflow": self.space.may_overflow,
            }
            tally, sums = self._counted
            if isinstance(tally, DenseTally):
                self._found = FromDense(tally, sums, self._epsilon, **facts)
            else:
                unit, named = float(torch.finfo(self.space.dtype).eps), self._named
                self._found = FromSums(tally, sums, self._epsilon, unit=unit, named=named, **facts)
        return self._found

    @property
    def seldom_struck(self) -> list[tuple[str, float]]:
        """The sites whose faults strike too seldom in the samples to show what they do, and how
        often they strike."""
        if self.few is not None or self._tally.control is not None:
            return []  # each single strike is known, or what it does about
        chance = {p.site.name: 0.0 for p in self.space.placements}
        for p in self.space.placements:
            chance[p.site.name] += p.size * float(np.mean(p.fault.unusual_probability))
        strikes = {name: self.n * each for name, each in chance.items() if each > 0}
        return [(name, many) for name, many in strikes.items() if 2 * many < ENOUGH]

    def draw(
        self, executor: Executor | None, store: Store | None, progress: Progress | None
    ) -> None:
        """Draws samples until the run stops."""
        done, most = 0, self._draws.samples
        for done in self._first.evaluate():
            if progress:
                progress(done, most)
        task, next_look = self._task(), 1
        for at in fold(task, range(self._draws.blocks), executor, store=store):
            self._counted = task.tally, at.sums
            if progress and self.n > done:
                done = self.n
                progress(done, most)
            if self._rel_width is not None and at.blocks == next_look * self._draws.per_look:
                next_look *= 2
                if self._is_narrow(self._rel_width):
                    self.stopped = "relative width"
                    return

    def _task(self) -> Samples:
        """The samples, with the centre that the first ones suggest."""
        return Samples.aimed(self._draws, self._tally, self._kept, self._first)

    def _is_narrow(self, rel_width: float) -> bool:
        """Looks whether the intervals are as narrow as was asked for."""
        self._look += 1
        alpha = self._alpha / (self._look * (self._look + 1))
        pooled = self.found.moments(alpha).pooled_variance
        return bool((pooled.high - pooled.low <= 2 * rel_width * pooled.value).all())

    def can_stop_here(self) -> bool:
        """Makes do with the samples that were evaluated; whether they are two at least."""
        self.stopped = "interrupted"
        if self._first.n > self.n:
            task = self._task()
            self._counted = task.tally, task.of_first()
        return self.n >= 2


def _result(run: _Run) -> MonteCarlo:
    found, alpha = run.found, run.alpha
    estimates, moments = found.estimates(alpha), found.moments(alpha)
    if told := _too_few(run, moments):
        notice(f"samples={found.n}: {told}", stacklevel=4)
    return MonteCarlo(
        samples=found.n,
        stopped=run.stopped,
        mean=moments.mean.value,
        variance=moments.variance.value,
        covariance=found.covariance,
        estimates=estimates,
        kept=found.kept,
        confidence=1 - alpha,
        few=run.few,
        outputs=tuple(int(k) for k in found.outputs),
    )


def _too_few(run: _Run, moments: Moments) -> str | None:
    """What a number of samples cannot show, if that matters."""
    if not run.space.is_random:
        return None
    if not run.found.has_moments:
        return (
            "some make outputs infinite, NaN or too large to square, so that Delta has no mean and "
            "no variance; what is told are probabilities of events (not-finite among them)"
        )
    if (moments.variance.value == 0).all():
        return "no sample moved any output, so only upper limits are known; ask for more samples"
    if seldom := run.seldom_struck:
        sites = ", ".join(f"{name} (about {many:.2g})" for name, many in seldom)
        return (
            f"faults at {sites} strike too few times in them to show what they do, so Monte "
            "Carlo's intervals may be too narrow; ask for more samples"
        )
    pooled = moments.pooled_variance
    assert pooled.enough is not None
    wide = pooled.high > _MATERIAL * pooled.value
    if (wide & ~pooled.enough)[-1]:
        return (
            "few of them make up most of the variance, so Monte Carlo's intervals may be too "
            "narrow; ask for more samples"
        )
    return None


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
