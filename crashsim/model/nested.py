"""Nested values that models take and return: tensors, tuples, mappings, dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any


class Field(str):
    """A step into a value by attribute; any other step is an index or a key."""

    __slots__ = ()


# Names from the outermost value inwards, as users see them: "hidden_states", "1".
Names = tuple[str, ...]


def children(value: Any) -> list[tuple[str, Any, Any]] | None:
    """The parts of a value as (name, step, part); None where it has none.

    A mapping's parts are named by their keys, those of dataclasses and named tuples by their
    fields, those of tuples and lists by their numbers.
    """
    if isinstance(value, Mapping):
        return [(str(key), key, value[key]) for key in value]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(n, i, v) for i, (n, v) in enumerate(zip(value._fields, value, strict=True))]
    if isinstance(value, tuple | list):
        return [(str(i), i, part) for i, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        return [(name, Field(name), getattr(value, name)) for name in fields]
    return None


def leaves(value: Any, names: Names = ()) -> Iterator[tuple[Names, Any]]:
    """The leaves of a nested value, each with the names of the way to it."""
    parts = children(value)
    if parts is None:
        yield names, value
        return
    for name, _, part in parts:
        yield from leaves(part, (*names, name))


def mapped(value: Any, change: Callable[[Names, Any], Any], names: Names = ()) -> Any:
    """The same structure with other leaves; the value itself where none of them changes."""
    parts = children(value)
    if parts is None:
        return change(names, value)
    changed = [mapped(part, change, (*names, name)) for name, _, part in parts]
    if all(new is old for new, (_, _, old) in zip(changed, parts, strict=True)):
        return value
    return rebuilt(value, changed)


def rebuilt(value: Any, parts: Sequence[Any]) -> Any:
    """A value of the same kind with other parts, in the order of ``children``."""
    if isinstance(value, tuple | list):
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    result: Any = copy(value)
    for (_, step, _), new in zip(children(value) or (), parts, strict=True):
        if isinstance(step, Field):
            object.__setattr__(result, step, new)  # frozen dataclasses too
        else:
            result[step] = new
    return result


def step_into(value: Any, steps: tuple[Any, ...]) -> Any:
    """The part that steps lead to."""
    for step in steps:
        value = getattr(value, step) if isinstance(step, Field) else value[step]
    return value
