"""How protection schemes are written on a command line: NAME[:OPTION=VALUE,...]."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from crashsim.arguments import nearest, shown
from crashsim.errors import ArgumentError

if TYPE_CHECKING:
    from crashsim.protection.schemes import Scheme

_TEXTS = ("sites", "bits", "on_detection", "of", "per")


def read_schemes(texts: list[str] | None) -> list[Scheme] | None:
    """The schemes of ``--schemes``, which may be repeated, or hold several names with commas.

    ``secded,tmr:of=words`` are two; options of one scheme have semicolons or commas between them:
    ``secded:data=32;on_detection=last``.

    Raises:
        ArgumentError: a name or option that is not known, or a value that makes no sense.
    """
    if texts is None:
        return None
    found = []
    for text in texts:
        for spec in _split(text):
            found.append(read_scheme(spec))
    return found


def _split(text: str) -> list[str]:
    """Specs with commas between; a part with ``=`` and no name is an option of the one before."""
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        head = part.partition("=")[0]
        if found and "=" in part and ":" not in head:
            found[-1] += f";{part}"
        else:
            found.append(part)
    return found


def read_scheme(spec: str) -> Scheme:
    """One scheme: ``secded:data=32;on_detection=last``."""
    from crashsim.protection.schemes import SCHEMES

    name, _, rest = spec.partition(":")
    if name not in SCHEMES:
        raise ArgumentError(
            f"schemes: {shown(name)} is not known{nearest(name, SCHEMES)}"
            f"; choose among {', '.join(SCHEMES)}"
        )
    kind = SCHEMES[name]
    known = [field.name for field in fields(kind) if field.name != "only"]
    options: dict[str, Any] = {}
    for option in filter(None, (part.strip() for part in rest.split(";"))):
        key, equals, value = option.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in known:
            raise ArgumentError(
                f"schemes: {shown(option)} of {name}{nearest(key, known)}"
                f": give OPTION=VALUE with an option of "
                f"{', '.join(known)}"
            )
        options[key] = value if key in _TEXTS else _number(name, key, value)
    if "bits" in options:
        options["bits"] = _bits(options["bits"])
    try:
        return kind(**options)
    except TypeError as error:
        missing = [f.name for f in fields(kind) if f.name not in options and f.name in str(error)]
        raise ArgumentError(
            f"schemes: {name} needs {', '.join(missing) or 'other options'}; give "
            f"{name}:{';'.join(f'{field}=...' for field in missing)}"
        ) from error


def _number(name: str, key: str, value: str) -> float | int:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        raise ArgumentError(f"schemes: {key}={shown(value)} of {name}; give a number") from None


def _bits(text: str) -> str | list[int]:
    """A field's name, or numbers of bits with ``-`` and ``+``: ``6-7``, ``0+7``."""
    found: list[int] = []
    try:
        for part in text.strip("[]").split("+"):
            low, _, high = part.partition("-")
            found += range(int(low), int(high or low) + 1)
    except ValueError:
        return text
    return found
