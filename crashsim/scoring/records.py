"""Saved results of any kind, read by what is in the file."""

from __future__ import annotations

import json
from pathlib import Path

from crashsim.arguments import path as file_path
from crashsim.errors import FileError
from crashsim.files.limits import read_text
from crashsim.results.chip_record import ChipRecord, is_chip_record
from crashsim.results.curve.curve_record import CurveRecord, curves_of, is_curve_record
from crashsim.results.vulnerability.vulnerability_record import (
    VulnerabilityRecord,
    is_vulnerability_record,
)
from crashsim.scoring.score import Score

__all__ = ["load_record"]


def load_record(path: str | Path) -> Score | ChipRecord | list[CurveRecord] | VulnerabilityRecord:
    """Reads what ``--json`` of ``score``, ``hardware``, ``sweep`` or ``vulnerability`` wrote.

    Raises:
        FileError: it cannot be read, is none of these, or would take too much memory (see
            ``crashsim.files.limits``).
    """
    path = file_path("path", path)
    what = f"score={str(path)!r}"
    remedy = "give what --json of `crashsim score`, `hardware`, `sweep` or `vulnerability` wrote"
    try:
        plain = json.loads(read_text(what, path, remedy))
    except (OSError, ValueError, RecursionError):
        return Score.load(path)  # which says what is wrong with it
    is_curve, is_map = is_curve_record(plain), is_vulnerability_record(plain)
    if not (is_curve or is_map or is_chip_record(plain)):
        return Score.load(path)
    try:
        if is_map:
            return VulnerabilityRecord.from_dict(plain)
        if is_curve:
            return curves_of(plain)
        return ChipRecord.from_dict(plain)
    except FileError as error:
        told = str(error)
        for kind in ("record: ", "curve: ", "vulnerability: "):
            told = told.removeprefix(kind)
        raise FileError(f"{what}: {told}") from error
