"""The page on methods of one's own: its code runs as it stands, and gives what it should."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "doors" / "method.md"


def test_the_code_of_the_page_runs(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    names: dict[str, object] = {"__name__": "page"}
    with torch.random.fork_rng(devices=[]):
        exec(compile(code, str(PAGE), "exec"), names)
    shown, score = capsys.readouterr().out, names["score"]
    for method in ("any-fault", "normal", "pairs", "monte-carlo"):
        assert method in shown
    for b, k in np.ndindex(3, 2):
        truth = score.find("exact", "tail", b, k).value
        bound = score.find("any-fault", "tail", b, k).value
        assert truth <= bound == pytest.approx(1 - 0.9**8)
        assert 0 < score.find("normal", "tail", b, k).value < 1
    assert score.find("exact", "tail").value > 0.01
    assert score.find("pairs", "variance") is not None
