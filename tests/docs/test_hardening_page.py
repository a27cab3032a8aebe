"""The page on hardening: its code runs as it stands."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "hardening.md"


def test_the_code_of_the_page_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    with torch.random.fork_rng(devices=[]):
        names: dict[str, object] = {"__name__": "page"}
        exec(compile(code, "hardening.md", "exec"), names)
    told = capsys.readouterr().out
    found = names["found"]
    assert found.reached, told
    assert [way["refused"] for way in found.ways] == [""] * 5
    assert found.statement in told
    assert (tmp_path / "hardening.json").exists()
