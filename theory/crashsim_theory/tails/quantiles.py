"""Proved Chernoff quantiles of many linear forms in crash indicators at once.

For forms c + v . b, an event U = u_0 + g . b >= theta known to be rare, and every s >= 0, r > 0:

    P(U >= theta, c + v . b >= tau)
        <= exp(Lambda(s g + r v) - s (theta - u_0) - r (tau - c)),
    Lambda(y) = sum log(1 - p + p e^y).

Setting this to eta gives tau. With s = 0 it is the plain Chernoff quantile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from crashsim_theory.arrays import Array
from crashsim_theory.tails.rows import Rows, chunks, log_mgf_terms

UNIT = 2.0**-53
_STEPS = 4


@dataclass(frozen=True)
class LinearForms:
    """constant + gains . b for r rows: constant (r,), gains (r, C)."""

    constant: Array
    gains: Array


@dataclass(frozen=True)
class RareEvent:
    """U = constant + gains . b >= threshold, tilted by s; s = 0 is the certain event."""

    gains: Array
    gap: float  # theta - u_0, rounded down
    tilt: float

    @staticmethod
    def certain(coordinates: int) -> RareEvent:
        return RareEvent(np.zeros(coordinates), 0.0, 0.0)

    def log_bound(self, p: Array) -> float:
        """log of Chernoff's bound on the event's probability, rounded up."""
        shift = self.tilt * self.gains
        value, error = log_mgf(p, shift[np.newaxis])
        exponent = value[0] - self.tilt * self.gap
        error = error[0] + 4 * UNIT * (abs(value[0]) + abs(self.tilt * self.gap))
        return float(min(0.0, exponent + error))

    def tilted(self, p: Array) -> Array:
        """The crash probabilities under which the event is typical."""
        with np.errstate(divide="ignore"):
            logit = np.log(p) - np.log1p(-p)
        return np.asarray(expit(logit + self.tilt * self.gains))


def log_mgf(p: Array, exponents: Array) -> tuple[Array, Array]:
    """Lambda(y) = sum_i log(1 - p_i + p_i e^{y_i}) for rows y (r, C), and a bound on its error.

    Each term lies between 0 and y_i and is computed to a few units in the last place of y_i, or of
    log p and log (1 - p) where |y_i| > 1 (numpy's functions err by at most 4 units); the sum over
    n terms adds n more.
    """
    terms = log_mgf_terms(p, exponents)
    with np.errstate(divide="ignore"):
        logs = np.abs(np.log(p)) + np.abs(np.log1p(-p))
    logs = np.where(np.isfinite(logs), logs, 0.0)
    size = np.abs(exponents)
    error = ((exponents.shape[-1] + 16) * size + 16 * np.where(size > 1, logs, 0.0)).sum(-1)
    return terms.sum(-1), UNIT * error


def upper_quantile(forms: LinearForms, p: Array, event: RareEvent, log_eta: float) -> Array:
    """tau (r,) with P(event and constant + gains . b >= tau) <= eta for every row, proved.

    Never above the largest value the form can take at all.
    """
    exponent = max(event.log_bound(p) - log_eta, 1e-3)
    tilted = event.tilted(p) if event.tilt else p
    shift = event.tilt * event.gains
    # Coordinates that no row depends on enter through the event alone.
    active = np.any(forms.gains != 0, axis=0)
    gains = forms.gains[:, active]
    rest, rest_error = log_mgf(p[~active], shift[np.newaxis, ~active])
    r = _best_multipliers(gains, tilted[active], exponent)
    largest = _largest(gains)
    tau = largest.copy()
    constant = rest[0] - event.tilt * event.gap - log_eta
    fixed = abs(rest[0]) + abs(event.tilt * event.gap) + abs(log_eta)
    for part in chunks(len(gains), gains.shape[1]):
        y = shift[active] + r[part, np.newaxis] * gains[part]
        value, error = log_mgf(p[active], y)
        # y itself is rounded; Lambda moves by no more than y does.
        error = error + rest_error[0] + 2 * UNIT * np.abs(y).sum(-1)
        error = error + 8 * UNIT * (np.abs(value) + fixed)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            candidate = (value + constant + error) / r[part]
        known = (r[part] > 0) & np.isfinite(candidate)
        candidate = np.where(known, candidate, largest[part])
        tau[part] = np.minimum(largest[part], candidate + 4 * UNIT * np.abs(candidate))
    # An event rarer than eta allows any tau: none is below what the form can take.
    tau = np.maximum(tau, np.minimum(gains, 0).sum(-1))
    return np.asarray(np.nextafter(forms.constant + tau, np.inf))


def _best_multipliers(gains: Array, p: Array, exponent: float) -> Array:
    """r >= 0 that about minimises (K(r) + exponent) / r for every row: Newton on r K' - K.

    Rows that do not vary get 0. Any r > 0 gives a bound: a few steps are enough.
    """
    zero = np.zeros(len(gains))
    rows, at = Rows(zero, gains, zero, p), np.arange(len(gains))
    spread = gains**2 @ (p * (1 - p))
    moving = spread > 0
    r = np.where(moving, np.sqrt(2 * exponent / np.where(moving, spread, 1.0)), 0.0)
    for _ in range(_STEPS):
        slope, curvature, _ = rows.moments(at, r)
        excess = r * slope - rows.log_mgf(at, r) - exponent
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = np.where(moving, r - excess / (r * curvature), 0.0)
        r = np.where(np.isfinite(step), np.clip(step, r / 4, r * 4), r)
    return r


def _largest(gains: Array) -> Array:
    total = np.maximum(gains, 0).sum(-1)
    return np.asarray(total * (1 + (gains.shape[1] + 8) * UNIT))


def expected(forms: LinearForms, p: Array) -> Array:
    """E of the forms under crash probabilities p, (r,)."""
    return np.asarray(forms.constant + forms.gains @ p)
