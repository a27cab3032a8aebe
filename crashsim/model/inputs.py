"""The inputs of a model: one tensor, several of them, and other arguments beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crashsim.arguments import is_whole, shown
from crashsim.errors import ArgumentError
from crashsim.model.nested import Names, mapped

# A tensor or array (B, ...); or a tuple or list of positional arguments, or a mapping of keyword
# arguments, nested or not, whose other leaves are passed on as they are.
ModelInputs = Tensor | NDArray[Any] | tuple[Any, ...] | list[Any] | Mapping[str, Any]

# The axis of all inputs that is the batch, or of each by name.
BatchAxis = int | Mapping[str, int]

T = TypeVar("T")


class _Slot(int):
    """Stands for the tensor of this number among the arguments."""


@dataclass(frozen=True)
class Inputs:
    """A batch of examples, and how a model is called with it.

    Attributes:
        names: of the tensors: the argument's name or number, then the way inside it, with dots.
        tensors: (B, ...) each.
        arguments, keywords: of the call, with a slot in the place of each tensor.
        batch_axes: the axis of each tensor that is the batch where the model is called with it;
            empty where it is the first of all. ``tensors`` have it first.
        targets: (B, ...) what a loss compares the outputs with, which the model is not given; None
            where no loss is asked for.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    batch_axes: tuple[int, ...] = ()
    targets: Tensor | None = None

    def __len__(self) -> int:
        """The number of examples B."""
        return len(self.tensors[0])

    @property
    def lone(self) -> Tensor | None:
        """The tensor, where it is all that the model is called with, and by position."""
        return self.tensors[0] if self.arguments == (_Slot(0),) and not self.keywords else None

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names that tell the tensors' sites apart; a single tensor's is empty."""
        return self.names if len(self.names) > 1 else ("",)

    def of(self, tensors: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and keyword arguments of a call with these tensors."""

        def fill(_: Names, leaf: Any) -> Any:
            if type(leaf) is not _Slot:
                return leaf
            axis = self.batch_axes[leaf] if self.batch_axes else 0
            return tensors[leaf].movedim(0, axis) if axis else tensors[leaf]

        return (
            tuple(mapped(value, fill) for value in self.arguments),
            {name: mapped(value, fill) for name, value in self.keywords.items()},
        )

    def call(self, function: Callable[..., T]) -> T:
        """What a function returns for these inputs."""
        arguments, keywords = self.of(self.tensors)
        return function(*arguments, **keywords)

    def part(self, start: int, stop: int) -> Inputs:
        """Examples ``start`` to ``stop``."""
        return self._map(lambda tensor: tensor[start:stop])

    def among(self, numbers: Sequence[int]) -> Inputs:
        """The examples of these numbers, in their order."""
        where = torch.as_tensor(numbers, dtype=torch.int64)
        return self._map(lambda tensor: tensor[where.to(tensor.device)])

    def every(self, step: int, first: int = 0) -> Inputs:
        """Each example of number first, first + step, first + 2 step, ..."""
        return self._map(lambda tensor: tensor[first::step])

    def spread(self, count: int) -> Inputs:
        """At most ``count`` examples, far from each other."""
        where = torch.linspace(0, len(self) - 1, min(count, len(self))).long()
        return self._map(lambda tensor: tensor[where.to(tensor.device)])

    def chosen(self, numbers: NDArray[np.int64]) -> Inputs:
        """The examples of these numbers."""
        where = torch.from_numpy(numbers)
        return self._map(lambda tensor: tensor[where.to(tensor.device)])

    def repeat(self, count: int) -> Inputs:
        """The whole batch ``count`` times, copied: the model may change it."""
        return self._map(lambda tensor: _repeat(tensor, count))

    def repeat_but(self, count: int, others: Mapping[int, Tensor]) -> Inputs:
        """The same, with other tensors in the place of those of some numbers."""
        pairs = enumerate(self.tensors)
        tensors = tuple(others[i] if i in others else _repeat(t, count) for i, t in pairs)
        targets = None if self.targets is None else _repeat(self.targets, count)
        return replace(self, tensors=tensors, targets=targets)

    def joined(self, other: Inputs) -> Inputs:
        """These examples, then the others."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        targets = self.targets
        if targets is not None and other.targets is not None:
            targets = torch.cat([targets, other.targets])
        return replace(self, tensors=tuple(torch.cat(pair) for pair in pairs), targets=targets)

    def rolled(self) -> Inputs:
        """Other examples of the same numbers: each moved by one place."""
        return self._map(lambda t: t.flatten(1).roll(1, 1).view_as(t) if t.dim() > 1 else t)

    def clone(self) -> Inputs:
        return self._map(Tensor.clone)

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """On a device, floating-point tensors in a type; targets keep theirs."""
        moved = self._map(
            lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        )
        targets = None if self.targets is None else self.targets.to(device)
        return replace(moved, targets=targets)

    def with_tensor(self, index: int, tensor: Tensor) -> Inputs:
        """One of the tensors replaced."""
        tensors = (*self.tensors[:index], tensor, *self.tensors[index + 1 :])
        return replace(self, tensors=tensors)

    def as_batch_on(self, axis: int) -> Inputs | None:
        """The same tensors, as the model is called with them, read with the batch on another axis.

        None where they do not have as many examples there.
        """
        given = [t.movedim(0, a) for t, a in zip(self.tensors, self.axes, strict=True)]
        axes = tuple(axis if t.dim() > axis else 0 for t in given)
        tensors = tuple(t.movedim(a, 0) for t, a in zip(given, axes, strict=True))
        if len({len(t) for t in tensors}) > 1:
            return None
        return replace(self, tensors=tensors, batch_axes=axes)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axis of each tensor that is the batch where the model is called."""
        return self.batch_axes or (0,) * len(self.tensors)

    def describe(self) -> str:
        """Shapes and types, for messages."""
        tensors = [t.movedim(0, a) for t, a in zip(self.tensors, self.axes, strict=True)]
        if len(tensors) == 1:
            return f"shape {tuple(tensors[0].shape)} of {tensors[0].dtype}"
        pairs = zip(self.names, tensors, strict=True)
        return "shapes " + ", ".join(f"{n}: {tuple(t.shape)} of {t.dtype}" for n, t in pairs)

    def shapes(self) -> list[int] | dict[str, list[int]]:
        """Without the batch: of one tensor, or by name."""
        found = {n: list(t.shape[1:]) for n, t in zip(self.names, self.tensors, strict=True)}
        return found if len(found) > 1 else next(iter(found.values()))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        targets = None if self.targets is None else change(self.targets)
        return replace(self, tensors=tuple(map(change, self.tensors)), targets=targets)

    def with_targets(self, targets: NDArray[Any]) -> Inputs:
        """These examples with what a loss compares their outputs with."""
        return replace(self, targets=torch.from_numpy(np.array(targets)))


def _repeat(tensor: Tensor, count: int) -> Tensor:
    return tensor.repeat(count, *[1] * (tensor.dim() - 1))


def read_inputs(inputs: object, batch_axis: BatchAxis = 0) -> Inputs:
    """The inputs of a model, checked.

    Args:
        inputs: a tensor or array (B, ...), the model's only argument; a tuple or list of
            positional arguments; or a mapping of keyword arguments. Tensors and arrays in them,
            nested or not, hold the same batch on their first axis. Everything else (None,
            numbers, strings) is passed to the model as it is.
        batch_axis: the axis of the tensors that is the batch (1 in torch's default layout of
            sequences, (T, B, ...)); tensors that have no such axis have the batch first. Or the
            axis of each tensor, by name; of those that are not named it is the first.

    Raises:
        ArgumentError: no tensor, or one that is empty, complex, not finite, or of another batch;
            names it.
    """
    if isinstance(inputs, Inputs):  # read before
        return inputs
    names: list[str] = []
    tensors: list[Tensor] = []
    axes: list[int] = []

    def collect(path: Names, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor | np.ndarray):
            return leaf
        tensor = _check(_label(inputs, path), leaf)
        names.append(".".join(path) or "0")
        axes.append(_axis_of(names[-1], tensor, batch_axis))
        tensors.append(tensor.movedim(axes[-1], 0))
        return _Slot(len(tensors) - 1)

    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        for name in inputs:
            if not isinstance(name, str):
                raise ArgumentError(f"inputs: key {name!r} is not the name of an argument")
            keywords[name] = mapped(inputs[name], collect, (name,))
    elif isinstance(inputs, tuple | list):
        arguments = tuple(mapped(value, collect, (str(i),)) for i, value in enumerate(inputs))
    else:
        arguments = (mapped(inputs, collect),)
    if not tensors:
        what = " without any" if isinstance(inputs, tuple | list | Mapping) else ""
        raise ArgumentError(
            "inputs: expected a tensor or array of shape (B, ...), a tuple of such as positional "
            f"arguments, or a mapping of such as keyword arguments; got {type(inputs).__name__}"
            + what
        )
    for name, tensor in zip(names, tensors, strict=True):
        if len(tensor) != len(tensors[0]):
            first, this = (_label(inputs, tuple(n.split("."))) for n in (names[0], name))
            raise ArgumentError(
                f"{this}: shape {tuple(tensor.shape)} holds {len(tensor)} examples, but {first} "
                f"holds {len(tensors[0])}; every tensor has the batch first (batch_axis= says of "
                "which it is another axis): repeat what all "
                f"examples share (tensor.expand({len(tensors[0])}, ...)), or hold it in the model"
            )
    if isinstance(batch_axis, Mapping) and (
        unknown := sorted(map(str, set(batch_axis) - set(names)))
    ):
        raise ArgumentError(
            f"batch_axis: {unknown[0]!r} is no tensor among the inputs; choose among "
            f"{', '.join(names)}"
        )
    return Inputs(
        tuple(names), tuple(tensors), arguments, keywords, tuple(axes) if any(axes) else ()
    )


def _axis_of(name: str, tensor: Tensor, batch_axis: BatchAxis) -> int:
    """The axis of an input that is the batch."""
    axis = batch_axis.get(name, 0) if isinstance(batch_axis, Mapping) else batch_axis
    if not is_whole(axis) or not 0 <= int(axis) < 64:
        raise ArgumentError(
            f"batch_axis={shown(axis)}: give the number of an axis, from 0; or the axis of each "
            "input by name"
        )
    if int(axis) < tensor.dim():
        return int(axis)
    if isinstance(batch_axis, Mapping) or tensor.dim() == 0:
        raise ArgumentError(
            f"batch_axis={shown(axis)}: {name!r} has the shape {tuple(tensor.shape)}, without such "
            "an axis"
        )
    return 0


def _label(inputs: object, path: Names) -> str:
    """How messages call a tensor: ``inputs``, ``inputs[1]``, ``inputs['mask']``."""
    if not path or not isinstance(inputs, tuple | list | Mapping):
        return "inputs"
    keys = [int(name) if name.isdigit() else name for name in path]
    return "inputs" + "".join(f"[{key!r}]" for key in keys)


def _check(label: str, value: Tensor | NDArray[Any]) -> Tensor:
    tensor = _from_array(label, value) if isinstance(value, np.ndarray) else value
    if tensor.is_nested:
        raise ArgumentError(f"{label}: nested tensors are not supported; pad them to one shape")
    if tensor.is_quantized:
        raise ArgumentError(f"{label}: quantised tensors are not supported; use dequantize()")
    if tensor.is_meta:
        raise ArgumentError(f"{label}: is on the meta device and holds no numbers; give real ones")
    if tensor.layout != torch.strided:
        raise ArgumentError(f"{label}: layout {tensor.layout} is not supported; use to_dense()")
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise ArgumentError(
            f"{label}: shape {tuple(tensor.shape)} holds no examples; give at least one, as "
            "(B, ...)"
        )
    if tensor.is_complex():
        raise ArgumentError(f"{label}: complex numbers are not supported; give real ones")
    if tensor.is_floating_point() and not can_compute(tensor.dtype):
        raise ArgumentError(
            f"{label}: torch stores numbers as {tensor.dtype}, but computes no layers in it; "
            "convert them, with .to(torch.float32)"
        )
    if not torch.isfinite(tensor).all():
        raise ArgumentError(f"{label}: hold NaN or infinity; clean the data first")
    return plain(tensor)


def _from_array(label: str, array: NDArray[Any]) -> Tensor:
    if array.dtype.kind == "c":
        raise ArgumentError(f"{label}: complex numbers are not supported; give real ones")
    if array.dtype.kind not in "fiub":
        raise ArgumentError(f"{label}: dtype {array.dtype} is not numeric")
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
    native = np.dtype(np.float64) if wide else array.dtype.newbyteorder("=")
    array = np.ascontiguousarray(array, dtype=native)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def can_compute(dtype: torch.dtype) -> bool:
    """Whether torch computes in a floating-point type; those of a byte are for storage alone."""
    return dtype.itemsize >= 2


def plain(tensor: Tensor) -> Tensor:
    """The tensor without its graph, and fit for a new one: not made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()
