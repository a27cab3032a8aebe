"""Warnings grouped and ranked, so that one screen shows what matters most of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|\b[\w.]*\d[\w.,%]*|\b\w+(?:\.\w+)+\b")
# What makes numbers wrong comes before what makes them less than was asked for.
_FIRST = ("contradict", "cannot both", "wrong", "too narrow", "not struck", "never fires")
_LENGTH = 230  # characters of a warning: three lines of a terminal


def grouped(warnings: Iterable[str]) -> list[tuple[str, int]]:
    """Each kind of warning once, with how many there are of it, the gravest kinds first.

    Warnings are of one kind where they differ in names and numbers alone.
    """
    kinds: dict[str, list[str]] = {}
    for warning in warnings:
        kinds.setdefault(_VARIES.sub("*", warning), []).append(warning)
    found = [(members[0], len(members)) for members in kinds.values()]
    return sorted(found, key=lambda kind: _rank(kind[0]))


def _rank(warning: str) -> int:
    lower = warning.lower()
    found = (i for i, word in enumerate(_FIRST) if word in lower)
    return next(found, len(_FIRST))


def lines(warnings: Sequence[str], most: int = 3) -> list[str]:
    """The first kinds of warnings, each cut to a few lines, and how many more there are."""
    kinds = grouped(warnings)
    shown = []
    for text, count in kinds[:most]:
        like = f" (and {count - 1} like it)" if count > 1 else ""
        shown.append(f"warning: {_cut(text)}{like}")
    left = sum(count for _, count in kinds[most:])
    if left:
        shown.append(f"and {left} more warning{'s' if left > 1 else ''}: --details")
    return shown


def _cut(text: str) -> str:
    if len(text) <= _LENGTH:
        return text
    return text[:_LENGTH].rsplit(" ", 1)[0].rstrip(",;:") + " … (whole with --details)"
