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

__all__ = ["CLEAN_READS", "CrashStatistics", "Moment", "crash_statistics"]

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
    noise: (B, K), variance of one read of a mask: through spiking noise, and what is random in
        every run.
    reads: the two reads of every mask, (M, B, K) each, from independent initial phases, with
        independent releases and noise of reads.
    masks, confidence, steps: M, the intervals' nominal confidence, and the window T.
    width: half of the interval of the variance summed over inputs and outputs, relative to it;
        infinite where it is not resolved.
    alike: all masks hold the same faults, so that nothing varies.
    """

    mean: Moment
    variance: Moment
    clean: Floats
    noise: Floats
    reads: tuple[Floats, Floats]
    masks: int
    confidence: float
    steps: int
    width: float
    alike: bool = False

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
    rel_width: float | None = None,
) -> CrashStatistics:
    """E Delta and Var Delta of `faults` on `chip` for inputs and a readout as `run` takes them.

    Masks are taken as independent draws of one law. Intervals are asymptotic in the number of
    masks M: Student's t for the mean; for the variance Student's t on the influence values
    (F1 - mean)(F2 - mean), taken on the logarithm where the estimate is positive and resolved, and
    without an upper end where no mask moved an output, unless all masks hold the same faults or
    every run is random.
    The clean output's own uncertainty is included.

    rel_width: stop before all masks are run, once the variance summed over the outputs is known to
    this relative half-width. The width is looked at after 64, 128, 256, ... masks, and an interval
    allows for all looks: its nominal confidence, in `confidence`, is then higher.

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
    if rel_width is not None and not (is_number(rel_width) and rel_width > 0.0):
        raise HardwareError(f"rel_width must be a positive number, got {rel_width!r:.80}")
    released, alike = broken.random, broken.alike
    phases: Phases = "zero" if chip.start == "zero" else "random"

    reading = _Reading(chip, inputs, broken, phases, seed, engine, readout, progress)
    looks = [broken.count] if rel_width is None else _looks(broken.count)
    each = 1.0 - (1.0 - confidence) / len(looks)
    for masks in looks:
        first, second, clean = reading.up_to(masks)
        statistics = _moments(first, second, clean, each, chip.steps, released, alike)
        if rel_width is not None and statistics.width <= rel_width:
            break
    if progress is not None:
        progress(1000, 1000)
    if not released and not broken.empty:
        _warn_if_short(statistics)
    return statistics


def _looks(masks: int) -> list[int]:
    """Numbers of masks after which the width is looked at: 64, doubled, and all."""
    found = [64]
    while 2 * found[-1] < masks:
        found.append(2 * found[-1])
    return [*(look for look in found if look < masks), masks]


class _Reading:
    """Reads of more and more masks: two with faults, where they differ, and clean ones."""

    def __init__(
        self,
        chip: Chip,
        inputs: Any,
        faults: ChipFaults,
        phases: Phases,
        seed: int,
        engine: Engine,
        readout: Readout,
        progress: Progress | None,
    ) -> None:
        self._chip, self._inputs, self._faults, self._progress = chip, inputs, faults, progress
        self._options: Any = {"phases": phases, "seed": seed, "engine": engine, "readout": readout}
        self._released = faults.random
        # membranes of a graph start at zero: they are no noise, and one read is both
        self._alike = chip.start == "zero" and not self._released
        self._parts: tuple[list[Floats], ...] = ([], [], [])
        self._masks = [0, 0, 0]
        most = faults.count if self._released else min(faults.count, CLEAN_READS)
        self._total = faults.count + (1 if self._alike else faults.count + most)

    def up_to(self, masks: int) -> tuple[Floats, Floats, Floats]:
        """First and second reads (M, B, K) of the first `masks` masks, and clean ones."""
        clean = masks if self._released else min(masks, CLEAN_READS)
        self._extend(0, self._faults, masks)
        if not self._alike:
            self._extend(1, self._faults, masks)
        self._extend(2, ChipFaults(masks=clean), 1 if self._alike else clean)
        first, second, without = (
            np.concatenate(part) if part else np.empty(0) for part in self._parts
        )
        if self._alike:
            return first, first, np.broadcast_to(without, (clean, *first.shape[1:]))
        return first, second, without

    def _extend(self, replica: int, faults: ChipFaults, masks: int) -> None:
        start = self._masks[replica]
        if start >= masks:
            return
        done = sum(self._masks)

        def told(now: int, total: int) -> None:
            assert self._progress is not None
            share = (done + (masks - start) * now / total) / self._total
            self._progress(int(1000 * share), 1000)

        self._parts[replica].append(
            run(
                self._chip, self._inputs, faults, replica=replica, rows=(start, masks),
                progress=None if self._progress is None else told, **self._options,
            ).outputs
        )  # fmt: skip
        self._masks[replica] = masks


def _moments(
    first: Floats,
    second: Floats,
    clean: Floats,
    confidence: float,
    steps: int,
    released: bool,
    alike: bool,
) -> CrashStatistics:
    masks, reads = len(first), len(clean)
    both = (first + second) / 2.0
    base = _mean(clean)
    centred, other = first - _mean(first), second - _mean(second)
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
    mean = _mean(both) - base
    error = np.sqrt((both - both[0]).var(axis=0, ddof=1) / masks + clean_variance / reads)
    return CrashStatistics(
        mean=_mean_interval(mean, error, quantile, alike),
        variance=_variance_interval(variance, np.sqrt(spread), quantile, alike or released),
        clean=base,
        noise=((first - second) ** 2).mean(axis=0) / 2.0,
        reads=(first, second),
        masks=masks,
        confidence=confidence,
        steps=steps,
        width=_width(influence.sum(axis=(1, 2)), float(variance.sum()), quantile),
        alike=alike,
    )


def _mean(reads: Floats) -> Floats:
    """The mean over masks; that of equal reads is theirs to the last bit."""
    found: Floats = reads[0] + (reads - reads[0]).mean(axis=0)
    return found


def _mean_interval(mean: Floats, error: Floats, quantile: float, alike: bool) -> Moment:
    half = quantile * error
    if not alike:  # nothing moved, which says nothing of what masks not drawn would do
        half = np.where((mean == 0.0) & (error == 0.0), np.inf, half)
    return Moment(mean, mean - half, mean + half)


def _width(influence: Floats, variance: float, quantile: float) -> float:
    error = float(influence.std(ddof=1)) / math.sqrt(len(influence))
    return quantile * error / variance if variance > 0.0 else math.inf


def _variance_interval(variance: Floats, error: Floats, quantile: float, closed: bool) -> Moment:
    # the logarithm respects the sign and the skew; without a resolved sign stay symmetric
    resolved = variance > quantile * error
    safe = np.where(resolved, variance, 1.0)
    factor = np.exp(quantile * np.where(resolved, error, 0.0) / safe)
    low = np.where(resolved, variance / factor, np.minimum(variance - quantile * error, 0.0))
    high = np.where(resolved, variance * factor, variance + quantile * error)
    if not closed:  # nothing moved, which says nothing of what masks not drawn would do
        high = np.where((variance == 0.0) & (error == 0.0), np.inf, high)
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
