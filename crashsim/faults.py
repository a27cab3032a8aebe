"""What can go wrong, and how often.

A fault acts on *fault coordinates*: independent random numbers e_i, one per struck scalar (or per
group of scalars), that turn a value a into ``a + e * v(a)`` with a displacement v. A fault knows
the law of its coordinates and its displacement; it holds no run state, and is hashable.

=================  ===============  =============================
fault              e                displacement v(a)
=================  ===============  =============================
NeuronCrash        Bernoulli(p)     -a
WeightCrash        Bernoulli(p)     -a
StuckAt            Bernoulli(p)     value - a
SignFlip           Bernoulli(p)     -2 a
BitFlip            Bernoulli(p)     change of the bit (one e per bit)
GainNoise          Normal(0, std²)  a
AdditiveNoise      Normal(0, std²)  1
=================  ===============  =============================
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from crashsim_theory import BERNOULLI, NORMAL, Law, TheoryError
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arguments import as_float, is_number, is_whole, shown, whole
from crashsim.errors import ArgumentError

Strikes = Literal["neurons", "weights", "both"]
Group = Literal["unit", "channel"] | int


@dataclass(frozen=True)
class Fault(ABC):
    """One kind of fault. Subclasses are frozen dataclasses whose first field is its rate.

    Of a law that is neither ``BERNOULLI`` nor ``NORMAL`` nothing can be drawn: the methods that
    need its moments alone serve it, the others refuse.
    """

    law: ClassVar[Law]
    strikes: ClassVar[Strikes] = "both"
    parameter: ClassVar[str]  # the field that is the law's parameter, and the law's name for it
    name: ClassVar[str]  # what the command line calls it

    @property
    def law_parameters(self) -> dict[str, float]:
        """Numerical parameters of the coordinates' law, as ``Law.moments`` wants them."""
        return {str(self.law.parameters[0]): self.rate}

    @property
    def rate(self) -> float:
        """The law's parameter: the probability of a crash, or the noise's standard deviation."""
        return float(getattr(self, self.parameter))

    @property
    def is_bernoulli(self) -> bool:
        return self.law is BERNOULLI or self.law == BERNOULLI

    @property
    def can_be_drawn(self) -> bool:
        """Whether crashsim knows how to draw a coordinate, which moments alone do not say."""
        return self.is_bernoulli or self.law is NORMAL or self.law == NORMAL

    @abstractmethod
    def displacement(self, value: Tensor) -> Tensor:
        """v(a), of the shape of ``value``."""

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        """Number of fault coordinates of a site of this shape."""
        return math.prod(shape)

    def perturb(self, value: Tensor, e: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The faulty value.

        Args:
            value: (..., *shape), the clean value.
            e: (..., n) with n = ``coordinate_count(shape)``; leading axes broadcast.
            shape: the site's shape, without batch axes.
        """
        return value + e.reshape(*e.shape[:-1], *shape) * self.displacement(value)

    def to_dict(self) -> dict[str, object]:
        own = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {"fault": self.name, self.parameter: self.rate, **own}


@dataclass(frozen=True)
class _BernoulliFault(Fault):
    """A fault that strikes each coordinate independently with probability ``p``."""

    law: ClassVar[Law] = BERNOULLI
    parameter: ClassVar[str] = "p"
    p: float

    def __post_init__(self) -> None:
        _take_number(self, "p")
        if not 0 <= self.p <= 1:
            raise ArgumentError(
                f"{type(self).__name__}: p={self.p!r} is no probability; give a number in [0, 1]"
            )


@dataclass(frozen=True)
class NeuronCrash(_BernoulliFault):
    """A neuron dies: its output is 0 with probability ``p``.

    Args:
        p: probability of a crash of each group.
        group: what dies together. ``"unit"``: every scalar on its own; ``"channel"``: a whole
            channel (the first axis of the site's shape); an integer: that many consecutive units
            (a core of a neuromorphic chip).
    """

    strikes: ClassVar[Strikes] = "neurons"
    name: ClassVar[str] = "neuron-crash"
    group: Group = "unit"

    def __post_init__(self) -> None:
        super().__post_init__()
        named = isinstance(self.group, str) and self.group in ("unit", "channel")
        if not (named or (is_whole(self.group) and 1 <= int(self.group) < 2**63)):
            raise ArgumentError(
                f"NeuronCrash: group={shown(self.group)} is not known; "
                "give 'unit', 'channel' or the number of consecutive units that die together"
            )
        if not named:
            object.__setattr__(self, "group", int(self.group))

    def _group_size(self, shape: tuple[int, ...]) -> int:
        if self.group == "unit":
            return 1
        if self.group == "channel":
            return math.prod(shape[1:])
        return min(int(self.group), math.prod(shape))

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        return -(-math.prod(shape) // self._group_size(shape))

    def perturb(self, value: Tensor, e: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = self._group_size(shape)
        if size > 1:
            e = e.repeat_interleave(size, dim=-1)[..., : math.prod(shape)]
        return super().perturb(value, e, shape)

    def expand(self, struck: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Coordinates (..., n) as the units (..., size) they stand for."""
        return np.repeat(struck, self._group_size(shape), axis=-1)[..., : math.prod(shape)]

    def displacement(self, value: Tensor) -> Tensor:
        return -value


@dataclass(frozen=True)
class WeightCrash(_BernoulliFault):
    """A weight (synapse) is lost: it reads 0 with probability ``p``."""

    strikes: ClassVar[Strikes] = "weights"
    name: ClassVar[str] = "weight-crash"

    def displacement(self, value: Tensor) -> Tensor:
        return -value


@dataclass(frozen=True)
class StuckAt(_BernoulliFault):
    """A neuron or weight reads ``value`` whatever it should be, with probability ``p``."""

    name: ClassVar[str] = "stuck-at"
    value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _take_number(self, "value")
        if not math.isfinite(self.value):
            raise ArgumentError(f"StuckAt: value={self.value!r}; give a finite number")

    def displacement(self, value: Tensor) -> Tensor:
        return self.value - value


@dataclass(frozen=True)
class SignFlip(_BernoulliFault):
    """A neuron or weight changes sign with probability ``p`` (a simple Byzantine fault)."""

    name: ClassVar[str] = "sign-flip"

    def displacement(self, value: Tensor) -> Tensor:
        return -2 * value


@dataclass(frozen=True)
class BitFlip(_BernoulliFault):
    """Each bit of a stored weight flips with probability ``p``.

    The weight tensor is taken as stored in two's complement fixed point of ``bits`` bits with the
    symmetric scale ``max|w| / (2^(bits-1) - 1)``. Flipping bit j adds or subtracts ``2^j`` scales
    (the sign bit the other way round), so the bits' changes add up: one coordinate per bit. The
    clean network keeps its unquantised weights; only the changes are those of the stored word.
    """

    strikes: ClassVar[Strikes] = "weights"
    name: ClassVar[str] = "bit-flip"
    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "bits", whole("BitFlip: bits", self.bits, 2, 32))

    def coordinate_count(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self.bits

    def displacement(self, value: Tensor) -> Tensor:
        """Change of the value by each bit's flip, (*shape, bits), least significant bit first."""
        wide = value.double()
        top = 2 ** (self.bits - 1)
        scale = wide.abs().max() / (top - 1)
        word = torch.where(scale > 0, wide / scale, 0.0).round().clamp(-top, top - 1).long()
        powers = 2 ** torch.arange(self.bits, device=value.device)
        is_set = (word.unsqueeze(-1) & powers) != 0
        change = torch.where(is_set, -powers, powers)
        change[..., -1] = -change[..., -1]  # the sign bit weighs -2^(bits-1)
        steps: Tensor = (change * scale).to(value.dtype)
        return steps

    def perturb(self, value: Tensor, e: Tensor, shape: tuple[int, ...]) -> Tensor:
        e = e.reshape(*e.shape[:-1], *shape, self.bits)
        return value + (e * self.displacement(value)).sum(-1)


@dataclass(frozen=True)
class _NormalFault(Fault):
    """A fault that adds Gaussian noise of standard deviation ``std`` times a displacement."""

    law: ClassVar[Law] = NORMAL
    parameter: ClassVar[str] = "std"
    std: float

    def __post_init__(self) -> None:
        _take_number(self, "std")
        if not 0 <= self.std < math.inf:
            raise ArgumentError(
                f"{type(self).__name__}: std={self.std!r}; give a finite standard deviation >= 0"
            )


@dataclass(frozen=True)
class GainNoise(_NormalFault):
    """A value is multiplied by 1 + Normal(0, std²) (device mismatch)."""

    name: ClassVar[str] = "gain-noise"

    def displacement(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class AdditiveNoise(_NormalFault):
    """Normal(0, std²) is added to a value (read noise), in the units of the value."""

    name: ClassVar[str] = "additive-noise"

    def displacement(self, value: Tensor) -> Tensor:
        return torch.ones_like(value)


FAULTS: Mapping[str, type[Fault]] = {
    kind.name: kind
    for kind in (NeuronCrash, WeightCrash, StuckAt, SignFlip, BitFlip, GainNoise, AdditiveNoise)
}


_SPEC = re.compile(
    rf"((?P<where>.+?)=)?(?P<kind>{'|'.join(FAULTS)})(:(?P<values>.*))?"  # sites may hold a colon
)


def parse_fault(
    spec: str, default_p: float | None = None, group: str | None = None
) -> tuple[str | None, Fault]:
    """Reads ``[SITES=]KIND[:NAME=VALUE,...]``, as the command line takes it.

    Args:
        spec: such as ``neuron-crash``, ``conv*=neuron-crash:p=0.01`` or ``bit-flip:p=1e-4,bits=8``.
        default_p: the probability where the spec gives none.
        group: the group of neuron crashes where the spec gives none.

    Returns:
        the sites, if given, and the fault.

    Raises:
        ArgumentError: not of that form, an unknown kind or name, or a value out of range.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        kind = spec.partition(":")[0].rpartition("=")[2]
        raise ArgumentError(
            f"fault={spec!r}: {kind!r} is not known; choose among {', '.join(FAULTS)}"
        )
    where, kind, tail = match["where"], match["kind"], match["values"] or ""
    cls = FAULTS[kind]
    known = {f.name for f in fields(cls)}
    values: dict[str, object] = {}
    for item in filter(None, tail.split(",")):
        name, equals, text = item.partition("=")
        if not equals or name not in known:
            raise ArgumentError(
                f"fault={spec!r}: {item!r}: give NAME=VALUE with {' or '.join(sorted(known))}"
            )
        if name in values:
            raise ArgumentError(f"fault={spec!r}: gives {name} twice; give it once")
        values[name] = _value(spec, name, text)
    if "p" in known and default_p is not None:
        values.setdefault("p", default_p)
    if "group" in known and group is not None:
        values.setdefault("group", _value(spec, "group", group))
    if cls.parameter not in values:
        raise ArgumentError(f"fault={spec!r}: say how strong, as {kind}:{cls.parameter}=0.1")
    return where, cls(**values)


def _value(spec: str, name: str, text: str) -> object:
    if name == "group" and not text.isdecimal():
        return text
    try:
        return int(text) if name in ("bits", "group") else float(text)
    except ValueError:
        raise ArgumentError(f"fault={spec!r}: {name}={text!r}; give a number") from None


def _take_number(fault: Fault, field: str) -> None:
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
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return as_float(value) if is_number(value) else shown(value)


_BEHAVIOUR = (
    "law", "parameter", "rate", "law_parameters", "is_bernoulli", "displacement", "perturb",
    "coordinate_count", "expand", "_group_size",
)  # fmt: skip


def acts_as(fault: Fault, *kinds: type[Fault]) -> bool:
    """Whether a fault is of one of these kinds and does what that does.

    A subclass that overrides what a fault does is a fault of its own, of which nothing is known.
    """
    return any(_acts_as(type(fault), kind) for kind in kinds)


def is_single_crash(fault: Fault) -> bool:
    """Whether it is a crash of weights, or of neurons each on its own."""
    if isinstance(fault, NeuronCrash) and acts_as(fault, NeuronCrash):
        return fault.group == "unit"
    return acts_as(fault, WeightCrash)


@cache
def _acts_as(cls: type[Fault], kind: type[Fault]) -> bool:
    return issubclass(cls, kind) and all(
        getattr(cls, name, None) is getattr(kind, name, None) for name in _BEHAVIOUR
    )


def check_fault(fault: Fault) -> None:
    """What can be said of a fault before it strikes, whoever wrote its class.

    Raises:
        ArgumentError: its class declares no law or name, its parameter is no number, or its law
            has no such parameter.
    """
    cls = type(fault).__name__
    for name, kind, remedy in (
        ("law", Law, "law: ClassVar = crashsim_theory.BERNOULLI"),
        ("parameter", str, 'parameter: ClassVar[str] = "p"'),
        ("name", str, 'name: ClassVar[str] = "my-fault"'),
    ):
        if not isinstance(getattr(type(fault), name, None), kind):
            raise ArgumentError(f"{cls}: has no {name}; declare one, such as {remedy}")
    if len(fault.law.parameters) > 1:
        raise ArgumentError(
            f"{cls}: law {fault.law.name!r} has parameters {list(map(str, fault.law.parameters))}; "
            "a fault has one rate: fix the others as numbers in the law"
        )
    try:
        rate = as_float(getattr(fault, fault.parameter))
    except AttributeError:
        raise ArgumentError(f"{cls}: has no field {fault.parameter!r}, its parameter") from None
    if not math.isfinite(rate):
        given = shown(getattr(fault, fault.parameter))
        raise ArgumentError(f"{cls}: {fault.parameter}={given} is not a finite number; give one")
    try:
        with np.errstate(all="ignore"):  # what is too large is told once the model is known
            fault.law.moments(**fault.law_parameters)
            fault.law.nodes(**fault.law_parameters)
    except TheoryError as error:
        raise ArgumentError(f"{cls}: {fault.parameter}={rate!r}: {error}") from error


def check_drawable(faults: Iterable[Fault], what: str, instead: str = "") -> None:
    """Raises ArgumentError for a fault of which no samples can be drawn.

    Args:
        what: what would draw them.
        instead: what else serves such a fault.
    """
    for fault in faults:
        if not fault.can_be_drawn:
            raise ArgumentError(
                f"faults: {type(fault).__name__}: its law {fault.law.name!r} says its moments, but "
                f"not how it is drawn, as {what} needs; give it the law BERNOULLI or NORMAL of "
                f"crashsim_theory{instead and f', or {instead}'}"
            )
