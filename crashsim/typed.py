"""Plain data, as JSON holds it, checked against declared types.

The types are those that the code itself is written with: dataclasses, typed dictionaries, lists,
literals. So what is read is what was written, or an error names the entry that differs.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import (
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

Reader = Callable[[Any], Any]


class MismatchError(Exception):
    """Data is not of the declared type; ``str`` says where, what it is and what it should be."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path = ""

    def __str__(self) -> str:
        return f"{self.path.removeprefix('.')} {self.args[0]}".lstrip()

    def below(self, step: str) -> MismatchError:
        """The same, seen from the list or object that holds the data."""
        self.path = step + self.path
        return self


def typed(kind: Any, data: Any) -> Any:
    """The data as a value of a type.

    Where a number is declared, null stands for what JSON cannot say and becomes NaN; lists become
    tuples, objects become dataclasses, where those are declared. Entries that are not declared
    stay in typed dictionaries, and are left out of dataclasses.

    Raises:
        MismatchError: an entry is missing or of another type.
    """
    return _reader(kind)(data)


@cache
def _reader(kind: Any) -> Reader:
    """What reads a type: made once, as a score may hold hundreds of thousands of estimates."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda data: data
    if kind is float:
        return _number
    if kind in (int, str, bool, types.NoneType):
        return _plain(kind)
    if origin is Literal:
        return _choice(arguments)
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is list:
        return _list(_reader(arguments[0]))
    if origin is tuple:
        return _tuple([_reader(argument) for argument in arguments])
    if origin is dict:
        return _dict(_reader(arguments[1]))
    if is_typeddict(kind) or is_dataclass(kind):
        return _record(kind)
    raise TypeError(f"no reader for {kind!r}")


def _wrong(wanted: str, data: Any) -> MismatchError:
    shown = "null" if data is None else repr(data)
    return MismatchError(f"is {shown if len(shown) <= 40 else shown[:37] + '...'}, not {wanted}")


def _number(data: Any) -> float:
    if data is None:
        return math.nan
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise _wrong("a number", data)
    try:
        return float(data)
    except OverflowError:
        raise _wrong("a number that fits into 64 bits", data) from None


_NAMES = {int: "a whole number", str: "a text", bool: "true or false", types.NoneType: "null"}


def _plain(kind: type) -> Reader:
    def read(data: Any) -> Any:
        if type(data) is not kind:
            raise _wrong(_NAMES[kind], data)
        return data

    return read


def _choice(values: tuple[Any, ...]) -> Reader:
    def read(data: Any) -> Any:
        if not isinstance(data, str) or data not in values:
            raise _wrong(f"one of {', '.join(map(repr, values))}", data)
        return data

    return read


def _union(kinds: tuple[Any, ...]) -> Reader:
    has_null = types.NoneType in kinds
    readers = [_reader(kind) for kind in kinds if kind is not types.NoneType]

    def read(data: Any) -> Any:
        if data is None and has_null:
            return None
        for reader in readers[:-1]:
            try:
                return reader(data)
            except MismatchError:
                continue
        return readers[-1](data)

    return read


def _list(item: Reader) -> Reader:
    def read(data: Any) -> list[Any]:
        if not isinstance(data, list):
            raise _wrong("a list", data)
        found = []
        for i, entry in enumerate(data):
            try:
                found.append(item(entry))
            except MismatchError as error:
                raise error.below(f"[{i}]") from None
        return found

    return read


def _tuple(items: list[Reader]) -> Reader:
    def read(data: Any) -> tuple[Any, ...]:
        if not isinstance(data, list) or len(data) != len(items):
            raise _wrong(f"a list of {len(items)}", data)
        return tuple(item(entry) for item, entry in zip(items, data, strict=True))

    return read


def _dict(value: Reader) -> Reader:
    def read(data: Any) -> dict[str, Any]:
        return {key: _entry(value, key, entry) for key, entry in _object(data).items()}

    return read


def _record(kind: Any) -> Reader:
    """Of a dataclass or a typed dictionary."""
    hints = get_type_hints(kind, include_extras=True)
    if is_dataclass(kind):
        optional = {f.name for f in fields(kind) if f.default is not MISSING}
    else:
        optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
        hints |= {name: get_args(hints[name])[0] for name in optional}
    readers = {name: _reader(hint) for name, hint in hints.items()}

    def read(data: Any) -> Any:
        kept = _object(data)
        found = dict(kept) if is_typeddict(kind) else {}
        for name, reader in readers.items():
            if name in data:
                found[name] = _entry(reader, name, data[name])
            elif name not in optional:
                raise MismatchError("is missing").below(f".{name}")
        return kind(**found)

    return read


def _object(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _wrong("an object", data)
    return data


def _entry(reader: Reader, key: str, data: Any) -> Any:
    try:
        return reader(data)
    except MismatchError as error:
        raise error.below(f".{key}") from None
