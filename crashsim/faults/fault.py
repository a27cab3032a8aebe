"""Base class of all faults: the law of a fault's coordinates, and what they do to a value.

A fault acts on *fault coordinates*: independent random numbers e_i, one per struck scalar (or per
group of scalars), that turn a value a into ``a + e * v(a)`` with a displacement v. A fault knows
the law of its coordinates and its displacement; it holds no run state, and is hashable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from crashsim_theory import BERNOULLI, NORMAL, Law
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arguments import as_float, is_number, shown
from crashsim.arrays import Floats
from crashsim.errors import ArgumentError

Strikes = Literal["neurons", "weights", "both"]
Duration = Literal["permanent", "transient"]

# What a class says of its displacement beside computing it, and what is known without that.
_CLAIMS = {"zeroes": False, "is_elementwise": False}
_BEHAVIOUR = (
    "law", "displacement", "perturb", "perturb_units", "coordinate_count", "group_size", "by_unit",
)  # fmt: skip


@dataclass(frozen=True)
class Fault(ABC):
    """One kind of fault. Subclasses are frozen dataclasses, one of whose fields is its rate.

    A subclass that changes what a fault does (its law, displacement, coordinates) is taken for a
    fault of its own: it makes none of the claims ``zeroes`` and ``is_elementwise`` unless it
    declares them anew.

    Args:
        duration: how long a fault lasts. ``"permanent"``: a neuron that dies is dead in every time
            step, call and example: one coordinate for all of them. ``"transient"``: each step and
            call has a coordinate of its own. What runs once in a forward pass is the same in both.
        window: the steps (start, stop), from start to before stop, in which a permanent fault of
            neurons acts; None for all.
    """

    law: ClassVar[Law]  # of a coordinate
    strikes: ClassVar[Strikes] = "both"
    parameter: ClassVar[str]  # the field that is the law's parameter, and the law's name for it
    name: ClassVar[str]  # what the command line calls it
    reported: ClassVar[tuple[str, ...]] = ()  # fields that reports show beside the parameter
    zeroes: ClassVar[bool] = False  # the displacement is -a: where e = 1, the value is 0
    is_elementwise: ClassVar[bool] = False  # v of each unit depends on that unit's value alone
    duration: Duration = field(default="permanent", kw_only=True)
    window: tuple[int, int] | None = field(default=None, kw_only=True)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for claim, unknown in _CLAIMS.items():
            claimant = next(c for c in cls.__mro__ if claim in vars(c))
            if any(getattr(cls, n, None) is not getattr(claimant, n, None) for n in _BEHAVIOUR):
                setattr(cls, claim, unknown)

    # The law of a coordinate.

    @property
    def law_parameters(self) -> dict[str, float]:
        """Numerical parameters of the coordinates' law, as ``Law.moments`` wants them."""
        return {str(symbol): self.rate for symbol in self.law.parameters[:1]}

    @property
    def rate(self) -> float:
        """The law's parameter: the probability of a crash, or the noise's standard deviation."""
        return float(getattr(self, self.parameter))

    @cached_property
    def _moments(self) -> tuple[float, float]:
        found = self.law.moments(**self.law_parameters)
        return float(found.mean), float(found.k2)

    @property
    def mean(self) -> float:
        """E e."""
        return self._moments[0]

    @property
    def variance(self) -> float:
        """Var e: p (1 - p) for a Bernoulli coordinate."""
        return self._moments[1]

    @cached_property
    def atoms(self) -> tuple[Floats, Floats] | None:
        """The values (k,) that e takes, and their probabilities; None for a continuous law."""
        return self.law.outcomes(**self.law_parameters)

    @cached_property
    def changes(self) -> tuple[Floats, Floats] | None:
        """The values other than 0 that e takes, and their probabilities; None if continuous."""
        if self.atoms is None:
            return None
        values, probabilities = self.atoms
        return values[values != 0], probabilities[values != 0]

    @cached_property
    def is_binary(self) -> bool:
        """Whether e is 0 or 1: the fault strikes or does not."""
        return self.atoms is not None and self.atoms[0].tolist() == [0.0, 1.0]

    @property
    def is_two_valued(self) -> bool:
        """Whether e takes one of two values, so that a line goes through all it does alone."""
        return self.atoms is not None and len(self.atoms[0]) == 2

    @cached_property
    def change_probability(self) -> float:
        """P(e != 0): the share of the coordinates that is expected to change."""
        return 1.0 if self.changes is None else float(self.changes[1].sum())

    @cached_property
    def unusual_probability(self) -> float:
        """P(e is not its likeliest value), infinite for a law without such a value."""
        if self.atoms is None:
            return math.inf
        return float(np.delete(self.atoms[1], self.atoms[1].argmax()).sum())

    @cached_property
    def typical_change(self) -> float:
        """How far a changed coordinate is from 0, about; 1 where none changes."""
        if self.changes is None:
            return math.sqrt(self.variance + self.mean**2) or 1.0
        values, probabilities = self.changes
        if len(values) == 1:
            return float(abs(values[0]))
        total = float(probabilities.sum())
        return math.sqrt(float(probabilities @ values**2) / total) if total > 0 else 1.0

    @property
    def can_be_drawn(self) -> bool:
        """Whether the law says how a coordinate is drawn, which moments alone do not."""
        return self.law.can_be_drawn

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Independent coordinates of this shape.

        Raises:
            ArgumentError: the law's own sampler fails, or returns another shape or no numbers.
        """
        try:
            return self.law.draw(rng, shape, **self.law_parameters)
        except Exception as error:  # whatever the user's code raises
            raise ArgumentError(
                f"faults: {type(self).__name__}: drawing {shape} numbers of its law "
                f"{self.law.name!r} raised {type(error).__name__}: {error}; correct its draw"
            ) from error

    def draw_changes(self, rng: np.random.Generator, count: int) -> Floats | float:
        """Values (count,) of coordinates that are known to change, or the one that all take.

        For a law of atoms.
        """
        assert self.changes is not None
        values, probabilities = self.changes
        if len(values) == 1:
            return float(values[0])
        if not count:  # as always where no value but 0 has a probability
            return np.empty(0)
        return rng.choice(values, count, p=probabilities / probabilities.sum())

    def draw_by_torch(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        """Independent coordinates of this shape; None for a law that torch does not draw."""
        e = torch.empty(shape)
        if self.law == BERNOULLI:
            return e.bernoulli_(self.change_probability, generator=generator)
        if self.law == NORMAL:
            return e.normal_(0, self.rate, generator=generator)
        return None

    # What the coordinates do.

    @abstractmethod
    def displacement(self, value: Tensor) -> Tensor:
        """v(a), of the shape of ``value``."""

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        """Number of fault coordinates of a site of this shape."""
        return math.prod(shape)

    def group_size(self, shape: tuple[int, ...]) -> int:
        """Number of consecutive units of a site of this shape that one coordinate strikes."""
        return 1

    def by_unit(self, e: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Coordinates (..., n), one for each group, as those of the units (..., size)."""
        size = self.group_size(shape)
        return e if size == 1 else np.repeat(e, size, axis=-1)[..., : math.prod(shape)]

    def perturb(self, value: Tensor, e: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The faulty value.

        Args:
            value: (..., *shape), the clean value.
            e: (..., n) with n = ``coordinate_count(shape)``; leading axes broadcast.
            shape: the site's shape, without batch axes.
        """
        size = self.group_size(shape)
        if size > 1:
            e = e.repeat_interleave(size, dim=-1)[..., : math.prod(shape)]
        return self.perturb_units(value, e, shape)

    def perturb_units(self, value: Tensor, e: Tensor, shape: tuple[int, ...]) -> Tensor:
        """``perturb`` with the coordinates of each unit, (..., size), in place of its group's."""
        return value + e.reshape(*e.shape[:-1], *shape) * self.displacement(value)

    # What reports say of it.

    def to_dict(self) -> dict[str, object]:
        """The fault as plain data: its name, its parameter and its fields."""
        own = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        timing = {"duration": own.pop("duration"), "window": own.pop("window")}
        if self.duration == "permanent":
            timing.pop("duration")
        if self.window is None:
            timing.pop("window")
        return {"fault": self.name, self.parameter: self.rate, **own, **timing}

    def facts(self) -> dict[str, object]:
        """What a score keeps of it: p, std, or the parameter's name and rate; declared fields."""
        found: dict[str, object] = {"fault": self.name}
        if self.is_binary:
            found["p"] = self.change_probability
        elif self.law == NORMAL:
            found["std"] = self.rate
        else:
            found |= {"parameter": self.parameter, "rate": self.rate}
        own = self.to_dict()
        reported = (*self.reported, *(name for name in ("duration", "window") if name in own))
        return found | {name: own[name] for name in reported}


@dataclass(frozen=True)
class BernoulliFault(Fault):
    """A fault that strikes each coordinate independently with probability ``p``."""

    law: ClassVar[Law] = BERNOULLI
    parameter: ClassVar[str] = "p"
    p: float

    def __post_init__(self) -> None:
        take_number(self, "p")
        if not 0 <= self.p <= 1:
            raise ArgumentError(
                f"{type(self).__name__}: p={self.p!r} is no probability; give a number in [0, 1]"
            )


def take_number(fault: Fault, field: str) -> None:
    """Makes a field of a fault a float, whatever kind of number it was given as."""
    value = getattr(fault, field)
    found = as_float(value)
    if math.isnan(found):
        raise ArgumentError(
            f"{type(fault).__name__}: {field}={shown(value)} is not a number; give one"
        )
    object.__setattr__(fault, field, found)


def _plain(value: Any) -> Any:
    """A field's value as reports and JSON hold it."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return as_float(value) if is_number(value) else shown(value)
