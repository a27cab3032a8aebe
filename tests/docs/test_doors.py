"""The pages of docs/doors: what they show runs, and does what they say."""

import re
from pathlib import Path

import pytest
import torch

PAGES = sorted((Path(__file__).parents[2] / "docs" / "doors").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    assert blocks
    found: dict[str, object] = {"__name__": "page"}
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            exec(compile(block, str(page), "exec"), found)
    if page.stem == "method":
        shown = capsys.readouterr().out
        score = found["score"]
        for name in ("any-fault", "normal", "pairs", "monte-carlo"):
            assert name in shown
            assert score.find(name, "variance" if name == "pairs" else "tail", 0, 0) is not None
        truth = score.find("exact", "tail", 0, 0).value
        assert 0 < truth <= score.find("any-fault", "tail", 0, 0).value
