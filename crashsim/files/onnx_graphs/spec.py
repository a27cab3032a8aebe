"""How an ONNX file is named: ``model.onnx``, or ``model.onnx:sr=16000,input=?x576``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from crashsim.errors import ArgumentError

_NAMED = re.compile(r"(?P<path>.+\.onnx)(?::(?P<options>.*))?", re.IGNORECASE | re.DOTALL)
_SIZES = re.compile(r"(?:\?|\d{1,9})(?:x(?:\?|\d{1,9}))+|\?")


@dataclass(frozen=True)
class OnnxSpec:
    """A file and what is said about its inputs.

    Attributes:
        path: of the file.
        fixed: inputs that are always the same number.
        sizes: lengths of inputs' axes; None where any will do.
    """

    path: str
    fixed: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)


def onnx_spec(spec: str) -> OnnxSpec | None:
    """Reads a model's name; None where it names no ONNX file.

    Raises:
        ArgumentError: what follows the file's name makes no sense.
    """
    match = _NAMED.fullmatch(spec)
    if match is None:
        return None
    fixed: dict[str, float] = {}
    sizes: dict[str, tuple[int | None, ...]] = {}
    for item in filter(None, (match["options"] or "").split(",")):
        name, given, value = item.partition("=")
        if _SIZES.fullmatch(value):
            sizes[name] = tuple(None if n == "?" else int(n) for n in value.split("x"))
            continue
        try:
            fixed[name] = float(value) if not value.lstrip("-").isdigit() else int(value)
        except ValueError:
            given = ""
        if not name or not given:
            raise ArgumentError(
                f"model={spec!r}: {item!r}; after the file's name give inputs that are always the "
                "same (sr=16000) or lengths of their axes (input=?x576), with commas between them"
            )
    return OnnxSpec(match["path"], fixed, sizes)
