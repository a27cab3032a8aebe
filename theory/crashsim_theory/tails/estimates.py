"""Chernoff's bound, the Lugannani-Rice saddlepoint and quantiles of linear surrogates.

All solvers are vectorised over surrogates and thresholds at once: a safeguarded Newton iteration in
which rows drop out as they converge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from scipy.special import ndtr

from crashsim_theory.arrays import Array
from crashsim_theory.tails.rows import Rows

RowFunction: TypeAlias = Callable[[Rows, Any, Array], Array]
"""(rows, index, value) -> result: acts on surrogate index[j] with value[j], for every j."""

NEAR_MEAN = 1e-3  # |w| below which 1/u - 1/w is replaced by its limit
QUANTILE_TOLERANCE = 1e-7  # of log P
_STEPS = 100


def chernoff_tail(rows: Rows, index: Any, c: Array) -> Array:
    """exp(min over t >= 0 of K(t) - t c) for surrogate index[j] at c[j]."""
    t = np.maximum(solve_tilt(rows, index, c), 0.0)
    top, log_atom = (a[index] for a in rows.maximum())
    inside = np.isfinite(t)
    exponent = np.where(c > top, -np.inf, log_atom)  # t = inf: at or beyond the largest value
    k = rows.log_mgf(index[inside], t[inside])
    exponent[inside] = k - t[inside] * c[inside]
    return np.asarray(np.exp(np.minimum(exponent, 0.0)))


def saddlepoint_tail(rows: Rows, index: Any, c: Array) -> Array:
    """The Lugannani-Rice estimate of P(L >= c) for surrogate index[j] at c[j]."""
    t = solve_tilt(rows, index, c)
    top, log_atom = (a[index] for a in rows.maximum())
    # Beyond the ends of the support, and for a constant L, the tail is known.
    result = np.where(c > top, 0.0, np.where(t == -np.inf, 1.0, np.exp(log_atom)))
    inside = np.isfinite(t)
    t, c, which = t[inside], c[inside], index[inside]
    at_t = rows.cumulants(which, t)
    _, variance, third = rows.moments(which, np.zeros_like(t))
    w = np.sign(t) * np.sqrt(2 * np.maximum(t * c - at_t.k, 0.0))
    u = t * np.sqrt(np.maximum(at_t.k2, 0.0))  # far out a law's own formula may round below 0
    near = np.abs(w) < NEAR_MEAN
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.where(near, -third / (6 * variance**1.5), 1 / u - 1 / w)
    density = np.exp(-w * w / 2) / np.sqrt(2 * np.pi)
    difference = np.where(np.isnan(difference), 0.0, difference)
    with np.errstate(invalid="ignore"):
        estimate = ndtr(-w) + np.where(density > 0, density * difference, 0.0)
    # Close to the largest value u vanishes and the estimate blows up; these two bounds are true.
    highest = np.where(t > 0, np.exp(np.minimum(at_t.k - t * c, 0.0)), 1.0)
    lowest = np.minimum(np.exp(log_atom[inside]), highest)
    result[inside] = np.clip(estimate, lowest, highest)
    return result


def solve_tilt(rows: Rows, index: Any, c: Array) -> Array:
    """The root of K'(t) = c by Newton's method inside a shrinking bracket; (J,)."""
    top = rows.maximum()[0][index]
    bottom = rows.lowest[index]
    mean, variance, _ = rows.moments(index, np.zeros_like(c))
    scale = np.sqrt(variance)
    constant = scale == 0
    t = np.where(c >= top, np.inf, np.where(c <= bottom, -np.inf, 0.0))
    t = np.where(constant, np.where(c > mean, np.inf, -np.inf), t)
    todo = np.flatnonzero((c < top) & (c > bottom) & ~constant)
    low, high = np.full(c.shape, -np.inf), np.full(c.shape, np.inf)
    t[todo] = np.clip((c - mean)[todo] / scale[todo], -1, 1) / scale[todo]
    for _ in range(_STEPS):
        if not todo.size:
            break
        slope, curvature, _ = rows.moments(index[todo], t[todo])
        residual = slope - c[todo]
        high[todo] = np.where(residual >= 0, np.minimum(high[todo], t[todo]), high[todo])
        low[todo] = np.where(residual <= 0, np.maximum(low[todo], t[todo]), low[todo])
        done = np.abs(residual) <= 1e-9 * np.sqrt(np.maximum(curvature, 1e-300)) + 1e-15 * np.abs(
            c[todo]
        )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = t[todo] - residual / curvature
        t[todo] = np.where(done, t[todo], _inside(newton, t[todo], low[todo], high[todo]))
        width = high[todo] - low[todo]
        done |= width <= 1e-14 * np.abs(t[todo])
        todo = todo[~done]
    return t


def deciding_strikes(rows: Rows, index: Any, c: Array) -> Array:
    """About how many strikes bring L to c, K2(t)^3 / K3(t)^2 at K'(t) = c; (J,).

    K2 and K3 are the second and third derivatives of K. Of equal rare strikes it is their mean
    number under the tilt. Infinite at or below the mean, and beyond the largest value.
    """
    t = solve_tilt(rows, index, c)
    found = np.full(c.shape, np.inf)
    at = np.flatnonzero((t > 0) & np.isfinite(t))
    _, k2, k3 = rows.moments(index[at], t[at])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found[at] = (k2 / np.cbrt(k3) ** 2) ** 3
    return found


def _inside(newton: Array, t: Array, low: Array, high: Array) -> Array:
    """Newton's step if it stays in the bracket; else halve the bracket, or double an open one."""
    bounded = np.isfinite(low) & np.isfinite(high)
    reach = 4 * np.maximum(np.abs(t), 1e-300)
    with np.errstate(invalid="ignore"):
        fallback = np.where(
            bounded, (low + high) / 2, np.where(np.isfinite(low), t + reach, t - reach)
        )
    floor = np.where(np.isfinite(low), low, t - reach)
    ceiling = np.where(np.isfinite(high), high, t + reach)
    good = (newton > floor) & (newton < ceiling)
    return np.asarray(np.where(good, newton, fallback))


def two_sided_quantile(rows: Rows, index: Any, delta: Array, tail: RowFunction) -> Array:
    """The eps >= 0 with P(|L| >= eps) = delta by bracketed secant steps on log P; (J,)."""
    mirrored = rows.negative
    goal = np.log(delta)

    def log_tail(which: Any, eps: Array) -> Array:
        upper = tail(rows, index[which], eps)
        total = np.minimum(upper + tail(mirrored, index[which], eps), 1.0)
        with np.errstate(divide="ignore"):
            return np.asarray(np.maximum(np.log(total), -1e4))

    mean, variance, _ = rows.moments(index, np.zeros_like(goal))
    std = np.sqrt(variance)
    low, at_low = np.zeros_like(goal), -goal  # P(|L| >= 0) = 1
    high = np.abs(mean) + std * np.sqrt(2 * (np.log(2) - goal))
    high = np.maximum(high, np.finfo(float).tiny)
    at_high = log_tail(slice(None), high) - goal
    while np.any(at_high > 0):
        up = np.flatnonzero(at_high > 0)
        low[up], at_low[up] = high[up], at_high[up]
        high[up] *= 2
        at_high[up] = log_tail(up, high[up]) - goal[up]
    # Illinois: where the same end stays put twice, its value is halved to pull the secant over.
    pull_low, pull_high = at_low.copy(), at_high.copy()
    last = np.zeros(goal.shape)
    todo = np.flatnonzero(high > low)
    for step in range(_STEPS):
        if not todo.size:
            break
        a, b, f_a, f_b = low[todo], high[todo], pull_low[todo], pull_high[todo]
        share = np.clip(f_a / np.maximum(f_a - f_b, 1e-300), 1e-3, 0.999) if step % 8 else 0.5
        middle = a + (b - a) * share
        value = log_tail(todo, middle) - goal[todo]
        above = value > 0
        low[todo], high[todo] = np.where(above, middle, a), np.where(above, b, middle)
        moved = np.where(above, 1.0, -1.0)
        again = np.where(moved == last[todo], 0.5, 1.0)
        pull_low[todo] = np.where(above, value, f_a * again)
        pull_high[todo] = np.where(above, f_b * again, value)
        last[todo] = moved
        met = ~above & (value > -QUANTILE_TOLERANCE)
        narrow = high[todo] - low[todo] <= 1e-9 * high[todo]
        todo = todo[~met & ~narrow]
    # The upper end of the bracket: a Chernoff quantile stays a bound.
    return np.asarray(high)
