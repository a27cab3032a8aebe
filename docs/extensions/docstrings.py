"""Docstrings as Sphinx reads them: crashsim's are plain text with Google's sections.

Mathematics is written as it is said (``|Delta| >= epsilon``, ``a * b``), fields of a class are
listed as ``name: what it is`` without a heading, and code is what is indented.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

SECTIONS = {"Args", "Attributes", "Raises", "Returns", "Yields", "Example", "Examples", "Warns"}
_LITERAL = re.compile(r"(``.+?``|`[^`]+`)")
_FIELD = re.compile(r"[a-z_][\w.]*(, [a-z_][\w.]*)*( \(.+?\))?: \S")


def setup(app: Any) -> dict[str, bool]:
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _process(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rest(lines)


def as_rest(lines: Iterable[str]) -> list[str]:
    """The docstring's lines, marked up."""
    made: list[str] = []
    section = ""
    for paragraph in _paragraphs(lines):
        first = paragraph[0]
        if not first.startswith(" "):
            header = first.removesuffix(":")
            section = header if first.endswith(":") and header in SECTIONS else ""
        if first.lstrip().startswith(">>>"):
            made += paragraph
        elif first.startswith("    ") and not section:
            made += ["::", "", *paragraph]
        elif _FIELD.match(first) and not section:
            made += ["Attributes:", *("    " + _escaped(line) for line in paragraph)]
        else:
            made += [_escaped(line) for line in paragraph]
        made.append("")
    return made


def _paragraphs(lines: Iterable[str]) -> Iterable[list[str]]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []
    if paragraph:
        yield paragraph


def _escaped(line: str) -> str:
    """With ``|`` and ``*`` as what they are, outside of literals."""
    parts = _LITERAL.split(line)
    return "".join(
        part if i % 2 else re.sub(r"([|*])", r"\\\1", part) for i, part in enumerate(parts)
    )
