"""Mean and variance of the crash effect on the chip, free of spiking noise, with intervals.

Write F(m, phi) for the output under mask m and initial phases phi. Spiking noise, the dependence
on phi, is no effect of the crash: wanted are the moments over m of G(m) = E_phi F(m, phi). Each
mask is run with two independent phases, and

    E Delta   = mean over m of (F1 + F2) / 2  -  mean clean output
    Var Delta = covariance over m of F1 and F2                       (unbiased for Var G)

A chip that starts at zero has no such noise: one read of each mask is both.

Failing releases and noisy reads are random events of every run, and a covariance would remove them:
there Var Delta is the variance of one read minus that of a clean read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .arguments import is_number
from .chip import Chip
from .engines.block import Phases
from .engines.readouts import Readout
from .engines.running import Engine, Progress, as_faults, run
from .errors import HardwareError
from .faults.chip_faults import ChipFaults
from .noticing import notice

__all__ = ["CLEAN_READS", "CrashStatistics", "Moment", "clean_reads", "crash_statistics"]

Floats = NDArray[Any]

CLEAN_READS = 256
"""Clean reads, at most, that say where the faults start from."""

_FEW = 30


@dataclass(frozen=True, eq=False)
class Moment:
    """An estimate with its two-sided interval; three arrays of the same shape, (B, K)."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, eq=False)
class CrashStatistics:
    """Moments of Delta = output under faults - clean output, over masks.

    mean, variance: (B, K) each, in output units and their square.
    clean: (B, K), the mean clean output of the chip.
    noise: (B, K), variance of one read through spiking noise alone.
    reads: the two reads of every mask, (M, B, K) each, from independent initial phases.
    masks, confidence, steps: M, the intervals' nominal confidence, and the window T.
    """

    mean: Moment
    variance: Moment
    clean: Floats
    noise: Floats
    reads: tuple[Floats, Floats]
    masks: int
    confidence: float
    steps: int

    @property
    def outputs(self) -> Floats:
        """The mean of the two reads of every mask, (M, B, K), for pairing mask by mask."""
        return (self.reads[0] + self.reads[1]) / 2.0


def crash_statistics(
    chip: Chip,
    inputs: Any,
    faults: Any,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    engine: Engine = "numpy",
    readout: Readout = "count",
    progress: Progress | None = None,
) -> CrashStatistics:
    """E Delta and Var Delta of `faults` on `chip` for inputs and a readout as `run` takes them.

    Masks are taken as independent draws of one law. Intervals are asymptotic in the number of
    masks M: Student's t for the mean; for the variance Student's t on the influence values
    (F1 - mean)(F2 - mean), taken on the logarithm where the estimate is positive and resolved.
    The clean output's own uncertainty is included.

    Warns (HardwareWarning) when M is below 30, when no mask holds a fault, and when T is too
    short: when over all outputs the noise of a read exceeds the effect, with the T that would do
    (the noise falls as 1 / T).
    Raises HardwareError for fewer than 2 masks or a confidence outside (0, 1).
    """
    broken = as_faults(chip, faults)
    if broken.count < 2:
        raise HardwareError(
            f"a variance over masks needs at least 2 masks, got {broken.count}; sample hundreds"
        )
    if not is_number(confidence) or not 0.0 < confidence < 1.0:
        raise HardwareError(f"confidence must be between 0 and 1, got {confidence}")
    if broken.count < _FEW:
        notice(
            f"{broken.count} masks are too few for the asymptotic intervals; use {_FEW} or more",
            stacklevel=2,
        )
    if broken.empty:
        notice(
            f"none of the {broken.count} masks holds a fault, so only spiking noise is measured; "
            "raise the rate or sample more masks",
            stacklevel=2,
        )
    released = broken.random
    fixed = chip.start == "zero"  # membranes of a graph start there: they are no noise
    phases: Phases = "zero" if fixed else "random"

    reads = clean_reads(chip, broken)
    told = None if progress is None else _Parts(progress, reads)

    def read(faults: ChipFaults, replica: int) -> Floats:
        found = run(
            chip, inputs, faults, engine=engine, seed=seed, phases=phases, replica=replica,
            readout=readout, progress=told,
        ).outputs  # fmt: skip
        if told is not None:
            told.finish(faults.count)
        return found

    first = read(broken, 0)
    second = first if fixed and not released else read(broken, 1)
    clean = read(ChipFaults(masks=reads[-1]), 2)
    if fixed and not released:
        kept = min(broken.count, CLEAN_READS)
        clean = np.broadcast_to(clean, (kept, *first.shape[1:]))
    statistics = _moments(first, second, clean, confidence, chip.steps, released)
    if not released and not broken.empty:
        _warn_if_short(statistics)
    return statistics


def clean_reads(chip: Chip, faults: ChipFaults) -> tuple[int, ...]:
    """Masks that are run for the moments of `faults`, read by read, the clean ones last."""
    released = faults.random
    if chip.start == "zero" and not released:
        return faults.count, 1
    clean = faults.count if released else min(faults.count, CLEAN_READS)
    return faults.count, faults.count, clean


class _Parts:
    """The progress of several runs as that of one piece of work, in thousandths."""

    def __init__(self, progress: Progress, masks: tuple[int, ...]) -> None:
        self._progress, self._total, self._done = progress, sum(masks), 0
        self._running = iter(masks)
        self._now = next(self._running)

    def __call__(self, done: int, total: int) -> None:
        share = (self._done + self._now * done / total) / self._total
        self._progress(int(1000 * share), 1000)

    def finish(self, masks: int) -> None:
        self._done += masks
        self._now = next(self._running, 0)


def _moments(
    first: Floats, second: Floats, clean: Floats, confidence: float, steps: int, released: bool
) -> CrashStatistics:
    masks, reads = len(first), len(clean)
    both = (first + second) / 2.0
    base = clean.mean(axis=0)
    centred, other = first - first.mean(axis=0), second - second.mean(axis=0)
    clean_squares = (clean - base) ** 2
    clean_variance = clean_squares.sum(axis=0) / (reads - 1)
    bessel = masks / (masks - 1)
    if released:
        influence = bessel * (centred**2 + other**2) / 2.0
        variance = influence.mean(axis=0) - clean_variance
        spread = influence.var(axis=0, ddof=1) / masks + clean_squares.var(axis=0, ddof=1) / reads
    else:
        influence = bessel * centred * other
        variance = influence.mean(axis=0)
        spread = influence.var(axis=0, ddof=1) / masks
    quantile = float(stats.t.ppf(0.5 + confidence / 2.0, masks - 1))
    mean = both.mean(axis=0) - base
    error = np.sqrt(both.var(axis=0, ddof=1) / masks + clean_variance / reads)
    return CrashStatistics(
        mean=Moment(mean, mean - quantile * error, mean + quantile * error),
        variance=_variance_interval(variance, np.sqrt(spread), quantile),
        clean=base,
        noise=((first - second) ** 2).mean(axis=0) / 2.0,
        reads=(first, second),
        masks=masks,
        confidence=confidence,
        steps=steps,
    )


def _variance_interval(variance: Floats, error: Floats, quantile: float) -> Moment:
    # the logarithm respects the sign and the skew; without a resolved sign stay symmetric
    resolved = variance > quantile * error
    safe = np.where(resolved, variance, 1.0)
    factor = np.exp(quantile * np.where(resolved, error, 0.0) / safe)
    low = np.where(resolved, variance / factor, np.minimum(variance - quantile * error, 0.0))
    high = np.where(resolved, variance * factor, variance + quantile * error)
    return Moment(variance, low, high)


def _warn_if_short(statistics: CrashStatistics) -> None:
    noise = float(statistics.noise.sum())
    variance = float(statistics.variance.value.sum())
    effect = max(variance, 0.0) + float((statistics.mean.value**2).sum())
    if noise <= effect:
        return
    # an unresolved effect may be as large as its interval allows, and no larger
    ceiling = max(effect, float(statistics.variance.high.sum()))
    enough = math.ceil(statistics.steps * math.sqrt(max(noise / ceiling, 1.0))) + 1
    notice(
        f"T = {statistics.steps} steps is too short: over all outputs the spiking noise of one "
        f"read, variance {noise:.3g}, exceeds the effect of the faults, {effect:.3g}; about "
        f"T = {enough} steps would bring them level",
        stacklevel=3,
    )
