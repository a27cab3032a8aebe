"""How the site reads docstrings and formulas."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "extensions"


def extension(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module(name)
    sys.modules.pop(name)
    return module


def test_a_docstring_in_plain_text(monkeypatch):
    as_rest = extension("docstrings", monkeypatch).as_rest
    made = as_rest(
        [
            "Bounds P(|L| >= c) for a * b, as ``a*b`` says.", "",
            "time, start: of both; a field",
            "    that goes on.", "",
            "        shown = code * 2", "",
            "Args:",
            "    x: |x| of each.", "",
            "    a further paragraph", "",
            ">>> 2 * 3",
            "6",
        ]
    )  # fmt: skip
    assert made == [
        r"Bounds P(\|L\| >= c) for a \* b, as ``a*b`` says.", "",
        "Attributes:",
        "    time, start: of both; a field",
        "        that goes on.", "",
        "::", "",
        "        shown = code * 2", "",
        "Args:",
        r"    x: \|x\| of each.", "",
        "    a further paragraph", "",
        ">>> 2 * 3",
        "6", "",
    ]  # fmt: skip


def test_the_lines_of_a_formula(monkeypatch):
    pytest.importorskip("latex2mathml", reason="of the group docs")
    pytest.importorskip("docutils", reason="of the group docs")
    lines = extension("mathml", monkeypatch).lines
    assert lines(r" a + b ") == ["a + b"]
    two = "\\begin{aligned}\na &= b \\\\\nc &\\approx d\n\\end{aligned}"
    assert lines(two) == ["a = b", r"c \approx d"]
