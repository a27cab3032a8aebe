"""Tails of one surrogate: from the lattice law, tilted where the tail is far."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import expit

from crashsim_theory.arrays import Array
from crashsim_theory.sums.lattice import lattice_law
from crashsim_theory.sums.profile import Outcomes, Profile, coarse
from crashsim_theory.sums.window import Window, decided, window_of
from crashsim_theory.tails.surrogate import Side

CELLS = 2**14
_FAR = 1e-8  # below it a tail is computed under a tilt, where it is not small
_OUTSIDE = 36.0  # e^-36 of the law may lie outside the lattice
_TYPICAL = 0.01  # standard deviations by which a tilted mean may miss the threshold
_STEPS = 200


def tails(profile: Profile, eps: Array, side: Side, cells: int = CELLS, far: float = _FAR) -> Array:
    """P(L >= eps), P(L <= -eps), or the sum of both, of every eps (...), an estimate.

    Exact but for the lattice: mean and variance of L are kept, and sums closer together than a
    point's distance are not told apart. Tails below ``far`` are computed anew, under a tilt; with
    ``far=0`` they are rounding errors of 1e-12 or so.
    """
    found = np.zeros(eps.shape)
    if not eps.size:
        return found
    upper = eps - profile.shift if side != "lower" else None
    lower = -eps - profile.shift if side != "upper" else None
    asked = np.concatenate([c.ravel() for c in (upper, lower) if c is not None])
    window = window_of(profile, (float(asked.min()), float(asked.max())), _OUTSIDE)
    rest, (up, down) = _parted(profile, window)
    law, exactly = lattice_law(rest, window.low, window.high, cells)
    if upper is not None:
        above = _with_alone(law.above(upper, exactly), up, down)
        found += _with_far(profile, upper, above, cells, far)
    if lower is not None:
        below = _with_alone(law.below(lower, exactly), down, up)
        found += _with_far(profile.negative, -lower, below, cells, far)
    return np.clip(found, 0.0, 1.0)


def _with_far(profile: Profile, c: Array, near: Array, cells: int, far: float) -> Array:
    """P(sum >= c), given it where it is not small: what is small anew, what is impossible as 0."""
    _, most = profile.range()
    most += 1e-12 * abs(most)
    found = np.where(c > most, 0.0, near)
    for at in np.argwhere((near < far) & (c <= most)) if far > 0 else ():
        where = tuple(at)
        found[where] = _far_tail(profile, float(c[where]), cells)
    return np.clip(found, 0.0, 1.0)


def _parted(profile: Profile, window: Window) -> tuple[Profile, tuple[float, float]]:
    """The contributions without those that decide alone; and the chances of these, up and down."""
    alone = decided(profile, window)
    if not alone.any():
        return profile, (0.0, 0.0)
    with np.errstate(divide="ignore"):
        none = profile.counts * np.log1p(-profile.p)
    up, down = (alone & (profile.gains > 0)), (alone & (profile.gains < 0))
    chances = -np.expm1(none[up].sum()), -np.expm1(none[down].sum())
    return profile.keep(~alone), (float(chances[0]), float(chances[1]))


def _with_alone(rest: Array, hits: float, misses: float) -> Array:
    """A tail from that of the rest; where contributions of both sides strike, either wins."""
    decided_so = hits * (1 - misses) + hits * misses / 2
    return np.asarray((1 - hits) * (1 - misses) * rest + decided_so)


def _far_tail(profile: Profile, c: float, cells: int) -> float:
    """P(sum >= c) under the tilt that makes c typical, weighted back."""
    window = window_of(profile, (c, c), 700.0)
    rest, alone = _parted(profile, window)
    t = solve_tilt(coarse(rest), c)  # any tilt near it serves as well
    base = replace(rest, shift=0.0)
    if not np.isfinite(t):
        t = 700.0 / max(float(np.abs(rest.gains).max(initial=0.0)), 1e-300)
    tilted = tilted_profile(base, t)
    about = window_of(tilted, (-np.inf, np.inf), _OUTSIDE)
    law, exactly = lattice_law(tilted, about.low, about.high, cells)
    values = law.values + tilted.shift  # of normal coordinates, whose mean the tilt moves
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp(np.minimum(base.cumulant(t) - t * values, 700.0))
    if exactly:
        share = (values >= c - 1e-6 * law.width).astype(np.float64)
    else:  # the mass of a point is spread evenly to halfway its neighbours
        share = np.clip((values - c) / law.width + 0.5, 0.0, 1.0)
    above = float(np.sum(np.where(share > 0, law.mass * weights * share, 0.0)))
    found = float(_with_alone(np.asarray(max(above, 0.0)), *alone))
    return min(found, _any_upwards(profile)) if c > 0 else found


def _any_upwards(profile: Profile) -> float:
    """P(some contribution is positive), without which no sum is: more than any tail above 0."""
    if profile.normal_variance > 0 or profile.outcomes:
        return 1.0
    up = profile.gains > 0
    with np.errstate(divide="ignore"):
        none = profile.counts[up] * np.log1p(-profile.p[up])
    return float(-np.expm1(none.sum()))


def tilted_profile(profile: Profile, t: float) -> Profile:
    """The profile of the law with density e^{t S - K(t)} over that of the sum S."""
    with np.errstate(divide="ignore", over="ignore"):
        logit = np.log(profile.p) - np.log1p(-profile.p)
        p = expit(logit + t * profile.gains)
    return replace(
        profile,
        p=p,
        shift=profile.shift + t * profile.normal_variance,
        outcomes=tuple(_tilted(o, t) for o in profile.outcomes),
    )


def _tilted(o: Outcomes, t: float) -> Outcomes:
    weights = o.chances * np.exp(t * o.values - np.max(t * o.values))
    return replace(o, chances=weights / weights.sum())


def solve_tilt(profile: Profile, c: float) -> float:
    """The t with K'(t) = c, about, of the sum without shift; +-inf beyond its ends."""
    least, most = profile.range()
    if not least < c < most:
        return np.inf if c >= most else -np.inf
    low, high = -np.inf, np.inf
    t = 0.0
    for _ in range(_STEPS):
        slope, curvature = _slopes(profile, t)
        if slope > c:
            high = t
        else:
            low = t
        if abs(slope - c) <= _TYPICAL * np.sqrt(curvature) or high - low <= 1e-12 * abs(t):
            break
        with np.errstate(divide="ignore", over="ignore"):
            step = t - (slope - c) / curvature if curvature > 0 else np.nan
        if not low < step < high:
            reach = 4 * max(abs(t), 1 / max(float(np.abs(profile.gains).max(initial=0)), 1e-300))
            both = np.isfinite(low) and np.isfinite(high)
            step = (low + high) / 2 if both else (t + reach if np.isfinite(low) else t - reach)
        t = step
    return float(t)


def _slopes(profile: Profile, t: float) -> tuple[float, float]:
    """K'(t) and K''(t) of the sum without shift."""
    tilted = tilted_profile(replace(profile, shift=0.0), t)
    mean, variance, _ = central_moments(tilted)
    return mean, variance


def central_moments(profile: Profile) -> tuple[float, float, float]:
    """E L, Var L and the third central moment."""
    p, counts, g = profile.p, profile.counts, profile.gains
    spread = counts * p * (1 - p)
    variance = float(spread @ g**2) + profile.normal_variance
    third = float((spread * (1 - 2 * p)) @ g**3)
    for o in profile.outcomes:
        centred = o.values - o.values @ o.chances
        variance += o.count * float(o.chances @ centred**2)
        third += o.count * float(o.chances @ centred**3)
    return profile.mean(), variance, third
