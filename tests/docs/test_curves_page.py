"""The page on curves: its code runs as it stands."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "curves.md"


def test_the_code_of_the_page_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    with torch.random.fork_rng(devices=[]):
        names: dict[str, object] = {"__name__": "page"}
        exec(compile(code, "curves.md", "exec"), names)
    told = capsys.readouterr().out
    assert "TolerableRate(target=0.9" in told
    curve, quick = names["curve"], names["quick"]
    for measured, predicted in zip(curve.points[:4], quick.points, strict=False):
        assert abs(measured["value"] - predicted["value"]) < 0.05
    assert (tmp_path / "curve.json").exists()
