"""The benchmark of protection runs in its quick mode, and prints what it promises."""

import runpy
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_the_quick_mode_runs(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    with torch.random.fork_rng(devices=[]):
        names = runpy.run_path(str(FOLDER / "protection.py"))
        names["main"](["--quick"])
    sys.modules.pop("resnet20", None)
    told = capsys.readouterr().out
    assert "of the answers change on 50 virtual chips" in told
    assert "of the bits, chosen in" in told
    assert "against 200% for three copies" in told
