"""Which of many examples are looked at: the likelier to change the surer, the others now and then.

A rough risk of every example, of its margins alone, adds up to a first total. What those that are
looked at show beyond their risk is added with the weight 1 / (chance to be looked at): the
difference estimator, whose expectation is the total of all examples whatever the risks are worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats

_SPREAD = 0.1  # share of the chances that all examples have alike
_STEPS = 100


@dataclass(frozen=True, eq=False)
class LookedAt:
    """Some of B examples.

    Attributes:
        which: (n,) their numbers.
        chances: (B,) of every example to be among them.
    """

    which: NDArray[np.int64]
    chances: Floats

    @property
    def is_all(self) -> bool:
        """Whether no example is left out."""
        return len(self.which) == len(self.chances)

    @classmethod
    def all_of(cls, count: int) -> LookedAt:
        """Every example."""
        return cls(np.arange(count), np.ones(count))

    @classmethod
    def by_risk(
        cls, risks: Floats, costs: Floats, budget: float, rng: np.random.Generator
    ) -> LookedAt:
        """Examples with chances in proportion to their risk, systematically.

        Args:
            risks: (rates, B); what counts of an example is its largest share of a rate's total.
            costs: (B,) of looking at each.
            budget: of costs, that is spent on average.
        """
        totals = risks.sum(1, keepdims=True)
        shares = np.divide(risks, totals, out=np.zeros_like(risks), where=totals > 0).max(0)
        mean = float(shares.mean()) or 1.0
        wanted = shares + _SPREAD * mean
        low, high = 0.0, 1.0 / float(wanted.min())
        for _ in range(_STEPS):
            factor = (low + high) / 2
            spent = float(np.minimum(factor * wanted, 1.0) @ costs)
            low, high = (factor, high) if spent < budget else (low, factor)
        chances = np.minimum(high * wanted, 1.0)
        # In the order of their risks, so that those looked at are spread over it.
        order = np.argsort(-wanted, kind="stable")
        ends = np.cumsum(chances[order]) + rng.random()
        at = np.floor(ends) > np.floor(ends - chances[order])
        sure = chances[order] >= 1.0
        return cls(np.sort(order[at | sure]), chances)

    def total(self, rough: Floats, found: Floats) -> tuple[Floats, Floats]:
        """The total over all examples, and its standard error by who is looked at.

        Args:
            rough: (rates, B) of every example.
            found: (rates, n) of those that were looked at.
        """
        chances = self.chances[self.which]
        weighted = (found - rough[:, self.which]) / chances
        error = np.sqrt(((1 - chances) * weighted**2).sum(1))
        return rough.sum(1) + weighted.sum(1), error
