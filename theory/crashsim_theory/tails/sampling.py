"""Exact draws of crash masks from {U >= eps}: the second half of "certify, then sample".

If readout . Delta <= U but for exceptions, every mask with Delta >= eps lies in A = {U >= eps}
(rounded up), so P(Delta >= eps) = P(A) P(Delta >= eps | A): forward passes are spent only where
they can hit. With Clopper-Pearson limits [lo, hi] of the hits among fresh masks from A, delta lies
in [P(A) lo, P(A) hi + exceptions], without asymptotics. Fix U before drawing.

Sums of gains, rounded up to multiples of a cell, are kept between two ends: state' = clip(state +
k b). Coordinates with negative gains come first, so that clipping at the top (at or above the
threshold, when only positive gains follow) changes nothing, and clipping at the bottom only adds
masks to A. The law of the state is tabulated forward; masks are drawn backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from crashsim_theory.arrays import Array
from crashsim_theory.errors import TheoryError
from crashsim_theory.tails.exact import UNDERFLOW, UNIT, Grid
from crashsim_theory.tails.surrogate import LinearSurrogate

TABLE_BYTES = 400_000_000


@dataclass(frozen=True, eq=False)
class ExceedanceSampler:
    """Draws masks given A, an event that contains {surrogate >= eps}.

    Attributes:
        low, high: proved bracket of P(A).
    """

    low: float
    high: float
    _p: Array
    _steps: Any
    _order: Any
    _table: Array  # the law of the state after each coordinate, (N + 1, cells)
    _origin: int
    _target: int

    def draw(self, count: int, rng: np.random.Generator) -> Any:
        """`count` masks (count, N) of 0 and 1, independent, from the crash law given A.

        Exact up to the rounding of the table, some 1e-12 in total variation.
        """
        law = np.cumsum(self._table[-1, self._target :])
        state = self._target + np.searchsorted(law, rng.random(count) * law[-1], side="right")
        state = np.minimum(state, self._table.shape[1] - 1)
        masks = np.zeros((count, len(self._p)), dtype=np.uint8)
        for i in range(len(self._p) - 1, -1, -1):
            crashed, state = self._step_back(i, state, rng)
            masks[:, self._order[i]] = crashed
        return masks

    def contains(self, masks: Any) -> Any:
        """Whether each mask (M, N) lies in A."""
        state = np.full(len(masks), self._origin)
        for i, k in enumerate(self._steps.tolist()):
            moved = state + k * np.asarray(masks)[:, self._order[i]].astype(np.int64)
            state = np.clip(moved, 0, self._table.shape[1] - 1)
        return state >= self._target

    def _step_back(self, i: int, state: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        """Whether coordinate i crashed, and the state before it, given the state after it."""
        before, k, p = self._table[i], int(self._steps[i]), float(self._p[i])
        last = len(before) - 1
        first = np.where(state == 0, 0, state - k)
        stop = np.where(state == last, last, state - k)
        # A state at either end comes from every state that the clipping would have sent there.
        first, stop = np.clip(first, 0, last + 1), np.clip(stop, -1, last)
        sums = np.concatenate([[0.0], np.cumsum(before)])
        single = first == stop
        inside = np.where(single, before[np.minimum(first, last)], 0.0)
        wide = ~single & (first < stop)
        inside[wide] = sums[stop[wide] + 1] - sums[first[wide]]
        with_crash, without = p * inside, (1 - p) * before[state]
        crashed = rng.random(len(state)) * (with_crash + without) < with_crash
        previous = np.where(crashed, first, state)
        several = np.flatnonzero(crashed & wide)
        if several.size:
            start, end = sums[first[several]], sums[stop[several] + 1]
            level = start + rng.random(several.size) * (end - start)
            found = np.searchsorted(sums, level, side="right") - 1
            previous[several] = np.clip(found, first[several], stop[several])
        return crashed, previous


def exceedance_sampler(
    surrogate: LinearSurrogate, eps: float, cells: int | None = None
) -> ExceedanceSampler:
    """Prepare draws of crash masks given U >= eps, for one surrogate (an `Envelope`'s, say).

    Args:
        surrogate: without leading axes, Bernoulli coordinates only.
        eps: threshold, attainable.
        cells: of the table; None takes 16,000, or fewer where the table would exceed 400 MB.

    Raises:
        TheoryError: leading axes, normal coordinates, or U never reaches eps.
    """
    if surrogate.shape:
        raise TheoryError("surrogate.shape", surrogate.shape, "give one surrogate without axes")
    if np.any(surrogate.normal_variance > 0):
        raise TheoryError("surrogate", surrogate, "normal coordinates have no lattice")
    if surrogate.coordinates.others:
        raise TheoryError("surrogate", surrogate, "is for Bernoulli coordinates")
    gains, p = surrogate.bernoulli_gains, surrogate.coordinates.p
    c = math.nextafter(eps - float(surrogate.shift), -math.inf)
    if math.fsum(np.maximum(gains[p > 0], 0)) < c:
        raise TheoryError("eps", eps, "the surrogate never reaches it: its tail is 0")
    if cells is None:
        cells = max(64, min(16_000, TABLE_BYTES // (8 * (len(p) + 1))))
    grid = Grid.around(p, gains, c, cells)
    order = np.argsort(gains > 0, kind="stable")
    steps = np.clip(grid.multiples(gains[order], np.ceil), -grid.size, grid.size)
    target = max(grid.target(c), 0)
    table = np.zeros((len(p) + 1, grid.size))
    table[0, grid.origin] = 1.0
    for i, (k, p_i) in enumerate(zip(steps.tolist(), p[order].tolist(), strict=True)):
        moved = p_i * table[i]
        table[i + 1] = (1 - p_i) * table[i]
        if k >= 0:
            table[i + 1, k:] += moved[: grid.size - k]
            table[i + 1, -1] += moved[grid.size - k :].sum()
        else:
            table[i + 1, : grid.size + k] += moved[-k:]
            table[i + 1, 0] += moved[:-k].sum()
    mass = float(table[-1, target:].sum())
    error = 4 * (len(p) + grid.size + 16) * UNIT
    return ExceedanceSampler(
        max(0.0, mass * (1 - 2 * error) - UNDERFLOW),
        min(1.0, mass * (1 + 2 * error) + UNDERFLOW),
        p[order],
        steps,
        order,
        table,
        grid.origin,
        target,
    )
