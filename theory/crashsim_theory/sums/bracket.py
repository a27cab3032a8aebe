"""A proved bracket of P(L >= c) for a sum of any number of Bernoulli contributions, by FFT.

Gains are rounded outward to multiples of a cell width h, up for the upper end and down for the
lower, so the tail of the rounded sum, an integer times h, lies on the right side. Its law is found
by FFT under the tilt t that makes c typical, and weighted back: the errors below are then small
beside the tail, however rare it is. What counts:

* Gains. h has few mantissa bits, so k h is exact for |k| < 2^40; k h is checked against the end of
  the entry that a coordinate's gain lies in.
* Wrapping. Sums are known modulo the number of cells: the mass that lies outside the window only
  adds to the masses within, and is below Chernoff's bound on it. The upper end takes the mass above
  the window in addition, the lower end subtracts what may have wrapped.
* Contributions too large for the window. The upper end counts a struck positive one as a hit, and
  cuts negative ones short; the lower end cuts positive ones short, and counts a struck negative one
  as a miss.
* Rounding. An FFT of n = 2^k numbers errs by at most 8 k u in the Euclidean norm, relative, with
  u = 2^-53 (N. Higham, Accuracy and Stability of Numerical Algorithms, theorem 24.2, with twiddle
  factors good to 1 u); numpy's exp, log and log1p err by at most 4 units in the last place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from crashsim_theory.arrays import Array
from crashsim_theory.errors import TheoryError
from crashsim_theory.sums.profile import Integers, Profile
from crashsim_theory.sums.tails import solve_tilt
from crashsim_theory.sums.window import window_of
from crashsim_theory.tails.rows import log_mgf_terms

_UNIT = 2.0**-53
_FEWEST, _MOST = 2**14, 2**19  # cells
_SERIES = 0.2  # tilted probability up to which the logarithm's series is summed
_OUTSIDE = 36.0  # e^-36 of the tilted law may lie outside the window
_DECIDED = 80.0  # what decides alone does so but for a chance of e^-80
_WIDEST = 2.0**30  # a contribution in units of the window
_AT_ONCE = 2**21
_OF_RATES = 8192  # units by which a tilted rate and the logarithms of its like may err


def why_no_bracket(profile: Profile) -> str | None:
    """Why the tails of a sum have no proved bracket; None where they have."""
    if profile.normal_variance > 0:
        return "normal coordinates have no lattice: use chernoff"
    if profile.outcomes:
        return "is for Bernoulli coordinates: use chernoff"
    if not profile.has_exact_rates:
        return "too many different rates"
    return None


def tail_at_most(profile: Profile, c: float) -> float:
    """Not below P(L >= c), proved with gains and shift taken as exact.

    Raises:
        TheoryError: other than Bernoulli coordinates, or rates that were split to a grid.
    """
    return _upper(_that_matter(profile), _down(c - profile.shift))


def tail_at_least(profile: Profile, c: float) -> float:
    """Not above P(L >= c), proved as ``tail_at_most`` is."""
    return _lower(_that_matter(profile), _up(c - profile.shift))


def _that_matter(profile: Profile) -> Profile:
    if reason := why_no_bracket(profile):
        raise TheoryError("surrogate", profile, reason)
    some = (profile.p > 0) & (profile.gains != 0) & (profile.counts > 0)
    return replace(profile.keep(some), shift=0.0)


def _upper(entries: Profile, c: float) -> float:
    room = 1 + 1e-12
    if float(entries.counts @ np.maximum(entries.high, 0)) * room < c:
        return 0.0
    if c <= 0 and not np.any(entries.low < 0):
        return 1.0
    limit = _limit(entries, c)
    alone = np.abs(entries.gains) > limit
    hit = _struck(entries.keep(alone & (entries.gains > 0)))
    rest = entries.keep(~(alone & (entries.gains > 0)))
    gains = np.maximum(rest.high, -limit)
    mass = _Rounded(rest, gains, c, math.ceil).mass(upper=True)
    return min(1.0, _up(_up(hit + mass)))


def _lower(entries: Profile, c: float) -> float:
    room = 1 - 1e-12
    if float(entries.counts @ np.maximum(entries.low, 0)) * room < c:
        return 1.0 if c <= 0 and not np.any(entries.low < 0) else 0.0
    if c <= 0 and not np.any(entries.low < 0):
        return 1.0
    limit = _limit(entries, c)
    alone = np.abs(entries.gains) > limit
    spared = 1 - _struck(entries.keep(alone & (entries.gains < 0)))
    rest = entries.keep(~(alone & (entries.gains < 0)))
    gains = np.minimum(rest.low, limit)
    mass = _Rounded(rest, gains, c, math.floor).mass(upper=False)
    return max(0.0, _down(_down(spared * mass)))


def _limit(entries: Profile, c: float) -> float:
    """The magnitude above which a contribution is treated apart: any keeps the bounds true."""
    window = window_of(entries, (c, c), _DECIDED)
    return min(window.limit, _WIDEST * max(window.high - window.low, abs(c), 1e-280))


def _struck(entries: Profile) -> float:
    """P(some contribution is struck), rounded up."""
    if not len(entries.gains):
        return 0.0
    with np.errstate(divide="ignore"):
        none = float((entries.counts * np.log1p(-entries.p)).sum())
    return min(1.0, -math.expm1(none * (1 + (len(entries.gains) + 16) * _UNIT)) * (1 + 8 * _UNIT))


@dataclass(frozen=True)
class _Cells:
    """A window of cells: sums (start + j) h, j = 0 .. size - 1."""

    h: float
    start: int
    size: int

    @property
    def top(self) -> float:
        return (self.start + self.size - 1) * self.h

    @property
    def bottom(self) -> float:
        return self.start * self.h


class _Rounded:
    """A sum with its contributions rounded to cells, and its tail at c.

    Args:
        entries: whose counts and rates matter.
        gains: to round, one for each entry.
        c: the threshold.
        towards: ``math.ceil`` or ``math.floor``.
    """

    def __init__(self, entries: Profile, gains: Array, c: float, towards: object) -> None:
        self._counts, self._p = entries.counts, entries.p
        exact = replace(entries, gains=gains)
        self._tilt = max(solve_tilt(exact, c), 0.0)
        if not math.isfinite(self._tilt):  # the largest sum itself
            self._tilt = 40.0 / float(np.abs(gains)[gains != 0].min())
        self._cells = self._window(exact, c)
        self._k = _multiples(gains, self._cells.h, up=towards is math.ceil)
        self._values: Array = self._k.astype(np.float64) * self._cells.h
        self._c = c

    def _window(self, exact: Profile, c: float) -> _Cells:
        """Cells that hold the tilted sum; the more contributions, the finer."""
        tilted = replace(exact, p=self._tilted(exact.gains))
        about = window_of(tilted, (-np.inf, np.inf), _OUTSIDE)
        expected = float((tilted.counts * tilted.p).sum())
        fine = 2 ** math.ceil(math.log2(max(expected, 1.0)))
        size = int(min(max(_FEWEST * fine, _FEWEST), _MOST))
        low, high = min(about.low, c), max(about.high, c)
        # Rounding outward moves the sum by half a cell for each contribution, by one at most.
        moved = 2 * expected + 40
        width = max((high - low) / (size - 2 * moved - 16), 2.0**-36 * max(-low, high, abs(c)))
        mantissa, exponent = math.frexp(max(width, 1e-280))
        h = math.ldexp(math.ceil(mantissa * 1024) / 1024, exponent)
        start = math.floor(low / h - moved) - 4
        return _Cells(h, start, size)

    def _tilted(self, gains: Array) -> Array:
        with np.errstate(divide="ignore"):
            logit = np.log(self._p) - np.log1p(-self._p)
        return np.asarray(expit(logit + self._tilt * gains))

    def mass(self, upper: bool) -> float:
        """A bound on P(sum >= c), from above or from below."""
        if not len(self._k):
            return float(self._c <= 0)
        cells, t = self._cells, self._tilt
        k, k_error = self._cumulant(t)
        target = _first_at_least(self._c, cells.h) - cells.start
        if not 0 <= target < cells.size:
            return float(upper)
        law, error = self._law()
        values = (cells.start + np.arange(target, cells.size)) * cells.h
        exponent = k - t * values
        weights = np.exp(np.minimum(exponent, 700.0))
        total = float(np.maximum(law[target:], 0.0) @ weights)
        slack = k_error + 8 * _UNIT * (abs(k) + float(np.abs(t * values).max()) + cells.size + 16)
        off = error * float(np.sqrt(weights @ weights))
        high, low = self._outside()
        if upper:
            total = (total + off) * (1 + 2 * slack)
            return float(total + math.exp(min(high + slack, 0.0)))
        wrapped = math.exp(min(high - k + t * cells.top + slack, 0.0))
        wrapped += math.exp(min(low - k + t * cells.bottom + slack, 0.0))
        first = float(weights[0])
        return float((total - off - wrapped * first) * (1 - 2 * slack))

    def _outside(self) -> tuple[float, float]:
        """Logs of Chernoff's bounds on P(sum > top) and, tilted from t, on P(sum < bottom)."""
        found = []
        for sign, end in ((1.0, self._cells.top), (-1.0, self._cells.bottom)):
            scale = max(abs(self._cells.top - self._cells.bottom), 1e-300)
            best = math.inf
            for step in 2.0 ** np.arange(-2.0, 14.0):
                s = self._tilt + sign * step / scale
                k, error = self._cumulant(s)
                # In both: log of E e^{sS} e^{-s end}; its distance from K(t) - t end bounds the
                # tilted mass beyond this end.
                best = min(best, k - s * end + error)
            found.append(best)
        return found[0], found[1]

    def _cumulant(self, t: float) -> tuple[float, float]:
        """K(t) of the rounded sum, and a bound on its error."""
        y = t * self._values
        terms = log_mgf_terms(self._p, y)
        with np.errstate(divide="ignore"):
            logs = np.abs(np.log(self._p)) + np.abs(np.log1p(-self._p))
        logs = np.where(np.isfinite(logs), logs, 0.0)
        size = np.abs(y)
        each = (len(y) + 16) * np.abs(terms) + 16 * np.where(size > 1, size + logs, 0.0)
        return float(self._counts @ terms), _UNIT * float(self._counts @ each)

    def _law(self) -> tuple[Array, float]:
        """Masses of the tilted rounded sum, and a bound on their error in the Euclidean norm."""
        cells = self._cells
        n = cells.size
        p = self._tilted(self._values)
        light = p <= _SERIES
        masses, rest, off = self._series(p, light)
        log_n = math.log2(n)
        of_logs = 8 * log_n * _UNIT * math.sqrt(n) * float(np.sqrt(masses @ masses)) + off
        log_phi = np.fft.rfft(masses) + rest
        of_heavy = 0.0
        heavy = np.flatnonzero(~light)
        if len(heavy):
            of_heavy = _multiply(log_phi, self._k[heavy], self._counts[heavy], p[heavy])
        law = np.fft.irfft(np.exp(log_phi), n)
        law = np.roll(law, -(cells.start % n))
        norm = float(np.sqrt(law @ law))
        relative = math.expm1(min(2 * of_logs, 1.0)) + 16 * log_n * _UNIT
        return law, 1.01 * (relative * norm + of_heavy)

    def _series(self, p: Array, light: npt.NDArray[np.bool_]) -> tuple[Array, float, float]:
        """The array whose FFT is the log of phi, a constant to add, and a bound on the error."""
        n = self._cells.size
        at, counts, odds = self._k[light], self._counts[light], p[light] / (1 - p[light])
        masses = np.zeros(n)
        total = -float(counts @ np.log1p(odds))
        size, order = abs(total), 1
        power = counts * odds
        cut = 0.0
        while len(at):
            masses += np.bincount((order * at) % n, (power if order % 2 else -power) / order, n)
            size += float(power.sum()) / order
            power = power * odds
            order += 1
            left_out = power / order <= 1e-20
            cut += float((power[left_out] / order / (1 - odds[left_out])).sum())
            at, power, odds = at[~left_out], power[~left_out], odds[~left_out]
        return masses, total, cut + (len(p) + 16 * order + _OF_RATES) * _UNIT * size


def _multiply(log_phi: npt.NDArray[np.complex128], k: Integers, counts: Array, p: Array) -> float:
    """Adds the logs of 1 - p + p e^{-isk}, one entry at a time; returns the error of phi."""
    n = 2 * (len(log_phi) - 1)
    # What has vanished before counts as 0: |log phi| grows only by terms that are negative.
    spread = np.bincount(k % n, counts * p * (1 - p), n)
    most = log_phi.real - (spread.sum() - np.fft.rfft(spread).real)
    wanted = np.flatnonzero(most > -50.0)
    gone = np.setdiff1d(np.arange(len(log_phi)), wanted)
    log_phi[gone] = -np.inf
    circle = np.exp(-2j * np.pi * np.arange(n) / n)
    step = max(1, _AT_ONCE // max(len(wanted), 1))
    for start in range(0, len(k), step):
        part = slice(start, start + step)
        at = (k[part, np.newaxis] % n * wanted) % n
        chance = p[part, np.newaxis]
        with np.errstate(divide="ignore"):
            terms = np.log(1 - chance + chance * circle[at])
        log_phi[wanted] += (counts[part, np.newaxis] * terms).sum(0)
    # Each factor errs by 16 units of 1 at most, its logarithm by some units of 50.
    return float(counts.sum()) * 128 * _UNIT + math.exp(-49.0)


def _multiples(values: Array, h: float, up: bool) -> Integers:
    """k with k h >= value (up) or <= value, checked in exact arithmetic."""
    k = np.ceil(values / h) if up else np.floor(values / h)
    k = np.where(k * h < values, k + 1, k) if up else np.where(k * h > values, k - 1, k)
    return k.astype(np.int64)


def _first_at_least(c: float, h: float) -> int:
    """The least j with j h >= c."""
    j = math.ceil(c / h)
    if j * h < c:
        return j + 1
    return j - 1 if (j - 1) * h >= c else j


def _up(x: float) -> float:
    return math.nextafter(x, math.inf)


def _down(x: float) -> float:
    return math.nextafter(x, -math.inf)
