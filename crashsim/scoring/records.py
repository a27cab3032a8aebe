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
from crashsim.results.plan.plan_record import PlanRecord, is_plan_record
from crashsim.results.vulnerability.vulnerability_record import (
    VulnerabilityRecord,
    is_vulnerability_record,
)
from crashsim.scoring.score import Score

__all__ = ["load_record"]

Saved = Score | ChipRecord | list[CurveRecord] | HardeningRecord | PlanRecord | VulnerabilityRecord


def load_record(path: str | Path) -> Saved:
    """Reads what ``--json`` of ``crashsim score``, ``hardware``, ``sweep``, ``vulnerability``,
    ``harden`` or ``protect`` wrote.

    Raises:
        FileError: it cannot be read, is none of these, or would take too much memory (see
            ``crashsim.files.limits``).
    """
    path = file_path("path", path)
    what = f"score={str(path)!r}"
    commands = "`crashsim score`, `hardware`, `sweep`, `vulnerability`, `harden` or `protect`"
    remedy = f"give a file that --json of {commands} wrote"
    try:
        plain = json.loads(read_text(what, path, remedy))
    except (OSError, ValueError, RecursionError):
        return Score.load(path)  # which says what is wrong with it
    is_curve, is_hardening = is_curve_record(plain), is_hardening_record(plain)
    is_plan, is_map = is_plan_record(plain), is_vulnerability_record(plain)
    if not (is_curve or is_hardening or is_plan or is_map or is_chip_record(plain)):
        return Score.load(path)
    try:
        if is_hardening:
            return HardeningRecord.from_dict(plain)
        if is_curve:
            return curves_of(plain)
        if is_map:
            return VulnerabilityRecord.from_dict(plain)
        if is_plan:
            return PlanRecord.from_dict(plain)
        return ChipRecord.from_dict(plain)
    except FileError as error:
        told = str(error)
        for kind in ("record: ", "curve: ", "hardening: ", "plan: ", "vulnerability: "):
            told = told.removeprefix(kind)
        raise FileError(f"{what}: {told}") from error
