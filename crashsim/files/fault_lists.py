"""Fault lists as CSV: what other injectors struck, as ``FaultSpace.at_faults`` takes it.

A line each, under a header that names the columns: ``layer`` (or ``site``): the site's name, as
``relu1`` or ``fc.weight``; ``index``: whole numbers in the site's shape, with anything between them
(``3``, ``3;17``, ``(3, 17)``); ``bit``, where bits of words are struck: 0 is the least significant;
``value``: the coordinate's, where a fault takes several (the draw of noise). ``bit`` and ``value``
may be empty or missing.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from crashsim.arguments import path as file_path
from crashsim.errors import FileError
from crashsim.files.limits import read_text

_HEADER = "a header with layer, index and, where they are needed, bit and value"
_INDEX = re.compile(r"[\[(]?\s*\d{1,18}(?:[\s,;x]+\d{1,18})*\s*,?\s*[\])]?")


def read_fault_list(path: str | Path) -> list[tuple[Any, ...]]:
    """The faults of a CSV, each (site, index) or (site, index, value): for ``space.at_faults``.

    Example: ``space.at_faults(read_fault_list("faults.csv")).outputs``.

    Raises:
        FileError: it cannot be read, or a line is no fault; says which.
    """
    path = file_path("faults", path)
    what = f"faults={str(path)!r}"
    try:
        text = read_text(what, path, f"give a CSV with {_HEADER}")
    except UnicodeDecodeError as error:
        raise FileError(f"{what}: is no text; give a CSV with {_HEADER}") from error
    lines = csv.DictReader(StringIO(text.removeprefix("\ufeff"), newline=""), skipinitialspace=True)
    names = [name.strip().lower() for name in lines.fieldnames or ()]
    if "index" not in names or not {"layer", "site"} & set(names) or len(set(names)) < len(names):
        raise FileError(f"{what}: its columns are {names}; give {_HEADER}")
    lines.fieldnames = names
    found = []
    try:
        for row in lines:
            found.append(_fault(row, f"{what}, line {lines.line_num}"))
    except csv.Error as error:
        raise FileError(f"{what}: cannot be read as CSV ({error}); give {_HEADER}") from error
    return found


def _fault(row: Mapping[Any, Any], where: str) -> tuple[Any, ...]:
    if None in row or None in (row["index"], row.get("layer", row.get("site"))):
        raise FileError(f"{where}: has another number of cells than the header; write one for each")
    site = str(row.get("layer") or row.get("site")).strip()
    index = str(row["index"]).strip()
    if not _INDEX.fullmatch(index):
        raise FileError(f"{where}: index={index!r}; give whole numbers, such as 3;17")
    at = [int(number) for number in re.findall(r"\d+", index)]
    if bit := (row.get("bit") or "").strip():
        if not (bit.isdecimal() and len(bit) < 4):
            raise FileError(f"{where}: bit={bit!r}; give its number, 0 for the least significant")
        at.append(int(bit))
    if not (value := (row.get("value") or "").strip()):
        return site, tuple(at)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise FileError(f"{where}: value={value!r}; give a number, or leave it empty")
    return site, tuple(at), number
