"""Straight lines above and below an activation on an interval, rounded outward.

For any slope s, phi(z) <= s z + max over [l, u] of (phi(z) - s z). The slope is chosen so that the
line is as low as possible at a reference point, where the neuron is expected to be; the maximum is
exact for sigmoid, tanh and piecewise linear functions, and for others comes from a grid of step h
with the interpolation error added: h^2 / 8 sup|phi''|, or h / 2 sup|phi' - s| if that is less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from crashsim_theory.activations import EPSILON, ULPS, Activation
from crashsim_theory.arrays import Array
from crashsim_theory.errors import TheoryError

SLOPES, GRID = 17, 65


@dataclass(frozen=True)
class Lines:
    """lower_slope z + lower_offset <= phi(z) <= upper_slope z + upper_offset on [l, u]; (n,)."""

    lower_slope: Array
    lower_offset: Array
    upper_slope: Array
    upper_offset: Array


def lines(phi: Activation, low: Array, high: Array, reference: Array) -> Lines:
    """The best lines at `reference` over the intervals [low, high], all of shape (n,)."""
    slopes = _candidates(phi, low, high, reference)
    bottom, top = _residual_range(phi, slopes, low, high)
    # The exact residuals are widened by the rounding of phi(z), s z and their difference.
    reach = np.maximum(np.abs(low), np.abs(high))
    error = 4 * ULPS * EPSILON * (1 + reach) * (1 + np.abs(slopes))
    bottom, top = bottom - error, top + error
    at = np.clip(reference, low, high)
    column = np.arange(len(low))
    best_top = (slopes * at + top).argmin(0)
    best_bottom = (slopes * at + bottom).argmax(0)
    return Lines(
        slopes[best_bottom, column],
        bottom[best_bottom, column],
        slopes[best_top, column],
        top[best_top, column],
    )


def _candidates(phi: Activation, low: Array, high: Array, reference: Array) -> Array:
    """Slopes (S, n) to choose from: tangents along the interval, at the reference, the chord."""
    width = high - low
    points = low + width * np.linspace(0, 1, SLOPES)[:, None]
    tangents = phi.derivative(1, np.vstack([points, np.clip(reference, low, high)[None]]))
    with np.errstate(divide="ignore", invalid="ignore"):
        chord = np.where(width > 1e-9, (phi(high) - phi(low)) / width, tangents[-1])
    return np.vstack([tangents, chord[None]])


def _residual_range(phi: Activation, s: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """(min, max) over [low, high] of phi(z) - s z, for slopes (S, n), up to rounding."""
    if phi.kinks:
        places = [np.broadcast_to(z, s.shape) for z in (low, high)]
        places += [np.clip(np.full_like(s, kink), low, high) for kink in phi.kinks]
        if phi.name != "relu" and not phi.name.startswith("leaky-relu"):
            raise TheoryError("activation", phi.name, "with kinks, only ReLU and leaky ReLU relax")
        return _over(phi, s, places)
    stationary = _stationary(phi, s)
    if stationary is not None:
        places = [np.broadcast_to(z, s.shape) for z in (low, high)]
        return _over(phi, s, places + [np.clip(z, low, high) for z in stationary])
    z = low + (high - low) * np.linspace(0, 1, GRID)[:, None]
    values = phi(z)[:, None] - s * z[:, None]
    bottom, top = values.min(0), values.max(0)
    step = (high - low) / (GRID - 1)
    # Between grid points: by curvature, or by slope where the interval is wide.
    steepest = phi.supremum(1) + np.abs(s)
    gap = np.minimum(phi.supremum(2) * step**2 / 8, steepest * step / 2)
    return bottom - gap, top + gap


def _over(phi: Activation, s: Array, places: list[Any]) -> tuple[Array, Array]:
    z = np.stack(places)
    values = phi(z) - s * z
    return values.min(0), values.max(0)


def _stationary(phi: Activation, s: Array) -> tuple[Array, Array] | None:
    """Both z with phi'(z) = s, where they have a closed form (clipped far out if none exists)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if phi.name == "sigmoid":
            root = np.sqrt(np.maximum(1 - 4 * s, 0.0))
            z = np.log((1 + root) / (1 - root))
        elif phi.name == "tanh":
            z = np.arctanh(np.sqrt(np.clip(1 - s, 0.0, 1.0)))
        else:
            return None
    # A residual is flat to second order at its stationary points: rounding of z does not matter.
    z = np.nan_to_num(z, nan=0.0, posinf=1e6)
    return z, -z
