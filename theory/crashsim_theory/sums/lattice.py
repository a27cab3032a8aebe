"""The law of a sum of independent contributions on a lattice, by one pair of FFTs.

The logarithm of the characteristic function is sum log(1 - p + p e^{isg}). With small odds
r = p / (1 - p) a term is log(1 - p) - sum_l (-r)^l e^{islg} / l, so that all of them are the FFT of
a single array: at the lattice position of l g, for every gain g and l = 1, 2, ..., lies the mass
-(-r)^l / l. Where odds are not small, terms are computed one by one, at the frequencies at which
the function has not yet vanished.

A gain between two lattice points is split to the three nearest (by the weights of quadratic
interpolation), such that mean and variance of the sum are exact whatever the lattice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from crashsim_theory.arrays import Array
from crashsim_theory.sums.profile import Profile

Complex: TypeAlias = npt.NDArray[np.complex128]

_SMALL = 0.2  # probability up to which the series is summed
_REST = 1e-17  # of the series, where it is cut off, by term and relative to all
_VANISHED = -46.0  # log |phi| below which a frequency does not matter
_SAME = 1e-6  # points by which a sum and a threshold that are equal may differ
_AT_ONCE = 2**16  # complex numbers alive at once


@dataclass(frozen=True, eq=False)
class LatticeLaw:
    """The law of a sum S: P(S = (start + j) width) = mass[j].

    Masses may be slightly negative where single contributions were split.
    """

    width: float
    start: int
    mass: Array

    @property
    def values(self) -> Array:
        """The points of the lattice, lowest first."""
        return np.asarray((self.start + np.arange(len(self.mass))) * self.width, dtype=np.float64)

    def above(self, c: Array, exactly: bool) -> Array:
        """P(S >= c) of every c.

        Args:
            c: (...).
            exactly: sums lie on the lattice; else the mass of a point is spread evenly to halfway
                its neighbours.
        """
        upper = np.concatenate([np.cumsum(self.mass[::-1])[::-1], [0.0]])
        position = c / self.width - self.start
        if exactly:
            at = np.clip(np.ceil(position - _SAME), 0, len(self.mass)).astype(np.int64)
            return np.asarray(upper[at])
        return np.asarray(np.interp(position + 0.5, np.arange(len(upper)), upper))

    def below(self, c: Array, exactly: bool) -> Array:
        """P(S <= c) of every c, as ``above``."""
        lower = np.concatenate([[0.0], np.cumsum(self.mass)])
        position = c / self.width - self.start
        if exactly:
            at = np.clip(np.floor(position + _SAME) + 1, 0, len(self.mass)).astype(np.int64)
            return np.asarray(lower[at])
        return np.asarray(np.interp(position + 0.5, np.arange(len(lower)), lower))


def lattice_law(profile: Profile, low: float, high: float, cells: int) -> tuple[LatticeLaw, bool]:
    """The law of a profile's sum without its shift, and whether contributions lie on its points.

    Args:
        profile: of gains that fit between ``low`` and ``high``.
        low, high: outside these the sum must be unlikely: what lies there is set down within.
        cells: number of points, a power of two.
    """
    room = 0.02 * (high - low)
    span = high - low + 2 * room
    wanted = span / (cells - 8)
    unit = _unit(profile)
    exactly = unit is not None and unit >= wanted
    width = wanted if wanted > 0 else 1.0
    if unit is not None and exactly:
        width = unit
        cells = min(cells, max(64, 2 ** int(np.ceil(np.log2(span / unit + 8)))))
    start = int(np.floor((low - room) / width)) - 4
    phi = np.exp(log_characteristic(profile, width, cells))
    mass = np.fft.irfft(phi, cells)
    mass = np.roll(mass, -(start % cells))
    return LatticeLaw(width, start, mass), exactly


def _unit(profile: Profile) -> float | None:
    """What all contributions are small multiples of; None if they are not known to be."""
    if profile.normal_variance > 0:
        return None
    values = [profile.gains, *(o.values for o in profile.outcomes)]
    g = np.abs(np.concatenate(values))
    g = g[g > 0]
    if not g.size or not np.array_equal(profile.low, profile.high):
        return None
    least = float(g.min())
    multiples = g / least
    off = np.abs(multiples - np.rint(multiples)) > 1e-9 * multiples
    return None if off.any() or multiples.max() > 4096 else least


def log_characteristic(profile: Profile, width: float, cells: int) -> Complex:
    """log E e^{-i s S} at s = 2 pi m / (cells width), m = 0 .. cells / 2."""
    gains, counts, p = profile.gains, profile.counts, profile.p
    light = p <= _SMALL
    position = gains / width
    masses = np.zeros(cells)
    rest = _place_series(masses, position[light], counts[light], p[light] / (1 - p[light]))
    result = np.fft.rfft(masses) + rest
    frequency = 2 * np.pi * np.arange(cells // 2 + 1) / cells
    result -= 0.5 * profile.normal_variance * (frequency / width) ** 2
    heavy = ~light
    if heavy.any():
        _add_heavy(result, frequency, position[heavy], counts[heavy], p[heavy])
    for o in profile.outcomes:
        _add_outcomes(result, frequency, o.values / width, o.chances, o.count)
    return np.asarray(result)


def place(masses: Array, position: Array, mass: Array) -> None:
    """Adds masses at positions between lattice points, modulo its size.

    The three nearest points get them such that sum, mean and mean square are kept.
    """
    n = len(masses)
    nearest = np.rint(position)
    off = position - nearest
    at = np.mod(nearest, n).astype(np.int64)
    masses += np.bincount(at, mass * (1 - off * off), n)
    masses += np.bincount((at + 1) % n, mass * off * (off + 1) / 2, n)
    masses += np.bincount((at - 1) % n, mass * off * (off - 1) / 2, n)


def _place_series(masses: Array, position: Array, counts: Array, odds: Array) -> float:
    """Places -(-r)^l / l at l g for every entry and l; returns the sum of log(1 - p)."""
    total = -float(counts @ np.log1p(odds))
    power = counts * odds
    least = _REST * max(float(power.sum()), 1.0)
    order = 1
    while len(position):
        sign = 1.0 if order % 2 else -1.0
        place(masses, order * position, sign * power / order)
        power = power * odds
        order += 1
        kept = power / order > least
        position, power, odds = position[kept], power[kept], odds[kept]
    return total


def _add_heavy(result: Complex, frequency: Array, position: Array, counts: Array, p: Array) -> None:
    """Adds log(1 - p + p e^{-i s g}) of entries with large odds, where phi has not vanished."""
    n = 2 * (len(frequency) - 1)
    spread = np.zeros(n)
    place(spread, position, counts * p * (1 - p))
    # |1 - p + p e^{i y}|^2 = 1 - 2 p (1 - p) (1 - cos y), so log | | <= -p (1 - p) (1 - cos y).
    most = result.real - (spread.sum() - np.fft.rfft(spread).real)
    wanted = most > _VANISHED
    result[~wanted] = -np.inf
    at = np.flatnonzero(wanted)
    wave = np.exp(-1j * frequency)  # e^{-i s}; at the m-th frequency, e^{-i s k} is that at m k
    wave = np.concatenate([wave, wave[-2:0:-1].conj()])
    alone = counts == 1
    for which in (alone, ~alone):
        parts = np.flatnonzero(which)
        step = max(1, _AT_ONCE // max(len(at), 1))
        for start in range(0, len(parts), step):
            part = parts[start : start + step]
            terms = _factors(wave, at, position[part], p[part])
            with np.errstate(divide="ignore"):
                if which is alone:  # one logarithm of all: what phi is counts, not its argument
                    result[at] += np.log(np.multiply.reduce(terms, 0))
                else:
                    result[at] += counts[part] @ np.log(terms)


def _factors(wave: Complex, at: npt.NDArray[np.intp], position: Array, p: Array) -> Complex:
    """1 - p + p e^{-i s g} of each entry at some frequencies, from the table of e^{-i s}."""
    nearest = np.rint(position)
    off, k = (position - nearest)[:, np.newaxis], np.mod(nearest, len(wave)).astype(np.int64)
    step = wave[at]
    split = (1 - off * off) + off * (off + 1) / 2 * step + off * (off - 1) / 2 * step.conj()
    split *= wave[np.multiply.outer(k, at) & (len(wave) - 1)]
    split *= p[:, np.newaxis]
    split += 1 - p[:, np.newaxis]
    return np.asarray(split)


def _add_outcomes(
    result: Complex, frequency: Array, positions: Array, chances: Array, count: float
) -> None:
    wave = (chances[:, np.newaxis] * _wave(positions[:, np.newaxis], frequency)).sum(0)
    with np.errstate(divide="ignore"):
        result += count * np.log(wave)


def _wave(position: Array, s: Array) -> Complex:
    """e^{-i s position}, with positions split to lattice points as ``place`` does."""
    nearest = np.rint(position)
    off = position - nearest
    step = np.exp(-1j * s)
    split = (1 - off * off) + off * (off + 1) / 2 * step + off * (off - 1) / 2 * step.conj()
    return np.asarray(np.exp(-1j * s * nearest) * split)
