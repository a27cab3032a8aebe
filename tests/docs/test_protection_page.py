"""The page on protection: its code runs as it stands, and what it says of schemes is so."""

import re
from pathlib import Path

import pytest
import torch

from crashsim import SECDED
from crashsim.protection.schemes import SCHEMES

PAGE = Path(__file__).parents[2] / "docs" / "protection.md"


def test_the_code_of_the_page_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    with torch.random.fork_rng(devices=[]):
        names: dict[str, object] = {"__name__": "page"}
        exec(compile(code, "protection.md", "exec"), names)
    told = capsys.readouterr().out
    assert "crashsim protect" in told
    plan, better = names["plan"], names["better"]
    assert plan.overhead <= 0.1
    assert better.schemes == plan.schemes
    assert (tmp_path / "plan.json").exists()


def test_every_scheme_is_in_its_table():
    page = PAGE.read_text()
    for kind in SCHEMES.values():
        assert f"`{kind.__name__}(" in page


def test_the_figures_of_a_block():
    law = SECDED().law(1e-5)
    assert law.detected + law.silent == pytest.approx(2.6e-7, rel=0.02)
    assert SECDED().code.checks == 8
