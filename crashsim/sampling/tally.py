"""What is counted of Monte Carlo samples: sums of bounded size, which add up.

``from_sums`` says what follows from them. Samples are drawn from all faults, or given two or more
of them (``crashsim.sampling.exact_strata``); the rest of the probability is then summed exactly.
With a control (``crashsim.sampling.control_variates``) means and variances are regressions on it.
Everything is centred about a fixed centre, the mean of the first samples, which keeps sums
accurate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.metrics import CLASS_CHANGE, NOT_FINITE, AskedMetrics
from crashsim.results.estimate import MOST_OUTPUTS
from crashsim.sampling.control_variates import Control
from crashsim.sampling.exact_strata import FewFaults
from crashsim.sampling.sums.joint_sums import JointSums, by_column
from crashsim.sampling.sums.metric_sums import MetricSums, centre_of, none_of, sums_of

Kept = Floats | NDArray[np.float32]
LARGEST = 1e38  # a Delta of which samples are kept, in single precision


@dataclass(frozen=True)
class Sums:
    """Sums over samples (or over weighted outcomes) of Delta, which is d = Delta - centre here.

    Attributes:
        per_input: of d and d^2, and with a control of L and L^2, each (B, K).
        pooled: of the same averaged over inputs, (K + 1,): the last is summed over outputs.
        failed: of the shares of inputs that fail, (K + 3,): |Delta_k| >= epsilon; for any k;
            class changed; some output not finite.
        tails, changes, lost: (B, K), (B,) and (B,) counts of |Delta| >= epsilon, of changed classes
            and of outputs that are not finite, which count as both.
        beyond: number of samples with a Delta that has no square, which d leaves out.
        products: (B, K, K) of d across outputs; empty beyond 64 of them.
        metrics: of each metric of the user's own.
        kept, linear: (n', B, K) in pieces: Delta of the first samples; L there, with a control.
    """

    per_input: JointSums
    pooled: JointSums
    failed: JointSums
    tails: Floats
    changes: Floats
    lost: Floats
    beyond: float
    products: Floats
    metrics: tuple[MetricSums, ...] = ()
    kept: tuple[NDArray[np.float32], ...] = ()
    linear: tuple[NDArray[np.float32], ...] = ()

    @property
    def n(self) -> int:
        """The number of samples."""
        return int(self.per_input.n)

    def __add__(self, other: Sums) -> Sums:
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        pairs = zip(self.metrics, other.metrics, strict=True)
        return Sums(**{**added, "metrics": tuple(a + b for a, b in pairs)})


def _squarable(delta: Floats) -> Floats:
    """Delta where samples can hold it, and so its square in double precision, else 0."""
    return np.where(np.abs(delta) <= LARGEST, delta, 0.0)


def quantities_of(d: Kept, linear: Kept | None) -> list[Floats]:
    """d and d^2, and with a control L and L^2, each of the shape of d (S, B, K)."""
    d = d.astype(np.float64, copy=False)
    if linear is None:
        return [d, d * d]
    linear = linear.astype(np.float64, copy=False)
    return [d, d * d, linear, linear * linear]


def pooled_over_inputs(quantities: list[Floats], control: Control | None) -> list[Floats]:
    """Averaged over inputs, and then also summed over outputs, each (S, K + 1)."""
    pooled = [q.mean(1) for q in quantities]
    pooled = [np.concatenate([q, q.sum(1, keepdims=True)], axis=1) for q in pooled]
    if len(pooled) > 2 and control is not None:
        pooled[2] *= control.adds_up
    return pooled


@dataclass(frozen=True)
class Tally:
    """What is counted of each sample: a function from outputs to sums, as data.

    Attributes:
        clean: (B, K) F(0).
        reach: the change of an output that counts for the tails; infinite without an epsilon.
        control: a surrogate of Delta; without, samples are averaged as they are.
        few: outcomes that are summed exactly; samples are then given that none of them happens.
        asked: the user's own metrics.
        centre: (B, K) what d = Delta - centre is measured from.
        metric_centres: of each metric, (B + 1,) what its values are measured from.
    """

    clean: Floats
    reach: float
    control: Control | None
    few: FewFaults | None
    asked: AskedMetrics
    centre: Floats
    metric_centres: tuple[Floats, ...]

    @classmethod
    def of(
        cls,
        clean: Floats,
        reach: float,
        control: Control | None,
        few: FewFaults | None,
        asked: AskedMetrics,
    ) -> Tally:
        """Without a centre."""
        none = np.zeros(len(clean) + 1)
        centres = tuple(none for _ in asked.metrics)
        return cls(clean, reach, control, few, asked, np.zeros_like(clean), centres)

    @property
    def rest(self) -> float:
        """Probability of what is sampled."""
        return 1.0 if self.few is None else self.few.rest

    def aimed(self, first: Sequence[tuple[Points, Floats]]) -> Tally:
        """The same with the mean that some first samples suggest for the centre.

        Args:
            first: points, and the outputs (n, B, K) there.
        """
        count = max(sum(points.count for points, _ in first), 1)
        centre = np.zeros_like(self.clean)
        for points, outputs in first:
            centre += self._beyond(points, _squarable(outputs - self.clean)).sum(0) / count
        if self.few is not None:
            exact = self._beyond(self.few.points, _squarable(self.few.deltas))
            centre = self.rest * centre + np.tensordot(self.few.weights, exact, 1)
        batches = [outputs for _, outputs in first]
        metric_centres = tuple(
            centre_of([self.asked.values(metric, outputs, self.clean) for outputs in batches])
            for metric in self.asked.metrics
        )
        return replace(self, centre=centre, metric_centres=metric_centres)

    def _beyond(self, points: Points, delta: Floats) -> Floats:
        """Delta less L, whose mean over all faults is zero."""
        return delta if self.control is None else delta - self.control.at(points)

    def count(self, points: Points, outputs: Floats, room: int) -> Sums:
        """The sums of samples with outputs (n, B, K), of which the first ``room`` are kept."""
        delta = by_column(outputs) - self.clean
        linear = None if self.control is None else self.control.at(points)
        with np.errstate(over="ignore"):  # of what single precision does not hold
            kept = () if room <= 0 else (delta[:room].astype(np.float32),)
            of_control = () if linear is None or not kept else (linear[:room].astype(np.float32),)
        return replace(self._sum(delta, outputs, linear), kept=kept, linear=of_control)

    @cached_property
    def exact(self) -> Sums:
        """Of the outcomes that are summed exactly, with their probabilities."""
        few = self.few
        if few is None:
            return self.none()
        linear = None if self.control is None else self.control.at(few.points)
        return self._sum(few.deltas, few.deltas + self.clean, linear, few.weights)

    def none(self) -> Sums:
        """Of no samples."""
        b, k = self.clean.shape
        m = 4 if self.control else 2
        products = (b, k, k) if k <= MOST_OUTPUTS else (0,)
        return Sums(
            per_input=JointSums.none(m, (b, k)),
            pooled=JointSums.none(m, (k + 1,)),
            failed=JointSums.none(1, (k + 3,)),
            tails=np.zeros((b, k)),
            changes=np.zeros(b),
            lost=np.zeros(b),
            beyond=0.0,
            products=np.zeros(products),
            metrics=tuple(none_of(metric, b) for metric in self.asked.metrics),
        )

    def _sum(
        self,
        delta: Floats,
        outputs: Floats,
        linear: Floats | None,
        weights: Floats | None = None,
    ) -> Sums:
        d, lost = delta - self.centre, np.zeros(delta.shape[:2], np.bool_)
        beyond = 0.0
        if not (delta.max() <= LARGEST and delta.min() >= -LARGEST):
            has_square = np.abs(delta) <= LARGEST
            beyond = float((~has_square).any((1, 2)).sum())
            d, lost = np.where(has_square, d, 0.0), NOT_FINITE.happens(outputs, self.clean, None)
        quantities = quantities_of(d, linear)
        d = quantities[0]
        changed = CLASS_CHANGE.happens(outputs, self.clean, None)
        counts = np.ones(len(delta)) if weights is None else weights
        moved, tails = None, np.zeros(delta.shape[1:])
        if beyond or not np.isinf(self.reach):
            moved = (np.abs(delta) >= self.reach) | lost[:, :, None]
            tails = np.einsum("s,sbk->bk", counts, moved)
        products = np.zeros(0)
        if delta.shape[2] <= MOST_OUTPUTS:
            weighted = d if weights is None else d * weights[:, None, None]
            products = np.matmul(weighted.transpose(1, 2, 0), d.transpose(1, 0, 2))
        per_input = JointSums.of(quantities, weights)
        if len(self.clean) == 1 and linear is None:  # all but their sum is known already
            total = [q.sum(2) for q in quantities]
            pooled = per_input.over_one_input(JointSums.of(total, weights))
        else:
            pooled = JointSums.of(pooled_over_inputs(quantities, self.control), weights)
        return Sums(
            per_input=per_input,
            pooled=pooled,
            failed=self._failed(moved, changed, lost, weights),
            tails=tails,
            changes=counts @ changed,
            lost=counts @ lost,
            beyond=beyond,
            products=products,
            metrics=self._metrics(outputs, weights),
        )

    def _failed(
        self,
        moved: NDArray[np.bool_] | None,
        changed: NDArray[np.bool_],
        lost: NDArray[np.bool_],
        weights: Floats | None,
    ) -> JointSums:
        """Sums of the shares of inputs that fail.

        Args:
            moved: (S, B, K) where |Delta| >= epsilon; None: nowhere.
            changed, lost: (S, B) where the class changes, or an output is not finite.
            weights: (S,) of the samples.
        """
        samples, inputs = changed.shape
        k = 0 if moved is None else self.clean.shape[1] + 1
        shares = np.empty((k + 2, samples)).T
        if moved is not None:
            shares[:, : k - 1] = moved.mean(1)
            shares[:, k - 1] = moved.any(2).mean(1)
        for column, event in ((k, changed), (k + 1, lost)):
            shares[:, column] = event[:, 0] if inputs == 1 else event.mean(1)
        found = JointSums.of([shares], weights)
        return found if moved is not None else found.after_zeros(self.clean.shape[1] + 1)

    def _metrics(self, outputs: Floats, weights: Floats | None) -> tuple[MetricSums, ...]:
        centres: Any = zip(self.asked.metrics, self.metric_centres, strict=True)
        return tuple(
            sums_of(metric, self.asked.values(metric, outputs, self.clean), centre, weights)
            for metric, centre in centres
        )
