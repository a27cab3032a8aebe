"""Sums as bytes and back, without pickle: what is read can be data only.

Numbers keep every bit. Structures name the dataclasses that they are made of, and only those that
the reader lists are ever made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from crashsim.errors import ArgumentError, FileError

_ALIGNED = 64  # bytes: where arrays begin
_DTYPES = "biufcSU"  # kinds of numpy's arrays that are plain numbers or text


def pack(value: Any) -> tuple[str, bytes]:
    """The structure of a value as JSON, and the bytes of its arrays.

    Args:
        value: numbers, text, truth values, None and arrays of them, in tuples, lists, mappings by
            text, and dataclasses.

    Raises:
        ArgumentError: it holds something else.
    """
    packing = _Packing()
    structure = json.dumps(packing.described(value), separators=(",", ":"))
    return structure, bytes(packing.data)


class _Packing:
    def __init__(self) -> None:
        self.data = bytearray()

    def described(self, value: Any) -> Any:
        # Types exactly: a number of numpy's that came back as one of Python's would add otherwise.
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in _DTYPES:
            return self._array(value)
        if type(value) in (tuple, list):
            kind = "tuple" if type(value) is tuple else "list"
            return {kind: [self.described(each) for each in value]}
        if type(value) is dict and all(type(key) is str for key in value):
            return {"dict": {key: self.described(each) for key, each in value.items()}}
        if is_dataclass(value) and not isinstance(value, type):
            inside = {f.name: self.described(getattr(value, f.name)) for f in fields(value)}
            return {"of": type(value).__qualname__, "fields": inside}
        raise ArgumentError(
            f"store: sums with a {type(value).__qualname__} in them cannot be stored; make them of "
            "numbers, arrays, tuples and dataclasses"
        )

    def _array(self, value: Any) -> dict[str, Any]:
        array = np.asarray(value)
        self.data += bytes(-len(self.data) % _ALIGNED)
        found = {
            "array": array.dtype.str,
            "shape": list(array.shape),
            "at": len(self.data),
            "scalar": isinstance(value, np.generic),
        }
        self.data += array.tobytes()
        return found


def unpack(structure: str, data: bytes, made_of: Iterable[type]) -> Any:
    """The value again.

    Args:
        structure, data: what ``pack`` returned.
        made_of: the dataclasses that it may be made of.

    Raises:
        FileError: they are no such thing; nothing but ``made_of`` has been called.
    """
    try:
        known = {each.__qualname__: each for each in made_of}
        return _made(json.loads(structure), data, known)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"store: its contents are not sums of this task ({error})") from error


def _made(described: Any, data: bytes, known: Mapping[str, type]) -> Any:
    if not isinstance(described, dict):
        return described
    inner: Callable[[Any], Any] = lambda each: _made(each, data, known)  # noqa: E731
    if "array" in described:
        return _array_of(described, data)
    if "tuple" in described:
        return tuple(map(inner, described["tuple"]))
    if "list" in described:
        return list(map(inner, described["list"]))
    if "dict" in described:
        return {key: inner(each) for key, each in described["dict"].items()}
    made = known[described["of"]]
    return made(**{name: inner(each) for name, each in described["fields"].items()})


def _array_of(described: Mapping[str, Any], data: bytes) -> Any:
    dtype, shape = np.dtype(described["array"]), tuple(described["shape"])
    if dtype.kind not in _DTYPES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"an array of {dtype} and shape {shape}")
    count, at = int(np.prod(shape, dtype=object)), described["at"]
    array = np.frombuffer(data, dtype, count, at).reshape(shape).copy()
    return array[()] if described["scalar"] else array
