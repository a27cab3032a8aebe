"""P(some of several surrogates reaches 0), such as the margin of any rival class.

The sum of their tails counts a fault twice that brings two of them there. By Karp and Luby (1983),
P(any) = sum_r P(A_r) E(1 / number of events that hold, given A_r). The tails P(A_r) come from the
law; the second factor, which lies between 1 / R and 1 and hardly varies, from a thousand draws
under a tilt that makes A_r typical. However rare the events are, both cost the same.

The tilt is that of the sum in which no contribution is larger than the way to go. Where single
faults bring A_r about, all of those that do are then as likely as each other, as they are by their
own law; the plain tilt would draw the largest alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from crashsim_theory.arrays import Array
from crashsim_theory.sums.profile import Integers, Profile
from crashsim_theory.sums.tails import solve_tilt
from crashsim_theory.tails.gain_chunks import GainChunk

SAMPLES = 1024
_MATTERS = 0.01  # share of the sum of tails from which an event's overlap is drawn by itself
_STAND_FOR_ALL = 24  # of the others, as many pixels that are overtaken together, draw theirs
_OFTEN = 0.1  # an event of which plain draws see enough
_SURE = 1 - 1e-12


@dataclass(frozen=True, eq=False)
class Contributions:
    """What R surrogates are made of, for draws of all of them together.

    Attributes:
        chunks: their Bernoulli coordinates, as they are read again and again.
        shift: (R,) without faults.
        normal: (R, R) covariance that normal coordinates add; None: there are none.
    """

    chunks: Iterable[GainChunk]
    shift: Array
    normal: Array | None = None

    def draw(
        self, row: int, tilt: Tilt, samples: int, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """Independent values (samples, R), and the sums (samples,) that their tilt is of."""
        total, own = np.tile(self.shift, (samples, 1)), np.zeros(samples)
        for chunk in self.chunks:
            for block in chunk.blocks() if chunk.size else ():
                g = _gains_of(block, row)
                sample, at = _struck(block, tilt.t * np.minimum(g, tilt.most), samples, rng)
                own += np.bincount(sample, np.minimum(g[at], tilt.most), samples)
                value, bit = np.divmod(at, block.displacements[0].size)
                steps = block.displacements.reshape(len(block.displacements), -1)
                moved = steps[value, bit].astype(np.float64)
                for r in range(chunk.rows):
                    total[:, r] += np.bincount(sample, block.gains[r, value] * moved, samples)
        if self.normal is not None:
            spread = rng.multivariate_normal(
                tilt.t * self.normal[row], self.normal, samples, method="eigh"
            )
            total += spread
            own += spread[:, row]
        return total, own


@dataclass(frozen=True)
class Tilt:
    """An exponential tilt by t, of a sum whose contributions are cut to at most ``most``."""

    t: float
    most: float

    @staticmethod
    def to_zero(profile: Profile) -> Tilt:
        """The tilt under which L reaches 0; none where it does so by itself."""
        way = -profile.mean()
        if way <= 0:
            return NO_TILT
        cut = replace(profile, gains=np.minimum(profile.gains, way))
        t = solve_tilt(cut, -profile.shift)
        if not math.isfinite(t):
            t = math.copysign(40.0 / float(np.abs(cut.gains).max()), t)
        return Tilt(max(t, 0.0), way)


NO_TILT = Tilt(0.0, math.inf)


def _gains_of(block: GainChunk, row: int) -> Array:
    """The gains of a surrogate's coordinates, flat."""
    gains, moved = block.gains[row].astype(np.float64), block.displacements
    return np.asarray(gains[:, np.newaxis] * moved if moved.ndim == 2 else gains * moved).ravel()


def _struck(
    block: GainChunk, tilts: Array, samples: int, rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """Samples and flat coordinates that are struck in them, each pair once.

    Points of a Poisson process with intensity -log(1 - p) strike a coordinate with p.
    """
    p = np.broadcast_to(block.p, block.displacements.shape).reshape(-1)
    with np.errstate(divide="ignore"):
        p = expit(np.log(p) - np.log1p(-p) + tilts)
    ends = np.cumsum(-np.log1p(-np.minimum(p, _SURE)))
    if not len(ends):
        none = np.zeros(0, dtype=np.intp)
        return none, none
    points = rng.poisson(ends[-1], samples)
    sample = np.repeat(np.arange(samples), points)
    at = np.searchsorted(ends, rng.random(len(sample)) * ends[-1], side="right")
    pairs = np.sort(sample * len(p) + np.minimum(at, len(p) - 1))
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # faster than np.unique, which hashes
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
    if np.count_nonzero(tails) < 2:
        return min(total, 1.0)

    def share(row: int) -> float:
        tilt = NO_TILT if tails[row] >= _OFTEN else Tilt.to_zero(profiles[row])
        return _share(tilt, row, given, rng, samples)

    matters = tails > _MATTERS * total
    found = sum(float(tails[row]) * share(row) for row in np.flatnonzero(matters).tolist())
    others = float(tails[~matters].sum())
    if others > _MATTERS * total:
        rows = _in_proportion(np.where(matters, 0.0, tails), _STAND_FOR_ALL, rng)
        found += others * float(np.mean([share(row) for row in rows]))
    else:
        found += others
    return min(max(found, float(tails.max())), total, 1.0)


def _in_proportion(weights: Array, count: int, rng: np.random.Generator) -> list[int]:
    """This many indices, each as often as its weight says (systematic sampling)."""
    ends = np.cumsum(weights)
    at = (np.arange(count) + rng.random()) * (ends[-1] / count)
    found: list[int] = np.minimum(np.searchsorted(ends, at, side="right"), len(ends) - 1).tolist()
    return found


def chance_of_all(
    profiles: Sequence[Profile],
    tails: Array,
    given: Contributions,
    rng: np.random.Generator,
    samples: int = SAMPLES,
) -> float:
    """P(L_r >= 0 for every r), an estimate: the rarest one's tail, and how often the others hold.

    Args:
        profiles, tails, given, rng: as `chance_of_any` takes them.
        samples: drawn given the rarest event.
    """
    row = int(np.argmin(tails))
    tail = float(tails[row])
    if tail == 0 or len(tails) == 1:
        return tail
    tilt = NO_TILT if tail >= _OFTEN else Tilt.to_zero(profiles[row])
    values, own = given.draw(row, tilt, samples, rng)
    holds = values[:, row] >= 0
    if not holds.any():
        return tail
    weights = np.exp(-tilt.t * (own[holds] - own[holds].min()))
    return tail * float(weights @ (values[holds] >= 0).all(1) / weights.sum())


def _share(
    tilt: Tilt, row: int, given: Contributions, rng: np.random.Generator, samples: int
) -> float:
    """E(1 / number of events, given that the one of this row holds)."""
    values, own = given.draw(row, tilt, samples, rng)
    holds = values[:, row] >= 0
    if not holds.any():
        return 1.0
    weights = np.exp(-tilt.t * (own[holds] - own[holds].min()))
    return float(weights @ (1 / (values[holds] >= 0).sum(1)) / weights.sum())
