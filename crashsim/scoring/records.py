"""Saved results of any kind, read by what is in the file."""

from __future__ import annotations

import json
from pathlib import Path

from crashsim.arguments import path as file_path
from crashsim.errors import FileError
from crashsim.files.limits import read_text
from crashsim.results.chip_record import ChipRecord, is_chip_record
from crashsim.results.curve.curve_record import CurveRecord, curves_of, is_curve_record
from crashsim.results.hardening.record import HardeningRecord, is_hardening_record
from crashsim.results.vulnerability.vulnerability_record import (
    VulnerabilityRecord,
    is_vulnerability_record,
)
from crashsim.scoring.score import Score

__all__ = ["Saved", "load_record"]

Saved = Score | ChipRecord | list[CurveRecord] | HardeningRecord | VulnerabilityRecord


def load_record(path: str | Path) -> Saved:
    """Reads what ``--json`` of ``crashsim score``, ``hardware``, ``sweep``, ``vulnerability`` or
    ``harden`` wrote.

    Raises:
        FileError: it cannot be read, is none of these, or would take too much memory (see
            ``crashsim.files.limits``).
    """
    path = file_path("path", path)
    what = f"score={str(path)!r}"
    remedy = (
        "give a file that --json of `crashsim score`, `hardware`, `sweep`, `vulnerability` or "
        "`harden` wrote"
    )
    try:
        plain = json.loads(read_text(what, path, remedy))
    except (OSError, ValueError, RecursionError):
        return Score.load(path)  # which says what is wrong with it
    try:
        if is_hardening_record(plain):
            return HardeningRecord.from_dict(plain)
        if is_vulnerability_record(plain):
            return VulnerabilityRecord.from_dict(plain)
        if is_curve_record(plain):
            return curves_of(plain)
        if is_chip_record(plain):
            return ChipRecord.from_dict(plain)
    except FileError as error:
        told = str(error)
        for kind in ("record: ", "curve: ", "hardening: ", "vulnerability: "):
            told = told.removeprefix(kind)
        raise FileError(f"{what}: {told}") from error
    return Score.load(path)
