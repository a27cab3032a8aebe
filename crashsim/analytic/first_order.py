"""Estimates from theory: torch gives derivatives and differences, crashsim_theory the formulas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from crashsim_theory import (
    Bernoulli,
    Coordinates,
    LinearSurrogate,
    Normal,
    chebyshev,
    derive,
    derive_single,
)

from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.model.checks import rounding_slack
from crashsim.model.sites import is_quantised
from crashsim.results.estimate import MOST_OUTPUTS, Estimate, deterministic
from crashsim.results.schema import FormulaFacts
from crashsim.space import FaultSpace

TAIL_METHODS = ("chebyshev", "chernoff", "saddlepoint")
_SURROGATE = "the linear surrogate of Delta at the mean point"


@dataclass
class Analysis:
    """What theory says of a space.

    Attributes:
        estimates: of every method that was asked for.
        shares: (N,) the share of the variance, summed over outputs and averaged over inputs, that
            each fault coordinate contributes; sums to 1 unless nothing varies.
        covariance: (K, K) of Delta across outputs, averaged over inputs; None beyond 64 outputs.
        surrogate: the linear surrogate of Delta, for every input and output.
        source: the method whose single-fault effects are the surrogate's gains.
        formulas: text and LaTeX of the derived formulas by method.
    """

    estimates: list[Estimate] = field(default_factory=list)
    shares: Floats | None = None
    covariance: Floats | None = None
    surrogate: LinearSurrogate | None = None
    source: str = ""
    formulas: dict[str, FormulaFacts] = field(default_factory=dict)


def double_precision(space: FaultSpace) -> FaultSpace:
    """The space in float64, where small probabilities do not drown in rounding.

    A model that fixes its own type (a constant float32 tensor in its forward pass, say) keeps it,
    and so does one that computes something else in float64 (with autocast inside, say). Torch's
    quantised layers take float32 alone.
    """
    if any(is_quantised(module) for module in space.model.modules()):
        return space
    try:
        wide = space.with_dtype(torch.float64)
        wide.outputs(Points.at(np.zeros(space.N)))
    except (RuntimeError, TypeError):
        return space
    off, largest = np.abs(wide.clean() - space.clean()).max(), np.abs(space.clean()).max()
    return wide if off <= 2 * rounding_slack(space.dtype) * largest else space


def taylor(space: FaultSpace, analysis: Analysis) -> None:
    """``taylor`` (the paper's b3): first order around the clean network.

    E Delta = sum m_i dF_i(0), Var Delta = sum k2_i dF_i(0)^2. Adds to ``analysis``.
    """
    formula = derive(order=1, point="zero")
    mean, variance = np.empty((2, space.B, space.K))
    for part, gradient in space.gradients(np.zeros(space.N)):
        mean[part] = formula.evaluate_mean(space.moments, gradient=gradient)
        variance[part] = formula.evaluate_variance(space.moments, gradient=gradient)
    analysis.formulas["taylor"] = {"text": formula.text(), "latex": formula.latex()}
    _add_moments(analysis, "taylor", mean, variance, exact=False)


def mean_point_taylor(space: FaultSpace, analysis: Analysis) -> None:
    """``mean-point-taylor``: first order around the mean point m = E e.

    E Delta = F(m) - F(0), Var Delta = sum k2_i dF_i(m)^2. Also sets the analysis' shares,
    covariance and linear surrogate.
    """
    formula = derive(order=1, point="mean")
    m, k2 = space.mean_point, space.moments.k2
    shift = shift_to(space, m)
    mean, variance, base = np.empty((3, space.B, space.K))
    shares, covariance = np.zeros(space.N), np.zeros((space.K, space.K))
    gains = np.empty((space.B, space.K, space.N))
    for part, gradient in space.gradients(m):
        mean[part] = shift[part] + formula.evaluate_mean(space.moments, gradient=gradient)
        variance[part] = formula.evaluate_variance(space.moments, gradient=gradient)
        base[part] = shift[part] - gradient @ m
        gains[part] = gradient
        weighted = gradient * k2
        shares += (weighted * gradient).sum((0, 1))
        if space.K <= MOST_OUTPUTS:
            covariance += np.einsum("bkn,bln->kl", weighted, gradient, optimize=True)
    analysis.formulas["mean-point-taylor"] = {"text": formula.text(), "latex": formula.latex()}
    analysis.shares = shares / shares.sum() if shares.sum() > 0 else shares
    analysis.covariance = covariance / space.B if space.K <= MOST_OUTPUTS else None
    analysis.source = "mean-point-taylor"
    if all(p.fault.can_be_drawn for p in space.placements):  # else the law's tails are not known
        analysis.surrogate = LinearSurrogate(base, gains, _coordinates(space))
    _add_moments(analysis, "mean-point-taylor", mean, variance, exact=not (k2 > 0).any())


def single(space: FaultSpace, analysis: Analysis) -> None:
    """``single`` (the paper's b4): every fault alone on the otherwise clean network.

    With D_i = F(fault i alone) - F(0): E Delta = sum m_i D_i, Var Delta = sum k2_i D_i^2, exact to
    first order in p. (A Gaussian coordinate's law is summed over the nodes of its quadrature.)
    """
    weights, differences = _single_differences(space, np.zeros(space.N), space.clean())
    formula = derive_single(point="zero")
    analysis.formulas["single"] = {"text": formula.text(), "latex": formula.latex()}
    # e_i D_i is X_i = F(0, e_i) - F(0) at the nodes of a two-valued e_i: one evaluation serves all.
    rule = derive_single(point="mean")
    mean = rule.evaluate_mean(weights, differences)
    variance = rule.evaluate_variance(weights, differences)
    _add_moments(analysis, "single", mean, variance, exact=False)


def mean_point_single(space: FaultSpace, analysis: Analysis) -> None:
    """``mean-point-single``: every coordinate alone over its law, the others at their mean.

    E Delta = F(m) - F(0) + sum_i (E F(m, e_i) - F(m)), Var Delta = sum_i Var F(m, e_i): the first
    order of the Hoeffding (ANOVA) expansion, anchored at m. Exact if F is additive in the
    coordinates; needs no derivatives. Where all coordinates are Bernoulli, the differences become
    the gains of the analysis' linear surrogate, in place of the gradient; where there is none yet
    (a model without derivatives), so do the slopes of F(m, e_i)'s regression on e_i, which are the
    differences of a Bernoulli coordinate.
    """
    m = space.mean_point
    weights, differences = _single_differences(space, m, _outputs_at(space, m))
    rule = derive_single(point="mean")
    analysis.formulas["mean-point-single"] = {"text": rule.text(), "latex": rule.latex()}
    shift = shift_to(space, m) + rule.evaluate_mean(weights, differences)
    variance = rule.evaluate_variance(weights, differences)
    exact = not (space.moments.k2 > 0).any()
    _add_moments(analysis, "mean-point-single", shift, variance, exact=exact)
    crashes = all(p.fault.is_bernoulli for p in space.placements)
    if crashes or analysis.surrogate is None:
        gains = differences[:, :, 1] - differences[:, :, 0]  # F(m, e_i = 1) - F(m, e_i = 0)
        if not crashes:
            gains = _slopes(space, weights, differences)
        weighted = gains * space.moments.k2
        shares = (weighted * gains).sum((0, 1))
        analysis.shares = shares / shares.sum() if shares.sum() > 0 else shares
        analysis.covariance = None
        if space.K <= MOST_OUTPUTS:
            products = np.einsum("bkn,bln->kl", weighted, gains, optimize=True)
            analysis.covariance = products / space.B
        analysis.surrogate = LinearSurrogate(shift - gains @ m, gains, _coordinates(space))
        analysis.source = "mean-point-single"


def _slopes(space: FaultSpace, weights: Floats, differences: Floats) -> Floats:
    """Cov(F(m, e_i), e_i) / Var e_i of every coordinate, (B, K, N); 0 where e_i does not vary."""
    nodes, _ = _quadrature(space, space.mean_point)
    centred = weights * (nodes - space.mean_point)
    spread = (centred * (nodes - space.mean_point)).sum(0)
    covariance = np.einsum("bkqn,qn->bkn", differences, centred)
    slopes: Floats = covariance / np.where(spread > 0, spread, 1.0)
    return slopes


def tails(space: FaultSpace, analysis: Analysis, methods: set[str], epsilon: float | None) -> None:
    """``chebyshev``, ``chernoff`` and ``saddlepoint`` for P(|Delta| >= epsilon) and class change.

    All three are of the analysis' linear surrogate. Chebyshev's is the paper's (with its mean and
    variance). A class changes when some rival's margin reaches 0: the sum over rivals.
    """
    surrogate = analysis.surrogate
    if surrogate is None:
        return
    where = f"{_SURROGATE} ({analysis.source})"
    if epsilon is not None:
        values = tail_probabilities(surrogate, np.asarray(epsilon))
        for method in TAIL_METHODS:
            if method in methods:
                analysis.estimates += deterministic(
                    method, "tail", _kind(method), values[method], level=epsilon, note=where
                )
    if space.K > 1:
        margins = margins_of(space, surrogate)
        changes = tail_probabilities(margins, np.asarray(0.0), side="upper")
        for method in TAIL_METHODS:
            if method in methods:
                union = np.minimum(changes[method].sum(1), 1.0)
                analysis.estimates += deterministic(
                    method, "class-change", _kind(method), union, note=f"{where}; sum over rivals"
                )


def tail_probabilities(
    surrogate: LinearSurrogate, epsilon: Floats, side: Literal["both", "upper"] = "both"
) -> dict[str, Floats]:
    """Each tail method's P(|L| >= epsilon), or P(L >= epsilon), (..., *epsilon.shape)."""
    spread = (..., *(np.newaxis,) * epsilon.ndim)
    return {
        "chebyshev": chebyshev(surrogate.mean[spread], surrogate.variance[spread], epsilon, side),
        "chernoff": surrogate.chernoff(epsilon, side),
        "saddlepoint": surrogate.saddlepoint(epsilon, side),
    }


def of_output(surrogate: LinearSurrogate, output: int) -> LinearSurrogate:
    """The surrogates (B,) of one output."""
    return LinearSurrogate(
        surrogate.shift[:, output], surrogate.gains[:, output], surrogate.coordinates
    )


def of_pair(surrogate: LinearSurrogate, row: int, output: int) -> LinearSurrogate:
    """The surrogate () of one input and output."""
    return LinearSurrogate(
        surrogate.shift[row, output], surrogate.gains[row, output], surrogate.coordinates
    )


def _kind(method: str) -> Literal["bound", "estimate"]:
    return "estimate" if method == "saddlepoint" else "bound"


def margins_of(space: FaultSpace, surrogate: LinearSurrogate) -> LinearSurrogate:
    """The margins (rival minus predicted class) of each input as linear surrogates, (B, K - 1)."""
    clean = space.clean()
    rows = np.arange(space.B)
    top = clean.argmax(1)
    rivals = np.array([[k for k in range(space.K) if k != c] for c in top])
    level = clean + surrogate.shift
    gains = surrogate.gains
    return LinearSurrogate(
        level[rows[:, None], rivals] - level[rows, top][:, None],
        gains[rows[:, None], rivals] - gains[rows, top][:, None],
        surrogate.coordinates,
    )


def _single_differences(space: FaultSpace, base: Floats, at: Floats) -> tuple[Floats, Floats]:
    """Quadrature weights (nodes, N), and F(base, e_i = node) - F(base), (B, K, nodes, N)."""
    nodes, weights = _quadrature(space, base)
    differences = np.zeros((space.B, space.K, *nodes.shape))
    for k, values in enumerate(nodes):
        for columns, outputs in space.single_changes(base, values):
            differences[:, :, k, columns] = np.moveaxis(outputs - at, 0, -1)
    return weights, differences


def _quadrature(space: FaultSpace, base: Floats) -> tuple[Floats, Floats]:
    """Nodes and weights of every coordinate's law, (nodes, N); missing nodes weigh nothing."""
    rules = [
        p.fault.law.nodes(**{n: np.full(p.size, v) for n, v in p.fault.law_parameters.items()})
        for p in space.placements
    ]
    count = max(len(nodes) for nodes, _ in rules)
    all_nodes, all_weights = np.tile(base, (count, 1)), np.zeros((count, space.N))
    for p, (nodes, weights) in zip(space.placements, rules, strict=True):
        all_nodes[: len(nodes), p.start : p.stop] = nodes
        all_weights[: len(nodes), p.start : p.stop] = weights
    return all_nodes, all_weights


def _outputs_at(space: FaultSpace, point: Floats) -> Floats:
    outputs: Floats = space.outputs(Points.at(point))[0]
    return outputs


def shift_to(space: FaultSpace, point: Floats) -> Floats:
    """F(point) - F(0), (B, K)."""
    shift: Floats = _outputs_at(space, point) - space.clean()
    return shift


def _coordinates(space: FaultSpace) -> Coordinates:
    return Coordinates(
        [
            (Bernoulli if p.fault.is_bernoulli else Normal)(np.full(p.size, p.fault.rate))
            for p in space.placements
        ]
    )


def _add_moments(
    analysis: Analysis, method: str, mean: Floats, variance: Floats, exact: bool
) -> None:
    kind: Literal["exact", "estimate"] = "exact" if exact else "estimate"
    analysis.estimates += deterministic(method, "mean", kind, mean)
    analysis.estimates += deterministic(method, "variance", kind, variance)
