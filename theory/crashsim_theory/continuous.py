"""The continuous limit: is a given layer wide, balanced and smooth enough for Var Delta ~ p C / n?

If neighbouring neurons compute similar functions, the derivatives of the output along the n crash
coordinates of a layer are samples of a smooth function divided by n: dF_i ~ 1/n, d2F_ij ~ 1/n^2,
and Var Delta = p (1 - p) C / n with C = n sum dF_i^2 settled. Source: arXiv 1902.01686, sections on
the continuous limit and its regularisers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from crashsim_theory.arrays import Array, as_array, as_number
from crashsim_theory.errors import TheoryError

BALANCED, SMOOTH, SPREAD = 0.1, 0.5, 0.1


def balance(weight: Any) -> float:
    """q = min / max over the neurons of the sum of absolute incoming weights (rows); in [0, 1]."""
    sums = np.abs(_matrix(weight)).sum(1)
    return float(sums.min() / sums.max()) if sums.max() > 0 else 1.0


def roughness(weight: Any) -> float:
    """Root mean square step between neighbouring rows over that between unrelated rows.

    Near 0 for a smooth layer, near 1 for rows in random order (independent neurons).
    """
    w = _matrix(weight)
    if len(w) < 3:
        raise TheoryError("weight.shape", w.shape, "smoothness needs at least three neurons")
    steps = np.mean(np.diff(w, axis=0) ** 2)
    unrelated = 2 * np.mean((w - w.mean(0)) ** 2) * len(w) / (len(w) - 1)
    return float(math.sqrt(steps / unrelated)) if unrelated > 0 else 0.0


def smoothing_residual(weight: Any, width: float = 3.0) -> float:
    """Relative root-mean-square deviation of W from its Gaussian-smoothed copy along its rows.

    `width` is the standard deviation of the kernel in neurons.
    """
    w = _matrix(weight)
    if not 0 < as_number("width", width) <= 1e6:
        raise TheoryError("width", width, "give a positive number of neurons")
    size = float(np.sqrt(np.mean(w**2)))
    residual = w - gaussian_filter1d(w, width, axis=0, mode="nearest")
    return float(np.sqrt(np.mean(residual**2))) / size if size > 0 else 0.0


@dataclass(frozen=True)
class ContinuousLimit:
    """Measures of one layer, the law they predict, and the verdict.

    Attributes:
        n: neurons of the layer.
        q: balance of the weights into them.
        roughness: of the weights into them, along the neurons.
        participation: (sum g^2)^2 / (n sum g^4): the share of neurons that carry the variance.
        constant: C = n sum g^2.
        reasons: why the layer is not in the regime; empty if it is.
    """

    n: int
    q: float
    roughness: float
    participation: float
    constant: float
    reasons: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the layer is in the continuous regime."""
        return not self.reasons

    def variance(self, p: float, n: int | None = None) -> float:
        """The predicted Var Delta = p (1 - p) C / n at this or another width."""
        return p * (1 - p) * self.constant / (self.n if n is None else n)


def continuous_limit(weight: Any, gains: Any) -> ContinuousLimit:
    """Measure a layer: weights W (n, in) into its neurons, and the output's gains (n,) along them.

    The verdict asks for balance q >= 0.1, roughness <= 0.5 and participation >= 0.1. These limits
    are conventions of this package, not theorems.
    """
    w, g = _matrix(weight), as_array("gains", gains).reshape(-1)
    if len(w) != g.size:
        raise TheoryError("gains", g.size, f"give one gain per row of weight: {len(w)}")
    fourth = float((g**4).sum())
    participation = float((g**2).sum()) ** 2 / (g.size * fourth) if fourth > 0 else 1.0
    q, rough = balance(w), roughness(w)
    reasons = []
    if q < BALANCED:
        reasons.append(f"unbalanced: q = {q:.2g} < {BALANCED}")
    if rough > SMOOTH:
        reasons.append(f"neighbours differ: roughness {rough:.2g} > {SMOOTH}")
    if participation < SPREAD:
        reasons.append(f"few neurons carry the variance: participation {participation:.2g}")
    constant = g.size * float((g**2).sum())
    return ContinuousLimit(g.size, q, rough, participation, constant, tuple(reasons))


def decay_exponents(widths: Any, *measures: Any) -> tuple[float, ...]:
    """Slopes of log(measure) over log(width): -1 expected for mean |dF| and Var, -2 for |d2F|."""
    n = as_array("widths", widths)
    if n.ndim != 1 or len(n) < 2 or np.any(n <= 0):
        raise TheoryError("widths", widths, "give at least two positive widths")
    slopes = []
    for measure in measures:
        values = as_array("measure", measure)
        if values.shape != n.shape or np.any(values <= 0):
            raise TheoryError("measure", measure, "give one positive number per width")
        slopes.append(float(np.polyfit(np.log(n), np.log(values), 1)[0]))
    return tuple(slopes)


def _matrix(weight: Any) -> Array:
    w = as_array("weight", weight)
    if w.ndim < 2:
        raise TheoryError("weight.shape", w.shape, "give (neurons, inputs)")
    return w.reshape(len(w), -1)
