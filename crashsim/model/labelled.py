"""Labelled data: examples and their targets, read a few at a time, as often as is asked for.

A set in memory is cut; a data set or loader of torch is read from its start each time, in one fixed
order, and never held as a whole. The pieces have the size that is asked for, whatever the loader's.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from crashsim.arguments import shown
from crashsim.errors import ArgumentError
from crashsim.metrics import Targets, read_targets
from crashsim.model.checks import unwrapped
from crashsim.model.global_random import Drawing
from crashsim.model.inputs import BatchAxis, Inputs, read_inputs

# What the targets are called in a mapping of inputs, as in transformers' batches.
TARGET_NAMES = ("targets", "target", "labels", "label", "y")
_AT_ONCE = 64  # examples of a data set that are put together at a time

Piece = tuple[Inputs, Targets]


class Labelled(ABC):
    """Examples and, if known, their targets."""

    @abstractmethod
    def pieces(self, size: int) -> Iterator[Piece]:
        """All examples from the first, ``size`` at a time."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of examples B."""

    def first(self, count: int) -> Piece:
        """The first ``count`` examples (all, if there are fewer)."""
        return next(self.pieces(count))

    def among(self, numbers: NDArray[np.int64], size: int) -> Inputs:
        """The inputs of some examples, in this order.

        Args:
            numbers: of the examples, each once.
            size: how many are read at a time.
        """
        found: Inputs | None = None
        held: list[int] = []
        wanted, start = np.sort(numbers), 0
        for inputs, _ in self.pieces(size):
            here = wanted[(wanted >= start) & (wanted < start + len(inputs))]
            if len(here):
                part = inputs.among((here - start).tolist())
                found = part if found is None else found.joined(part)
                held += here.tolist()
            start += len(inputs)
        assert found is not None
        place = {number: at for at, number in enumerate(held)}
        return found.among([place[int(number)] for number in numbers])

    @property
    def has_targets(self) -> bool:
        """Whether there are targets."""
        return self.first(1)[1] is not None


@dataclass(frozen=True)
class InMemory(Labelled):
    """Examples that are held.

    Attributes:
        inputs: all of them.
        targets: (B, ...), or None.
    """

    inputs: Inputs
    targets: Targets

    def pieces(self, size: int) -> Iterator[Piece]:
        for start in range(0, len(self.inputs), size):
            targets = None if self.targets is None else self.targets[start : start + size]
            yield self.inputs.part(start, start + size), targets

    @property
    def count(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Streamed(Labelled):
    """Examples that a loader reads.

    Attributes:
        loader: batches of examples, in the same order each time.
        batch_axis: of the inputs.
    """

    loader: DataLoader[Any]
    batch_axis: BatchAxis

    def pieces(self, size: int) -> Iterator[Piece]:
        held: list[Piece] = []
        for batch in self.loader:
            held.append(_read(batch, self.batch_axis))
            while sum(len(inputs) for inputs, _ in held) >= size:
                inputs, targets = _joined(held)
                yield inputs.part(0, size), None if targets is None else targets[:size]
                left = len(inputs) - size
                rest = None if targets is None else targets[size:]
                held = [(inputs.part(size, size + left), rest)] if left else []
        if held:
            yield _joined(held)

    @cached_property
    def count(self) -> int:
        sampler: Any = self.loader.sampler
        is_batched = self.loader.batch_size is None  # each item is a batch of its own size
        if not is_batched and not isinstance(self.loader.dataset, IterableDataset):
            return len(sampler)
        return sum(len(inputs) for inputs, _ in self.pieces(_AT_ONCE))


@dataclass(frozen=True)
class Compared(Labelled):
    """Examples that hold their targets themselves, for a loss that is read in place of outputs.

    Attributes:
        of: the examples, which have targets.
    """

    of: Labelled

    def pieces(self, size: int) -> Iterator[Piece]:
        for inputs, targets in self.of.pieces(size):
            assert targets is not None
            yield inputs.with_targets(targets), targets

    @property
    def count(self) -> int:
        return self.of.count


@dataclass(frozen=True)
class EveryOther(Labelled):
    """Every other example of a set: one of two halves that have no example in common.

    Attributes:
        of: the set.
        odd: the second, fourth, ... example, in place of the first, third, ...
    """

    of: Labelled
    odd: bool = False

    def pieces(self, size: int) -> Iterator[Piece]:
        first = int(self.odd)
        for inputs, targets in self.of.pieces(2 * size):
            if len(inputs) > first:
                yield inputs.every(2, first), None if targets is None else targets[first::2]

    @cached_property
    def count(self) -> int:
        return (self.of.count + 1 - int(self.odd)) // 2


def read_labelled(data: Any, targets: Any, model: nn.Module, batch_axis: BatchAxis = 0) -> Labelled:
    """What a user gave as inputs, with targets beside or inside.

    Args:
        data: what ``read_inputs`` takes; or a pair (inputs, targets), for a model that takes one
            argument; a mapping that holds targets under one of ``TARGET_NAMES``, which the model
            does not take; a ``Dataset`` or ``DataLoader`` of torch, which gives such pairs or
            mappings.
        targets: (B, ...) targets, or None where ``data`` holds them or there are none.
        model: that is called with the inputs.
        batch_axis: of the inputs.

    Raises:
        ArgumentError: something else, or targets twice.
    """
    if isinstance(data, DataLoader | Dataset):
        return _streamed(data, targets, batch_axis)
    inside, model = None, unwrapped(model)
    if _is_pair(data, model):
        data, inside = data
    elif isinstance(data, Mapping):
        taken = _arguments_of(model)
        names = [n for n in TARGET_NAMES if n in data and taken is not None and n not in taken]
        if len(names) == 1:
            inside = data[names[0]]
            data = {name: value for name, value in data.items() if name != names[0]}
    if inside is not None and targets is not None:
        raise ArgumentError("targets: the inputs hold some too; give them once")
    inputs = read_inputs(data, batch_axis)
    return InMemory(inputs, read_targets(inside if targets is None else targets, len(inputs)))


def _is_pair(data: Any, model: nn.Module) -> bool:
    """Whether data are inputs and targets, for a model that takes inputs alone."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    taken = _positional(model)
    return taken is not None and taken < 2 and not isinstance(data[0], str)


def _positional(model: nn.Module) -> int | None:
    """How many arguments a model's forward pass takes by position; None where nobody knows."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _arguments_of(model: nn.Module) -> set[str] | None:
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return set(parameters)


def _streamed(data: Any, targets: Any, batch_axis: BatchAxis) -> Labelled:
    if targets is not None:
        raise ArgumentError(
            "targets: a data set or loader gives its own, as pairs (inputs, targets); leave it out"
        )
    loader = _ordered(data)
    try:
        found = Streamed(loader, batch_axis)
        found.first(1)
    except StopIteration:
        raise ArgumentError("inputs: the data set holds no examples; give at least one") from None
    return found


def _ordered(data: Any) -> DataLoader[Any]:
    """A loader of the same examples that has one order, and draws nothing that others draw from."""
    own = torch.Generator()
    if not isinstance(data, DataLoader):
        return DataLoader(data, batch_size=_AT_ONCE, generator=own)
    dataset = data.dataset
    options: dict[str, Any] = {"collate_fn": data.collate_fn, "generator": own}
    options |= {"num_workers": data.num_workers, "worker_init_fn": data.worker_init_fn}
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=data.batch_size, **options)
    sampler = data.sampler
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement
    )
    size = data.batch_size
    if whole and (size is not None or data.batch_sampler is None):
        return DataLoader(dataset, batch_size=size, **options)
    drawing = Drawing(torch.device("cpu"))
    drawing.uses_torch = True
    with drawing.undone():  # the order is settled once
        batches = [list(sampler)]
        if data.batch_sampler is not None:
            batches, size = [list(batch) for batch in data.batch_sampler], size or _AT_ONCE
        order = sorted(int(i) for batch in batches for i in batch)
    return DataLoader(dataset, batch_size=size, sampler=order, **options)


def _read(batch: Any, batch_axis: BatchAxis) -> Piece:
    """Inputs and targets of a batch that a loader gave."""
    targets = None
    if isinstance(batch, Mapping):
        names = [name for name in TARGET_NAMES if name in batch]
        if len(names) > 1:
            raise ArgumentError(
                f"inputs: the data set gives {names[0]!r} and {names[1]!r}; name the targets once"
            )
        if names:
            targets = batch[names[0]]
            batch = {name: value for name, value in batch.items() if name != names[0]}
    elif isinstance(batch, tuple | list):
        if len(batch) < 2:
            batch = tuple(batch)
        else:
            *inputs, targets = batch
            batch = inputs[0] if len(inputs) == 1 else tuple(inputs)
    elif not isinstance(batch, torch.Tensor | np.ndarray):
        raise ArgumentError(
            f"inputs: the data set gives {shown(type(batch).__name__)}; give tensors, pairs "
            "(inputs, targets), or mappings of them"
        )
    if isinstance(targets, torch.Tensor | np.ndarray | int | float) and np.ndim(targets) == 0:
        raise ArgumentError(
            "inputs: the loader gives single examples without a batch axis, as with "
            "batch_size=None; give it a batch_size, such as 32, or give its data set"
        )
    found = read_inputs(batch, batch_axis)
    return found, read_targets(targets, len(found))


def _joined(held: list[Piece]) -> Piece:
    if len(held) == 1:
        return held[0]
    inputs = held[0][0]
    for other, _ in held[1:]:
        inputs = inputs.joined(other)
    parts = [targets for _, targets in held if targets is not None]
    return inputs, np.concatenate(parts) if parts else None
