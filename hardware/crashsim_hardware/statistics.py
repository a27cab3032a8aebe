"""Mean and variance of the crash effect on the chip, free of spiking noise, with intervals.

Write F(m, phi) for the output under mask m and initial phases phi. Spiking noise, the dependence
on phi, is no effect of the crash: wanted are the moments over m of G(m) = E_phi F(m, phi). Each
mask is run with two independent phases, and

    E Delta   = mean over m of (F1 + F2) / 2  -  mean clean output
    Var Delta = covariance over m of F1 and F2                       (unbiased for Var G)

A chip that starts at zero has no such noise: one read of each mask is both.

Release failure is itself a random event of every run, and a covariance would remove it: there
Var Delta is the variance of one read minus that of a clean read.
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
from .engines.running import Engine, as_faults, run
from .errors import HardwareError
from .faults.chip_faults import ChipFaults
from .noticing import notice
from .reference import reference

__all__ = ["CrashStatistics", "Moment", "SpikingGap", "crash_statistics", "spiking_gap"]

Floats = NDArray[Any]

_CLEAN_READS = 256
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
    engine: Engine = "brian2",
) -> CrashStatistics:
    """E Delta and Var Delta of `faults` on `chip` for inputs (B, *input_shape).

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
    released = broken.release_failure > 0.0
    fixed = chip.start == "zero"  # membranes of a graph start there: they are no noise
    phases: Phases = "zero" if fixed else "random"

    def read(faults: ChipFaults, replica: int) -> Floats:
        return run(
            chip, inputs, faults, engine=engine, seed=seed, phases=phases, replica=replica
        ).outputs

    first = read(broken, 0)
    second = first if fixed and not released else read(broken, 1)
    reads = broken.count if released else min(broken.count, _CLEAN_READS)
    if fixed and not released:
        clean = np.broadcast_to(read(ChipFaults(masks=1), 2), (reads, *first.shape[1:]))
    else:
        clean = read(ChipFaults(masks=reads), 2)
    statistics = _moments(first, second, clean, confidence, chip.steps, released)
    if not released and not broken.empty:
        _warn_if_short(statistics)
    return statistics


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


@dataclass(frozen=True, eq=False)
class SpikingGap:
    """The chip against its network under the same masks.

    statistics: of the chip.
    mean, variance: (B, K), sample moments of the network's Delta over the same masks.
    slope: of the chip's E Delta against the network's, least squares through 0.
    variance_ratio: sum of the chip's Var Delta over the sum of the network's.
    correlation: Pearson, of E Delta over all (input, output) pairs.
    variance_correlation: the same of Var Delta.
    mask_correlation: of Delta over all masks, inputs and outputs, each pair centred on its mean.
    mean_gap: chip minus network, E Delta, (B, K), with an interval from the paired masks.
    """

    statistics: CrashStatistics
    mean: Floats
    variance: Floats
    slope: float
    variance_ratio: float
    correlation: float
    variance_correlation: float
    mask_correlation: float
    mean_gap: Moment


def spiking_gap(
    chip: Chip,
    inputs: Any,
    faults: Any,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    engine: Engine = "brian2",
) -> SpikingGap:
    """Run chip and network under the same `faults`, mask by mask, and compare their moments.

    Arguments, warnings and errors as `crash_statistics` and `reference`.
    """
    broken = as_faults(chip, faults)
    chip_side = crash_statistics(
        chip, inputs, broken, seed=seed, confidence=confidence, engine=engine
    )
    faulty = reference(chip, inputs, broken).outputs
    network = faulty - reference(chip, inputs).outputs
    mean, variance = network.mean(axis=0), network.var(axis=0, ddof=1)
    spiking = chip_side.outputs - chip_side.clean
    paired = spiking - network
    gap = paired.mean(axis=0)
    reads = min(broken.count, _CLEAN_READS)
    error = np.sqrt(paired.var(axis=0, ddof=1) / broken.count + chip_side.noise / reads)
    quantile = float(stats.t.ppf(0.5 + confidence / 2.0, broken.count - 1))
    square, total = float((mean**2).sum()), float(variance.sum())
    if total <= 1e-24 * square:  # every mask is the same: rounding is no variance
        total = 0.0
    return SpikingGap(
        statistics=chip_side,
        mean=mean,
        variance=variance,
        slope=float((chip_side.mean.value * mean).sum()) / square if square else math.nan,
        variance_ratio=float(chip_side.variance.value.sum()) / total if total else math.nan,
        correlation=_pearson(chip_side.mean.value, mean),
        variance_correlation=_pearson(chip_side.variance.value, variance),
        mask_correlation=_pearson(spiking - spiking.mean(axis=0), network - mean),
        mean_gap=Moment(gap, gap - quantile * error, gap + quantile * error),
    )


def _pearson(x: Floats, y: Floats) -> float:
    x, y = x.ravel() - x.mean(), y.ravel() - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else math.nan
