"""The chip beside its network under the same masks: how far spikes are from exact activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .chip import Chip
from .engines.running import Engine, Progress, as_faults
from .reference import reference
from .statistics import CLEAN_READS, CrashStatistics, Moment, crash_statistics

__all__ = ["SpikingGap", "spiking_gap"]

Floats = NDArray[Any]


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
    engine: Engine = "numpy",
    progress: Progress | None = None,
    rel_width: float | None = None,
) -> SpikingGap:
    """Run chip and network under the same `faults`, mask by mask, and compare their moments.

    Arguments, warnings and errors as `crash_statistics` and `reference`.
    """
    broken = as_faults(chip, faults)
    chip_side = crash_statistics(
        chip,
        inputs,
        broken,
        seed=seed,
        confidence=confidence,
        engine=engine,
        progress=progress,
        rel_width=rel_width,
    )
    faulty = reference(chip, inputs, broken).outputs[: chip_side.masks]
    network = faulty - reference(chip, inputs).outputs
    mean, variance = network.mean(axis=0), network.var(axis=0, ddof=1)
    spiking = chip_side.outputs - chip_side.clean
    paired = spiking - network
    gap = paired.mean(axis=0)
    reads = min(chip_side.masks, CLEAN_READS)
    error = np.sqrt(paired.var(axis=0, ddof=1) / chip_side.masks + chip_side.noise / reads)
    quantile = float(stats.t.ppf(0.5 + chip_side.confidence / 2.0, chip_side.masks - 1))
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
