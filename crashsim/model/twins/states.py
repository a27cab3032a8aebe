"""What the objects of a twin held when it was made, and how to put it back."""

from __future__ import annotations

from collections.abc import Collection
from operator import is_
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

# What is equal where it is alike, and never changes.
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type)
MISSING = object()


def cloned(tensor: Tensor) -> Tensor:
    """A copy that needs no more memory than the tensor, and has no graph."""
    with torch.no_grad():
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor.clone()
        repeated = [s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)]
        if not any(repeated):
            return tensor.detach().clone()
        once = tuple(slice(0, 1) if again else slice(None) for again in repeated)
        return tensor.detach()[once].clone().expand(tensor.shape)


class State(Protocol):
    """What an object of the twin held when it was made."""

    def has_changed(self) -> bool: ...

    def restore(self) -> None: ...


def _is_same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, Tensor):
        alike = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
        return alike and not old.is_meta and _is_equal(old, new)
    return isinstance(old, PLAIN) and old == new


class DictState:
    """The contents of a dict, which may be that of an object's attributes."""

    def __init__(self, held: dict[Any, Any]) -> None:
        self.held, self._saved = held, dict(held)

    def keep(self) -> None:
        """Takes its present contents as those to put back."""
        self._saved = dict(self.held)

    def _is_untouched(self) -> bool:
        held, saved = self.held, self._saved
        return held.keys() == saved.keys() and all(map(is_, held.values(), saved.values()))

    def has_changed(self) -> bool:
        if self._is_untouched():
            return False
        held = self.held
        return len(held) != len(self._saved) or any(
            not _is_same(value, held.get(key, MISSING)) for key, value in self._saved.items()
        )

    def restore(self) -> None:
        if not self._is_untouched():
            self.held.clear()
            self.held.update(self._saved)


class HooksState(DictState):
    """A module's hooks, to which ours may have been added; they stay."""

    def has_changed(self) -> bool:
        return any(key not in self.held for key in self._saved)

    def restore(self) -> None:
        if self.has_changed():
            added = dict(self.held)
            self.held.clear()
            self.held.update({**self._saved, **added})


class SequenceState:
    """The contents of a list, a deque or a set."""

    def __init__(self, held: Any) -> None:
        self._held, self._saved = held, list(held)

    def has_changed(self) -> bool:
        held = list(self._held)
        return len(held) != len(self._saved) or not all(map(_is_same, self._saved, held))

    def restore(self) -> None:
        held = list(self._held)
        same = len(held) == len(self._saved) and all(map(is_, held, self._saved))
        if not same:
            self._held.clear()
            add = self._held.update if isinstance(self._held, set) else self._held.extend
            add(self._saved)


class FieldsState:
    """Attributes that are not in an object's dict: its slots, or what is in a cell."""

    def __init__(self, held: Any, names: Collection[str]) -> None:
        self._held = held
        self._saved = {name: getattr(held, name, MISSING) for name in names}

    def has_changed(self) -> bool:
        return not all(
            _is_same(value, getattr(self._held, name, MISSING))
            for name, value in self._saved.items()
        )

    def restore(self) -> None:
        for name, value in self._saved.items():
            if value is not MISSING:
                setattr(self._held, name, value)
            elif hasattr(self._held, name):
                delattr(self._held, name)


class TensorState:
    """The numbers of a tensor."""

    def __init__(self, held: Tensor) -> None:
        self.held, self._saved = held, cloned(held)

    def has_changed(self) -> bool:
        held, saved = self.held.detach(), self._saved
        if held.shape != saved.shape or held.dtype != saved.dtype or held.device != saved.device:
            return True
        if held.is_meta:
            return False
        return not _is_equal(held, saved)

    def restore(self) -> None:
        # Other memory, so that what was computed from the old stays what it is.
        self.held.data = cloned(self._saved)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers; False where they cannot tell."""
    try:
        return torch.equal(_dense(one), _dense(other))
    except Exception:  # whatever a tensor of its own kind minds
        return False


def _dense(tensor: Tensor) -> Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


class ArrayState:
    """The numbers of an array."""

    def __init__(self, held: np.ndarray[Any, Any]) -> None:
        self._held, self._saved = held, held.copy()

    def has_changed(self) -> bool:
        return self._held.tobytes() != self._saved.tobytes()

    def restore(self) -> None:
        self._held[...] = self._saved


class CacheState:
    """What a ``functools.lru_cache`` keeps, which is nothing at first."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def has_changed(self) -> bool:
        return bool(self._held.cache_info().currsize)

    def restore(self) -> None:
        self._held.cache_clear()
