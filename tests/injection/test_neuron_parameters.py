"""Faults of a spiking layer's own parameters: leak, threshold, held in buffers and attributes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import AdditiveNoise, FaultSpace, GainNoise, StuckAt, WeightCrash, score
from crashsim.coordinates.points import Points
from crashsim.errors import SiteError


class LIF(nn.Module):
    """A leak for each neuron in a buffer, a threshold in an attribute, a gain that is a number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("leak", torch.linspace(0.5, 0.95, 6))
        self.threshold, self.gain = torch.tensor(1.0), 2.0

    def forward(self, currents):
        v, out = torch.zeros_like(currents), 0
        for _ in range(8):
            v = self.leak * v + self.gain * currents
            spikes = (v > self.threshold).float()
            v = v - self.threshold * spikes
            out = out + spikes
        return out


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(4, 6), LIF(), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc2(self.lif(self.fc1(x)))


def changed(net, x, name, value):
    """The output of a copy with another value of a tensor of its spiking layer."""
    other = copy.deepcopy(net)
    setattr(other.lif, name, value)
    with torch.no_grad():
        return other(x)


@pytest.mark.parametrize(
    ("name", "fault", "e", "value"),
    [
        ("leak", WeightCrash(0.1), np.eye(6)[3], lambda v: v * (1 - torch.eye(6)[3])),
        ("leak", GainNoise(0.1), 0.3 * np.eye(6)[5], lambda v: v * (1 + 0.3 * torch.eye(6)[5])),
        ("leak", StuckAt(0.1, value=0.2), np.eye(6)[4],
            lambda v: v.index_fill(0, torch.tensor(4), 0.2)),
        ("threshold", AdditiveNoise(0.1), np.array([0.7]), lambda v: v + 0.7),
        ("threshold", GainNoise(0.1), np.array([-0.5]), lambda v: v * 0.5),
    ],
)  # fmt: skip
def test_a_parameter_of_neurons_fails(name, fault, e, value, seeded, randn):
    net, x = seeded(Net), randn(5, 4)
    before = getattr(net.lif, name)
    space = FaultSpace(net, x, fault, f"lif.{name}")
    assert len(e) == space.N
    found = space.outputs(Points.at(e))[0]
    assert np.allclose(found, changed(net, x, name, value(before)), atol=1e-5)
    assert abs(found - space.clean()).max() > 1e-3
    assert getattr(net.lif, name) is before
    assert isinstance(net.lif.leak, torch.Tensor)
    assert "lif.leak" in dict(net.named_buffers())


def test_a_layer_of_snntorch(seeded, randn):
    snn = pytest.importorskip("snntorch")

    class Known(Net):
        def __init__(self):
            super().__init__()
            self.lif = snn.Leaky(beta=0.8, init_hidden=True)

        def forward(self, x):
            return sum(self.fc2(self.lif(self.fc1(x))) for _ in range(8))

    net, x = seeded(Known), 3 * randn(5, 4).abs()
    space = FaultSpace(net, x, {"lif.beta": GainNoise(0.1), "lif.threshold": GainNoise(0.1)})
    assert space.N == 2
    found = space.outputs(Points.at(np.array([-0.5, 0.4])))[0]
    net.lif.beta.mul_(0.5)
    net.lif.threshold.mul_(1.4)
    net.lif.reset_mem()
    with torch.no_grad():
        assert np.allclose(found, net(x), atol=1e-5)
    assert abs(found - space.clean()).max() > 1e-3


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
def test_a_score_of_a_threshold(seeded, randn):
    net, x = seeded(Net), randn(5, 4)
    result = score(net, x, GainNoise(0.3), "lif.threshold", samples=400, methods=["monte-carlo"])
    assert result.find("monte-carlo", "variance").value > 0


def test_a_plain_number_is_told(seeded, randn):
    with pytest.raises(SiteError, match=r"'lif.gain' is a plain number"):
        FaultSpace(seeded(Net), randn(5, 4), GainNoise(0.1), "lif.gain")
