"""Numbers of a law's cumulant generating function K, its derivatives, and draws under a tilt."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crashsim_theory.arrays import Array
from crashsim_theory.errors import TheoryError
from crashsim_theory.laws.law import Law, choose

_NEAR = 5e-3  # standard deviations times tilt, below which four cumulants are K
_MOST_ROUNDS = 100_000  # of rejection


def cumulants(
    law: Law, tilt: Array, parameters: Mapping[str, Array], orders: tuple[int, ...] = (0, 1, 2, 3)
) -> list[Array]:
    """K and its first derivatives at tilts; each of the tilts' shape.

    Beyond the tilts at which E exp(t e) is finite, K and its slope are infinite.

    Args:
        law: with a cumulant generating function.
        tilt: (..., n).
        parameters: of the law, each () or (n,).
        orders: the wanted derivatives, 0 to 3.

    Raises:
        TheoryError: a law without.
    """
    generating = law.numbers.cumulants
    if generating is None:
        raise TheoryError("law", law.name, "its cumulant generating function is not known")
    found = law.outcomes(**parameters)
    if found is not None:
        every = _of_atoms(tilt, *found)
        return [every[order] for order in orders]
    series, std = _near_zero(law, tilt, parameters)
    values = [np.asarray(parameters[name]) for name in law.parameter_names]
    with np.errstate(all="ignore"):
        at = [np.broadcast_to(k, tilt.shape) for k in generating(tilt, *values)]
    # Near 0 the expression may be 0/0, or cancel.
    near = np.abs(tilt) * std < _NEAR
    inside = np.isfinite(at[0])
    edge = np.full(tilt.shape, np.inf)
    beyond = [edge, np.copysign(edge, tilt), np.full_like(edge, np.nan)]
    return [np.where(near, series[k], np.where(inside, at[k], beyond[min(k, 2)])) for k in orders]


def _of_atoms(tilt: Array, values: Array, probabilities: Array) -> list[Array]:
    weights, log_mean = _tilted_weights(tilt, values, probabilities)
    shaped = _beside(values, tilt)
    mean = (weights * shaped).sum(0)
    centred = shaped - mean
    return [log_mean, mean, (weights * centred**2).sum(0), (weights * centred**3).sum(0)]


def _tilted_weights(tilt: Array, values: Array, probabilities: Array) -> tuple[Array, Array]:
    """The atoms' probabilities (k, ...) under tilts (...), and log E exp(tilt e)."""
    with np.errstate(divide="ignore"):
        exponents = _beside(np.log(probabilities), tilt) + tilt * _beside(values, tilt)
    top = exponents.max(0)
    weights = np.exp(exponents - top)
    total = weights.sum(0)
    return weights / total, top + np.log(total)


def _beside(atoms: Array, tilt: Array) -> Array:
    """(k, ...) atoms of parameters () or (n,), to broadcast with tilts (..., n)."""
    missing = tilt.ndim - (atoms.ndim - 1)
    return atoms.reshape(len(atoms), *(1,) * missing, *atoms.shape[1:])


def _near_zero(law: Law, tilt: Array, parameters: Mapping[str, Array]) -> tuple[list[Array], Array]:
    """K and its derivatives by its first four cumulants, and the standard deviation."""
    m = law.moments(**parameters)
    k4 = m.k4 - 3 * m.k2**2
    y = tilt
    series = [
        y * (m.mean + y * (m.k2 / 2 + y * (m.k3 / 6 + y * k4 / 24))),
        m.mean + y * (m.k2 + y * (m.k3 / 2 + y * k4 / 6)),
        m.k2 + y * (m.k3 + y * k4 / 2),
        m.k3 + y * k4,
    ]
    return series, np.sqrt(m.k2)


def draw_tilted(
    law: Law, rng: np.random.Generator, tilt: Array, parameters: Mapping[str, Array]
) -> Array:
    """Independent draws of e under exponential tilts, of the tilts' shape.

    By the atoms, by the law's own sampler, or by rejection of plain draws.

    Args:
        law: for which ``can_be_tilted``.
        rng: what to draw from.
        tilt: (..., n).
        parameters: of the law, each () or (n,).

    Raises:
        TheoryError: a law that cannot be tilted, or too strongly for rejection.
    """
    found = law.outcomes(**parameters)
    if found is not None:
        weights, _ = _tilted_weights(tilt, *found)
        return choose(rng.random(tilt.shape), _beside(found[0], tilt), weights)
    if law.tilted_sampler is not None:
        return np.asarray(law.tilted_sampler(rng, tilt, **parameters), dtype=np.float64)
    if not law.can_be_tilted:
        raise TheoryError("law", law.name, "give it a sampler of the tilted law")
    return _by_rejection(law, rng, tilt, parameters)


def _by_rejection(
    law: Law, rng: np.random.Generator, tilt: Array, parameters: Mapping[str, Array]
) -> Array:
    """A plain draw e is kept with probability exp(tilt e - its maximum over the support)."""
    low, high = (np.broadcast_to(end, tilt.shape).ravel() for end in law.bounds(**parameters))
    of_each = {k: np.broadcast_to(v, tilt.shape).ravel() for k, v in parameters.items()}
    flat, e = tilt.ravel(), np.empty(tilt.size)
    most = np.maximum(flat * low, flat * high)
    todo = np.arange(tilt.size)
    for _ in range(_MOST_ROUNDS):
        if not todo.size:
            return e.reshape(tilt.shape)
        drawn = law.draw(rng, todo.shape, **{k: v[todo] for k, v in of_each.items()})
        exponent = flat[todo] * drawn - most[todo]
        kept = -rng.standard_exponential(todo.size) <= exponent
        e[todo[kept]] = drawn[kept]
        todo = todo[~kept]
    raise TheoryError("law", law.name, "is tilted too strongly; give it draw_tilted")
