"""Saved results of any kind, read by what is in the file."""

from __future__ import annotations

import json
from pathlib import Path

from crashsim.arguments import path as file_path
from crashsim.errors import FileError
from crashsim.files.limits import read_text
from crashsim.results.chip_record import ChipRecord, is_chip_record
from crashsim.scoring.score import Score

__all__ = ["load_record"]


def load_record(path: str | Path) -> Score | ChipRecord:
    """Reads what ``crashsim score --json`` or ``crashsim hardware --json`` wrote.

    Raises:
        FileError: it cannot be read, is neither, or would take too much memory (see
            ``crashsim.files.limits``).
    """
    path = file_path("path", path)
    what = f"score={str(path)!r}"
    remedy = "give a file that `crashsim score --json` or `crashsim hardware --json` wrote"
    try:
        plain = json.loads(read_text(what, path, remedy))
    except (OSError, ValueError, RecursionError):
        return Score.load(path)  # which says what is wrong with it
    if not is_chip_record(plain):
        return Score.load(path)
    try:
        return ChipRecord.from_dict(plain)
    except FileError as error:
        raise FileError(f"{what}: {str(error).removeprefix('record: ')}") from error
