"""Strata of examples by how often a surrogate says that they change, and means that follow.

A chip meets the examples that change most, and one of several groups of the others, which stands
for all of them. What the surrogate says of these very examples is taken off, and its mean over
virtual chips, which cost no inference, put in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.coordinates.streams import Stream, generator
from crashsim.results.estimate import Interval
from crashsim.sampling.bounded_means import bounded_mean_interval
from crashsim.sampling.intervals import scalar_interval

_GROUPS = 10  # of examples that seldom change: a chip meets one of them
_HELD = 0.6  # share of all changes that the examples hold which every chip meets
_CUT = 0.005  # share of pilots beyond which the surrogate's values are cut off, on either side
_SHARE = 0.2  # of the error that the virtual chips' interval may spend


@dataclass(frozen=True, eq=False)
class Strata:
    """Which examples a chip meets: the first, and one group of the others.

    Attributes:
        label: (B,) 0 of those that every chip meets, else the number of the group.
        sizes: (1 + G,) of each; the only group is empty where every chip meets all.
    """

    label: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def by_risk(cls, risk: Floats, seed: int) -> Strata:
        """Those that hold most of all changes come first, the others in groups by chance."""
        order = np.argsort(-risk, kind="stable")
        held = np.cumsum(risk[order])
        first = int(np.searchsorted(held, _HELD * held[-1])) + 1 if held[-1] > 0 else 1
        label = np.zeros(len(risk), dtype=np.int64)
        others = generator(seed, Stream.EXAMPLES).permutation(order[first:])
        for group, part in enumerate(np.array_split(others, min(_GROUPS, len(others) or 1)), 1):
            label[part] = group
        return cls(label, np.bincount(label, minlength=2))

    @property
    def shares(self) -> Floats:
        """(G,) how likely a chip meets each group."""
        sizes = self.sizes[1:]
        return np.asarray(sizes / sizes.sum() if sizes.sum() else np.ones(1))

    def groups(self, seed: int, block: int, chips: int) -> NDArray[np.int64]:
        """(chips,) which group each chip of a block meets."""
        rng = generator(seed, Stream.EXAMPLES, 1 + block)
        return 1 + rng.choice(len(self.shares), chips, p=self.shares)

    def averages(self, sums: Floats) -> Floats:
        """(n, G) over all examples, by sums (n, 1 + G): each group stands for all others."""
        others = self.sizes[1:].sum() / np.maximum(self.sizes[1:], 1)
        return np.asarray((sums[:, :1] + others * sums[:, 1:]) / self.sizes.sum())


@dataclass(frozen=True, eq=False)
class StratifiedMean:
    """The mean over struck chips from virtual and real ones.

    Attributes:
        strata: which examples a chip meets.
        ends: between which the surrogate's values are kept, so that no difference from them can be
            large upwards and downwards.
        bounds: of the metric.
    """

    strata: Strata
    ends: tuple[float, float]
    bounds: tuple[float, float]

    @classmethod
    def of(cls, strata: Strata, pilots: Floats, bounds: tuple[float, float]) -> StratifiedMean:
        """By the surrogate's sums (n, 1 + G) of chips that serve nothing else."""
        values = strata.averages(pilots)
        if not values.size:
            return cls(strata, bounds, bounds)
        low, high = np.quantile(values, [_CUT, 1 - _CUT], method="nearest")
        return cls(strata, (float(low), float(high)), bounds)

    def mean(
        self,
        said: Floats,
        of_real: Floats,
        judged: Floats,
        group: NDArray[np.int64],
        alpha: float,
    ) -> Interval:
        """The mean over struck chips, with its interval, ().

        Args:
            said: (N, 1 + G) the surrogate's sums of virtual chips.
            of_real: (n, 1 + G) those of real ones.
            judged: (n, 2) these chips' sums over the first examples and their group.
            group: (n,) which.
            alpha: 1 - confidence.
        """
        met = of_real.copy()
        rows = np.arange(len(judged))
        met[:, 0], met[rows, group] = judged[:, 0], judged[:, 1]
        real = self.strata.averages(met)[rows, group - 1]
        paired = np.clip(self.strata.averages(of_real), *self.ends)[rows, group - 1]
        virtual = np.clip(self.strata.averages(said), *self.ends) @ self.strata.shares
        (low, high), (least, most) = self.ends, self.bounds
        part = bounded_mean_interval(virtual, low, high, alpha * _SHARE)
        off = bounded_mean_interval(real - paired, least - high, most - low, alpha * (1 - _SHARE))
        value = part.value + (off.value if len(real) else 0.0)
        ends = (value, part.low + off.low, part.high + off.high)
        return scalar_interval(*(np.clip(end, least, most) for end in ends))
