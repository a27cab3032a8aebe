"""What follows from the sums over chips: each metric's law, and its averages over examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from crashsim.arrays import Floats
from crashsim.metrics import AskedMetrics, OfSums, bounds_of
from crashsim.results.estimate import Interval
from crashsim.sampling.bounded_means import bounded_mean_interval
from crashsim.sampling.chips.law import ChipLaw
from crashsim.sampling.chips.sums import ChipSums
from crashsim.sampling.chips.two_levels import TwoLevelLaw
from crashsim.sampling.chips.virtual import VirtualChips
from crashsim.sampling.intervals import scalar_interval


@dataclass(frozen=True)
class FoundChips:
    """The metrics of chips that were judged on all examples.

    Attributes:
        sums: over chips.
        asked: the metrics.
        none: probability that a chip has no fault.
        singles: sums over the chips with each single fault, where ``sums`` are over those with
            more; weighted by their probabilities over chips.
        chances: (A,) these probabilities.
        virtual: what a surrogate says of the struck chips and of others; None: it was not asked.
    """

    sums: ChipSums
    asked: AskedMetrics
    none: float
    singles: ChipSums | None = None
    chances: Floats = field(default_factory=lambda: np.zeros(0))
    virtual: VirtualChips | None = None

    @property
    def examples(self) -> int:
        """The number of examples B."""
        return 0 if self.sums.clean is None else len(self.sums.clean)

    @cached_property
    def clean(self) -> Floats:
        """(M,) the metrics of a chip without faults."""
        assert self.sums.clean is not None
        found: Floats = self.asked.of_sums(self.sums.clean.sum(0)[None], self.examples)[0]
        return found

    @cached_property
    def values(self) -> Floats:
        """(n, M) the metrics of the chips that were struck, in the order of their numbers."""
        return self.asked.of_sums(self.sums.of_chips, self.examples)

    @cached_property
    def known(self) -> Floats:
        """(1 + A, M) the metrics without faults, and with each single one that was judged."""
        if self.singles is None:
            return self.clean[None]
        single = self.asked.of_sums(self.singles.of_chips, self.examples)
        return np.concatenate([self.clean[None], single])

    def law(self, number: int) -> ChipLaw | TwoLevelLaw:
        """The law over chips of the metric of this number: few faults are known exactly."""
        low, high = bounds_of(self.asked.metrics[number])
        weights = np.concatenate([[self.none], self.chances])
        plain = ChipLaw(self.known[:, number], weights, self.values[:, number], low, high)
        if self.virtual is None:
            return plain
        alone, paired = self._by_surrogate
        return TwoLevelLaw(plain, paired[: len(plain.sampled), number], alone[:, number])

    @cached_property
    def _by_surrogate(self) -> tuple[Floats, Floats]:
        """(N, M) and (n, M) the metrics as the surrogate has them, of virtual and real chips."""
        assert self.virtual is not None
        with np.errstate(over="ignore", invalid="ignore"):
            alone, paired = (
                self.asked.of_sums(sums, self.examples)
                for sums in (self.virtual.alone, self.virtual.paired)
            )
        return alone, paired

    def mean(self, number: int, alpha: float) -> Interval:
        """A metric's mean over chips, given the examples, ()."""
        return self.law(number).mean(alpha)

    def of_examples(self, number: int) -> tuple[Floats, Floats] | None:
        """(B,) a metric of each example: its mean over chips, and without faults.

        None where it is no mean over examples.
        """
        if isinstance(self.asked.metrics[number], OfSums) or self.sums.per_example is None:
            return None
        column = sum(self.asked.widths[:number])
        assert self.sums.clean is not None
        clean = self.sums.clean[:, column]
        struck = self.sums.struck
        under = self.sums.per_example[:, column] / struck if struck else clean
        with np.errstate(invalid="ignore"):
            found = self.none * clean + (1 - self.none - self.chances.sum()) * under
            if self.singles is not None and self.singles.per_example is not None:
                found = found + self.singles.per_example[:, column]
        return found, clean

    def of_population(self, number: int, alpha: float) -> tuple[Interval, Interval] | None:
        """A metric over chips and examples, and its change from the clean network, each ().

        The examples are taken for independent draws from a population. What their choice and that
        of the chips may have changed are independent to first order, so they add in quadrature.
        None for what is no mean over examples.
        """
        over_chips = self.mean(number, alpha)
        total, examples = self.over_examples(number, alpha, over_chips), self.of_examples(number)
        if total is None or examples is None:
            return None
        mean, clean = examples
        low, high = bounds_of(self.asked.metrics[number])
        width = high - low
        paired = bounded_mean_interval(mean - clean, -width, width, alpha)
        shifted = over_chips.value - self.clean[number]
        change = scalar_interval(
            shifted,
            over_chips.low - self.clean[number],
            over_chips.high - self.clean[number],
        )
        return total, _added(change, paired, -width, width)

    def over_examples(self, number: int, alpha: float, over_chips: Interval) -> Interval | None:
        """A metric over chips and examples, given its mean over chips, (); None as above."""
        found = self.of_examples(number)
        if found is None:
            return None
        low, high = bounds_of(self.asked.metrics[number])
        return _added(over_chips, bounded_mean_interval(found[0], low, high, alpha), low, high)


def _added(first: Interval, second: Interval, low: float, high: float) -> Interval:
    """The first interval widened by what the second allows on either side of its value."""
    with np.errstate(invalid="ignore"):
        down = np.hypot(first.value - first.low, second.value - second.low)
        up = np.hypot(first.high - first.value, second.high - second.value)
        value = first.value
        ends = np.maximum(value - down, low), np.minimum(value + up, high)
    return scalar_interval(value, *ends)
