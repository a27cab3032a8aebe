"""Plain data, as JSON holds it: written, and read as what the code declares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from crashsim.errors import ArgumentError

if TYPE_CHECKING:  # it loads where files are read alone
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails


def finite(value: Any) -> Any:
    """The same plain data with null for what JSON cannot say (infinity, NaN)."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, str):  # halves of characters, of file names that are not UTF-8
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, int | float | bool):
        return value
    raise ArgumentError(f"score: cannot write {type(value).__name__} as JSON")


def read(kind: Any, plain: Mapping[str, Any]) -> Any:
    """The data as a dataclass of this kind; entries that it does not declare are left out.

    Raises:
        ValueError: an entry is missing or of another type than declared; says which.
    """
    from pydantic import ValidationError

    try:
        text = json.dumps(dict(plain), ensure_ascii=False).encode("utf-8", "replace")
    except TypeError as error:
        raise ValueError(f"holds what JSON cannot ({error})") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    try:
        # From JSON, where strict reading takes a list for a tuple, but no text for a number.
        return _reader(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(_told(error.errors()[0], plain)) from error


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _told(error: ErrorDetails, plain: Any) -> str:
    """Where in the data it is, what it should be, and what it is."""
    path, here = "", plain
    for step in error["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
            here = here[step] if step < len(here) else None
        elif isinstance(here, Mapping):  # other names are those of a union's types
            path += f".{step}"
            here = here.get(step)
    what = error["msg"].removeprefix("Input ")
    shown = json.dumps(error["input"])
    if error["type"] != "missing":
        what += f", not {shown if len(shown) <= 40 else shown[:37] + '...'}"
    return f"{path.removeprefix('.')}: {what[0].lower()}{what[1:]}"
