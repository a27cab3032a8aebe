"""The probability of a rare event from the weights of its samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, stdtrit

from crashsim.arrays import Floats

DEFENSIVE = 0.1  # share of the untilted law in the proposal: no weight exceeds its inverse
_FEW_HITS = 50  # effective hits below which an interval deserves no trust
_LARGEST_SHARE = 0.2  # of one sample in the whole estimate, above which likewise


@dataclass(frozen=True)
class RareEvent:
    """The probability of a union of events.

    Attributes:
        value, low, high: the estimate and its interval (asymptotic).
        error: standard error, relative to the value (infinite without a hit).
        samples: spent.
        effective: hits that equally weighted ones would be worth.
        largest_share: of one sample in the estimate.
    """

    value: float
    low: float
    high: float
    error: float
    samples: int
    effective: float
    largest_share: float

    @property
    def naive_variance(self) -> float:
        """Of a plain sample."""
        return self.value * (1 - self.value)

    @property
    def is_trusted(self) -> bool:
        """Whether enough samples share the estimate for its interval to mean something.

        It cannot see a way to fail that no sample has hit.
        """
        return self.effective >= _FEW_HITS and self.largest_share <= _LARGEST_SHARE


@dataclass(frozen=True)
class WeightSums:
    """Sums over the weights of samples, 0 for those that miss the event.

    Weights are relative to the largest: the squares of weights themselves might underflow.

    Attributes:
        n: number of samples.
        largest: the largest weight.
        total, squares: of the weights and of their squares, relative to it.
        hits: number of weights that are not 0.
    """

    n: int
    largest: float
    total: float
    squares: float
    hits: int

    @classmethod
    def of(cls, weights: Floats) -> WeightSums:
        """Of weights (n,)."""
        largest = float(weights.max())
        if largest == 0:
            return cls(len(weights), 0.0, 0.0, 0.0, 0)
        relative = weights / largest
        hits = int(np.count_nonzero(weights))
        return cls(len(weights), largest, float(relative.sum()), float((relative**2).sum()), hits)

    def __add__(self, other: WeightSums) -> WeightSums:
        largest = max(self.largest, other.largest)
        if largest == 0:
            return WeightSums(self.n + other.n, 0.0, 0.0, 0.0, 0)
        a, b = self.largest / largest, other.largest / largest
        return WeightSums(
            self.n + other.n,
            largest,
            a * self.total + b * other.total,
            a**2 * self.squares + b**2 * other.squares,
            self.hits + other.hits,
        )

    def summary(self, alpha: float) -> RareEvent:
        """The probability, with an interval of confidence ``1 - alpha``."""
        n, largest = self.n, self.largest
        if largest == 0:
            # Weights are at most 1 / share of the untilted law, and none of n samples hit.
            high = unseen(n, alpha)
            return RareEvent(0.0, 0.0, high, np.inf, n, 0.0, 1.0)
        mean = self.total / n
        error = float(np.sqrt(max(self.squares / n - mean**2, 0.0) / n)) / mean
        effective = self.total**2 / self.squares
        # The spread of weights is known from the hits alone. Where few share the estimate, heavier
        # ones are still to come: half as many degrees of freedom then hold (simulated, lognormal).
        freedom = float(np.clip((effective - 1) / 2, 1, max(n - 1, 1)))
        factor = float(np.exp(min(stdtrit(freedom, 1 - alpha / 2) * error, 700.0)))
        # No hit weighs more than the inverse of a share, however few they are.
        at_most = float(betaincinv(self.hits + 1, max(n - self.hits, 1), 1 - alpha / 2)) / DEFENSIVE
        # An unbiased estimate is 2 / alpha times too large once in as many times (Markov).
        least = max(1 / factor, alpha / 2)
        value = min(1.0, mean * largest)
        return RareEvent(
            value=value,
            low=value * least,
            high=max(value, min(1.0, value * factor, at_most)),
            error=error,
            samples=n,
            effective=effective,
            largest_share=1 / self.total,
        )


def unseen(n: int, alpha: float) -> float:
    """The largest probability, with confidence 1 - alpha, of what none of n samples met.

    Of any set of samples, whatever guides them: a share of them is of the faults' own law.
    """
    return float(min(1.0, (1 - alpha ** (1 / n)) / DEFENSIVE))
