"""The pages on what others may add run as they are written."""

import re
from pathlib import Path

import pytest
import torch

PAGES = Path(__file__).parents[2] / "docs"
MINE = ("doors/metric", "doors/executor", "accuracy")


@pytest.mark.parametrize("page", MINE)
def test_the_code_of_a_page_runs(page, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            exec(compile(block, f"{page}.md", "exec"), {"__name__": "page"})
    told = capsys.readouterr().out
    if page == "accuracy":
        numbers = [float(word) for word in told.split("\n")[1].split()]
        assert numbers[1] < numbers[0] < numbers[2] < 1
        assert '"level": 0.9' in told.replace("'", '"')
    elif page == "doors/metric":
        numbers = [float(word) for word in told.split("\n")[0].split()]
        assert 0 <= numbers[1] < numbers[0] < numbers[2] <= 1
    else:
        assert 3.0 < float(told) < 3.3
