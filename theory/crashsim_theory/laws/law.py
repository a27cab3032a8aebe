"""The law of one fault coordinate: symbolic moments, draws, quadrature, generating function.

A site a_i under fault becomes a_i + e_i v_i; the law is that of the random coordinate e_i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from crashsim_theory.arrays import Array, ArrayLike, as_array
from crashsim_theory.errors import TheoryError
from crashsim_theory.laws.numbers import Numbers

Sampler: TypeAlias = Callable[..., Any]
"""(rng, shape, **parameters) -> independent draws of that shape; parameters broadcast with it."""

TiltedSampler: TypeAlias = Callable[..., Any]
"""(rng, tilt, **parameters) -> draws of the law with density e^(tilt e - cgf), of tilt's shape."""

Rule: TypeAlias = Callable[..., tuple[Any, Any]]
"""(**parameters) -> nodes and weights of a quadrature rule, each (number of nodes, *shape)."""


@dataclass(frozen=True)
class Moments:
    """Mean and central moments k2, k3, k4 of the fault coordinates, each of shape (N,)."""

    mean: Array
    k2: Array
    k3: Array
    k4: Array

    @staticmethod
    def concatenate(blocks: Sequence[Moments]) -> Moments:
        """The moments of several faults' coordinates, one after the other."""
        if not blocks:
            raise TheoryError("blocks", blocks, "give at least one Moments")

        def joined(name: str) -> Array:
            return np.concatenate([np.atleast_1d(getattr(block, name)) for block in blocks], -1)

        return Moments(joined("mean"), joined("k2"), joined("k3"), joined("k4"))


@dataclass(frozen=True)
class Law:
    """The law of one fault coordinate e, as sympy expressions in its parameters.

    ``law_of_atoms``, ``law_from_cgf`` and ``law_from_moments`` make one from less. Beside the
    moments everything may be left out; what then cannot be computed raises a TheoryError.

    Attributes:
        name: what to call it in formulas and reports.
        parameters: the sympy symbols the other fields may contain, in the order shown to people.
        mean, k2, k3, k4: E e and the central moments E (e - E e)^j.
        cgf: log E exp(t e) in `crashsim_theory.laws.t`, or None where it is not known. Where
            E exp(t e) is infinite its value must be infinite or not a real number. Serves
            Chernoff's bound, the saddlepoint and importance sampling.
        sampler: how e is drawn. Serves all that samples.
        quadrature: a rule that is exact where a method averages over e; None takes the atoms, or
            three nodes that match the moments.
        tilted_sampler: how e is drawn under an exponential tilt; not needed where there are atoms,
            or a sampler and a bounded support.
        atoms: (value, probability) of each value that a discrete law takes. Serves exact sums.
        support: the least and largest value of e, or infinities.
    """

    name: str
    parameters: tuple[Any, ...]
    mean: Any
    k2: Any
    k3: Any
    k4: Any
    cgf: Any = None
    sampler: Sampler | None = field(default=None, compare=False)
    quadrature: Rule | None = field(default=None, compare=False)
    tilted_sampler: TiltedSampler | None = field(default=None, compare=False)
    atoms: tuple[tuple[Any, Any], ...] = ()
    support: tuple[Any, Any] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        from crashsim_theory.laws.symbols import check_symbols, t  # with sympy

        known = {*self.parameters}
        check_symbols("cgf", self.cgf, known | {t})
        for name in ("mean", "k2", "k3", "k4"):
            check_symbols(name, getattr(self, name), known)
        for value in (*(part for atom in self.atoms for part in atom), *self.support):
            check_symbols("atoms and support", value, known)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def numbers(self) -> Numbers:
        """What the expressions come to, as functions of the parameters' values."""
        from crashsim_theory.laws.compiling import compiled  # with sympy

        return compiled(self)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.numbers.checks)

    @property
    def can_be_drawn(self) -> bool:
        return self.sampler is not None or self.numbers.values is not None

    @property
    def has_cgf(self) -> bool:
        return self.numbers.cumulants is not None

    @property
    def can_be_tilted(self) -> bool:
        """Whether e can be drawn under an exponential tilt, as importance sampling needs."""
        if self.numbers.values is not None or self.tilted_sampler is not None:
            return self.has_cgf
        return self.has_cgf and self.can_be_drawn and self.numbers.is_bounded

    def moments(self, **parameters: ArrayLike) -> Moments:
        """The moments at numeric parameters, which broadcast against each other.

        Raises:
            TheoryError: a parameter is missing, unknown or outside its range.
        """
        values, shape = self._checked(parameters)
        columns = self.numbers.moments(*values)
        mean, k2, k3, k4 = (
            np.array(np.broadcast_to(column, shape), dtype=np.float64) for column in columns
        )
        if np.any(k2 < 0):
            raise TheoryError("k2", k2, "a variance is not negative: check the parameters")
        return Moments(mean, k2, k3, k4)

    def outcomes(self, **parameters: ArrayLike) -> tuple[Array, Array] | None:
        """The values that e takes and their probabilities, each (number of them, *shape).

        None for a law that is not known by its atoms.

        Raises:
            TheoryError: probabilities that are negative or do not sum to 1.
        """
        values, shape = self._checked(parameters)
        if self.numbers.values is None or self.numbers.chances is None:
            return None
        atoms, probabilities = (
            np.stack([np.broadcast_to(one, shape) for one in column(*values)]).astype(np.float64)
            for column in (self.numbers.values, self.numbers.chances)
        )
        if np.any(probabilities < 0) or np.any(np.abs(probabilities.sum(0) - 1) > 1e-9):
            raise TheoryError(
                "parameters", dict(parameters), f"{self.name}: probabilities lie in [0, 1], sum 1"
            )
        return atoms, probabilities

    def nodes(self, **parameters: ArrayLike) -> tuple[Array, Array]:
        """A quadrature rule of the law: (nodes, weights), each (number of nodes, *shape).

        Exact for a law of atoms (Bernoulli: {0, 1} with 1 - p, p); five-point Gauss-Hermite for a
        normal law (exact to degree 9); else the law's own rule. A law known by its moments gets
        the three-point rule with a node at the mean that matches them all (exact to degree 4).
        """
        if self.quadrature is not None:
            values, _ = self._checked(parameters)
            nodes, weights = self.quadrature(**self._named(values))
            return as_array("nodes", nodes), as_array("weights", weights)
        found = self.outcomes(**parameters)
        return _three_point_rule(self.moments(**parameters)) if found is None else found

    def draw(
        self, rng: np.random.Generator, shape: tuple[int, ...], **parameters: ArrayLike
    ) -> Array:
        """Independent draws of this shape, with which the parameters broadcast.

        Raises:
            TheoryError: nothing says how e is drawn, or the sampler returns another shape or
                numbers that are not finite.
        """
        if self.sampler is None:
            found = self.outcomes(**parameters)
            if found is None:
                raise TheoryError("law", self.name, "give it a sampler, by which it is drawn")
            return choose(rng.random(shape), *found)
        values, _ = self._checked(parameters)
        return self._as_drawn(self.sampler(rng, shape, **self._named(values)), shape)

    def _as_drawn(self, e: Any, shape: tuple[int, ...]) -> Array:
        drawn = as_array(f"draws of {self.name}", e)
        if drawn.shape != shape:
            raise TheoryError(
                f"draws of {self.name}", drawn.shape, f"the sampler must return shape {shape}"
            )
        return drawn

    def bounds(self, **parameters: ArrayLike) -> tuple[Array, Array]:
        """The least and largest value that e can take, each (*shape)."""
        found = self.outcomes(**parameters)
        if found is not None:
            values, probabilities = found
            likely = probabilities > 0
            low = np.where(likely, values, np.inf).min(0)
            return low, np.where(likely, values, -np.inf).max(0)
        given, shape = self._checked(parameters)
        low, high = (
            np.broadcast_to(np.asarray(end, dtype=np.float64), shape)
            for end in self.numbers.ends(*given)
        )
        return low, high

    def _named(self, values: Sequence[Array]) -> dict[str, Array]:
        return dict(zip(self.parameter_names, values, strict=True))

    def _checked(self, parameters: Mapping[str, ArrayLike]) -> tuple[list[Array], tuple[int, ...]]:
        """The parameters' values in order, and the shape that they broadcast to."""
        checks = self.numbers.checks
        if set(parameters) != set(checks):
            raise TheoryError("parameters", sorted(parameters), f"{self.name} takes {[*checks]}")
        values = [check(name, parameters[name]) for name, check in checks.items()]
        return values, np.broadcast_shapes(*(value.shape for value in values))


def choose(uniform: Array, values: Array, probabilities: Array) -> Array:
    """The atoms, of these probabilities, that uniform numbers stand for; of ``uniform``'s shape."""
    edges = np.cumsum(probabilities, axis=0)
    chosen = np.broadcast_to(values[0], uniform.shape)
    for value, edge in zip(values[1:], edges[:-1], strict=True):
        chosen = np.where(uniform >= edge, value, chosen)
    return np.array(chosen, dtype=np.float64)


def _three_point_rule(moments: Moments) -> tuple[Array, Array]:
    # In units of the standard deviation, with skewness g and kurtosis k, the two outer nodes a, b
    # satisfy a + b = g and a b = g^2 - k; the weights then follow from moments 1 and 2.
    std = np.sqrt(moments.k2)
    scale = np.where(std > 0, std, 1.0)
    skewness, kurtosis = moments.k3 / scale**3, moments.k4 / scale**4
    gap = np.where(std > 0, kurtosis - skewness**2, 1.0)
    if np.any(gap < 1 - 1e-9):
        raise TheoryError("k4", moments.k4, "no law has k4 < k2^2 + k3^2/k2: check the moments")
    root = np.sqrt(skewness**2 / 4 + gap)
    a, b = skewness / 2 + root, skewness / 2 - root
    w_a, w_b = 1 / (a * (a - b)), 1 / (b * (b - a))
    nodes = moments.mean + std * np.stack([b, np.zeros_like(a), a])
    return nodes, np.stack([w_b, 1 - w_a - w_b, w_a])
