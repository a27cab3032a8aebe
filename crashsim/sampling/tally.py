"""Sums over Monte Carlo samples, of bounded size; ``from_sums`` says what follows from them.

Samples are drawn from all faults, or given two or more of them
(``crashsim.sampling.exact_strata``); the rest of the probability is then summed exactly. With a
control (``crashsim.sampling.control_variates``) means and variances are regressions on it.
Everything is centred about a fixed centre, the mean of the first samples, which keeps sums
accurate; it is computed ahead, so it does not depend on how samples are batched.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from crashsim.analytic.rounding import least_reaching
from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.results.estimate import MOST_OUTPUTS
from crashsim.sampling.control_variates import Control
from crashsim.sampling.exact_strata import FewFaults
from crashsim.sampling.from_sums import (
    Counted,
    FromSums,
    Sums,
    pooled_over_inputs,
    quantities_of,
)
from crashsim.sampling.intervals import ENOUGH
from crashsim.sampling.joint_sums import JointSums
from crashsim.space import FaultSpace


class Tally:
    """What a run has seen so far.

    Args:
        space: the model, its inputs and faults.
        epsilon: of the tails; none are counted without.
        control: a surrogate of Delta; without, samples are averaged as they are.
        few: outcomes that are summed exactly; samples are then given that none of them happens.
        most_kept: number of samples kept for quantiles and pictures.

    Attributes:
        n: number of samples.
    """

    def __init__(
        self,
        space: FaultSpace,
        epsilon: float | None,
        control: Control | None,
        few: FewFaults | None,
        most_kept: int,
    ) -> None:
        self._space, self._epsilon = space, epsilon
        self._control, self._few = control, few
        self._clean = space.clean()
        self._class = self._clean.argmax(1)
        self._centre = np.zeros_like(self._clean)
        self._rest = 1.0 if few is None else few.rest
        self._reach = np.inf if epsilon is None else least_reaching(space, epsilon)
        self._sums = self._none()
        self._exact = self._none()
        self._found: FromSums | None = None
        self._kept = np.empty((most_kept, *self._clean.shape), np.float32)
        self._linear = np.empty(
            (0 if control is None else most_kept, *self._clean.shape), np.float32
        )

    @property
    def kept(self) -> NDArray[np.float32]:
        """(n', B, K) Delta of the first samples."""
        return self._kept[: self.n]

    @property
    def n(self) -> int:
        return int(self._sums.per_input.n)

    @property
    def seldom_struck(self) -> list[tuple[str, float]]:
        """The sites whose faults strike too seldom in so many samples to show what they do, and how
        often they strike."""
        if self._few is not None or self._control is not None:
            return []  # each single strike is known, or what it does about
        chance = {p.site.name: 0.0 for p in self._space.placements}
        for p in self._space.placements:
            chance[p.site.name] += float(np.full(p.size, p.fault.unusual_probability).sum())
        strikes = {name: self.n * each for name, each in chance.items() if each > 0}
        return [(name, many) for name, many in strikes.items() if 2 * many < ENOUGH]

    def aim(self, first: list[tuple[Points, Floats]]) -> None:
        """Takes the mean that these first samples suggest for the centre; counts none of them.

        Args:
            first: points, and the outputs (n, B, K) there.
        """
        count = max(sum(points.count for points, _ in first), 1)
        centre = np.zeros_like(self._clean)
        for points, outputs in first:
            centre += self._beyond(points, outputs - self._clean).sum(0) / count
        if self._few is not None:
            exact = self._beyond(self._few.points, self._few.deltas)
            centre = self._rest * centre + np.tensordot(self._few.weights, exact, 1)
        self._centre = centre
        self._sum_exactly()

    def _beyond(self, points: Points, delta: Floats) -> Floats:
        """Delta less L, whose mean over all faults is zero."""
        return delta if self._control is None else delta - self._control.at(points)

    def add(self, points: Points, outputs: Floats) -> None:
        """Counts samples, of these outputs (n, B, K)."""
        delta = outputs - self._clean
        linear = None if self._control is None else self._control.at(points)
        room = max(0, len(self._kept) - self.n)
        self._kept[self.n : self.n + len(delta)] = delta[:room]
        if linear is not None:
            self._linear[self.n : self.n + len(delta)] = linear[:room]
        # One assignment: an interrupt finds the sums with these samples or without them.
        self._sums = self._sums + self._sum(delta, linear)

    def _none(self) -> Sums:
        b, k = self._clean.shape
        m = 4 if self._control else 2
        products = (b, k, k) if k <= MOST_OUTPUTS else (0,)
        return Sums(
            JointSums.none(m, (b, k)),
            JointSums.none(m, (k + 1,)),
            JointSums.none(1, (k + 2,)),
            np.zeros((b, k)),
            np.zeros(b),
            np.zeros(products),
        )

    def _sum_exactly(self) -> None:
        if self._few is not None:
            linear = None if self._control is None else self._control.at(self._few.points)
            self._exact = self._sum(self._few.deltas, linear, self._few.weights)

    def _sum(self, delta: Floats, linear: Floats | None, weights: Floats | None = None) -> Sums:
        quantities = quantities_of(delta - self._centre, linear)
        d = quantities[0]
        pooled = pooled_over_inputs(quantities, self._control)
        moved = np.abs(delta) >= self._reach
        changed = (delta + self._clean).argmax(2) != self._class
        shares = np.concatenate(
            [moved.mean(1), moved.any(2).mean(1)[:, None], changed.mean(1)[:, None]], axis=1
        )
        counts = np.ones(len(delta)) if weights is None else weights
        products = np.zeros(0)
        if delta.shape[2] <= MOST_OUTPUTS:
            weighted = d if weights is None else d * weights[:, None, None]
            products = np.einsum("sbk,sbl->bkl", weighted, d, optimize=True)
        return Sums(
            JointSums.of(quantities, weights),
            JointSums.of(pooled, weights),
            JointSums.of([shares], weights),
            np.einsum("s,sbk->bk", counts, moved),
            counts @ changed,
            products,
        )

    @property
    def found(self) -> FromSums:
        """What follows from the samples so far."""
        if self._found is None or self._found.n != self.n:
            self._found = FromSums(
                Counted(
                    clean=self._clean,
                    centre=self._centre,
                    sums=self._sums,
                    exact=self._exact,
                    kept=self.kept,
                    linear=self._linear[: self.n],
                    unit=torch.finfo(self._space.dtype).eps,
                    is_random=bool((self._space.moments.k2 > 0).any()),
                    is_seldom_struck=bool(self.seldom_struck),
                ),
                self._epsilon,
                self._control,
                self._few,
            )
        return self._found
