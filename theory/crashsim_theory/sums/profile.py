"""The gains of one surrogate in a few thousand numbers: those close to each other are counted.

Millions of gains become entries of about a thousandth of relative width (the leading ten bits of a
gain's mantissa), each with the number of its coordinates and their mean gain, one entry for each
rate. All that follows (characteristic function, generating function, tails at any rate) costs time
by entries, not by coordinates. Few coordinates stay entries of their own, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from crashsim_theory.arrays import Array
from crashsim_theory.errors import TheoryError
from crashsim_theory.tails.gain_chunks import GainChunk
from crashsim_theory.tails.rows import log_mgf_terms
from crashsim_theory.tails.surrogate import LinearSurrogate

Integers: TypeAlias = npt.NDArray[np.int64]

_ALONE = 2**14  # coordinates of a surrogate that stay entries of their own
_DROPPED = 52 - 10  # bits of a double's mantissa that entries do not tell apart
_RANGE = 160 << 10  # entries below the largest gain; what is smaller counts as zero
_VALUES = 2**18  # coordinates sorted into entries together
_FEW = 2**10  # entries that are searched in as they are
_DROPPED_COARSELY = 52 - 5
_COARSE_RANGE = 40 << 5  # coarse entries below the largest gain; smaller ones share the last
_RATES = 64  # different rates that get entries of their own
_RATES_PER_OCTAVE = 8  # of the grid that more rates than these are split to


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One coordinate with several mutually exclusive contributions, for ``count`` alike.

    Attributes:
        values: (J,) contributions to the sum.
        chances: (J,) their probabilities; they sum to 1.
        count: how many independent coordinates of this kind there are.
    """

    values: Array
    chances: Array
    count: float = 1.0


@dataclass(frozen=True, eq=False)
class Profile:
    """L = shift + sum of independent contributions, told by entries.

    Attributes:
        shift: of the surrogate.
        gains: (k,) mean gain of each entry's coordinates.
        low, high: (k,) what these lie between; equal to ``gains`` where coordinates are alone.
        counts: (k,) number of coordinates.
        p: (k,) their rate.
        normal_variance: of normal coordinates together.
        outcomes: coordinates with more than two values.
        has_exact_rates: False where rates were split to a grid, which keeps the mean only.
    """

    shift: float
    gains: Array
    low: Array
    high: Array
    counts: Array
    p: Array
    normal_variance: float = 0.0
    outcomes: tuple[Outcomes, ...] = ()
    has_exact_rates: bool = True

    @property
    def negative(self) -> Profile:
        """The profile of -L."""
        mirrored = tuple(replace(o, values=-o.values) for o in self.outcomes)
        return replace(
            self,
            shift=-self.shift,
            gains=-self.gains,
            low=-self.high,
            high=-self.low,
            outcomes=mirrored,
        )

    def at_rate(self, p: float) -> Profile:
        """The profile with another rate, the same for every Bernoulli coordinate."""
        return replace(self, p=np.full_like(self.p, p))

    def keep(self, which: npt.NDArray[np.bool_]) -> Profile:
        """Some of the entries."""
        columns = (self.gains, self.low, self.high, self.counts, self.p)
        gains, low, high, counts, p = (column[which] for column in columns)
        return replace(self, gains=gains, low=low, high=high, counts=counts, p=p)

    def mean(self) -> float:
        """E L."""
        rest = sum(o.count * float(o.values @ o.chances) for o in self.outcomes)
        return float(self.shift + (self.counts * self.p) @ self.gains + rest)

    def range(self) -> tuple[float, float]:
        """The least and the largest value of the sum without shift; infinite with normal ones."""
        if self.normal_variance > 0:
            return -np.inf, np.inf
        likely, sure = self.p > 0, self.p == 1
        whole = self.counts * self.gains
        up, down = np.maximum(whole, 0.0), np.minimum(whole, 0.0)
        least = float(down[likely].sum() + up[sure].sum())
        largest = float(up[likely].sum() + down[sure].sum())
        for o in self.outcomes:
            values = o.values[o.chances > 0]
            least, largest = least + o.count * values.min(), largest + o.count * values.max()
        return float(least), float(largest)

    def cumulant(self, t: float) -> float:
        """K(t) = log E exp(t L), but for the spread of gains within an entry."""
        terms = self.counts * log_mgf_terms(self.p, t * self.gains)
        total = t * self.shift + float(terms.sum()) + self.normal_variance * t * t / 2
        for o in self.outcomes:
            total += o.count * float(np.logaddexp.reduce(np.log(o.chances) + t * o.values))
        return total


def coarse(profile: Profile) -> Profile:
    """About the same sum, told by gains of about 3% of relative width: to search in."""
    if len(profile.gains) <= _FEW or np.any(profile.p != profile.p[0]):
        return profile
    keys = np.maximum(np.abs(profile.gains).view(np.int64) >> _DROPPED_COARSELY, 1)
    least = int(keys.max()) - _COARSE_RANGE
    size = _COARSE_RANGE + 1
    at = np.maximum(keys - least, 0) + size * (profile.gains < 0)
    counts: Array = np.bincount(at, profile.counts, 2 * size).astype(np.float64)
    total = np.bincount(at, profile.counts * profile.gains, 2 * size)
    there = counts > 0
    mean, p = total[there] / counts[there], np.full(int(there.sum()), profile.p[0])
    return replace(profile, gains=mean, low=mean, high=mean, counts=counts[there], p=p)


def profiles_of_chunks(
    chunks: Iterable[GainChunk], shift: Array, normal_variance: Array | None = None
) -> list[Profile]:
    """A profile of each of R surrogates; reads the chunks once, one after the other.

    Args:
        chunks: of the same R surrogates.
        shift: (R,).
        normal_variance: (R,) that normal coordinates add; None: there are none.

    Raises:
        TheoryError: chunks of another number of surrogates.
    """
    collected = [_Collected() for _ in shift]
    for chunk in chunks:
        if chunk.rows != len(collected):
            remedy = f"every chunk must have {len(collected)} surrogates, as shift has"
            raise TheoryError("chunks", chunk.rows, remedy)
        bits = max(chunk.size // max(len(chunk.displacements), 1), 1)
        for block in chunk.blocks(max(_VALUES // bits, 1)):
            for row, into in enumerate(collected):
                into.add(block.of_row(row))
    normal = np.zeros(len(collected)) if normal_variance is None else normal_variance
    return [c.profile(float(s), float(v)) for c, s, v in zip(collected, shift, normal, strict=True)]


def profiles_of(surrogate: LinearSurrogate) -> Iterator[Profile]:
    """A profile of each of a dense surrogate's flattened leading axes, one after the other.

    Raises:
        TheoryError: a law of coordinates that is not known by its outcomes.
    """
    count, coordinates = surrogate.shift.size, surrogate.coordinates
    gains = surrogate.gains.reshape(count, -1)
    others = []
    for where, block in coordinates.others:
        found = block.law.outcomes(**block.parameters)
        if found is None:
            raise TheoryError(
                "law", block.law.name, "is not known by its outcomes: use the saddlepoint"
            )
        atoms, chances = (
            np.broadcast_to(a.reshape(len(a), -1), (len(a), len(block))) for a in found
        )
        others.append((where, atoms, chances))
    shift, normal = surrogate.shift.reshape(-1), surrogate.normal_variance.reshape(-1)
    bernoulli = coordinates.is_bernoulli
    for row in range(count):
        chunk = GainChunk(gains[row : row + 1, bernoulli], np.ones(bernoulli.sum()), coordinates.p)
        (found_profile,) = profiles_of_chunks([chunk], shift[row : row + 1], normal[row : row + 1])
        outcomes = tuple(
            Outcomes(atoms[:, i] * g, chances[:, i])
            for where, atoms, chances in others
            for i, g in enumerate(gains[row, where])
            if g != 0
        )
        yield replace(found_profile, outcomes=outcomes)


class _Collected:
    """What was read so far of one surrogate."""

    def __init__(self) -> None:
        self._alone: list[tuple[Array, Array]] = []  # gains and rates
        self._number = 0
        self._counted: dict[float, list[tuple[Integers, Array, Array]]] = {}
        self._has_exact_rates = True

    def add(self, block: GainChunk) -> None:
        """Reads a block of one surrogate's coordinates."""
        gains = block.gains[0].astype(np.float64)
        moved = block.displacements
        g = (gains[:, np.newaxis] * moved if moved.ndim == 2 else gains * moved).reshape(-1)
        self._number += g.size
        if self._number <= _ALONE:
            p = np.broadcast_to(block.p, moved.shape).reshape(-1)
            matters = (g != 0) & (p > 0)
            self._alone.append((g[matters], p[matters]))
            return
        for rate, which, weights in self._by_rate(block):
            if rate > 0:
                counted = _counted(g if which is None else g[which], weights)
                self._counted.setdefault(rate, []).append(counted)

    def _by_rate(self, block: GainChunk) -> Iterator[tuple[float, Any, Array | None]]:
        """The rates of a block, which of its coordinates have each, and with what weight."""
        rates = np.unique(block.p)
        if len(rates) == 1:
            yield float(rates[0]), None, None
            return
        p = np.broadcast_to(block.p, block.displacements.shape).reshape(-1)
        known = len({*rates.tolist(), *self._counted})
        if known <= _RATES:
            for rate in rates.tolist():
                yield rate, p == rate, None
            return
        # Linear in p between the nodes of a grid: the sum over coordinates keeps its mean.
        self._has_exact_rates = False
        positive = np.maximum(p, np.finfo(float).tiny)
        below = np.floor(np.log2(positive) * _RATES_PER_OCTAVE).astype(np.int64)
        for node in np.unique(below[p > 0]).tolist():
            which = (below == node) & (p > 0)
            ends = [2.0 ** ((node + i) / _RATES_PER_OCTAVE) for i in (0, 1)]
            ends[1] = min(ends[1], 1.0)
            share = np.clip((p[which] - ends[0]) / max(ends[1] - ends[0], 1e-300), 0.0, 1.0)
            yield ends[0], which, 1 - share
            yield ends[1], which, share

    def profile(self, shift: float, normal_variance: float) -> Profile:
        """The profile of all that was read."""
        gains, p = (
            np.concatenate([pair[i] for pair in self._alone] or [np.zeros(0)]) for i in (0, 1)
        )
        # Equal ones are counted, too: those of a binomial law.
        both, number = np.unique(gains + 1j * p, return_counts=True)
        columns: list[Sequence[Array]] = [
            (both.real, both.real, both.real, number.astype(np.float64), both.imag)
        ]
        columns += [_merged(rate, parts) for rate, parts in self._counted.items()]
        gains, low, high, counts, p = (
            np.concatenate(column) for column in zip(*columns, strict=True)
        )
        return Profile(
            shift, gains, low, high, counts, p, normal_variance, (), self._has_exact_rates
        )


def _counted(g: Array, weights: Array | None) -> tuple[Integers, Array, Array]:
    """Keys of the entries that gains fall in, their number (or weight) and their sum.

    A key is the leading bits of the gain's magnitude, plus 1, with the gain's sign.
    """
    if not g.size:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    bits = np.abs(g).view(np.int64)
    bits >>= _DROPPED
    base = max(int(bits.max()) - _RANGE, 0)
    size = int(bits.max()) - base + 1
    bits -= base
    np.maximum(bits, 0, out=bits)  # next to zero
    bits += size * (g < 0)
    times = g if weights is None else weights * g
    count, total = (
        np.bincount(bits, w, minlength=2 * size).astype(np.float64) for w in (weights, times)
    )
    count[[0, size]] = 0
    at = np.flatnonzero(count)
    key = at % size + base + 1
    return np.where(at < size, key, -key).astype(np.int64), count[at], total[at]


def _merged(rate: float, parts: list[tuple[Integers, Array, Array]]) -> tuple[Array, ...]:
    """Gains, low, high, counts and rates of the entries of one rate."""
    keys, where = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    count, total = (
        np.bincount(where, np.concatenate([part[i] for part in parts]), len(keys)).astype(float)
        for i in (1, 2)
    )
    inner, outer = (
        np.copysign(((np.abs(keys) - 1 + i) << _DROPPED).view(np.float64), keys) for i in (0, 1)
    )
    low, high = np.minimum(inner, outer), np.maximum(inner, outer)
    mean = np.clip(total / np.where(count > 0, count, 1), low, high)
    return mean, low, high, count, np.full(len(keys), rate)
