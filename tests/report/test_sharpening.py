"""What narrower measured intervals would cost stands under a score."""

import dataclasses

import pytest
import torch

import crashsim
from crashsim.report.text import footer
from crashsim.results.record import Record


@pytest.fixture(scope="module")
def score():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(6, 30), torch.nn.ReLU(), torch.nn.Linear(30, 2)]
        net = torch.nn.Sequential(*layers).eval()
        x = torch.randn(3, 6)
    return crashsim.score(net, x, crashsim.NeuronCrash(0.1), samples=400, methods=["monte-carlo"])


def test_four_times_the_samples_are_told_with_their_time(score):
    told = footer(dataclasses.replace(score, sample_operations=5e9))
    assert "1,600 samples would halve Monte Carlo's intervals: 13 min at 1e10 operations" in told


def test_the_operations_of_a_sample_are_those_of_the_plan(score):
    # Multiplications and additions of three inputs alone, at least.
    assert score.sample_operations >= 3 * 2 * (6 * 30 + 30 * 2)
    assert Record.from_dict(score.to_dict()).sample_operations == score.sample_operations


def test_nothing_is_told_where_nothing_was_sampled(score):
    assert "halve" not in footer(dataclasses.replace(score, samples=0))
    assert "halve" not in footer(dataclasses.replace(score, sample_operations=None))
