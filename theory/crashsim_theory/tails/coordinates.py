"""The independent fault coordinates of a surrogate: blocks of Bernoulli and normal laws."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crashsim_theory.arrays import Array, as_nonnegative, as_probability
from crashsim_theory.errors import TheoryError


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
class Coordinates:
    """Blocks of fault coordinates one after the other: Coordinates([Bernoulli(p), Normal(s)])."""

    blocks: Sequence[Bernoulli | Normal]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.blocks:
            raise TheoryError("blocks", self.blocks, "give at least one block of coordinates")

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)

    @functools.cached_property
    def is_bernoulli(self) -> npt.NDArray[np.bool_]:
        flags = [np.full(len(b), isinstance(b, Bernoulli)) for b in self.blocks]
        return np.concatenate(flags)

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
