"""Sums over samples from which means, variances and regressions follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crashsim.arrays import Floats


def by_column(values: Floats) -> Floats:
    """Values (S, ...), those of one column beside each other where samples are many.

    Numbers that are added up are added fastest where they lie beside each other.
    """
    last = values.ndim - 1
    if last == 0 or len(values) <= math.prod(values.shape[1:]):
        return values
    columns = np.ascontiguousarray(values.transpose(*range(1, last + 1), 0))
    return columns.transpose(last, *range(last))


@dataclass(frozen=True)
class JointSums:
    """Sums of m quantities and of their products, each an array of one shape.

    Quantities should be centred roughly, which keeps the variances accurate.

    Attributes:
        n: number of samples, or the sum of their weights.
        first: (m, ...) sums.
        second: (m, m, ...) sums of products.
    """

    n: float
    first: Floats
    second: Floats

    @classmethod
    def of(cls, values: Sequence[Floats], weights: Floats | None = None) -> JointSums:
        """Of m arrays (S, ...), each sample counting once, or with its weight (S,)."""
        values = [by_column(value) for value in values]
        weighted = values
        if weights is not None:
            spread = weights.reshape(-1, *[1] * (values[0].ndim - 1))
            weighted = [spread * value for value in values]
        first = np.stack([value.sum(0) for value in weighted])
        second = np.empty((len(values), *first.shape))
        for i, left in enumerate(weighted):
            for j, right in enumerate(values[: i + 1]):
                second[i, j] = second[j, i] = np.einsum("s...,s...->...", left, right)
        n = float(len(values[0])) if weights is None else float(weights.sum())
        return cls(n, first, second)

    @classmethod
    def none(cls, m: int, shape: tuple[int, ...]) -> JointSums:
        """Of no samples."""
        return cls(0.0, np.zeros((m, *shape)), np.zeros((m, m, *shape)))

    def __add__(self, other: JointSums) -> JointSums:
        return JointSums(self.n + other.n, self.first + other.first, self.second + other.second)

    def over_one_input(self, total: JointSums) -> JointSums:
        """Of each output (1, K), and of their sum (1,), as of one array (K + 1,)."""
        first, second = (
            np.concatenate([of_each[..., 0, :], of_sum], axis=-1)
            for of_each, of_sum in ((self.first, total.first), (self.second, total.second))
        )
        return JointSums(self.n, first, second)

    def after_zeros(self, count: int) -> JointSums:
        """The same quantities (n,), after this number of others that are always zero."""
        first, second = (
            np.concatenate([np.zeros((*part.shape[:-1], count)), part], axis=-1)
            for part in (self.first, self.second)
        )
        return JointSums(self.n, first, second)

    @property
    def mean(self) -> Floats:
        """(m, ...)."""
        return self.first / self.n

    @property
    def covariance(self) -> Floats:
        """(m, m, ...), unbiased."""
        mean = self.mean
        outer: Floats = mean[:, None] * mean[None]
        return (self.second / self.n - outer) * (self.n / max(self.n - 1, 1))
