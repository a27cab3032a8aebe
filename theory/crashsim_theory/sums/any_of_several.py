"""P(some of several surrogates reaches 0), such as the margin of any rival class.

The sum of their tails counts a fault twice that brings two of them there. By Karp and Luby (1983),
P(any) = sum_r P(A_r) E(1 / number of events that hold, given A_r). The tails P(A_r) come from the
law; the second factor, which lies between 1 / R and 1 and hardly varies, from a few hundred draws
under the tilt that makes A_r typical. However rare the events are, both cost the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from crashsim_theory.arrays import Array
from crashsim_theory.sums.profile import Integers, Profile
from crashsim_theory.sums.tails import solve_tilt
from crashsim_theory.tails.gain_chunks import GainChunk

SAMPLES = 512
_MATTERS = 0.01  # share of the sum of tails below which an event's overlap is left out
_SURE = 1 - 1e-12


@dataclass(frozen=True, eq=False)
class Contributions:
    """What R surrogates are made of, for draws of all of them together.

    Attributes:
        chunks: their Bernoulli coordinates, as they are read again and again.
        shift: (R,) without faults.
        normal: (R, R) covariance that normal coordinates add; None: there are none.
    """

    chunks: Sequence[GainChunk]
    shift: Array
    normal: Array | None = None

    def draw(self, row: int, tilt: float, samples: int, rng: np.random.Generator) -> Array:
        """Independent values (samples, R), under a tilt of the surrogate of this row."""
        total = np.tile(self.shift, (samples, 1))
        for chunk in self.chunks:
            for block in chunk.blocks():
                sample, at = _struck(block, row, tilt, samples, rng)
                value, bit = np.divmod(at, block.displacements[0].size)
                moved = block.displacements.reshape(len(block.displacements), -1)[value, bit]
                for r in range(chunk.rows):
                    total[:, r] += np.bincount(sample, block.gains[r, value] * moved, samples)
        if self.normal is not None:
            spread = rng.multivariate_normal(
                tilt * self.normal[row], self.normal, samples, method="eigh"
            )
            total += spread
        return total


def _struck(
    block: GainChunk, row: int, tilt: float, samples: int, rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """Samples and flat coordinates that are struck in them, each pair once.

    Points of a Poisson process with intensity -log(1 - p) strike a coordinate with p.
    """
    p = np.broadcast_to(block.p, block.displacements.shape).reshape(-1)
    if tilt:
        gains = block.gains[row].astype(np.float64)
        moved = block.displacements
        g = (gains[:, np.newaxis] * moved if moved.ndim == 2 else gains * moved).reshape(-1)
        with np.errstate(divide="ignore"):
            p = expit(np.log(p) - np.log1p(-p) + tilt * g)
    ends = np.cumsum(-np.log1p(-np.minimum(p, _SURE)))
    points = rng.poisson(ends[-1], samples)
    sample = np.repeat(np.arange(samples), points)
    at = np.searchsorted(ends, rng.random(len(sample)) * ends[-1], side="right")
    pairs = np.unique(sample * len(p) + np.minimum(at, len(p) - 1))
    sample, at = np.divmod(pairs, len(p))
    return sample, at


def chance_of_any(
    profiles: Sequence[Profile],
    tails: Array,
    given: Contributions,
    rng: np.random.Generator,
    samples: int = SAMPLES,
) -> float:
    """P(L_r >= 0 for some r), an estimate to some percent of what several events share.

    Args:
        profiles: of the R surrogates.
        tails: (R,) P(L_r >= 0).
        given: what they are made of.
        rng: of the draws.
        samples: drawn for each event that matters.
    """
    total = float(tails.sum())
    if total == 0 or np.sum(tails > _MATTERS * total) < 2:
        return min(total, 1.0)
    found = 0.0
    for row, tail in enumerate(tails.tolist()):
        share = 1.0
        if tail > _MATTERS * total:
            share = _share(profiles[row], row, given, rng, samples)
        found += tail * share
    return min(max(found, float(tails.max())), total, 1.0)


def _share(
    profile: Profile, row: int, given: Contributions, rng: np.random.Generator, samples: int
) -> float:
    """E(1 / number of events, given that the one of this row holds)."""
    tilt = solve_tilt(profile, -profile.shift)
    if not math.isfinite(tilt):
        tilt = math.copysign(40.0 / float(np.abs(profile.gains).max()), tilt)
    tilt = max(tilt, 0.0)
    values = given.draw(row, tilt, samples, rng)
    holds = values[:, row] >= 0
    if not holds.any():
        return 1.0
    reached: Any = values[holds]
    weights = np.exp(-tilt * (reached[:, row] - reached[:, row].min()))
    return float(weights @ (1 / (reached >= 0).sum(1)) / weights.sum())
