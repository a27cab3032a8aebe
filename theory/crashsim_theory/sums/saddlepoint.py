"""Chernoff's bound and the saddlepoint of a profile: a step costs its entries, not coordinates.

By Chernoff's bound P(L >= c) <= exp(K(t) - t c) for every t >= 0. log(1 - p + p e^{tg}) is convex
in g, so the chord between the ends of an entry, at the mean of its gains, lies above the sum over
its coordinates: the bound stays a bound, and loses about (t g / 1000)^2 / 8 of K.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.special import ndtr

from crashsim_theory.errors import TheoryError
from crashsim_theory.sums.profile import Profile
from crashsim_theory.sums.tails import central_moments, largest_sum, solve_tilt, tilted_profile
from crashsim_theory.tails.estimates import NEAR_MEAN
from crashsim_theory.tails.rows import log_mgf_terms

_ROUNDING = 1e-9  # of K, more than summing a million terms errs by


def chernoff_tail_of(profile: Profile, c: float) -> float:
    """exp(min over t >= 0 of K(t) - t c), at least: a bound on P(L >= c).

    Raises:
        TheoryError: rates that were split to a grid, of which K is not bounded from above.
    """
    if not profile.has_exact_rates:
        raise TheoryError("p", profile.p, "too many different rates for a bound by entries")
    c = c - profile.shift
    still = replace(profile, shift=0.0)
    top = largest_sum(_at_upper_ends(still))
    if c > top * (1 + 1e-12) if top > 0 else c > top:
        return 0.0
    t = solve_tilt(still, c)
    if not t > 0:
        return 1.0
    if not math.isfinite(t):
        t = 700.0 / float(np.abs(profile.gains).max())
    k = _cumulant_above(still, t)
    return math.exp(min(k + _ROUNDING * (1 + abs(k)) - t * c, 0.0))


def _at_upper_ends(profile: Profile) -> Profile:
    return replace(profile, gains=profile.high)


def _cumulant_above(profile: Profile, t: float) -> float:
    """K(t) or more, of the sum without shift."""
    low, high = (log_mgf_terms(profile.p, t * end) for end in (profile.low, profile.high))
    width = profile.high - profile.low
    share = (profile.gains - profile.low) / np.where(width > 0, width, 1.0)
    share = np.clip(share + 1e-9, 0.0, 1.0)  # its mean gain is a rounded sum
    bernoulli = float(profile.counts @ (low + share * (high - low)))
    return bernoulli + replace(profile, counts=0 * profile.counts).cumulant(t)


def saddlepoint_tail_of(profile: Profile, c: float) -> float:
    """The Lugannani-Rice estimate of P(L >= c); see `crashsim_theory.tails.estimates`."""
    c = c - profile.shift
    still = replace(profile, shift=0.0)
    t = solve_tilt(still, c)
    if t == -math.inf:
        return 1.0
    top = largest_sum(still)
    if not math.isfinite(t):
        return 0.0 if c > top else math.exp(_log_atom(still))
    k = still.cumulant(t)
    _, k2, _ = central_moments(tilted_profile(still, t))
    _, variance, third = central_moments(still)
    w = math.copysign(math.sqrt(2 * max(t * c - k, 0.0)), t)
    u = t * math.sqrt(k2)
    if abs(w) < NEAR_MEAN:
        difference = -third / (6 * variance**1.5) if variance > 0 else 0.0
    else:
        difference = 1 / u - 1 / w if u else 0.0
    estimate = float(ndtr(-w)) + math.exp(-w * w / 2) / math.sqrt(2 * math.pi) * difference
    highest = math.exp(min(k - t * c, 0.0)) if t > 0 else 1.0
    lowest = min(math.exp(_log_atom(still)), highest)
    return min(max(estimate, lowest), highest)


def _log_atom(profile: Profile) -> float:
    """log of the probability of the largest sum."""
    if profile.normal_variance > 0:
        return -math.inf
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(profile.p), np.log1p(-profile.p)
    random = (profile.p > 0) & (profile.p < 1)
    forced = np.where(profile.gains > 0, log_p, np.where(profile.gains < 0, log_q, 0.0))
    total = float((profile.counts * forced)[random].sum())
    for o in profile.outcomes:
        at = o.chances[o.values == o.values[o.chances > 0].max()].sum()
        total += o.count * math.log(at)
    return total
