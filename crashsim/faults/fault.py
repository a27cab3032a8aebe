"""Base class of all faults: the law of a fault's coordinates, and what they do to a value.

A fault acts on *fault coordinates*: independent random numbers e_i, one per struck scalar (or per
group of scalars), that turn a value a into ``a + e * v(a)`` with a displacement v. A fault knows
the law of its coordinates and its displacement; it holds no run state, and is hashable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from crashsim_theory import BERNOULLI, NORMAL, Law
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arguments import as_float, is_number, shown
from crashsim.arrays import Floats, Integers
from crashsim.errors import ArgumentError
from crashsim.faults.behaviour import acts_on_each, sets_to_zero
from crashsim.faults.rates import Rates, as_rate

Strikes = Literal["neurons", "weights", "both"]
Duration = Literal["permanent", "transient"]

# What a class may say of its displacement; where it does not, the fault is tried out.
_CLAIMS = {"zeroes": property(sets_to_zero), "is_elementwise": property(acts_on_each)}
_BEHAVIOUR = (
    "law", "displacement", "perturb", "perturb_units", "coordinate_count", "group_size", "by_unit",
)  # fmt: skip


@dataclass(frozen=True)
class Fault(ABC):
    """One kind of fault. Subclasses are frozen dataclasses, one of whose fields is its rate.

    A subclass that changes what a fault does (its law, displacement, coordinates) is taken for a
    fault of its own: whether it ``zeroes`` values and acts on each unit (``is_elementwise``) is
    found by trying it out, unless the class says so.

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
    zeroes: ClassVar[bool]  # the displacement is -a: where e = 1, the value is 0
    is_elementwise: ClassVar[bool]  # v of each unit depends on that unit's value alone
    duration: Duration = field(default="permanent", kw_only=True)
    window: tuple[int, int] | None = field(default=None, kw_only=True)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for claim, tried in _CLAIMS.items():
            claimant = next((c for c in cls.__mro__ if claim in vars(c)), Fault)
            if any(getattr(cls, n, None) is not getattr(claimant, n, None) for n in _BEHAVIOUR):
                setattr(cls, claim, tried)

    def __post_init__(self) -> None:
        """Arrays become ``Rates``, so that the fault can be compared and hashed."""
        value = getattr(self, getattr(self, "parameter", ""), None)
        if isinstance(value, Tensor | np.ndarray):
            take_rate(self, self.parameter)

    # The law of a coordinate.

    @property
    def is_varied(self) -> bool:
        """Whether coordinates have rates of their own."""
        return isinstance(getattr(self, self.parameter), Rates)

    @property
    def is_settled(self) -> bool:
        """Whether its rate is known before it is placed: it is no function, nor follows from a
        number of faults."""
        value = getattr(self, self.parameter)
        return value is not None and not callable(value)

    def at(self, site: Any, shape: tuple[int, ...]) -> Self:
        """The fault as it is at a site: with one rate, or one for each coordinate.

        Args:
            site: what a function of the site is given.
            shape: of what is struck: ``coordinate_shape`` says how rates broadcast to it.

        Raises:
            ArgumentError: rates that do not fit or are out of their range; or the function fails.
        """
        value: Any = getattr(self, self.parameter)
        told = f"{type(self).__name__}: {self.parameter}"
        if callable(value):
            try:
                value = value(site)
            except Exception as error:  # whatever the user's code raises
                raise ArgumentError(
                    f"{told}: its function, called with site {site.name!r}, raised "
                    f"{type(error).__name__}: {error}"
                ) from error
            value = as_rate(f"{told} at {site.name!r}", value)
            if callable(value):
                raise ArgumentError(f"{told} at {site.name!r} is a function again; return numbers")
        if not isinstance(value, Rates):
            changed: dict[str, Any] = {self.parameter: value}
            return self if value is getattr(self, self.parameter) else replace(self, **changed)
        wanted = self.coordinate_shape(shape)
        try:
            changed = {self.parameter: value.over(wanted)}
        except ValueError:
            raise ArgumentError(
                f"{told}: rates of shape {value.array.shape} do not fit {site.name!r}, which has "
                f"{wanted} faults; give rates that broadcast to it, a function of the site, or "
                "a fault for each site"
            ) from None
        return replace(self, **changed)

    @property
    def law_parameters(self) -> dict[str, float | Floats]:
        """Numerical parameters of the coordinates' law, as ``Law.moments`` wants them."""
        return dict.fromkeys(self.law.parameter_names[:1], self.rate)

    @property
    def rate(self) -> float | Floats:
        """The law's parameter: the probability of a crash, or the noise's standard deviation.

        (n,) where each coordinate has its own.

        Raises:
            ArgumentError: it is known only once the fault is placed.
        """
        value = getattr(self, self.parameter)
        if isinstance(value, Rates):
            return value.array.reshape(-1)
        if not self.is_settled:
            raise ArgumentError(
                f"{type(self).__name__}: its {self.parameter} is known once it is placed at the "
                "sites of a model; ask a FaultSpace's placements"
            )
        return float(value)

    @cached_property
    def _moments(self) -> tuple[float | Floats, float | Floats]:
        found = self.law.moments(**self.law_parameters)
        if self.is_varied:
            n = len(np.atleast_1d(self.rate))
            return np.broadcast_to(found.mean, n), np.broadcast_to(found.k2, n)
        return float(found.mean), float(found.k2)

    @property
    def mean(self) -> float | Floats:
        """E e; (n,) where each coordinate has its own rate."""
        return self._moments[0]

    @property
    def variance(self) -> float | Floats:
        """Var e: p (1 - p) for a Bernoulli coordinate; (n,) where each has its own rate."""
        return self._moments[1]

    @cached_property
    def atoms(self) -> tuple[Floats, Floats] | None:
        """The values (k,) that e takes, and their probabilities; None for a continuous law.

        Both (k, n) where each of n coordinates has its own rate.
        """
        return self.law.outcomes(**self.law_parameters)

    @cached_property
    def changes(self) -> tuple[Floats, Floats] | None:
        """The values other than 0 that e takes, and their probabilities; None if continuous.

        Both (k, n) where each of n coordinates has its own rate.
        """
        if self.atoms is None:
            return None
        values, probabilities = self.atoms
        if self.is_varied:
            some = (values != 0).any(1)
            return values[some], np.where(values != 0, probabilities, 0.0)[some]
        return values[values != 0], probabilities[values != 0]

    @cached_property
    def is_binary(self) -> bool:
        """Whether e is 0 or 1: the fault strikes or does not."""
        if self.atoms is None or len(self.atoms[0]) != 2:
            return False
        none, struck = self.atoms[0]
        return bool(np.all(none == 0) and np.all(struck == 1))

    @property
    def is_guarded(self) -> bool:
        """Whether codes, copies or spares correct some of what is struck before it is used."""
        return False

    @property
    def is_two_valued(self) -> bool:
        """Whether e takes one of two values, so that a line goes through all it does alone."""
        return self.atoms is not None and len(self.atoms[0]) == 2

    @cached_property
    def change_probability(self) -> float:
        """P(e != 0): the share of the coordinates that is expected to change."""
        return float(np.mean(self.change_probabilities))

    @cached_property
    def change_probabilities(self) -> float | Floats:
        """P(e != 0); (n,) where each coordinate has its own rate."""
        if self.changes is None:
            return 1.0
        found = self.changes[1].sum(0)
        return found if self.is_varied else float(found)

    @cached_property
    def unusual_probability(self) -> float:
        """P(e is not its likeliest value), infinite for a law without such a value.

        The mean of it where coordinates have rates of their own.
        """
        if self.atoms is None:
            return math.inf
        return float(np.sort(self.atoms[1], axis=0)[:-1].sum(0).mean())

    @cached_property
    def typical_change(self) -> float:
        """How far a changed coordinate is from 0, about; 1 where none changes."""
        if self.changes is None:
            return math.sqrt(float(np.mean(self.variance + np.square(self.mean)))) or 1.0
        values, probabilities = self.changes
        if len(values) == 1:
            return float(np.mean(np.abs(values[0])))
        total = float(probabilities.sum())
        return math.sqrt(float((probabilities * values**2).sum()) / total) if total > 0 else 1.0

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

    def draw_changes(self, rng: np.random.Generator, columns: Integers) -> Floats | float:
        """Values (count,) of coordinates that are known to change, or the one that all take.

        For a law of atoms.

        Args:
            rng: to draw from.
            columns: (count,) which coordinates they are.
        """
        assert self.changes is not None
        values, probabilities = self.changes
        if self.is_binary:
            return 1.0
        if self.is_varied:
            edges = np.cumsum(probabilities[:, columns], axis=0)
            which = (rng.random(len(columns)) * edges[-1] >= edges[:-1]).sum(0)
            chosen: Floats = values[which, columns]
            return chosen
        if len(values) == 1:
            return float(values[0])
        if not len(columns):  # as always where no value but 0 has a probability
            return np.empty(0)
        return rng.choice(values, len(columns), p=probabilities / probabilities.sum())

    def draw_by_torch(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        """Independent coordinates of this shape; None for a law that torch does not draw."""
        e = torch.empty(shape)
        if self.law == BERNOULLI:
            if self.is_varied:
                p = torch.tensor(self.rate, dtype=torch.float32)
                return torch.bernoulli(p.expand(shape), generator=generator)
            return e.bernoulli_(self.change_probability, generator=generator)
        if self.law == NORMAL:
            if self.is_varied:
                std = torch.tensor(self.rate, dtype=torch.float32)
                return e.normal_(0, 1, generator=generator) * std
            return e.normal_(0, float(self.rate), generator=generator)
        return None

    # What the coordinates do.

    @abstractmethod
    def displacement(self, value: Tensor) -> Tensor:
        """v(a), of the shape of ``value``."""

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        """Number of fault coordinates of a site of this shape."""
        return math.prod(shape)

    @property
    def is_of_features(self) -> bool:
        """Whether a coordinate strikes a feature in all of its positions."""
        return False

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in which the coordinates of a site lie: its own, where each unit has one.

        A group's coordinates lie in a row; the bits of words have an axis of their own, the last.
        """
        count = self.coordinate_count(shape)
        return shape if count == math.prod(shape) else (count,)

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
        return value + e.reshape((*e.shape[:-1], *shape)) * self.displacement(value)

    # What reports say of it.

    def to_dict(self) -> dict[str, object]:
        """The fault as plain data: its name, its parameter and its fields."""
        own = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        if self.is_settled and not self.is_varied:
            own[self.parameter] = self.rate
        timing = {"duration": own.pop("duration"), "window": own.pop("window")}
        if self.duration == "permanent":
            timing.pop("duration")
        if self.window is None:
            timing.pop("window")
        return {"fault": self.name, self.parameter: own[self.parameter], **own, **timing}

    def facts(self) -> dict[str, object]:
        """What a score keeps of it: p, std, or the parameter's name and rate; declared fields.

        Of rates that differ, the mean, and ``rates`` with a summary.
        """
        found: dict[str, object] = {"fault": self.name}
        if self.is_binary:
            found["p"] = self.change_probability
        elif self.law == NORMAL:
            found["std"] = float(np.mean(self.rate))
        else:
            found |= {"parameter": self.parameter, "rate": float(np.mean(self.rate))}
        own = self.to_dict()
        if self.is_varied:
            found["rates"] = own[self.parameter]
        reported = (*self.reported, *(name for name in ("duration", "window") if name in own))
        return found | {name: own[name] for name in reported if name in own}


for _claim, _tried in _CLAIMS.items():
    setattr(Fault, _claim, _tried)


def take_number(fault: Fault, field: str) -> None:
    """Makes a field of a fault a float, whatever kind of number it was given as."""
    value = getattr(fault, field)
    found = as_float(value)
    if math.isnan(found):
        raise ArgumentError(
            f"{type(fault).__name__}: {field}={shown(value)} is not a number; give one"
        )
    object.__setattr__(fault, field, found)


def take_rate(fault: Fault, field: str) -> None:
    """Makes a field of a fault a float, ``Rates`` or a function, whatever it was given as."""
    value = as_rate(f"{type(fault).__name__}: {field}", getattr(fault, field))
    object.__setattr__(fault, field, value)


def range_of(rate: Any) -> tuple[float, float]:
    """The least and the largest of a rate's numbers; of a function, which is not known, 0."""
    if isinstance(rate, Rates):
        return float(rate.array.min()), float(rate.array.max())
    return (0.0, 0.0) if callable(rate) else (float(rate), float(rate))


def _plain(value: Any) -> Any:
    """A field's value as reports and JSON hold it."""
    if isinstance(value, Rates):
        return value.summary()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return as_float(value) if is_number(value) else shown(value)
