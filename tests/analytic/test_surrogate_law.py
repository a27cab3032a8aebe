"""The exact law of linear surrogates as a method, against sums over all patterns."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import AdditiveNoise, BitFlip, NeuronCrash, WeightCrash, enumerate_exact, score

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


def _by_input(found, method, quantity, output="all"):
    chosen = [e for e in found.estimates if (e.method, e.quantity) == (method, quantity)]
    return {e.input: e for e in chosen if e.output == output}


def test_an_additive_network_of_spikes(seeded, randn):
    net, x = seeded(Net), randn(5, 4) * 2
    law = enumerate_exact(net, x, NeuronCrash(P))
    found = score(net, x, NeuronCrash(P), epsilon=EPSILON, methods=["single-law"])
    changes = _by_input(found, "single-law", "class-change")
    assert law.class_change.max() > 0.05
    for b, wanted in enumerate(law.class_change):
        assert changes[b].value == pytest.approx(wanted, rel=0.05, abs=1e-9)
    exact = law.tail(EPSILON)
    assert exact.max() > 0.05
    for k in range(3):
        tails = _by_input(found, "single-law", "tail", k)
        for b in range(5):
            assert tails[b].value == pytest.approx(exact[b, k], rel=0.01, abs=1e-6)
    assert {e.kind for e in found.estimates} == {"estimate"}


@pytest.mark.parametrize("p", [1e-6, 0.01, 0.3])
def test_classes_of_a_linear_readout_change_as_often_as_in_all_patterns(seeded, randn, p):
    """However rare; the sum over rivals, which the saddlepoint takes, is above."""
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 5)))
    x = randn(8, 4)
    exact = enumerate_exact(net, x, NeuronCrash(p)).class_change
    methods = ["surrogate-law", "single-law", "saddlepoint"]
    found = score(net, x, NeuronCrash(p), methods=methods)
    pooled = {m: _by_input(found, m, "class-change")["all"].value for m in methods}
    assert exact.mean() > 0.5 * p
    for method in methods[:2]:
        assert pooled[method] == pytest.approx(exact.mean(), rel=0.03)
        for b, e in _by_input(found, method, "class-change").items():
            wanted = exact.mean() if b == "all" else exact[b]
            assert e.value == pytest.approx(wanted, rel=0.1, abs=1e-3 * exact.mean())
    assert pooled["saddlepoint"] > 1.1 * exact.mean()


def test_stored_bits_against_the_exact_law_of_a_linear_network(seeded, randn):
    """Flips of an only layer's weights act one by one on an output: the surrogate is exact."""
    net, x = seeded(lambda: nn.Linear(3, 2, bias=False)), randn(3, 3)
    fault = BitFlip(p=0.003, bits=4)
    found = score(net, x, fault, "weights", epsilon=0.4, methods=["surrogate-law", "monte-carlo"])
    for k in range(2):
        theory = _by_input(found, "surrogate-law", "tail", k)
        measured = _by_input(found, "monte-carlo", "tail", k)
        assert measured["all"].value > 1e-3
        for b in range(3):
            assert measured[b].low * 0.9 <= theory[b].value <= measured[b].high * 1.1


def test_the_same_seed_gives_the_same_numbers(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 5)))
    x = randn(4, 4)
    first, second = (
        score(net, x, WeightCrash(0.02), methods=["surrogate-law"], seed=3) for _ in range(2)
    )
    assert first.estimates == second.estimates
    assert first.find("surrogate-law", "class-change").value > 1e-3


def test_of_equal_outputs_the_first_is_predicted(seeded):
    """A crash that makes a rival equal changes the class only where the rival comes first."""
    net = seeded(lambda: nn.Linear(2, 2, bias=False))
    for rows, wanted in (([[2.0, 0.0], [0.0, 1.0]], 0.0), ([[0.0, 1.0], [2.0, 0.0]], 0.3 * 1.0)):
        net.weight.data = torch.tensor(rows)
        x = torch.tensor([[1.0, 0.0]])
        found = score(net, x, NeuronCrash(0.3), "input", methods=["surrogate-law", "single-law"])
        exact = enumerate_exact(net, x, NeuronCrash(0.3), "input").class_change[0]
        assert exact == pytest.approx(wanted)
        for method in ("surrogate-law", "single-law"):
            value = _by_input(found, method, "class-change")["all"].value
            assert value == pytest.approx(wanted, abs=1e-9)


def test_noise_has_a_covariance_across_rivals(seeded, randn):
    net, x = seeded(lambda: nn.Linear(3, 3, bias=False)), randn(2, 3)
    found = score(net, x, AdditiveNoise(1.0), "input", methods=["surrogate-law"])
    values = _by_input(found, "surrogate-law", "class-change")
    rng, weight = np.random.default_rng(0), net.weight.detach().numpy()
    for b in range(2):
        at = x[b].numpy() + rng.standard_normal((100_000, 3))
        wanted = ((at @ weight.T).argmax(1) != (weight @ x[b].numpy()).argmax()).mean()
        assert wanted > 0.01
        assert values[b].value == pytest.approx(wanted, rel=0.05)


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
    counted = score(net, x, NeuronCrash(count=2), methods=["single", "single-law"])
    assert "independent" in counted.skipped["single-law"]
    one = seeded(lambda: nn.Linear(4, 1))
    silent = score(one, x, NeuronCrash(P), "input", methods=["single", "surrogate-law"])
    assert "epsilon" in silent.skipped["surrogate-law"]


def test_the_saddlepoint_says_where_few_faults_decide():
    """There it is far from the surrogate's own law, and elsewhere near it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)).eval()
        x = torch.randn(1, 6)
    for p, epsilon, few in ((1e-4, 0.05, True), (0.05, 0.1, False)):
        methods = ["saddlepoint", "surrogate-law"]
        found = score(net, x, NeuronCrash(p), epsilon=epsilon, methods=methods, outputs=[0])
        rough, law = (found.find(name, "tail", 0, 0) for name in methods)
        assert ("few faults decide" in rough.note) == few
        assert (rough.value > 3 * law.value) == few
        if not few:
            assert rough.value == pytest.approx(law.value, rel=0.3)
