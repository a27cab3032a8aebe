"""Single-fault estimates: the first-order Hoeffding (ANOVA) term of F, without derivatives.

F(e) is approximated by F(point) + sum_i X_i, where X_i = F(point, e_i) - F(point) lets coordinate i
alone move. The X_i are independent, so E and Var follow from the first-order derivation with the
X_i for coordinates. Right for ReLU kinks and max-pools too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import sympy as sp

from crashsim_theory.arrays import Array, as_array, as_probability
from crashsim_theory.derivation import Derivation, Term, derive
from crashsim_theory.errors import TheoryError
from crashsim_theory.laws import Moments
from crashsim_theory.proofs.contractions import Contraction, Factor

NEGLECTED = "what two or more faults do together beyond the sum of their single effects"


@dataclass(frozen=True)
class SingleAtZero:
    """X_i = e_i D_i, D_i = F(only fault i) - F(0): exact for two-valued coordinates.

    Source: bound b4 of arXiv 1902.01686 (which writes p for k2 in the variance); exact to first
    order in p.
    """

    linear: Derivation
    neglected: str = NEGLECTED

    @property
    def mean_terms(self) -> tuple[Term, ...]:
        return tuple(_with_differences(term) for term in self.linear.mean_terms)

    @property
    def variance_terms(self) -> tuple[Term, ...]:
        return tuple(_with_differences(term) for term in self.linear.variance_terms)

    @property
    def contractions(self) -> tuple[Contraction, ...]:
        return tuple(term.contraction for term in self.mean_terms + self.variance_terms)

    def text(self) -> str:
        mean, variance = (
            " + ".join(term.contraction.text for term in terms)
            for terms in (self.mean_terms, self.variance_terms)
        )
        return f"E Delta = {mean}\nVar Delta = {variance}\nneglected: {self.neglected}"

    def latex(self) -> str:
        mean, variance = (
            " + ".join(term.contraction.latex for term in terms)
            for terms in (self.mean_terms, self.variance_terms)
        )
        return _aligned("\\mathbb{E} \\Delta", mean, variance)

    def evaluate_mean(self, moments: Moments, differences: Any) -> Array:
        """E Delta, shape (...), from single-fault differences D_i of shape (..., N)."""
        return self.linear.evaluate_mean(moments, as_array("differences", differences))

    def evaluate_variance(self, moments: Moments, differences: Any) -> Array:
        """Var Delta, shape (...), from single-fault differences D_i of shape (..., N)."""
        return self.linear.evaluate_variance(moments, as_array("differences", differences))


@dataclass(frozen=True)
class SingleAtMean:
    """X_i = F(m with e_i put back) - F(m), with e_i at the nodes of its law's quadrature."""

    linear: Derivation
    neglected: str = NEGLECTED

    def two_point_variance(self) -> Any:
        """The contribution of one two-valued coordinate to Var, simplified by sympy."""
        w, d0, d1 = sp.symbols("p D_0 D_1")
        return sp.factor(_variance([1 - w, w], [d0, d1]))

    def text(self) -> str:
        return (
            "E F(e) - F(E e) = sum_i sum_k w_ik D_ik\n"
            "Var Delta = sum_i (sum_k w_ik D_ik^2 - (sum_k w_ik D_ik)^2)\n"
            f"for crashes: Var Delta = sum_i {sp.sstr(self.two_point_variance())}\n"
            f"neglected: {self.neglected}"
        )

    def latex(self) -> str:
        variance = (
            "\\sum_i \\Bigl(\\sum_k w_{ik} D_{ik}^2 - \\bigl(\\sum_k w_{ik} D_{ik}\\bigr)^2\\Bigr)"
        )
        left = "\\mathbb{E} F(e) - F(\\mathbb{E} e)"
        return _aligned(left, "\\sum_i \\sum_k w_{ik} D_{ik}", variance)

    def evaluate_mean(self, weights: Any, differences: Any) -> Array:
        """E F(e) - F(m), shape (...): add F(m) - F(0) for E Delta.

        Args:
            weights: w_ik of `Law.nodes`, shape (nodes, N).
            differences: D_ik = F(m, e_i = node k) - F(m), shape (..., nodes, N).
        """
        moments, ones = self._coordinates(weights, differences)
        return self.linear.evaluate_mean(moments, ones)

    def evaluate_variance(self, weights: Any, differences: Any) -> Array:
        """Var Delta, shape (...). Arguments as in evaluate_mean."""
        moments, ones = self._coordinates(weights, differences)
        return self.linear.evaluate_variance(moments, ones)

    @staticmethod
    def _coordinates(weights: Any, differences: Any) -> tuple[Moments, Array]:
        w, d = as_probability("weights", weights), as_array("differences", differences)
        if d.ndim < 2 or w.shape[-2:] != d.shape[-2:]:
            remedy = f"give (..., nodes, N) with (nodes, N) = {w.shape[-2:]} as in weights"
            raise TheoryError("differences.shape", d.shape, remedy)
        mean = (w * d).sum(-2)
        k2 = (w * (d - mean[..., np.newaxis, :]) ** 2).sum(-2)
        # Orders 3 and 4 do not enter a sum of independent terms.
        return Moments(mean, k2, np.zeros_like(k2), np.zeros_like(k2)), np.ones_like(mean)


@overload
def derive_single(point: Literal["zero"]) -> SingleAtZero: ...
@overload
def derive_single(point: Literal["mean"] = "mean") -> SingleAtMean: ...
@functools.cache
def derive_single(point: str = "mean") -> SingleAtZero | SingleAtMean:
    """The single-fault estimate around e = 0 (the paper's b4) or around the mean point."""
    if point == "zero":
        return SingleAtZero(derive(1, "zero"))
    if point == "mean":
        return SingleAtMean(derive(1, "zero"))
    raise TheoryError("point", point, 'choose "mean" or "zero"')


def _with_differences(term: Term) -> Term:
    factors = tuple(
        Factor("D" if factor.name == "F" else factor.name, factor.indices, factor.power)
        for factor in term.contraction.factors
    )
    return Term(term.coefficient, Contraction(factors))


def _variance(weights: list[Any], values: list[Any]) -> Any:
    pairs = list(zip(weights, values, strict=True))
    return sum(w * v**2 for w, v in pairs) - sum(w * v for w, v in pairs) ** 2


def _aligned(left: str, mean: str, variance: str) -> str:
    return (
        "\\begin{aligned}\n"
        f"{left} &\\approx {mean} \\\\\n"
        f"\\operatorname{{Var}} \\Delta &\\approx {variance}\n"
        "\\end{aligned}"
    )
