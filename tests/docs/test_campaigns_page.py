"""The page on campaigns: its code runs as it stands."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "campaigns.md"


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 3
    with torch.random.fork_rng(devices=[]):
        names: dict[str, object] = {"__name__": "page"}
        for code in blocks:
            exec(compile(code, "campaigns.md", "exec"), names)
    assert names["more"].samples == 9000
    assert names["numbers"]["monte-carlo/accuracy.low"] > 0
