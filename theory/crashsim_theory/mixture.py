"""A common random crash probability: one chip, one temperature, one p for all its coordinates.

Given p the coordinates are independent; p itself is random. Means, variances and tails are then
averages over p, by a quadrature over its law.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import roots_jacobi

from crashsim_theory.arrays import Array, as_array, as_probability
from crashsim_theory.errors import TheoryError


@dataclass(frozen=True, eq=False)
class CommonRate:
    """A discrete law of the common p: P(p = values[v]) = weights[v].

    Averages over it are exact for a discrete law; for one built from a density they are the
    quadrature's estimate.
    """

    values: Any
    weights: Any

    def __post_init__(self) -> None:
        values = np.atleast_1d(as_probability("values", self.values))
        weights = np.atleast_1d(as_probability("weights", self.weights))
        if values.shape != weights.shape or abs(weights.sum() - 1) > 1e-9:
            raise TheoryError("weights", self.weights, "one per value, summing to 1")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "weights", weights)

    @staticmethod
    def beta(mean: float, std: float, nodes: int = 16) -> CommonRate:
        """Gauss-Jacobi quadrature of a Beta law with this mean and standard deviation.

        Exact for polynomials in p up to degree 2 nodes - 1, hence for E and Var at first order.
        """
        if not 0 < mean < 1:
            raise TheoryError("mean", mean, "lies strictly between 0 and 1")
        if not 0 < std**2 < mean * (1 - mean):
            raise TheoryError("std", std, "give 0 < std^2 < mean (1 - mean)")
        size = mean * (1 - mean) / std**2 - 1
        a, b = mean * size, (1 - mean) * size
        x, w = roots_jacobi(nodes, b - 1, a - 1)
        return CommonRate((1 + x) / 2, w / w.sum())

    def average(self, of_p: Callable[[float], Any]) -> Array:
        """E over p of a tail, a mean or any other quantity (...)."""
        parts = [
            w * as_array("of_p", of_p(float(p)))
            for p, w in zip(self.values, self.weights, strict=True)
        ]
        return np.asarray(sum(parts[1:], start=parts[0]))

    def mean_and_variance(self, of_p: Callable[[float], tuple[Any, Any]]) -> tuple[Array, Array]:
        """E and Var from those at fixed p: Var = E Var(. | p) + Var E(. | p).

        The second part does not shrink with the width: what fails in common is not averaged out.
        """
        pairs = [of_p(float(p)) for p in self.values]
        means = np.stack([as_array("mean", mean) for mean, _ in pairs])
        variances = np.stack([as_array("variance", variance) for _, variance in pairs])
        weights = self.weights.reshape(-1, *(1,) * (means.ndim - 1))
        mean = (weights * means).sum(0)
        return mean, (weights * (variances + (means - mean) ** 2)).sum(0)
