"""A node of an ONNX graph as the operators see it: inputs that are known or not, attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crashsim.files.onnx_graphs.network import Call
from crashsim.files.onnx_graphs.sizes import Sizes
from crashsim.model.multiplied.stored_words import Words

# Bends what it is given, and is written where a normalisation or a distance is computed, not where
# neurons are.
_ARITHMETIC = frozenset(
    "Abs Cast Ceil Div Exp Floor Log Mod Mul Pow Reciprocal Round Sqrt Sub".split()
)


class UnsupportedError(Exception):
    """What a node asks for is not supported; the message says what, and what to do."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that the file holds, or that follows from such.

    Attributes:
        tensor: its numbers.
        is_weight: whether it is made of what the file stores as weights.
        words: how the file stores it, where that is in words of int8.
    """

    tensor: Tensor
    is_weight: bool = False
    words: Words | None = None


@dataclass(frozen=True)
class Runtime:
    """A value that depends on the inputs.

    Attributes:
        name: in the graph.
        sizes: of its axes as far as they follow from the file; None where not even their number
            does.
        dtype: of its numbers, if known.
    """

    name: str
    sizes: tuple[int | None, ...] | None = None
    dtype: torch.dtype | None = None


Value = Constant | Sizes | Runtime


@dataclass(frozen=True, eq=False)
class Made:
    """What a node becomes.

    Attributes:
        module: called with the values.
        values: that depend on the inputs.
    """

    module: nn.Module
    values: Sequence[Value | None]


@dataclass(eq=False)
class Node:
    """A node to be made into a module.

    Attributes:
        operator: its type.
        name: unique in the network.
        version: of the operator's set.
        inputs: values; None where one is left out.
        outputs: names; empty where one is left out.
        attributes: by name, as Python values and tensors.
        parameters: those made so far, by where the weights are in memory: what is shared stays so.
        batch: the number of examples that the file was made for, where any will do now.
    """

    operator: str
    name: str
    version: int
    inputs: Sequence[Value | None]
    outputs: Sequence[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    parameters: dict[Any, nn.Parameter] = field(default_factory=dict)
    batch: int | None = None

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def input(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def needed(self, index: int) -> Value:
        """An input that may not be left out."""
        found = self.input(index)
        if found is None:
            raise UnsupportedError(f"its input {index} is missing; the file is damaged")
        return found

    def constant(self, index: int, what: str) -> Tensor | None:
        """A tensor that must be known; None where it is left out.

        Raises:
            UnsupportedError: it depends on the network's inputs.
        """
        value = self.input(index)
        if value is None:
            return None
        if isinstance(value, Sizes) and (known := value.known) is not None:
            return torch.from_numpy(known)
        if not isinstance(value, Constant):
            raise UnsupportedError(
                f"{what} (input {index}) depends on the network's inputs, and must be in the file"
            )
        return value.tensor

    def integers(self, index: int, what: str) -> list[int] | None:
        """Whole numbers that must be known, as a list; None where they are left out."""
        found = self.constant(index, what)
        if found is not None and found.dtype.is_floating_point:
            raise UnsupportedError(f"{what} (input {index}) are no whole numbers")
        return None if found is None else [int(n) for n in found.reshape(-1).tolist()]

    def axes(self, index: int, since: int) -> list[int] | None:
        """Axes: an attribute of old versions, an input from version ``since``."""
        if self.version >= since:
            return self.integers(index, "axes")
        found = self.attribute("axes")
        return None if found is None else list(found)

    def sizes(self, index: int = 0) -> tuple[int | None, ...] | None:
        """Of an input's axes, as far as they are known."""
        value = self.needed(index)
        if isinstance(value, Constant):
            return tuple(value.tensor.shape)
        return value.array.shape if isinstance(value, Sizes) else value.sizes

    def rank(self, index: int = 0) -> int:
        """Number of an input's axes.

        Raises:
            UnsupportedError: it does not follow from the file.
        """
        found = self.sizes(index)
        if found is None:
            raise UnsupportedError(
                "the number of axes of its input does not follow from the file; run "
                "onnxsim or onnxruntime's symbolic shape inference on it, or export it anew"
            )
        return len(found)

    def dtype(self, index: int = 0) -> torch.dtype | None:
        value = self.needed(index)
        if isinstance(value, Constant):
            return value.tensor.dtype
        return torch.int64 if isinstance(value, Sizes) else value.dtype

    def parameter(self, tensor: Tensor) -> nn.Parameter:
        """A weight of the file as a parameter; the same for all that read it."""
        key = _place(tensor)
        if not tensor.numel() or key not in self.parameters:
            stored = tensor.contiguous()
            self.parameters[key] = nn.Parameter(stored, requires_grad=stored.is_floating_point())
        return self.parameters[key]

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a weight of the file is a parameter already, in these axes."""
        return _place(tensor) in self.parameters

    def call(self, function: Any, *inputs: Value | None, **options: Any) -> Made:
        """A module that calls a function with these inputs, of which it holds what is known."""
        slots: list[str | None] = []
        tensors: dict[str, Tensor] = {}
        values: list[Value | None] = []
        for value in inputs:
            if isinstance(value, Constant):
                name = self._slot(value, tensors)
                tensors[name] = self._held(value)
                slots.append(name)
            else:
                values.append(value)
                slots.append(None)
        is_arithmetic = self.operator in _ARITHMETIC
        return Made(Call(function, slots, tensors, options, is_arithmetic), values)

    def _held(self, value: Constant) -> Tensor:
        tensor = value.tensor
        if value.is_weight and tensor.dtype.is_floating_point and tensor.dim():
            return self.parameter(tensor)
        return tensor

    def _slot(self, value: Constant, taken: dict[str, Tensor]) -> str:
        usual = "bias" if self.operator in ("Add", "Sub") else "weight"
        name = usual if value.is_weight else "constant"
        return name if name not in taken else f"{name}_{len(taken)}"


def _place(tensor: Tensor) -> Any:
    """Where numbers are in memory, and in which order."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def numbers(values: Any) -> list[int]:
    """An attribute of whole numbers as a list."""
    return [int(n) for n in np.asarray(values).reshape(-1)]
