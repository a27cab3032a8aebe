"""Estimates from theory: torch gives derivatives and differences, crashsim_theory the formulas."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from crashsim_theory import (
    Coordinates,
    LinearSurrogate,
    block_of,
    chebyshev,
    derive,
    derive_single,
)
from numpy.typing import NDArray

from crashsim.analytic.gains import MEMORY, Gains, are_dense
from crashsim.analytic.precision import double_precision as double_precision
from crashsim.analytic.shares import SharesByValue
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.arrays import Floats
from crashsim.coordinates.counts import uncorrelated
from crashsim.coordinates.placement import check_independent, nodes_of
from crashsim.coordinates.points import Points
from crashsim.errors import NotApplicableError
from crashsim.metrics import predicted_class
from crashsim.results.estimate import MOST_OUTPUTS
from crashsim.results.estimates import Estimates, deterministic
from crashsim.results.schema import FormulaFacts
from crashsim.space import FaultSpace

Surrogate = LinearSurrogate | FactoredSurrogate
TailMethod = Literal["chebyshev", "chernoff", "saddlepoint"]
SURROGATE = "the linear surrogate of Delta at the mean point"
_CONTINUOUS = 2.0  # strikes from which a sum of them is near enough to a continuous one
_LIKELIEST = 4  # tails for which their number is told
_FEW = "; few faults decide: it may be several times off, surrogate-law is that law itself"


@dataclass
class Analysis:
    """What theory says of a space.

    Attributes:
        estimates: of every method that was asked for.
        shares: (N,) the share of the variance, summed over outputs and averaged over inputs, that
            each fault coordinate contributes; sums to 1 unless nothing varies.
        covariance: (K, K) of Delta across outputs, averaged over inputs; None beyond 64 outputs.
        surrogate: the linear surrogate of Delta, for every input and output.
        by_value: the shares of many coordinates, in place of ``shares``.
        source: the method whose single-fault effects are the surrogate's gains.
        formulas: text and LaTeX of the derived formulas by method.
    """

    estimates: Estimates = field(default_factory=Estimates)
    shares: Floats | None = None
    covariance: Floats | None = None
    surrogate: Surrogate | None = None
    by_value: SharesByValue | None = None
    source: str = ""
    formulas: dict[str, FormulaFacts] = field(default_factory=dict)


def taylor(space: FaultSpace, analysis: Analysis, memory: int = MEMORY) -> None:
    """``taylor`` (the paper's b3): first order around the clean network.

    E Delta = sum m_i dF_i(0), Var Delta = sum k2_i dF_i(0)^2. Adds to ``analysis``. Gains of many
    coordinates are factored, and kept where they fit in half the ``memory``, in bytes.
    """
    formula = derive(order=1, point="zero")
    if not are_dense(space):
        sums = Gains.of(space, "zero", memory).sums
        analysis.formulas["taylor"] = {"text": formula.text(), "latex": formula.latex()}
        _add_moments(analysis, "taylor", sums.mean, sums.variance, exact=False)
        return
    mean, variance = np.empty((2, space.B, space.K))
    for part, gradient in space.gradients(np.zeros(space.N)):
        mean[part] = formula.evaluate_mean(space.moments, gradient=gradient)
        varying, k2 = uncorrelated(gradient, space.moments.k2, space.counts)
        moments = replace(space.moments, k2=k2)
        variance[part] = formula.evaluate_variance(moments, gradient=varying)
    analysis.formulas["taylor"] = {"text": formula.text(), "latex": formula.latex()}
    _add_moments(analysis, "taylor", mean, variance, exact=False)


def mean_point_taylor(space: FaultSpace, analysis: Analysis, memory: int = MEMORY) -> None:
    """``mean-point-taylor``: first order around the mean point m = E e.

    E Delta = F(m) - F(0), Var Delta = sum k2_i dF_i(m)^2. Also sets the analysis' shares,
    covariance and, of independent coordinates, linear surrogate. Gains of many coordinates are
    factored, and kept where they fit in half the ``memory``, in bytes.
    """
    if not are_dense(space):
        _factored_mean_point_taylor(space, analysis, memory)
        return
    formula = derive(order=1, point="mean")
    m, k2 = space.mean_point, space.moments.k2
    shift = shift_to(space, m)
    mean, variance, base = np.empty((3, space.B, space.K))
    shares, covariance = np.zeros(space.N), np.zeros((space.K, space.K))
    gains = np.empty((space.B, space.K, space.N))
    for part, gradient in space.gradients(m):
        mean[part] = shift[part] + formula.evaluate_mean(space.moments, gradient=gradient)
        varying, spread = uncorrelated(gradient, k2, space.counts)
        moments = replace(space.moments, k2=spread)
        variance[part] = formula.evaluate_variance(moments, gradient=varying)
        base[part] = shift[part] - gradient @ m
        gains[part] = gradient
        weighted = varying * spread
        shares += (weighted * varying).sum((0, 1))
        if space.K <= MOST_OUTPUTS:
            covariance += np.einsum("bkn,bln->kl", weighted, varying, optimize=True)
    analysis.formulas["mean-point-taylor"] = {"text": formula.text(), "latex": formula.latex()}
    analysis.shares = shares / shares.sum() if shares.sum() > 0 else shares
    analysis.covariance = covariance / space.B if space.K <= MOST_OUTPUTS else None
    analysis.source = "mean-point-taylor"
    if not space.counts:
        analysis.surrogate = LinearSurrogate(base, gains, coordinates_of(space))
    _add_moments(analysis, "mean-point-taylor", mean, variance, exact=not (k2 > 0).any())


def _factored_mean_point_taylor(space: FaultSpace, analysis: Analysis, memory: int) -> None:
    """The same with factored gains: slopes in the model's own precision, F(m) in double."""
    formula = derive(order=1, point="mean")
    gains = Gains.of(space, "mean", memory)
    sums, shift = gains.sums, gains.shift
    analysis.formulas["mean-point-taylor"] = {"text": formula.text(), "latex": formula.latex()}
    analysis.by_value = SharesByValue.of(gains)
    analysis.covariance = None if sums.covariance is None else sums.covariance.mean(0)
    analysis.source = "mean-point-taylor"
    if not space.counts:
        analysis.surrogate = FactoredSurrogate.of(gains, shift - sums.mean)
    _add_moments(analysis, "mean-point-taylor", shift, sums.variance, exact=not space.is_random)


def single(space: FaultSpace, analysis: Analysis) -> None:
    """``single`` (the paper's b4): every fault alone on the otherwise clean network.

    With D_i = F(fault i alone) - F(0): E Delta = sum m_i D_i, Var Delta = sum k2_i D_i^2, exact to
    first order in p. (A Gaussian coordinate's law is summed over the nodes of its quadrature.)

    Raises:
        NotApplicableError: the squares of what some faults do overflow.
    """
    weights, differences = _single_differences(space, np.zeros(space.N), space.clean())
    # e_i D_i is X_i = F(0, e_i) - F(0) at the nodes of a two-valued e_i: one evaluation serves all.
    rule = derive_single(point="mean")
    with np.errstate(over="ignore", invalid="ignore"):
        mean = rule.evaluate_mean(weights, differences)
        variance = _varying_singly(space, weights, differences)
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        raise NotApplicableError(
            "some faults alone change outputs by more than double precision can square, so there "
            "are no moments to tell"
        )
    formula = derive_single(point="zero")
    analysis.formulas["single"] = {"text": formula.text(), "latex": formula.latex()}
    _add_moments(analysis, "single", mean, variance, exact=False)


def mean_point_single(space: FaultSpace, analysis: Analysis) -> None:
    """``mean-point-single``: every coordinate alone over its law, the others at their mean.

    E Delta = F(m) - F(0) + sum_i (E F(m, e_i) - F(m)), Var Delta = sum_i Var F(m, e_i): the first
    order of the Hoeffding (ANOVA) expansion, anchored at m. Exact if F is additive in the
    coordinates; needs no derivatives. Where all coordinates are two-valued, the differences become
    the gains of the analysis' linear surrogate, in place of the gradient; where there is none yet
    (a model without derivatives), so do the slopes of F(m, e_i)'s regression on e_i, which are the
    differences of a two-valued coordinate.
    """
    m = space.mean_point
    weights, differences = _single_differences(space, m, _outputs_at(space, m))
    rule = derive_single(point="mean")
    analysis.formulas["mean-point-single"] = {"text": rule.text(), "latex": rule.latex()}
    shift = shift_to(space, m) + rule.evaluate_mean(weights, differences)
    variance = _varying_singly(space, weights, differences)
    exact = not (space.moments.k2 > 0).any()
    _add_moments(analysis, "mean-point-single", shift, variance, exact=exact)
    two_valued = all(p.fault.is_two_valued for p in space.placements)
    if two_valued or analysis.surrogate is None:
        if two_valued:
            gains = _differences_per_unit(space, differences)
        else:
            gains = _slopes(space, weights, differences)
        varying, spread = uncorrelated(gains, space.moments.k2, space.counts)
        weighted = varying * spread
        shares = (weighted * varying).sum((0, 1))
        analysis.shares = shares / shares.sum() if shares.sum() > 0 else shares
        analysis.covariance = None
        if space.K <= MOST_OUTPUTS:
            products = np.einsum("bkn,bln->kl", weighted, varying, optimize=True)
            analysis.covariance = products / space.B
        if not space.counts:
            analysis.surrogate = LinearSurrogate(shift - gains @ m, gains, coordinates_of(space))
        analysis.source = "mean-point-single"


def _varying_singly(space: FaultSpace, weights: Floats, differences: Floats) -> Floats:
    """The variance of a sum over coordinates of what each does alone, (B, K).

    Args:
        space: says which coordinates depend on each other.
        weights: (nodes, N) of each coordinate's law.
        differences: (B, K, nodes, N) what each does alone.
    """
    rule = derive_single(point="mean")
    if not space.counts:
        alone: Floats = rule.evaluate_variance(weights, differences)
        return alone
    free = np.ones(space.N, dtype=np.bool_)
    total = np.zeros((space.B, space.K))
    gains = _differences_per_unit(space, differences)
    varying, spread = uncorrelated(gains, space.moments.k2, space.counts)
    for count in space.counts:
        part = slice(count.start, count.stop)
        free[part] = False
        total += np.square(varying[..., part]) @ spread[part]
    if free.any():
        total += rule.evaluate_variance(weights[:, free], differences[..., free])
    return total


def _differences_per_unit(space: FaultSpace, differences: Floats) -> Floats:
    """(F(m, e_i = b) - F(m, e_i = a)) / (b - a) of two-valued coordinates, (B, K, N)."""
    nodes, _ = _quadrature(space, space.mean_point)
    apart = nodes[1] - nodes[0]
    found: Floats = (differences[:, :, 1] - differences[:, :, 0]) / np.where(apart, apart, 1.0)
    return found


def _slopes(space: FaultSpace, weights: Floats, differences: Floats) -> Floats:
    """Cov(F(m, e_i), e_i) / Var e_i of every coordinate, (B, K, N); 0 where e_i does not vary."""
    nodes, _ = _quadrature(space, space.mean_point)
    centred = weights * (nodes - space.mean_point)
    spread = (centred * (nodes - space.mean_point)).sum(0)
    covariance = np.einsum("bkqn,qn->bkn", differences, centred)
    slopes: Floats = covariance / np.where(spread > 0, spread, 1.0)
    return slopes


def tails(
    method: TailMethod,
    linear: Analysis,
    margins: Surrogate | None,
    epsilon: float | None,
    struck: float = 1.0,
) -> Estimates:
    """``chebyshev``, ``chernoff`` or ``saddlepoint``: P(|Delta| >= epsilon) and class changes.

    All three are of the linear surrogate. Chebyshev's is the paper's (with its mean and variance).
    A class changes when some rival's margin reaches 0: the sum over rivals.

    Args:
        method: which.
        linear: holds the surrogate.
        margins: of ``margins_of``; None: no class changes.
        epsilon: of the tails; None: no tails.
        struck: P(any fault strikes). Where the surrogate moves that far by a fault alone, it is
            never likelier, which the saddlepoint of a hardly ever struck sum does not see.
    """
    found = Estimates()
    kind: Literal["bound", "estimate"] = "estimate" if method == "saddlepoint" else "bound"
    where = f"{SURROGATE} ({linear.source})"
    if epsilon is not None and linear.surrogate is not None:
        values = tail_probability(method, linear.surrogate, np.asarray(epsilon))
        few = method == "saddlepoint" and _few_decide(linear.surrogate, values, epsilon, "both")
        if method == "saddlepoint":
            needs_fault = np.abs(linear.surrogate.shift) < epsilon
            values = np.where(needs_fault, np.minimum(values, struck), values)
        note = where + _FEW * few
        found += deterministic(method, "tail", kind, values, level=epsilon, note=note)
    if margins is not None:
        changes = tail_probability(method, margins, np.asarray(0.0), side="upper")
        union = np.minimum(changes.sum(1), 1.0)
        few = method == "saddlepoint" and _few_decide(margins, changes, 0.0, "upper")
        if method == "saddlepoint":
            needs_fault = (margins.shift < 0).all(1)
            union = np.where(needs_fault, np.minimum(union, struck), union)
        note = f"{where}; sum over rivals" + _FEW * few
        found += deterministic(method, "class-change", kind, union, note=note)
    return found


def tail_probability(
    method: TailMethod,
    surrogate: Surrogate,
    epsilon: Floats,
    side: Literal["both", "upper"] = "both",
) -> Floats:
    """A method's P(|L| >= epsilon), or P(L >= epsilon), (..., *epsilon.shape)."""
    if method == "chebyshev":
        spread = (..., *(np.newaxis,) * epsilon.ndim)
        return chebyshev(surrogate.mean[spread], surrogate.variance[spread], epsilon, side)
    if method == "chernoff":
        return surrogate.chernoff(epsilon, side)
    return surrogate.saddlepoint(epsilon, side)


def _few_decide(
    surrogate: Surrogate, values: Floats, epsilon: float, side: Literal["both", "upper"]
) -> bool:
    """Whether few strikes bring about the likeliest of these (B, K) tails.

    The saddlepoint takes a sum's law for continuous, and is then several times off.
    """
    for at in np.argsort(-values, axis=None)[:_LIKELIEST]:
        row, output = np.unravel_index(at, values.shape)
        one = of_pair(surrogate, int(row), int(output))
        sides = [one, one.negative] if side == "both" else [one]
        likelier = max(sides, key=lambda each: float(each.saddlepoint(epsilon, "upper")))
        if float(likelier.deciding_strikes(epsilon)) < _CONTINUOUS:
            return True
    return False


def of_output(surrogate: Surrogate, output: int) -> Surrogate:
    """The surrogates (B,) of one output."""
    if isinstance(surrogate, FactoredSurrogate):
        return surrogate.part((slice(None), output))
    return LinearSurrogate(
        surrogate.shift[:, output], surrogate.gains[:, output], surrogate.coordinates
    )


def of_pair(surrogate: Surrogate, row: int, output: int) -> Surrogate:
    """The surrogate () of one input and output."""
    if isinstance(surrogate, FactoredSurrogate):
        return surrogate.part((row, output))
    return LinearSurrogate(
        surrogate.shift[row, output], surrogate.gains[row, output], surrogate.coordinates
    )


def margins_of(
    space: FaultSpace, surrogate: Surrogate, classes: NDArray[Any] | None = None
) -> Surrogate:
    """The margins (rival minus class) of each input as linear surrogates, (B, K - 1).

    Args:
        space: of the faults.
        surrogate: (B, K) of Delta.
        classes: (B,) over which the others are; None: those that are predicted.
    """
    clean = space.clean()
    rows = np.arange(space.B)
    top = predicted_class(clean) if classes is None else classes
    rivals = np.array([[k for k in range(space.K) if k != c] for c in top])
    level = clean + surrogate.shift
    shift = level[rows[:, None], rivals] - level[rows, top][:, None]
    if isinstance(surrogate, FactoredSurrogate):
        unit = np.eye(space.K)
        return surrogate.combined(unit[rivals] - unit[top][:, None], shift)
    gains = surrogate.gains
    return LinearSurrogate(
        shift, gains[rows[:, None], rivals] - gains[rows, top][:, None], surrogate.coordinates
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
    rules = [nodes_of(p) for p in space.placements]
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


def coordinates_of(space: FaultSpace) -> Coordinates:
    """The laws of the space's coordinates, as linear surrogates take them.

    Raises:
        NotApplicableError: they are not independent.
    """
    check_independent(space.placements, "linear surrogates are")
    return Coordinates(
        [block_of(p.fault.law, p.fault.law_parameters, p.size) for p in space.placements]
    )


def _add_moments(
    analysis: Analysis, method: str, mean: Floats, variance: Floats, exact: bool
) -> None:
    kind: Literal["exact", "estimate"] = "exact" if exact else "estimate"
    analysis.estimates += deterministic(method, "mean", kind, mean)
    analysis.estimates += deterministic(method, "variance", kind, variance)
