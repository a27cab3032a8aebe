"""Estimates of the chip's moments and class changes, per input and pooled over inputs."""

from __future__ import annotations

import crashsim_hardware as chips
import numpy as np

from crashsim.arrays import Floats
from crashsim.metrics import CLASS_CHANGE
from crashsim.results.estimate import Interval
from crashsim.results.estimates import Estimates, estimates_of
from crashsim.sampling.bounded_means import clustered_proportion_interval
from crashsim.sampling.intervals import (
    Spread,
    half_width,
    mean_interval,
    proportion_interval,
    variance_interval,
)


def chip_estimates(exact: Floats, found: chips.CrashStatistics, released: bool) -> Estimates:
    """Mean, variance and class change of the chip, with ``exact`` (B, K) as outputs without faults.

    ``released``: every run is random: releases fail, or reads are noisy.
    """
    confidence, n = found.confidence, found.masks
    alpha = 1 - confidence
    delta = found.outputs - found.clean
    note = f"{found.steps} time steps, {n} masks"
    mean = _values(found.mean)
    moved = delta.mean(1)
    half = half_width(Spread.of(moved), n, alpha)
    if not found.alike:  # nothing moved, which says nothing of what masks not drawn would do
        half = np.where((moved == 0).all(0), np.inf, half)
    estimates = estimates_of(
        "hardware", "mean", "statistical", per_input=mean,
        pooled=mean_interval(mean.value.mean(0), half),
        confidence=confidence, note=note,
    )  # fmt: skip
    pooled, total = _pooled_variance(found, alpha, released)
    estimates += estimates_of(
        "hardware", "variance", "statistical", per_input=_values(found.variance),
        pooled=pooled, total=total,
        confidence=confidence, note=note,
    )  # fmt: skip
    if exact.shape[1] > 1:
        # A single read, as a chip is used; so spiking noise is in it.
        reads = found.reads[0] - found.clean + exact
        changed = CLASS_CHANGE.happens(reads, exact, None)
        shares = changed.mean(1)
        estimates += estimates_of(
            "hardware", "class-change", "statistical",
            per_input=proportion_interval(changed.sum(0), n, alpha),
            pooled=clustered_proportion_interval(
                np.asarray(shares.mean()), np.asarray(shares.var(ddof=1)), n, len(exact), alpha
            ),
            confidence=confidence, note=f"{note}; one read each, spiking noise included",
        )  # fmt: skip
    return estimates


def _pooled_variance(
    found: chips.CrashStatistics, alpha: float, released: bool
) -> tuple[Interval, Interval]:
    """Var Delta averaged over inputs: of each output (K,), and of all together ().

    The covariance of two reads of each mask, in which spiking noise cancels. Failing releases would
    cancel too: there the average of the inputs' own estimates, whose intervals' ends are averaged
    as if all erred together.
    """
    if released:
        v = found.variance
        each = Interval(v.value.mean(0), v.low.mean(0), v.high.mean(0))
        return each, Interval(v.value.mean(0).sum(), v.low.mean(0).sum(), v.high.mean(0).sum())
    if found.alike:
        none, whole = np.zeros(found.clean.shape[1]), np.zeros(())
        return Interval(none, none, none), Interval(whole, whole, whole)
    n = found.masks
    # masks that all read the same have a variance of 0, not of rounding
    first, second = (
        shifted - shifted.mean(0) for shifted in (reads - reads[0] for reads in found.reads)
    )
    products = (first * second * (n / (n - 1))).mean(1)
    products = np.concatenate([products, products.sum(1, keepdims=True)], axis=1)
    half = half_width(Spread.of(products), n, alpha)
    interval = variance_interval(np.maximum(products.mean(0), 0), half)
    return interval[:-1], interval[-1]


def _values(moment: chips.Moment) -> Interval:
    return Interval(moment.value, moment.low, moment.high)
