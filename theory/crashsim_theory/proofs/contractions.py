"""Contractions: sums over distinct fault coordinates of products of moments and derivatives.

`sum_{i!=j} k2_i k2_j F_ij^2` is one. A contraction knows how to print itself and how to evaluate
itself on arrays; which contractions occur in a formula is found by `derivation`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crashsim_theory.arrays import Array
from crashsim_theory.errors import TheoryError

LETTERS = "ijkl"

DIAGONALS = {
    "F_ii": "hessian_diagonal",
    "F_iii": "third_diagonal",
    "F_iiii": "fourth_diagonal",
}
TENSORS = {1: "gradient", 2: "hessian", 3: "third", 4: "fourth"}


@dataclass(frozen=True, order=True)
class Factor:
    """A power of a moment (`m`, `k2`, `k3`, `k4`) or of a derivative `F` at some coordinates."""

    name: str
    indices: tuple[int, ...]
    power: int

    @property
    def text(self) -> str:
        letters = "".join(LETTERS[index] for index in self.indices)
        return f"{self.name}_{letters}" + (f"^{self.power}" if self.power > 1 else "")

    @property
    def latex(self) -> str:
        letters = "".join(LETTERS[index] for index in self.indices)
        head = {"F": "F", "D": "D", "m": "m"}.get(self.name) or f"\\kappa_{{{self.name[1]}"
        base = f"{head}_{{{letters}}}" if "kappa" not in head else f"{head},{letters}}}"
        return base + (f"^{{{self.power}}}" if self.power > 1 else "")

    def relabelled(self, labels: tuple[int, ...]) -> Factor:
        return Factor(self.name, tuple(sorted(labels[index] for index in self.indices)), self.power)


@dataclass(frozen=True)
class Contraction:
    """The sum over distinct coordinates i, j, ... of the product of `factors`.

    Attributes:
        factors: in the order they are printed; indices count from 0.
    """

    factors: tuple[Factor, ...]

    @property
    def symbol(self) -> Any:
        """The sympy symbol standing for the sum; its name is `text`."""
        import sympy as sp

        return sp.Symbol(self.text)

    @property
    def size(self) -> int:
        """How many distinct coordinates are summed over."""
        return 1 + max(max(factor.indices) for factor in self.factors)

    @property
    def order_in_p(self) -> int:
        """The sum is O(p^order_in_p) for crashes, whose mean and central moments are all O(p)."""
        return sum(factor.power for factor in self.moment_factors)

    @property
    def text(self) -> str:
        letters = "!=".join(LETTERS[: self.size])
        head = f"sum_{letters}" if self.size == 1 else f"sum_{{{letters}}}"
        return " ".join([head, *(factor.text for factor in self.factors)])

    @property
    def latex(self) -> str:
        body = " ".join(factor.latex for factor in self.factors)
        return "\\sum_{" + " \\ne ".join(LETTERS[: self.size]) + "} " + body

    @property
    def derivatives_only(self) -> Contraction:
        """The same sum without the moments: what is left when all coordinates share one law."""
        return Contraction(tuple(factor for factor in self.factors if factor.name == "F"))

    @property
    def moment_factors(self) -> tuple[Factor, ...]:
        return tuple(factor for factor in self.factors if factor.name != "F")

    def evaluate(self, arrays: Mapping[str, Array | None]) -> Array:
        """The sum on numeric arrays, over the trailing coordinate axes.

        Args:
            arrays: `m`, `k2`, `k3`, `k4` (..., N); `gradient` (..., N); `hessian` (..., N, N) or
                `hessian_diagonal` (..., N) where that is enough; likewise `third` (..., N, N, N)
                and `third_diagonal`, and `fourth`. None means not known.

        Raises:
            TheoryError: a derivative the sum needs is not known.
        """
        # Sums over distinct indices are signed sums over all index tuples, in which some indices
        # coincide: Moebius inversion on the lattice of set partitions.
        total: Any = 0.0
        for sign, labels in _partitions(self.size):
            total = total + sign * self._unrestricted(labels, arrays)
        return np.asarray(total, dtype=np.float64)

    def _unrestricted(self, labels: tuple[int, ...], arrays: Mapping[str, Array | None]) -> Any:
        operands, subscripts = [], []
        for factor in self.factors:
            merged = factor.relabelled(labels)
            operand, indices = self._operand(merged, arrays)
            operands.append(operand**merged.power if merged.power > 1 else operand)
            subscripts.append("..." + "".join(LETTERS[index] for index in indices))
        return np.einsum(",".join(subscripts) + "->...", *operands, optimize=len(operands) > 2)

    def _operand(
        self, factor: Factor, arrays: Mapping[str, Array | None]
    ) -> tuple[Array, tuple[int, ...]]:
        if factor.name != "F":
            moment = arrays[factor.name]
            assert moment is not None
            return moment, factor.indices
        rank = len(factor.indices)
        tensor = arrays.get(TENSORS[rank]) if rank in TENSORS else None
        if rank > 1 and len(set(factor.indices)) == 1:
            diagonal = arrays.get(DIAGONALS["F_" + "i" * rank])
            if diagonal is None and tensor is not None:
                diagonal = np.einsum("..." + "i" * rank + "->...i", tensor)
            if diagonal is not None:
                return diagonal, factor.indices[:1]
        if tensor is None:
            needed = TENSORS.get(rank, f"derivatives of order {rank}")
            raise TheoryError(needed, None, f"{self.text} needs it: pass {needed}=")
        if len(set(factor.indices)) < rank:
            # einsum takes the repeated index within one operand as a diagonal.
            return tensor, factor.indices
        return tensor, factor.indices


@functools.cache
def _partitions(size: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """(Moebius sign, label of each index) for every set partition of `size` indices."""
    result = []
    for labels in itertools.product(range(size), repeat=size):
        if _restricted_growth(labels):
            blocks = [labels.count(label) for label in set(labels)]
            sign = math.prod((-1) ** (b - 1) * math.factorial(b - 1) for b in blocks)
            result.append((sign, labels))
    return tuple(result)


def _restricted_growth(labels: tuple[int, ...]) -> bool:
    return all(label <= max(labels[:k], default=-1) + 1 for k, label in enumerate(labels))


def canonical(factors: tuple[Factor, ...]) -> tuple[Contraction, int]:
    """The contraction a monomial belongs to, and how many relabellings leave the monomial alone.

    Two monomials belong together if a permutation of the coordinates carries one to the other.
    """
    used = sorted({index for factor in factors for index in factor.indices})
    forms = [_printed_order(form) for form in _relabellings(factors, used)]
    best = min(forms, key=lambda form: [_preference(factor) for factor in form])
    return Contraction(best), forms.count(best)


def _relabellings(factors: tuple[Factor, ...], used: list[int]) -> Iterator[tuple[Factor, ...]]:
    for order in itertools.permutations(range(len(used))):
        labels = dict(zip(used, order, strict=True))
        yield tuple(
            Factor(f.name, tuple(sorted(labels[index] for index in f.indices)), f.power)
            for f in factors
        )


def _printed_order(factors: tuple[Factor, ...]) -> tuple[Factor, ...]:
    return tuple(sorted(factors, key=_preference))


def _preference(factor: Factor) -> tuple[int, int, tuple[int, ...], str, int]:
    return (factor.name == "F", len(factor.indices), factor.indices, factor.name, factor.power)
