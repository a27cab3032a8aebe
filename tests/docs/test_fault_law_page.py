"""The page on fault laws: its example runs as it stands, and gives what it should."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "doors" / "fault_law.md"


@pytest.fixture(scope="module")
def example():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names = {"__name__": "page"}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_example_gives_the_closed_form(example):
    weight = example["net"][2].weight.detach().double()
    right = (weight**2).sum(1) * 0.3**2 / 3
    score = example["score"]
    for k in range(2):
        sampled = score.find("monte-carlo", "variance", output=k)
        assert sampled.low <= right[k] <= sampled.high
        found = score.find("mean-point-taylor", "variance", output=k).value
        assert found == pytest.approx(float(right[k]), rel=1e-5)
    methods = {e.method for e in score.estimates if e.quantity == "tail"}
    assert methods == {
        "chebyshev", "chernoff", "saddlepoint", "monte-carlo", "importance-sampling",
    }  # fmt: skip
    assert "width 0.3 uniform-noise" in score.verdict


def test_what_the_page_says_a_law_lacks(example):
    """The table's last column, for a law of moments alone."""
    text = PAGE.read_text()
    for part in ("draw(rng", "nodes(", "`cgf`", "draw_tilted", "atoms"):
        assert part in text
    law = example["uniform"]
    assert law.can_be_drawn
    assert law.can_be_tilted
    assert law.outcomes(w=0.3) is None
