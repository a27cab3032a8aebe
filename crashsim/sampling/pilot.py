"""Single faults looked at before sampling: what L misses of those that samples seldom meet.

Where faults are rare, most of the variance of Delta may rest on coordinates that no sample at hand
has struck, and what L misses of them is not seen in the samples. So some single faults are
evaluated, chosen with probabilities in proportion to what they matter by L
(``analytic.single_sample``): the sum over all coordinates of what a single strike leaves over
follows from them, however rare each is.

Often most of it is due to a few layers and bits: the sign bits of a network's first weights move
outputs too far for a slope to tell. Where it pays, L is mended there: all their single strikes are
evaluated, and take the place of the gains. L is a sum over coordinates as before, so that its mean
and variance are known as before. What is left then is judged by further strikes, as those that the
layers and bits were chosen by would flatter it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from crashsim.analytic.gains import Gains
from crashsim.analytic.shares import SharesByValue
from crashsim.analytic.single_sample import Chosen, choose
from crashsim.arrays import Floats
from crashsim.coordinates.placement import moments_at
from crashsim.coordinates.points import Points, no_fault
from crashsim.space import FaultSpace

STRIKES = 96  # single faults that are looked at
_AGAIN = 2  # times as many, after L was mended
_MOST_MENDED = 1.0  # single strikes that are evaluated for that, at most, for each sample
_HELD = 2**22  # outputs of these that are kept, at most
_MENDED = 3  # block of the choice of the second strikes, apart from ``sampled_singles``'s
_COLLINEAR = 1e-10  # eigenvalues of the controls' products that count as zero
_SURE = 1.0  # standard errors that are added to the sum that they stand for


def strikes_at_most(space: FaultSpace, samples: int) -> int:
    """How many single faults may be evaluated before so many samples."""
    if not all(p.fault.is_binary for p in space.placements):
        return 0
    room, spent = _room(space, samples), 0
    for size in sorted(v.size for v in space.slopes.values for _ in range(v.bits)):
        if spent + size > room:
            break
        spent += size
    return STRIKES + (spent + _AGAIN * STRIKES if spent else 0)


def _room(space: FaultSpace, samples: int) -> float:
    """How many single faults may be evaluated to mend L."""
    return min(_MOST_MENDED * samples, _HELD / (space.B * space.K))


@dataclass(frozen=True, eq=False)
class MendedGains:
    """L with the single strikes of some coordinates, as they are, in the place of their gains.

    Attributes:
        gains: of all others.
        columns: (M,) the coordinates, ascending.
        mean: (M,) of each.
        excess: (M, B, K) Delta of each one's strike less what its gain says.
        variance: (B, K) by how much they change that of L.
    """

    gains: Gains
    columns: NDArray[np.int64]
    mean: Floats
    excess: Floats
    variance: Floats

    @classmethod
    def of(cls, space: FaultSpace, gains: Gains, columns: NDArray[np.int64]) -> MendedGains:
        """Evaluates the single strikes of these coordinates, ascending."""
        delta, linear = _strikes(space, gains, columns)
        mean, k2 = moments_at(space.placements, columns)
        variance = np.einsum("m,m...->...", k2, delta**2 - linear**2)
        return cls(gains, columns, mean, delta - linear, variance)

    def along(self, points: Points) -> Floats:
        """L at each point, (S, B, K)."""
        rows, columns = points.rows, points.columns
        place = np.minimum(np.searchsorted(self.columns, columns), len(self.columns) - 1)
        mine = self.columns[place] == columns
        steps = points.values[mine] - points.base[columns[mine]]
        shape = (points.count, len(self.columns))
        struck = sparse.csr_array((steps, (rows[mine], place[mine])), shape)
        excess = self.excess.reshape(len(self.columns), -1)
        moved = struck @ excess + (points.base[self.columns] - self.mean) @ excess
        found: Floats = self.gains.along(points) + moved.reshape(-1, *self.excess.shape[1:])
        return found


@dataclass(frozen=True)
class Pilot:
    """Single strikes, and how often samples meet what each stands for.

    Attributes:
        rates: (m,) expected number of strikes in a sample that each stands for.
        delta, linear: (m, ...) Delta and L of each.
        mended: L, where it was mended.
    """

    rates: Floats
    delta: Floats
    linear: Floats
    mended: MendedGains | None = None

    @classmethod
    def of(cls, space: FaultSpace, gains: Gains, seed: int, samples: int = 0) -> Pilot | None:
        """Evaluates single strikes; None where coordinates do not just strike or not, or none do.

        Args:
            space: that is sampled.
            gains: that L is computed from, (B, K).
            seed: of the choice.
            samples: that will be drawn: at most as many strikes are evaluated to mend L.
        """
        if not space.is_random or not all(p.fault.is_binary for p in space.placements):
            return None
        shares = SharesByValue.of(gains)
        if not shares.is_any:
            return None
        chosen = choose(space, shares, STRIKES, seed)
        pilot = cls._of(space, gains, chosen)
        columns = _worth_mending(space, chosen, pilot, samples)
        if not len(columns):
            return pilot
        mended = MendedGains.of(space, gains, columns)
        again = choose(space, shares, _AGAIN * STRIKES, seed, block=_MENDED)
        return cls._of(space, gains, again, mended)

    @classmethod
    def _of(
        cls, space: FaultSpace, gains: Gains, chosen: Chosen, mended: MendedGains | None = None
    ) -> Pilot:
        """Of some strikes; those at coordinates where L is mended leave nothing over."""
        columns, back = np.unique(chosen.columns, return_inverse=True)
        delta, linear = _strikes(space, gains, columns)
        if mended is not None:
            known = np.isin(columns, mended.columns)
            linear[known] = delta[known]
        rates = chosen.k2 / chosen.chances / len(back)
        return cls(rates, delta[back], linear[back], mended)

    def left_over(self, target: Floats, slopes: Floats, pooled: bool) -> Floats:
        """Variance among samples, due to single strikes, of a combination less its controls.

        A standard error more than they say: a variance is seen too small more often than too large.

        Args:
            target: (2, ...) coefficients of d and d^2.
            slopes: (2, ...) of L and L^2.
            pooled: of averages over inputs, of which the last is summed over outputs.
        """
        coefficients = np.concatenate([target, -slopes])
        left = sum(c * q for c, q in zip(coefficients, self._quantities(pooled), strict=True))
        terms = self.rates.reshape(-1, *[1] * (np.ndim(left) - 1)) * np.square(left)
        error = terms.std(0, ddof=1) * np.sqrt(len(terms))
        found: Floats = terms.sum(0) + _SURE * error
        return found

    @property
    def left_by_strike(self) -> Floats:
        """(m,) each one's share of what L misses of the outputs and of their squares, pooled."""
        d, square, *controls = self._quantities(pooled=True)
        shares = []
        for quantity, control in zip((d, square), controls, strict=True):
            left = self.rates[:, None] * (quantity - control) ** 2
            total = left.sum(0)
            shares.append((left / np.where(total > 0, total, 1.0)).mean(1))
        found: Floats = (shares[0] + shares[1]) / 2
        return found

    def slopes(self, target: Floats, pooled: bool) -> Floats:
        """(2, ...) slopes of L and L^2 that leave the least of a combination; as ``left_over``."""
        d, square, *controls = self._quantities(pooled)
        wanted = target[0] * d + target[1] * square
        scale = [np.sqrt(np.einsum("m,m...,m...->...", self.rates, c, c)) for c in controls]
        safe = np.stack([np.where(s > 0, s, 1.0) for s in scale])
        units = np.stack(controls) / safe[:, None]
        gram = np.einsum("m,im...,jm...->...ij", self.rates, units, units)
        right = np.einsum("m,im...,m...->...i", self.rates, units, wanted)
        inverse = np.linalg.pinv(gram, rcond=_COLLINEAR, hermitian=True)
        found: Floats = np.moveaxis(np.einsum("...ij,...j->...i", inverse, right), -1, 0) / safe
        return found

    def _quantities(self, pooled: bool) -> list[Floats]:
        """Delta, Delta^2, L and L^2; averaged over inputs, of which the last is summed."""
        quantities = [self.delta, self.delta**2, self.linear, self.linear**2]
        if not pooled:
            return quantities
        averaged = [quantity.mean(1) for quantity in quantities]
        return [np.concatenate([q, q.sum(1, keepdims=True)], 1) for q in averaged]


def _strikes(space: FaultSpace, gains: Gains, columns: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Delta and L, of which the mean is left out, of single strikes, each (m, B, K)."""
    points = Points.one_at_a_time(no_fault(space.N), columns, np.ones(len(columns)))
    return space.outputs(points) - space.clean(), gains.along(points) + gains.sums.mean


def _worth_mending(
    space: FaultSpace, chosen: Chosen, pilot: Pilot, samples: int
) -> NDArray[np.int64]:
    """The coordinates of the layers and bits whose single strikes are worth their passes.

    Those that leave the most over for each of their coordinates come first, as long as they take
    more from the variance that is left than as many more samples would.
    """
    left, room = pilot.left_by_strike, _room(space, samples)
    strata = sorted(
        ((float(left[mine].sum()), columns) for mine, columns in _strata(space, chosen.columns)),
        key=lambda stratum: -stratum[0] / len(stratum[1]),
    )
    found: list[NDArray[np.int64]] = []
    rest, spent = 1.0, 0
    for part, columns in strata:
        cost = spent + len(columns)
        if cost <= room and (rest - part) * (samples + cost) < rest * (samples + spent):
            found.append(columns)
            rest, spent = rest - part, cost
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


def _strata(
    space: FaultSpace, columns: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
    """Of each layer and bit of some coordinates: which of them are of it, and all that are."""
    for v in space.slopes.values:
        start, stop = v.placement.start, v.placement.stop
        ours = (columns >= start) & (columns < stop)
        for bit in np.unique((columns[ours] - start) % v.bits):
            yield ours & ((columns - start) % v.bits == bit), np.arange(start + bit, stop, v.bits)
