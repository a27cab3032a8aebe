"""Proved two-sided brackets of the tail of a weighted sum of independent Bernoulli variables.

Integer dynamic programming. Gains are rounded outward to multiples of a cell width h, and the law
of the rounded sum, an integer, is built coordinate by coordinate. Three roundings count:

* Gains. h has few mantissa bits, so k h is exact for |k| < 2^40. With k_i h >= g_i (upper) or
  <= g_i (lower), checked in exact arithmetic, sum b_i k_i h lies on the right side of sum b_i g_i
  for every mask b, and so do the tails. Where many crashes are expected, k_i is the nearest
  multiple instead, and the threshold is moved by a margin that the sum of the rounding errors
  exceeds, together with the event itself, with a proved tiny probability (`tails.quantiles`).
* Range. Sums are kept in a window of cells. Upper: a sum that leaves at the top counts as a hit
  for good, one that leaves at the bottom is lifted to the lowest cell. Lower: one that leaves at
  the top is set down on the highest cell, one that leaves at the bottom is lost. Each only moves
  mass towards the bound, since the steps that follow do not depend on the sum.
* Floating point. One step computes d' = q d + p shift(d) with d, p, q >= 0: relative error at most
  (1 + u)^3 - 1 per step (q = 1 - p, products, sum; u = 2^-53) plus 2^-1073 for underflow. No
  subtraction occurs, so after N steps and a sum over M cells the relative error is below
  4 (N + M) u, and the underflow below N M 2^-1073 < 1e-300.

More coordinates than some ten thousand are not added one by one: `sums.bracket` brackets their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from crashsim_theory.arrays import Array, as_array, is_number
from crashsim_theory.errors import TheoryError
from crashsim_theory.sums.bracket import tail_at_least, tail_at_most
from crashsim_theory.sums.profile import Profile, profiles_of_chunks
from crashsim_theory.tails.gain_chunks import GainChunk
from crashsim_theory.tails.quantiles import LinearForms, RareEvent, upper_quantile
from crashsim_theory.tails.surrogate import LinearSurrogate, Side

UNDERFLOW = 1e-300
UNIT = 2.0**-53
FEWEST_CELLS, MOST_CELLS, WORK = 16_000, 256_000, 400_000_000
MOST_WORK = 2 * WORK  # of adding contributions one by one; more are summed by FFT
MANY_CRASHES = 12.0  # above, rounding gains to the nearest cell beats rounding them outward
_NEGLIGIBLE = 16.0  # the rounding margin fails e^-16 as often as Chernoff's bound on the tail
_IGNORED = 14.0  # the window leaves out events e^-14 as likely as the tail itself


def linear_exact(
    surrogate: LinearSurrogate, eps: Any, cells: int | None = None, side: Side = "both"
) -> tuple[Array, Array]:
    """(low, high) with low <= P <= high, proved, for the tail of a linear surrogate.

    P is P(L >= eps), P(L <= -eps) or P(|L| >= eps) by `side`. The bracket is as tight as the cells
    are narrow: one crash is misplaced by less than one cell.

    Args:
        surrogate: with Bernoulli coordinates only.
        eps: thresholds of shape (*E).
        cells: of the dynamic programming; time grows as N times cells. None takes between 16,000
            and 256,000, as many as about a second allows. Where N times cells is beyond 8e8 the
            sum is bracketed by FFT.

    Returns:
        Two arrays (..., *E). A proof about the surrogate, with its gains and shift taken as exact.

    Raises:
        TheoryError: a normal coordinate with a gain, an unknown side, or too few cells.
    """
    if not isinstance(surrogate, LinearSurrogate):
        raise TheoryError("surrogate", surrogate, "give a LinearSurrogate")
    if not isinstance(side, str) or side not in ("upper", "lower", "both"):
        raise TheoryError("side", side, 'choose "upper", "lower" or "both"')
    if cells is not None and (not is_number(cells) or cells < 16):
        raise TheoryError("cells", cells, "give at least 16")
    if np.any(surrogate.normal_variance > 0):
        raise TheoryError(
            "surrogate", surrogate, "normal coordinates have no lattice: use chernoff"
        )
    if surrogate.coordinates.others:
        raise TheoryError("surrogate", surrogate, "is for Bernoulli coordinates: use chernoff")
    thresholds = as_array("eps", eps)
    low = np.zeros((*surrogate.shape, *thresholds.shape))
    high = np.zeros_like(low)
    for one in (surrogate,) * (side != "lower") + (surrogate.negative,) * (side != "upper"):
        p = one.coordinates.p
        for row in np.ndindex(*one.shape):
            for column in np.ndindex(*thresholds.shape):
                gains, shift = one.bernoulli_gains[row], float(one.shift[row])
                bracket = sum_tail(p, gains, shift, float(thresholds[column]), cells)
                low[row + column] = _sum(float(low[row + column]), bracket[0], _down)
                high[row + column] = _sum(float(high[row + column]), bracket[1], _up)
    if side == "both":
        # The two tails overlap where eps <= 0: the event is certain.
        low, high = (np.where(thresholds <= 0, 1.0, a) for a in (low, high))
    return np.clip(low, 0.0, 1.0), np.minimum(high, 1.0)


def sum_tail(
    p: Array, gains: Array, shift: float, eps: float, cells: int | None = None
) -> tuple[float, float]:
    """A proved bracket of P(shift + sum b_i g_i >= eps) for independent b_i ~ Bernoulli(p_i)."""
    if (entries := _entries_of_many(p, gains, shift, cells)) is not None:
        return tail_at_least(entries, eps), tail_at_most(entries, eps)
    high = sum_tail_above(p, gains, shift, eps, cells)
    matters = (p > 0) & (gains != 0)
    p, gains = p[matters], gains[matters]
    c = _up(eps - shift)
    if c <= 0 and not np.any(gains < 0):
        return 1.0, 1.0
    if not _reachable(gains, c):
        return 0.0, high
    grid = Grid.around(p, gains, c, cells)
    if grid.crashes > MANY_CRASHES:
        steps = grid.multiples(gains, np.rint)
        rounded = steps * grid.h
        margin, miss = _rounding_margin(p, rounded, c, grid.tilt, gains - rounded, -1.0)
        mass = grid.lower(p, steps, c + margin)
    else:
        mass, miss = grid.lower(p, grid.multiples(gains, np.floor), c), 0.0
    mass = _down(mass * (1 - grid.relative_error) - UNDERFLOW)
    return max(0.0, _down(mass - miss)), high


def sum_tail_above(
    p: Array, gains: Array, shift: float, eps: float, cells: int | None = None
) -> float:
    """A proved upper bound on P(shift + sum b_i g_i >= eps)."""
    if (entries := _entries_of_many(p, gains, shift, cells)) is not None:
        return tail_at_most(entries, eps)
    matters = (p > 0) & (gains != 0)
    p, gains = p[matters], gains[matters]
    c = _down(eps - shift)
    if c <= 0 and not np.any(gains < 0):
        return 1.0
    if not _reachable(gains, c):
        return 0.0
    grid = Grid.around(p, gains, c, cells)
    if grid.crashes > MANY_CRASHES:
        steps = grid.multiples(gains, np.rint)
        margin, miss = _rounding_margin(p, gains, c, grid.tilt, gains - steps * grid.h, 1.0)
        mass = grid.upper(p, steps, c - margin)
    else:
        mass, miss = grid.upper(p, grid.multiples(gains, np.ceil), c), 0.0
    mass = _up(mass * (1 + grid.relative_error) + UNDERFLOW)
    return min(1.0, _up(mass + miss))


def _entries_of_many(p: Array, gains: Array, shift: float, cells: int | None) -> Profile | None:
    """The sum by entries, where there are too many contributions to add them one by one.

    None where there are not, or where there are too many different rates among them.
    """
    if p.size * (FEWEST_CELLS if cells is None else cells) <= MOST_WORK:
        return None
    chunk = GainChunk(gains[np.newaxis], np.ones(gains.size), p)
    (found,) = profiles_of_chunks([chunk], np.array([shift]))
    return found if found.has_exact_rates else None


def _rounding_margin(
    p: Array, known: Array, c: float, tilt: float, errors: Array, sign: float
) -> tuple[float, float]:
    """(margin, eta): P(sum b known >= c and sign * sum b errors >= margin) <= eta, proved.

    Gains rounded to the nearest cell err either way, so among many crashes the errors cancel: the
    threshold moves by a few standard deviations of their sum instead of half a cell per crash.
    """
    event = RareEvent(known, c, tilt)
    log_eta = event.log_bound(p) - _NEGLIGIBLE
    forms = LinearForms(np.zeros(1), sign * errors[np.newaxis])
    margin = float(upper_quantile(forms, p, event, log_eta)[0])
    # The errors themselves are rounded differences: each is off by at most one unit.
    slack = 4 * UNIT * math.fsum(np.abs(errors))
    return max(0.0, _up(margin + slack)), math.exp(log_eta) * (1 + 1e-12)


def _reachable(gains: Array, c: float) -> bool:
    """Whether the sum can reach c at all, with room for the rounding of this very sum."""
    most = math.fsum(gains[gains > 0])
    return _up(most) >= c


class Grid:
    """A window of cells of width h: cell j stands for the sum (j - origin) h."""

    def __init__(
        self, width: float, bottom: float, top: float, coordinates: int, tilt: float, crashes: float
    ) -> None:
        self.tilt = tilt  # under which sums near c are typical
        self.crashes = crashes  # expected among such sums
        # Ten mantissa bits, so that products with integers below 2^43 are exact.
        mantissa, exponent = math.frexp(width)
        self.h = math.ldexp(math.ceil(mantissa * 1024) / 1024, exponent)
        self.origin = math.ceil(-bottom / self.h)
        self.size = self.origin + math.ceil(top / self.h) + 2
        self.relative_error = 4 * (coordinates + self.size + 16) * UNIT

    @staticmethod
    def around(p: Array, gains: Array, c: float, cells: int | None) -> Grid:
        """Window [bottom, top] around 0 and c outside which sums hardly matter to the tail at c.

        Which window is chosen affects how tight the bound is, never whether it holds.
        """
        up, down = np.maximum(gains, 0), np.maximum(-gains, 0)
        log_tail, tilt = _chernoff(p, gains, c)
        reach = min(float(up.sum()), _quantile(p, up, _IGNORED - log_tail))
        depth = min(float(down.sum()), _quantile(p, down, _IGNORED - log_tail))
        # A partial sum above c + depth stays a hit; one below c - reach stays a miss.
        top = max(0.0, min(reach, c + depth)) if c > 0 else max(0.0, min(reach, depth + c))
        top = max(top, c)
        bottom = min(0.0, c, max(-depth, c - reach))
        if cells is None:
            cells = min(max(FEWEST_CELLS, WORK // max(p.size, 1)), MOST_CELLS)
        width = max((top - bottom) / cells, 1e-280)
        crashes = float(RareEvent(gains, c, tilt).tilted(p).sum())
        return Grid(width, bottom, top, p.size, tilt, crashes)

    def upper(self, p: Array, steps: Any, c: float) -> float:
        """Not below the mass of sums of steps h at or above c, but for floating-point rounding."""
        target = self.target(c)
        mass, hit = self._start(), 0.0
        for k, p_i in zip(steps.tolist(), p.tolist(), strict=True):
            moved = p_i * mass
            mass *= 1 - p_i
            if k >= 0:
                k = min(k, self.size)
                mass[k:] += moved[: self.size - k]
                hit += float(moved[self.size - k :].sum())
            else:
                k = min(-k, self.size)
                mass[: self.size - k] += moved[k:]
                mass[0] += moved[:k].sum()
        return hit + float(mass[max(target, 0) :].sum())

    def lower(self, p: Array, steps: Any, c: float) -> float:
        """Not above the mass of sums of steps h at or above c, but for floating-point rounding."""
        target = self.target(c)
        mass = self._start()
        for k, p_i in zip(steps.tolist(), p.tolist(), strict=True):
            moved = p_i * mass
            mass *= 1 - p_i
            if k >= 0:
                k = min(k, self.size)
                mass[k:] += moved[: self.size - k]
                mass[-1] += moved[self.size - k :].sum()
            else:
                k = min(-k, self.size)
                mass[: self.size - k] += moved[k:]
        return float(mass[max(target, 0) :].sum())

    def _start(self) -> Array:
        mass = np.zeros(self.size)
        mass[self.origin] = 1.0
        return mass

    def target(self, c: float) -> int:
        return min(self.origin + int(self.multiples(np.array([c]), np.ceil)[0]), self.size)

    def multiples(self, values: Array, towards: Any) -> Any:
        """k with k h >= value (np.ceil), <= value (np.floor), checked exactly, or near (np.rint).

        Multiples far outside the window are cut to its size: both ways of leaving it are alike.
        """
        limit = 2.0 * self.size if towards is not np.rint else 2.0**40
        k = np.clip(towards(values / self.h), -limit, limit)
        if towards is np.ceil:
            k = np.where((k * self.h < values) & (k < limit), k + 1, k)
        elif towards is np.floor:
            k = np.where((k * self.h > values) & (k > -limit), k - 1, k)
        return k.astype(np.int64)


def _chernoff(p: Array, gains: Array, c: float) -> tuple[float, float]:
    """log of Chernoff's bound on P(sum >= c), and its t, over a grid (the best hardly matters)."""
    t, k = _scan(p, gains)
    best = int(np.argmin(k - t * c))
    exponent = float(k[best] - t[best] * c)
    return min(0.0, exponent), float(t[best]) if exponent < 0 else 0.0


def _quantile(p: Array, gains: Array, exponent: float) -> float:
    """x with P(sum >= x) <= e^-exponent by Chernoff over the same grid."""
    if not np.any(gains > 0):
        return 0.0
    t, k = _scan(p, gains)
    return float(np.min((k + exponent) / t))


def _scan(p: Array, gains: Array) -> tuple[Array, Array]:
    largest = float(np.max(np.abs(gains), initial=0.0))
    t = np.geomspace(1e-3, 200.0, 40) / (largest or 1.0)
    x = np.multiply.outer(t, gains)
    return t, np.log1p(np.minimum(p, 1 - 1e-15) * np.expm1(x)).sum(-1)


def _sum(a: float, b: float, outward: Callable[[float], float]) -> float:
    return a + b if a == 0 or b == 0 else outward(a + b)


def _up(x: float) -> float:
    return math.nextafter(x, math.inf)


def _down(x: float) -> float:
    return math.nextafter(x, -math.inf)
