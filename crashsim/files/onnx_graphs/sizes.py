"""Sizes of tensors as expressions: what a graph computes of shapes, known before it runs.

Exporters write ``x.view(x.size(0), -1)`` as a chain of Shape, Gather, Unsqueeze, Concat and
Reshape. Here such a chain is worked out while the network is built: what the file says of sizes are
numbers, and what depends on the batch are expressions that are small and exact.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
}


class Expression:
    """A size that depends on the inputs; arithmetic with it makes larger expressions."""

    def __add__(self, other: Size) -> Size:
        return self if _is(other, 0) else Combined("+", self, other)

    def __radd__(self, other: Size) -> Size:
        return self if _is(other, 0) else Combined("+", other, self)

    def __sub__(self, other: Size) -> Size:
        return self if _is(other, 0) else Combined("-", self, other)

    def __rsub__(self, other: Size) -> Size:
        return Combined("-", other, self)

    def __mul__(self, other: Size) -> Size:
        return self if _is(other, 1) else Combined("*", self, other)

    def __rmul__(self, other: Size) -> Size:
        return self if _is(other, 1) else Combined("*", other, self)

    def __floordiv__(self, other: Size) -> Size:
        return self if _is(other, 1) else Combined("//", self, other)

    def __rfloordiv__(self, other: Size) -> Size:
        return Combined("//", other, self)


@dataclass(frozen=True)
class Dim(Expression):
    """The length of an axis of a value, by the value's name."""

    value: str
    axis: int


@dataclass(frozen=True)
class Combined(Expression):
    """Two sizes and what is done with them."""

    operation: str
    left: Size
    right: Size


Size = int | Expression


@dataclass(frozen=True, eq=False)
class Sizes:
    """An array of sizes, as a node of the graph has for an input or output.

    Attributes:
        array: of Python integers and expressions, with no or one axis (others are rare).
    """

    array: NDArray[Any]

    @classmethod
    def of(cls, sizes: Any) -> Sizes:
        """Of nested lists of sizes, or an array of integers."""
        if isinstance(sizes, np.ndarray):
            return cls(sizes.astype(object))
        if not isinstance(sizes, list):
            lone = np.empty((), dtype=object)
            lone[()] = sizes
            return cls(lone)
        array = np.empty(len(sizes), dtype=object)
        array[:] = sizes
        return cls(array)

    @property
    def known(self) -> NDArray[np.int64] | None:
        """The numbers, where none depends on the inputs."""
        if all(isinstance(size, int) for size in self.array.flat):
            return self.array.astype(np.int64)
        return None

    def read(self) -> list[str]:
        """Names of the values whose shapes are looked at."""
        return [name for size in self.array.flat for name in _names(size)]


def evaluated(size: Size, values: Mapping[str, Any]) -> Any:
    """The number that a size is for these values by name (torch.fx's stand-ins serve too)."""
    if isinstance(size, Dim):
        return values[size.value].shape[size.axis]
    if isinstance(size, Combined):
        operate = _OPERATIONS[size.operation]
        return operate(evaluated(size.left, values), evaluated(size.right, values))
    return size


def _is(size: Size, number: int) -> bool:
    return isinstance(size, int) and size == number


def _names(size: Size) -> list[str]:
    if isinstance(size, Dim):
        return [size.value]
    return _names(size.left) + _names(size.right) if isinstance(size, Combined) else []
