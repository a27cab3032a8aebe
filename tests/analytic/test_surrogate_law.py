"""The sampled law of the sum of single-fault changes, against sums over all patterns."""

import numpy as np
import pytest
from crashsim.analytic.single_law import SAMPLES
from torch import nn

from crashsim import AdditiveNoise, NeuronCrash, enumerate_exact, score

P, EPSILON = 0.1, 0.3


class Fire(nn.Module):
    def forward(self, current, v):
        v = 0.8 * v + current
        spikes = (v > 0.5).to(current.dtype)
        return spikes, v - spikes


class Net(nn.Module):
    """Spikes of a hidden layer, weighted and summed over steps: additive in the dead neurons."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(4, 8), Fire(), nn.Linear(8, 3)

    def forward(self, x):
        v, total = x.new_zeros(len(x), 8), 0
        for _ in range(6):
            spikes, v = self.lif(self.fc1(x), v)
            total = total + self.fc2(spikes)
        return total / 6


class Deep(nn.Module):
    """Spikes behind spikes: nothing has a derivative."""

    def __init__(self):
        super().__init__()
        self.fc1, self.one, self.fc2 = nn.Linear(4, 8), Fire(), nn.Linear(8, 6)
        self.two, self.fc3 = Fire(), nn.Linear(6, 3)

    def forward(self, x):
        v, w, total = x.new_zeros(len(x), 8), x.new_zeros(len(x), 6), 0
        for _ in range(6):
            spikes, v = self.one(self.fc1(x), v)
            spikes, w = self.two(self.fc2(spikes), w)
            total = total + self.fc3(spikes)
        return total / 6


def test_an_additive_network_of_spikes(seeded, randn):
    net, x = seeded(Net), randn(5, 4) * 2
    law = enumerate_exact(net, x, NeuronCrash(P))
    found = score(net, x, NeuronCrash(P), epsilon=EPSILON, methods=["single-law"])
    values = {e.input: e.value for e in found.estimates if e.quantity == "class-change"}
    assert law.class_change.max() > 0.05
    for b, wanted in enumerate(law.class_change):
        error = 4 * np.sqrt(wanted * (1 - wanted) / SAMPLES) + 1e-9
        assert values[b] == pytest.approx(wanted, abs=error)
    tails = {(e.input, e.output): e.value for e in found.estimates if e.quantity == "tail"}
    exact = law.tail(EPSILON)
    assert exact.max() > 0.05
    for (b, k), wanted in np.ndenumerate(exact):
        error = 4 * np.sqrt(wanted * (1 - wanted) / SAMPLES) + 1e-9
        assert tails[b, k] == pytest.approx(wanted, abs=error)
    assert {e.kind for e in found.estimates} == {"estimate"}


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_it_serves_unasked_where_there_are_no_derivatives(seeded, randn):
    net, x = seeded(Deep), randn(5, 4) * 2
    spiking = score(net, x, NeuronCrash(P), "one", epsilon=0.1, samples=500)
    found = spiking.find("single-law", "tail", output=0)
    exact = spiking.find("exact", "tail", output=0).value
    assert exact > 0.05
    assert found.value == pytest.approx(exact, rel=0.25)
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    smooth = score(net, randn(5, 4), NeuronCrash(P), samples=500)
    assert "ask for it as +single-law" in smooth.skipped["single-law"]


def test_what_it_cannot_say(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    x = randn(5, 4)
    noisy = score(net, x, AdditiveNoise(0.1), methods=["single", "single-law"])
    assert noisy.skipped["single-law"] == "for faults that strike or do not"
    rare = score(net, x, NeuronCrash(1e-7), methods=["single", "single-law"])
    assert "too rare for its" in rare.skipped["single-law"]
