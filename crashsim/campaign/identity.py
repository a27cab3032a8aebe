"""What a piece of work depends on, in words and as one name.

Two runs that agree in every part have the same sums, block for block. Where they do not agree, the
parts say in what.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from crashsim.errors import ArgumentError

_SHOWN = 12  # characters of a digest that people see
_LIBRARIES = ("torch", "numpy", "scipy", "crashsim", "math", "functools", "collections")


def name_of(parts: Mapping[str, str]) -> str:
    """One name for all parts: 32 hexadecimal digits."""
    text = json.dumps(dict(parts), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """In which parts two pieces of work differ, each in words."""
    found = []
    for part in sorted({*one, *other}):
        here, there = one.get(part, "none"), other.get(part, "none")
        if here != there:
            found.append(f"{part} ({here}; there {there})")
    return found


def digest(value: Any) -> str:
    """A short name for the contents of a value, the same in every process.

    Arrays and tensors count with every bit, functions and classes of a user's with their source
    and with the constants that they refer to, objects with their attributes.

    Raises:
        ArgumentError: something in it has no contents that could be compared.
    """
    found = hashlib.sha256()
    for piece in _Contents().of(value):
        found.update(len(piece).to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()[:_SHOWN]


class _Contents:
    """Walks through a value, each object once."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no number of an object is used twice

    def of(self, value: Any) -> Iterator[bytes]:
        """Bytes that differ where the contents do."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, PurePath)):
            yield f"{type(value).__name__} {value!r}".encode()
            return
        if id(value) in self._seen:
            yield f"again {self._seen[id(value)]}".encode()
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        yield from self._of_object(value)

    def _of_object(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, (np.ndarray, np.generic)):
            yield from self._array(np.asarray(value))
        elif hasattr(value, "detach") and hasattr(value, "numpy"):
            yield from self._tensor(value)
        elif isinstance(value, Mapping):
            yield b"mapping"
            for key, each in value.items():
                yield from self.of(key)
                yield from self.of(each)
        elif isinstance(value, (list, tuple)):
            yield f"{type(value).__name__} {len(value)}".encode()
            for each in value:
                yield from self.of(each)
        elif isinstance(value, (set, frozenset)):
            yield b"set"
            for each in sorted(digest(each) for each in value):
                yield each.encode()
        elif isinstance(value, Enum):
            yield str(value).encode()
        elif isinstance(value, ModuleType):
            yield value.__name__.encode()
        elif isinstance(value, functools.partial):
            yield from self.of((value.func, value.args, value.keywords))
        elif isinstance(value, MethodType):
            yield from self.of((value.__func__, value.__self__))
        elif isinstance(value, (FunctionType, BuiltinFunctionType, type)):
            yield from self._code(value)
        else:
            yield from self._instance(value)

    def _array(self, array: np.ndarray[Any, Any]) -> Iterator[bytes]:
        yield f"array {array.dtype.str} {array.shape}".encode()
        if array.dtype.kind == "O":
            yield from self.of(array.tolist())
        else:
            yield np.ascontiguousarray(array).tobytes()

    def _tensor(self, tensor: Any) -> Iterator[bytes]:
        yield f"tensor {tensor.dtype} {tuple(tensor.shape)}".encode()
        plain = tensor.detach().cpu().contiguous()
        if getattr(plain, "is_quantized", False):
            yield f"{plain.qscheme()}".encode()
            yield from self.of([str(plain.dequantize().tolist())])
            return
        try:
            yield plain.reshape(-1).numpy().tobytes()
        except (TypeError, RuntimeError):  # of types that numpy has not: bfloat16, float8
            yield str(plain.reshape(-1).tolist()).encode()

    def _code(self, value: Any) -> Iterator[bytes]:
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if isinstance(value, BuiltinFunctionType) or _is_of_library(value):
            return
        source: str | None = None
        if value.__name__ != "<lambda>":  # of which a line may hold several
            with suppress(OSError, TypeError):  # it was typed in, or made by a program
                source = inspect.getsource(value)
        yield (source or "").encode()
        functions = [value] if isinstance(value, FunctionType) else _functions_of(value)
        for function in functions:
            yield from self._function(function, has_source=source is not None)
        if isinstance(value, type):
            yield from self.of([base for base in value.__mro__[1:] if base is not object])

    def _function(self, function: FunctionType, *, has_source: bool) -> Iterator[bytes]:
        if not has_source:  # the same source has other code in another Python
            for code in _codes_of(function.__code__):
                yield code.co_code
                yield repr([c for c in code.co_consts if not isinstance(c, CodeType)]).encode()
        yield from self.of((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                yield from self.of(cell.cell_contents)
            except ValueError:  # a cell that is empty still
                yield b"empty"
        names = {name for code in _codes_of(function.__code__) for name in code.co_names}
        for name in sorted(names):
            if name in function.__globals__:
                yield name.encode()
                yield from self.of(function.__globals__[name])

    def _instance(self, value: Any) -> Iterator[bytes]:
        yield from self._code(type(value))
        if is_dataclass(value):
            inside: Any = {f.name: getattr(value, f.name) for f in fields(value)}
        elif hasattr(value, "code") and hasattr(value, "graph"):  # a module that torch.fx made
            inside = {"code": value.code, **vars(value)}
            inside.pop("_graph", None)
        elif hasattr(value, "__dict__"):
            inside = vars(value)
        elif " at 0x" not in (told := repr(value)):
            inside = told
        else:
            raise ArgumentError(
                f"store: what a {type(value).__qualname__} holds cannot be told, and so not "
                "whether an earlier run was of the same; leave out the store, or give the object "
                "attributes"
            )
        yield from self.of(inside)


def _is_of_library(value: FunctionType | type) -> bool:
    """Whether the versions of libraries say what it does."""
    module = value.__module__ or ""
    if module == "builtins":  # so is what a program made without a module's name
        return getattr(builtins, value.__name__, None) is value
    return module.split(".")[0] in _LIBRARIES


def _functions_of(kind: type) -> list[FunctionType]:
    plain = (getattr(each, "__func__", getattr(each, "fget", each)) for each in vars(kind).values())
    return [each for each in plain if isinstance(each, FunctionType)]


def _codes_of(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_of(constant)
