"""Models that round somewhere on the way from the faults to the output."""

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import BitFlip, FaultSpace, NeuronCrash, WeightCrash
from crashsim.coordinates.points import Points
from crashsim.injection import few_words


class Steps(nn.Module):
    def forward(self, x):
        return torch.round(4 * x) / 4


@pytest.fixture
def behind_steps(seeded):
    def build(steps):
        last = nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), steps, *last)

    return lambda steps: seeded(lambda: build(steps)).eval()


@pytest.mark.parametrize("sites", ["hidden", "1"])
def test_a_derivative_that_misses_some_faults_is_none(sites, behind_steps, randn):
    """The units before a step have the derivative 0, those behind it one that is right."""
    net = behind_steps(Steps())
    space = FaultSpace(net, randn(4, 6), NeuronCrash(0.01), sites)
    first = Points.one_at_a_time(np.zeros(space.N), np.arange(8), np.ones(8))
    assert np.ptp(space.outputs(first), axis=0).max() > 0.01
    assert not space.has_derivatives
    assert FaultSpace(net, randn(4, 6), NeuronCrash(0.01), "4").has_derivatives
    smooth = behind_steps(nn.Identity())
    assert FaultSpace(smooth, randn(4, 6), NeuronCrash(0.01), sites).has_derivatives


@pytest.mark.filterwarnings("ignore")
def test_theory_of_dynamically_quantised_layers_is_of_differences(seeded, randn):
    """torch's kernels return the derivative 0, which is no estimate."""
    layers = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))).eval()
    net = torch.ao.quantization.quantize_dynamic(layers, {nn.Linear}, torch.qint8)
    fault = BitFlip(0.001, format="stored")
    score = crashsim.score(net, randn(4, 6), fault, "weights", samples=2000, methods=["+single"])
    assert score.find("taylor", "variance") is None
    assert "without derivatives" in score.skipped["taylor"]
    single, measured = (score.find(name, "variance") for name in ("single", "monte-carlo"))
    assert 0.8 * measured.low < single.value < 1.25 * measured.high
    assert measured.value > 1e-4


def test_of_very_many_bits_too(behind_steps, randn, monkeypatch):
    monkeypatch.setattr(few_words, "MANY", 100)
    fault = BitFlip(0.001, bits=8)
    assert not FaultSpace(behind_steps(Steps()), randn(4, 6), fault, "weights").has_derivatives
    smooth = behind_steps(nn.Identity())
    assert FaultSpace(smooth, randn(4, 6), fault, "weights").has_derivatives


def test_what_moves_nothing_has_a_derivative_of_zero(behind_steps, randn):
    """A layer whose outputs count for nothing: 0 is the truth."""
    net = behind_steps(nn.Identity())
    with torch.no_grad():
        net[3].weight.zero_()
    space = FaultSpace(net, randn(4, 6), WeightCrash(0.01), "weights")
    assert space.has_derivatives
