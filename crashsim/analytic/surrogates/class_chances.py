"""How often each example loses or gains its right class, by the exact law of linear surrogates.

No sample of the network is run: what decides is the law of the margins between classes
(``surrogate_law``). Examples that can hardly change, which are most, cost a bound each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from crashsim_theory import LinearSurrogate, SurrogateLaw, chance_of_all, chance_of_any
from numpy.typing import NDArray

from crashsim.analytic.first_order import Surrogate, margins_of, tail_probability
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.analytic.surrogates.surrogate_law import laws_by_input, with_ties
from crashsim.arrays import Floats
from crashsim.coordinates.streams import Stream, generator
from crashsim.metrics import predicted_class
from crashsim.space import FaultSpace

_LEFT_OUT = 0.01  # of what all examples add up to: the least likely ones, by their bounds
_COMMON = 0.02  # rates above it: no fault decides alone, and a law on fewer points does
_POINTS = 2**14, 2**11  # of the lattice for rare and for common faults
_RIVALS = 1e-3  # of an example's bound: rivals below it are left out


def class_chances(
    space: FaultSpace, surrogate: Surrogate, targets: NDArray[Any] | None, seed: int
) -> tuple[Floats, Floats]:
    """P(an example's class is lost) and P(its target is gained), (B,) each, to a percent in all.

    Args:
        space: of the faults.
        surrogate: (B, K) of Delta.
        targets: (B,) the right classes; None: those that are predicted without faults.
        seed: of what several rivals share.

    Raises:
        TheoryError: a law of coordinates that is not known by its outcomes.
    """
    top = predicted_class(space.clean())
    wanted = top if targets is None else np.asarray(targets)
    margins = margins_of(space, surrogate)
    bounds = np.minimum(tail_probability("chernoff", margins, np.asarray(0.0), side="upper"), 1.0)
    is_right = wanted == top
    rows = np.arange(space.B)
    of_target = bounds[rows, np.minimum(wanted - (wanted > top), space.K - 2)]
    most = np.where(is_right, np.minimum(bounds.sum(1), 1.0), of_target)
    lost, gained = np.zeros((2, space.B))
    left, found = float(most.sum()), 0.0
    for b in np.argsort(-most, kind="stable").tolist():
        if left <= _LEFT_OUT * found or most[b] == 0:
            break
        rng = generator(seed, Stream.PREDICTED, b)
        one, alone = space.at_input(b), _rows(surrogate, b)
        if is_right[b]:
            near = np.flatnonzero(bounds[b] >= _RIVALS * most[b])
            lost[b] = _any(one, margins_of(one, alone), top[b : b + 1], near, rng)
        else:
            gained[b] = _all(one, margins_of(one, alone, wanted[b : b + 1]), wanted[b : b + 1], rng)
        left, found = left - float(most[b]), found + float(lost[b] + gained[b])
    return lost, gained


def _rows(surrogate: Surrogate, b: int) -> Surrogate:
    """The surrogates (1, K) of one input."""
    if isinstance(surrogate, FactoredSurrogate):
        return surrogate.part(slice(b, b + 1))
    part = slice(b, b + 1)
    return LinearSurrogate(surrogate.shift[part], surrogate.gains[part], surrogate.coordinates)


def _chosen(surrogate: Surrogate, shift: Floats, which: NDArray[np.int64]) -> Surrogate:
    """Some surrogates (1, R) of an input, with other shifts."""
    if isinstance(surrogate, FactoredSurrogate):
        found = surrogate.part((slice(None), which))
        return FactoredSurrogate(found.gains, shift[:, which], found.inputs, found.rows)
    return LinearSurrogate(shift[:, which], surrogate.gains[:, which], surrogate.coordinates)


def _points(law: SurrogateLaw) -> int:
    most = max((float(p.p.max()) for p in law.profiles if p.p.size), default=0.0)
    return _POINTS[most > _COMMON]


def _any(
    one: FaultSpace,
    margins: Surrogate,
    classes: NDArray[Any],
    near: NDArray[np.int64],
    rng: np.random.Generator,
) -> float:
    """P(some rival overtakes the class)."""
    rivals = _chosen(margins, with_ties(one, margins.shift, classes), near)
    for _, law, contributions in laws_by_input(rivals, rivals.shift):
        tails = law.tail(0.0, "upper", _points(law))
        if contributions is None:
            return min(float(tails.sum()), 1.0)
        return chance_of_any(law.profiles, tails, contributions, rng)
    return 0.0


def _all(
    one: FaultSpace, margins: Surrogate, classes: NDArray[Any], rng: np.random.Generator
) -> float:
    """P(the class overtakes all others)."""
    every = np.arange(margins.shift.shape[1])
    leads = _chosen(margins, with_ties(one, margins.shift, classes), every).negative
    for _, law, contributions in laws_by_input(leads, leads.shift):
        tails = law.tail(0.0, "upper", _points(law))
        if contributions is None:
            return float(tails.min())
        return chance_of_all(law.profiles, tails, contributions, rng)
    return 0.0
