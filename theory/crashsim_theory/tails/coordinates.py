"""The independent fault coordinates of a surrogate: blocks of Bernoulli, normal and other laws."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from crashsim_theory.arrays import Array, ArrayLike, as_array, as_nonnegative, as_probability
from crashsim_theory.errors import TheoryError
from crashsim_theory.laws.cumulants import cumulants, draw_tilted
from crashsim_theory.laws.known import BERNOULLI, NORMAL
from crashsim_theory.laws.law import Law


@dataclass(frozen=True, eq=False)
class Bernoulli:
    """Coordinates e_i in {0, 1} with P(e_i = 1) = p_i; p has shape (N,)."""

    p: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", np.atleast_1d(as_probability("p", self.p)))

    def __len__(self) -> int:
        return int(self.p.size)


@dataclass(frozen=True, eq=False)
class Normal:
    """Coordinates e_i ~ Normal(0, std_i^2); std has shape (N,)."""

    std: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", np.atleast_1d(as_nonnegative("std", self.std)))

    def __len__(self) -> int:
        return int(self.std.size)


@dataclass(frozen=True, eq=False)
class OfLaw:
    """``size`` coordinates of any law; each of its parameters has shape () or (size,)."""

    law: Law
    parameters: Mapping[str, Any]
    size: int

    def __post_init__(self) -> None:
        given = {name: as_array(name, value) for name, value in self.parameters.items()}
        object.__setattr__(self, "parameters", given)

    def __len__(self) -> int:
        return self.size

    @functools.cached_property
    def mean(self) -> Array:
        return np.broadcast_to(self.law.moments(**self.parameters).mean, self.size)

    @functools.cached_property
    def variance(self) -> Array:
        return np.broadcast_to(self.law.moments(**self.parameters).k2, self.size)

    def cumulants(self, tilt: Array, *orders: int) -> list[Array]:
        """K and its derivatives of these orders at tilts (..., size)."""
        return cumulants(self.law, tilt, self.parameters, orders)

    def draw(self, rng: np.random.Generator, tilt: Array) -> Array:
        """Coordinates (..., size) under tilts of that shape."""
        return draw_tilted(self.law, rng, tilt, self.parameters)

    def largest(self, gains: Array) -> tuple[Array, Array]:
        """The largest value of sum e_i g_i for rows (R, size), and the log of its probability."""
        low, high = (np.broadcast_to(end, self.size) for end in self.law.bounds(**self.parameters))
        with np.errstate(invalid="ignore"):  # 0 times infinity
            each = np.where(gains == 0, 0.0, np.maximum(gains * low, gains * high))
        return each.sum(-1), self._log_probability(gains, low, high).sum(-1)

    def _log_probability(self, gains: Array, low: Array, high: Array) -> Array:
        """log P(e_i = the end that gain g_i wants), elementwise; -inf for a continuous law."""
        found = self.law.outcomes(**self.parameters)
        if found is None:
            fixed = (gains == 0) | (low == high)
            return np.where(fixed, 0.0, -np.inf)
        values, chances = (
            np.broadcast_to(a.reshape(len(a), -1), (len(a), self.size)) for a in found
        )
        with np.errstate(divide="ignore"):
            at_low, at_high = (
                np.log(np.where(values == end, chances, 0.0).sum(0)) for end in (low, high)
            )
        return np.where(gains > 0, at_high, np.where(gains < 0, at_low, 0.0))


Block: TypeAlias = Bernoulli | Normal | OfLaw


def block_of(law: Law, parameters: Mapping[str, ArrayLike], size: int) -> Block:
    """``size`` coordinates of a law, in the form that takes the least time.

    Args:
        law: of them all.
        parameters: by name, each () or (size,).
        size: their number.
    """
    full = {name: np.broadcast_to(as_array(name, v), size) for name, v in parameters.items()}
    if law == BERNOULLI:
        return Bernoulli(full["p"])
    if law == NORMAL:
        return Normal(full["s"])
    return OfLaw(law, full, size)


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Blocks of fault coordinates one after the other: Coordinates([Bernoulli(p), Normal(s)])."""

    blocks: Sequence[Block]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.blocks:
            raise TheoryError("blocks", self.blocks, "give at least one block of coordinates")

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)

    @functools.cached_property
    def is_bernoulli(self) -> npt.NDArray[np.bool_]:
        return self._are(Bernoulli)

    @functools.cached_property
    def is_normal(self) -> npt.NDArray[np.bool_]:
        return self._are(Normal)

    def _are(self, kind: type[Block]) -> npt.NDArray[np.bool_]:
        return np.concatenate([np.full(len(b), isinstance(b, kind)) for b in self.blocks])

    @functools.cached_property
    def others(self) -> tuple[tuple[slice, OfLaw], ...]:
        """The blocks of other laws, and where their coordinates are."""
        ends = np.cumsum([len(block) for block in self.blocks]).tolist()
        return tuple(
            (slice(end - len(block), end), block)
            for end, block in zip(ends, self.blocks, strict=True)
            if isinstance(block, OfLaw)
        )

    @property
    def without_cgf(self) -> list[str]:
        """The names of the laws whose cumulant generating function is not known."""
        return list(dict.fromkeys(b.law.name for _, b in self.others if not b.law.has_cgf))

    @functools.cached_property
    def p(self) -> Array:
        """The probabilities of the Bernoulli coordinates, in their order."""
        found = [block.p for block in self.blocks if isinstance(block, Bernoulli)]
        return np.concatenate(found) if found else np.zeros(0)

    @functools.cached_property
    def std(self) -> Array:
        """The standard deviations of the normal coordinates, in their order."""
        found = [block.std for block in self.blocks if isinstance(block, Normal)]
        return np.concatenate(found) if found else np.zeros(0)
