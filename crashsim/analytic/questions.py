"""What an engineer asks back: how often may it fail, how large must it be, how many copies?

All answers are for one output (each that was named, else the one that varies most), with the tail
averaged over inputs, from the linear surrogate of Delta. Chernoff's answers are on the
safe side of the surrogate, saddlepoint's are estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import crashsim_theory as theory
import numpy as np
from crashsim_theory import LinearSurrogate, TheoryError

from crashsim.analytic.first_order import (
    Analysis,
    Surrogate,
    mean_point_taylor,
    of_output,
    of_pair,
)
from crashsim.arguments import number
from crashsim.errors import NotApplicableError
from crashsim.model import layers as torch_layers
from crashsim.model.layers import UnsupportedLayerError, layers_of
from crashsim.results.estimate import Answer, Kind
from crashsim.space import FaultSpace

_PRECISION = 1e-3  # of the largest p, relative
_NOTHING = 1e-9  # of the surrogate's spread: an epsilon below which there is no need to look


def answers(
    space: FaultSpace,
    analysis: Analysis,
    epsilon: float,
    delta: float,
    outputs: Sequence[int] | None = None,
) -> list[Answer]:
    """Answers for a target: P(|Delta| >= epsilon) at most delta.

    Args:
        space: in double precision.
        analysis: with a linear surrogate.
        epsilon, delta: the target.
        outputs: those that it is of; None: the one that varies most.

    Raises:
        ArgumentError: delta is not a probability between 0 and 1.
    """
    if analysis.surrogate is None:
        return []
    leading = int(np.argmax(analysis.surrogate.variance.mean(0)))
    found = []
    for output in outputs or [leading]:
        found += _answers_of(space, analysis, epsilon, delta, output)
    return found


def _answers_of(
    space: FaultSpace, analysis: Analysis, epsilon: float, delta: float, output: int
) -> list[Answer]:
    assert analysis.surrogate is not None
    of_one = of_output(analysis.surrogate, output)
    target = f"P(|Δ of {_named(space, output)}| ≥ {epsilon:g}) ≤ {delta:g}"
    if analysis.surrogate.without_cgf:  # all but the last rest on it
        return _continuous(space, analysis, output, epsilon)
    name = _named(space, output)
    found = [_reach(of_one, name, delta, method) for method in ("chernoff", "saddlepoint")]
    if not isinstance(of_one, LinearSurrogate):  # the others ask for new gains again and again
        return found + _replicas(of_one, epsilon, delta, target)
    if all(p.fault.is_binary for p in space.placements):
        found += [
            _attempt(
                f"largest p at every site for {target}",
                method,
                lambda method=method: _largest_p(space, output, epsilon, delta, method),  # type: ignore[misc]
            )
            for method in ("chernoff", "saddlepoint")
        ]
    found.append(
        _attempt(f"width for {target}", "chernoff", lambda: _width(of_one, epsilon, delta))
    )
    found += _replicas(of_one, epsilon, delta, target)
    return found + _continuous(space, analysis, output, epsilon)


def _named(space: FaultSpace, output: int) -> str:
    return f"output {output}" if space.loss is None else "the loss"


def check_delta(delta: float | None) -> None:
    """ArgumentError unless delta is None or strictly between 0 and 1."""
    if delta is not None:
        number("delta", delta, "a probability strictly between 0 and 1", above=0, below=1)


def _attempt(question: str, method: str, find: Callable[[], tuple[float, str]]) -> Answer:
    kind: Kind = "estimate" if method == "saddlepoint" else "bound"
    try:
        value, note = find()
    except TheoryError as error:
        return Answer(question, None, method, kind, str(error))
    return Answer(question, value, method, kind, note)


def _tail(surrogate: Surrogate, epsilon: float, method: str) -> float:
    """P(|L| >= epsilon), averaged over inputs."""
    return float(np.mean(getattr(surrogate, method)(epsilon)))


def _reach(surrogate: Surrogate, name: str, delta: float, method: str) -> Answer:
    """The epsilon that delta is reached at, by bisection on the averaged tail."""
    start = float(np.abs(surrogate.mean).max() + 2 * np.sqrt(surrogate.variance.max()))
    low, high = 0.0, start
    while high > 0 and _tail(surrogate, high, method) > delta:
        low, high = high, 2 * high
    while high - low > max(_PRECISION * high, _NOTHING * start):  # delta may be reached at 0
        middle = (low + high) / 2
        low, high = (low, middle) if _tail(surrogate, middle, method) <= delta else (middle, high)
    kind: Kind = "estimate" if method == "saddlepoint" else "bound"
    return Answer(f"ε with P(|Δ of {name}| ≥ ε) ≤ {delta:g}", high, method, kind)


def _largest_p(
    space: FaultSpace, output: int, epsilon: float, delta: float, method: str
) -> tuple[float, str]:
    def tail(p: float) -> float:
        analysis = Analysis()
        mean_point_taylor(_with_probability(space, p), analysis)
        assert analysis.surrogate is not None
        return _tail(of_output(analysis.surrogate, output), epsilon, method)

    return theory.largest_p(tail, delta), "surrogate at the mean point of each p"


def _with_probability(space: FaultSpace, p: float) -> FaultSpace:
    """The space with this probability at every Bernoulli coordinate."""
    faults = []
    for place in space.placements:
        changed: dict[str, Any] = {place.fault.parameter: p}
        fault = replace(place.fault, **changed)
        if not math.isclose(fault.change_probability, p):
            raise TheoryError(
                fault.parameter, p, f"{type(fault).__name__} makes another probability of it"
            )
        faults.append(fault)
    return space.with_faults(faults)


def _width(surrogate: LinearSurrogate, epsilon: float, delta: float) -> tuple[float, str]:
    worst = int(np.argmax(surrogate.variance))
    gains = surrogate.gains[worst]
    p = surrogate.coordinates.p
    if len(p) != len(gains) or np.ptp(p) > 0:
        raise TheoryError("p", "several", "the width law needs one p for all coordinates")
    found = theory.width_needed(gains, float(p[0]), epsilon, delta)
    return float(found.neurons), (
        f"{found.factor:.3g} times the present width, as the continuous limit scales, for input "
        f"{worst}"
    )


def _replicas(surrogate: Surrogate, epsilon: float, delta: float, target: str) -> list[Answer]:
    """Replicas whose median meets the target: exact binomial, and the published rule."""
    upper, lower = (
        float(surrogate.saddlepoint(epsilon, side).max()) for side in ("upper", "lower")
    )
    question = f"replicas with the median as output for {target}"

    def exact() -> tuple[float, str]:
        return float(theory.replicas_needed(delta, upper, lower)), (
            f"exact binomial, for saddlepoint tails {upper:.2g} and {lower:.2g} of the worst input"
        )

    published = float(theory.published_replicas(delta))
    share = max(upper, lower)
    note = "the paper's published rule"
    if share > theory.PUBLISHED_LIMIT:
        note += f", which does not hold here: one copy fails with {share:.2g} > 0.0918"
    return [
        _attempt(question, "saddlepoint", exact),
        Answer(question, published, "paper", "estimate", note),
    ]


def _continuous(space: FaultSpace, analysis: Analysis, output: int, epsilon: float) -> list[Answer]:
    """Whether each faulty layer is in the continuous limit, with its constant C."""
    try:
        chain = layers_of(space.model, space.inputs)
    except (NotApplicableError, UnsupportedLayerError):
        return []
    assert isinstance(analysis.surrogate, LinearSurrogate)
    gains = analysis.surrogate.gains[:, output]
    worst = int(np.argmax(analysis.surrogate.variance[:, output]))
    found = []
    for before, layer in pairwise(chain):
        if not isinstance(before.operation, torch_layers.Linear):
            continue
        for place in space.placements:
            site = place.site
            is_here = site.key == layer.site and place.acts_once
            if not is_here or place.size != len(before.operation.weight) or place.size < 2:
                continue
            limit = theory.continuous_limit(
                before.operation.weight, gains[worst, place.start : place.stop]
            )
            state = "in the continuous limit" if limit.holds else "; ".join(limit.reasons)
            found.append(
                Answer(
                    f"constant C of Var Δ ≈ p (1 - p) C / n at {site.name}",
                    limit.constant,
                    analysis.source,
                    "estimate",
                    f"n = {limit.n}, q = {limit.q:.2g}; {state}",
                )
            )
            has_one = place.fault.is_binary and not place.fault.is_varied
            p = place.fault.change_probability if has_one else 0.0
            if len(space.placements) == 1 and 0 < p < 1 and limit.q > 0:
                one = of_pair(analysis.surrogate, worst, output)
                assert isinstance(one, LinearSurrogate)
                found.append(_theorem(one, epsilon, p, limit))
    return found


def _theorem(
    one: LinearSurrogate, epsilon: float, p: float, limit: theory.ContinuousLimit
) -> Answer:
    """The paper's main theorem, for faults in one layer and the input that varies most."""
    bound = theory.theorem_tail(
        abs(float(one.mean)), float(one.variance), epsilon, n=limit.n, p=p, q=limit.q
    )
    return Answer(
        f"P(|Δ| ≥ {epsilon:g}) by the paper's theorem",
        bound.probability,
        "chebyshev",
        "bound",
        f"δ0 = {bound.delta_0:.2g} at α = {bound.alpha:.2g}, Chebyshev {bound.chebyshev:.2g}; for "
        "the linear surrogate",
    )
