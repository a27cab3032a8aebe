"""How faults are written on a command line: ``[SITES=]KIND[:NAME=VALUE,...]``.

KIND is a built-in fault's name, or ``path.py:Class`` for a fault of one's own, whose code is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

from crashsim.arguments import nearest
from crashsim.errors import ArgumentError
from crashsim.faults import FAULTS, BernoulliFault, Fault, WordFault
from crashsim.files.users_code import load_class, reported_as_the_users

# Sites may hold a colon; what follows the first "=" that makes sense is the kind.
_WHERE = r"(?:(?P<where>.+?)=)?"
_VALUES = r"(?::(?P<values>.*))?"
_KNOWN = re.compile(rf"{_WHERE}(?P<kind>{'|'.join(FAULTS)}){_VALUES}")
_COMMA = r",(?![^\[]*\])"  # but for those between brackets
_OF_WORDS = ("bits", "format", "scale", "upset")
_OWN = re.compile(rf"{_WHERE}(?P<kind>(?P<file>[^=]+\.py):(?P<name>[A-Za-z_]\w*)){_VALUES}")


def parse_fault(
    spec: str, default_p: float | None = None, group: str | None = None
) -> tuple[str | None, Fault]:
    """Reads ``[SITES=]KIND[:NAME=VALUE,...]``, as the command line takes it.

    Args:
        spec: such as ``neuron-crash``, ``conv*=neuron-crash:p=0.01``, ``weight-crash:count=3``,
            ``bit-flip:p=1e-4,bits=8``, ``bit-flip:p=1e-6,format=float32,bits=exponent``
            or ``noise.py:UniformNoise:width=0.1``, which runs that file.
        default_p: the probability where the spec gives none.
        group: the group of neuron crashes where the spec gives none.

    Returns:
        the sites, if given, and the fault.

    Raises:
        ArgumentError: not of that form, an unknown kind or name, or a value out of range.
        FileError: there is no such file.
        ModelError: the code in it fails.
    """
    match, cls = _read(spec)
    values = _values(spec, cls, match["values"] or "")
    known = {f.name for f in fields(cls)}
    if "p" in known and default_p is not None and "count" not in values:
        values.setdefault("p", default_p)
    if "group" in known and group is not None:
        values.setdefault("group", _group(group))
    missing = [f.name for f in fields(cls) if _is_required(f) and f.name not in values]
    if issubclass(cls, BernoulliFault) and not {"p", "count"} & values.keys():
        missing = ["p"]
    if missing:
        raise ArgumentError(f"fault={spec!r}: say how strong, as {match['kind']}:{missing[0]}=0.1")
    with reported_as_the_users(f"fault={spec!r}", f"{cls.__name__}()"):
        return match["where"], cls(**values)


def fault_class(spec: str) -> type[Fault]:
    """The class of a fault that is written so; its sites and values do not matter.

    Raises:
        As ``parse_fault``.
    """
    return _read(spec)[1]


def _read(spec: str) -> tuple[re.Match[str], type[Fault]]:
    """The parts of a fault as it is written, and its class."""
    if match := _KNOWN.fullmatch(spec):
        return match, FAULTS[match["kind"]]
    if match := _OWN.fullmatch(spec):
        own = Path(match["file"]), match["name"], Fault
        return match, load_class(*own, f"fault={spec!r}")  # type: ignore[type-abstract]
    named = spec.partition(":")[0].rpartition("=")[2]
    raise ArgumentError(
        f"fault={spec!r}: {named!r} is not known{nearest(named, FAULTS)}; choose among "
        f"{', '.join(FAULTS)}, or give "
        "path.py:Class"
    )


def fault_files(specs: Iterable[str] | None) -> list[tuple[str, str]]:
    """The files of code that faults are read from, each as ("fault", path)."""
    found = [_OWN.fullmatch(spec) for spec in specs or ()]
    return [("fault", match["file"]) for match in found if match]


def _is_required(field: Field[Any]) -> bool:
    return field.init and field.default is MISSING and field.default_factory is MISSING


def _values(spec: str, cls: type[Fault], text: str) -> dict[str, Any]:
    """The fields of a fault that ``NAME=VALUE,...`` gives."""
    known = {f.name for f in fields(cls) if f.init and f.metadata.get("is_option", True)}
    hints = _type_hints(cls)
    values: dict[str, Any] = {}
    for item in filter(None, re.split(_COMMA, text)):
        name, equals, value = item.partition("=")
        if not equals or name not in known:
            raise ArgumentError(
                f"fault={spec!r}: {item!r}{nearest(name, known)}"
                f": give NAME=VALUE with {' or '.join(sorted(known))}"
            )
        if name in values:
            raise ArgumentError(f"fault={spec!r}: gives {name} twice; give it once")
        kind = _Words if issubclass(cls, WordFault) and name in _OF_WORDS else hints.get(name)
        values[name] = _value(spec, name, value, kind)
    return values


def _type_hints(cls: type[Fault]) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except Exception:  # whatever the user's annotations raise: every value is then a number
        return {}


def _value(spec: str, name: str, text: str, kind: Any) -> object:
    if name == "group":
        return _group(text)
    if name == "window":
        return _window(spec, text)
    if kind is _Words:
        return _of_words(spec, name, text)
    if kind in (str, str | None) or name in ("duration", "per"):
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if kind in (int, int | None) else float(text)
    except ValueError:
        raise ArgumentError(f"fault={spec!r}: {name}={text!r}; give a number") from None


class _Words:
    """The kind of what words of a number of bits are told by."""


def _of_words(spec: str, name: str, text: str) -> object:
    """Bits (8, exponent, [30], [0-3,7]), a format, a scale or an upset, by number or name."""
    if name == "bits" and text.startswith("[") and text.endswith("]"):
        found: list[int] = []
        for part in text[1:-1].split(","):
            first, dash, last = part.partition("-")
            if not first.isdecimal() or bool(dash) != last.isdecimal():
                raise ArgumentError(
                    f"fault={spec!r}: bits={text!r}; give numbers such as [30], [0-3] or [0-3,7]"
                )
            found += range(int(first), int(last or first) + 1)
        return found
    if text.isdecimal() and name != "scale":
        return int(text)
    try:
        return float(text) if name == "scale" else text
    except ValueError:
        return text


def _window(spec: str, text: str) -> tuple[int, int]:
    """Steps ``start-stop``."""
    start, dash, stop = text.partition("-")
    if not (dash and start.isdecimal() and stop.isdecimal()):
        raise ArgumentError(f"fault={spec!r}: window={text!r}; give START-STOP, such as 5-10")
    return int(start), int(stop)


def _group(text: str) -> object:
    return int(text) if text.isdecimal() else text
