"""Names of methods stay whole in a terminal of 80 columns."""

import re

import pytest
import torch
from torch import nn

from crashsim import NeuronCrash, score


@pytest.fixture(scope="module")
def found():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    return score(net, torch.ones(2, 3), NeuronCrash(0.1), epsilon=0.1, samples=500)


def test_names_are_whole_at_80_columns(found):
    lines = found.to_text(80).splitlines()
    assert max(map(len, lines)) <= 80
    start = next(i for i, line in enumerate(lines) if line.startswith("Average over"))
    table = lines[
        start : next(i for i, line in enumerate(lines) if i > start and "exact up" in line)
    ]
    names = [re.split(r"\s{2,}", line)[0] for line in table]
    for method in ("mean-point-curvature", "mean-point-taylor", "surrogate-law"):
        assert method in names
    assert len(table) > len(found.method_facts) / 2


def test_numbers_are_whole_where_names_are_not(found):
    text = found.to_text(36)
    interval = found.find("monte-carlo", "class-change")
    assert interval is not None
    assert all(line.count("[") == line.count("]") or "…" in line for line in text.splitlines()
               if line.strip().startswith("["))  # fmt: skip
