"""Ways to harden on a command line: ``penalty=0.1``, ``narrow-weights+crash-training``, code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from crashsim.arguments import nearest
from crashsim.errors import ArgumentError
from crashsim.writing import Named

_NUMBERED = ("penalty", "crash-training", "narrow-weights", "median", "mean")


def read_menu(texts: list[str] | None) -> list[Any] | None:
    """The ways of an option that may be repeated; several together with + between them.

    Raises:
        ArgumentError: a way that is not known, or a number that it does not take.
    """
    if not texts:
        return None
    return [tuple(_way(part.strip(), text) for part in text.split("+")) for text in texts]


def _way(part: str, text: str) -> Any:
    from crashsim.files.users_code import load_value
    from crashsim.protection.schemes import SCHEMES
    from crashsim.training.menu.protection import Protection
    from crashsim.training.menu.ways import (
        Copies,
        CrashTrained,
        NarrowWeights,
        Nothing,
        Penalised,
        Way,
    )

    file, _, own = part.rpartition(":")
    if file.endswith(".py"):
        return load_value(Path(file), own, Way, f"way={text!r}")
    name, _, number = part.partition("=")
    made: dict[str, Callable[..., Any]] = {
        "penalty": Penalised,
        "crash-training": CrashTrained,
        "narrow-weights": NarrowWeights,
        "median": lambda count=3: Copies(int(count), "median"),
        "mean": lambda count=3: Copies(int(count), "mean"),
        "nothing": Nothing,
    }
    if name in made and (not number or name in _NUMBERED):
        return made[name](*_numbers(number, text))
    if name in SCHEMES and not number:
        try:
            return Protection(SCHEMES[name]())
        except TypeError as error:
            raise ArgumentError(f"way={text!r}: {error}; use it in Python") from error
    known = [*(f"{n}[=NUMBER]" for n in _NUMBERED), "nothing", *SCHEMES]
    near = nearest(name, [*_NUMBERED, "nothing", *SCHEMES])
    raise ArgumentError(
        f"way={text!r}: {part!r} is not known{near}"
        f"; choose among {', '.join(known)}, or path.py:NAME"
    )


def _numbers(number: str, text: str) -> list[float]:
    if not number:
        return []
    try:
        return [float(number)]
    except ValueError:
        raise ArgumentError(f"way={text!r}: {number!r} is no number") from None


def menu_inputs(texts: list[str] | None) -> list[Named]:
    """The files of code that ways are read from."""
    parts = [part.strip() for text in texts or () for part in text.split("+")]
    files = (part.rpartition(":")[0] for part in parts)
    return [("way", file) for file in files if file.endswith(".py")]
