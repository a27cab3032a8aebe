"""Neurons are found by what modules do, whatever they are called."""

import pytest
import torch
from torch import nn

from crashsim import NeuronCrash, StuckAt, score
from crashsim.model.sites.discovery import find_sites
from crashsim.model.sites.site import select_sites

# Modules, by what they should be taken for.


class Snake(nn.Module):
    def forward(self, x):
        return x + torch.sin(x) ** 2


class Clamp(nn.Module):
    def forward(self, x):
        return x.clamp(0, 1)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Sign(nn.Module):
    def forward(self, x):
        return StraightThrough.apply(x)


class Swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(x)


class Scale(nn.Module):
    def forward(self, x):
        return 3 * x + 1


class Normalise(nn.Module):
    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / (1 + x.std(-1, keepdim=True))


class Gate(nn.Module):
    """Multiplies by what the other numbers say."""

    def forward(self, x):
        return x / (1 + x.sum(-1, keepdim=True).abs())


class Wrapped(nn.Module):
    """Returns what the activation inside computes."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(x)


def hidden(net, x):
    """Names of the modules whose neurons ``hidden`` strikes."""
    found = select_sites(find_sites(net.eval(), x), "hidden", "neurons")
    return sorted({site.first_name for site in found})


@pytest.mark.parametrize("kind", [Snake, Clamp, Sign, Swish])
def test_activation_functions_of_ones_own(kind, seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), kind(), nn.Linear(6, 2)))
    assert hidden(net, randn(3, 4)) == ["1"]


@pytest.mark.parametrize("kind", [Scale, Normalise, Gate, nn.Identity])
def test_what_is_affine_or_mixes_numbers_is_no_neuron(kind, seeded, randn):
    net = seeded(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), kind(), nn.Linear(5, 2))
    )
    assert hidden(net, randn(3, 4)) == ["1"]


def test_the_inner_activation_of_a_wrapper_keeps_its_name(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), Wrapped(), nn.Linear(6, 2)))
    assert hidden(net, randn(3, 4)) == ["1.act"]


# Spiking networks.


class Cell(nn.Module):
    """A leaky neuron whose membrane is handed over from step to step."""

    def forward(self, current, v):
        v = 0.9 * v + current
        spikes = (v > 1).to(v.dtype)
        return spikes, v - spikes


class Stateful(nn.Module):
    """One that keeps its membrane in itself."""

    def __init__(self, most=1):
        super().__init__()
        self.v, self.most = 0.0, most

    def forward(self, current):
        v = self.v + current
        spikes = v.clamp(min=0).floor().clamp(max=self.most)
        self.v = v - spikes
        return spikes


class Steps(nn.Module):
    """One that runs through all steps (T, B, features) in a call."""

    def forward(self, currents):
        v, out = torch.zeros_like(currents[0]), []
        for current in currents:
            v = 0.8 * v + current
            spikes = (v > 1).to(v.dtype)
            v = v - spikes
            out.append(spikes)
        return torch.stack(out)


class Loop(nn.Module):
    """Two layers of spiking neurons; the second one's spikes are counted, nothing reads them."""

    def __init__(self, kind=Stateful):
        super().__init__()
        self.fc1, self.one = nn.Linear(4, 6), kind()
        self.fc2, self.two = nn.Linear(6, 3), kind()

    def forward(self, x):
        total = 0
        for _ in range(4):
            total = total + self.two(self.fc2(self.one(self.fc1(x))))
        return total


class Explicit(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.one, self.fc2 = nn.Linear(4, 6), Cell(), nn.Linear(6, 3)

    def forward(self, x):
        v, total = x.new_zeros(len(x), 6), 0
        for _ in range(4):
            spikes, v = self.one(self.fc1(x), v)
            total = total + self.fc2(spikes)
        return total


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.one, self.fc2 = nn.Linear(4, 6), Steps(), nn.Linear(6, 3)

    def forward(self, x):  # (B, T, features)
        return self.fc2(self.one(self.fc1(x.transpose(0, 1)))).mean(0)


def test_spiking_modules_that_keep_their_state(seeded, randn):
    net, x = seeded(Loop), randn(3, 4) * 3
    sites = {site.name: site for site in find_sites(net, x)}
    assert hidden(net, x) == ["one"]
    assert (sites["one"].role, sites["two"].role) == ("hidden", "output")
    assert sites["one#3"].units == "one"
    assert select_sites(list(sites.values()), "two", "neurons")  # an output neuron by its name


def test_several_spikes_in_a_step(seeded, randn):
    net = seeded(lambda: Loop(lambda: Stateful(most=9)))
    assert hidden(net, randn(3, 4) * 3) == ["one"]


def test_a_silent_network_shows_its_neurons_too(seeded, randn):
    assert hidden(seeded(Loop), randn(3, 4) * 1e-3) == ["one"]


def test_a_membrane_beside_the_spikes_is_no_output(seeded, randn):
    net, x = seeded(Explicit), randn(3, 4) * 3
    assert hidden(net, x) == ["one"]
    sites = {site.name: site.kind for site in find_sites(net, x)}
    assert (sites["one"], sites["one:1"]) == ("activation", "module")


def test_the_axis_of_time_inside_a_module(seeded, randn):
    net, x = seeded(Sequences), randn(3, 8, 4) * 3
    site = next(site for site in find_sites(net, x) if site.name == "one")
    assert (site.axis, site.shape, site.steps) == (1, (8, 6), 0)
    assert hidden(net, x) == ["one"]


class Membranes(Steps):
    """Returns the last membrane too, which holds no steps."""

    def forward(self, currents):
        spikes = super().forward(currents)
        return spikes, currents.sum(0)


class WithMembranes(Sequences):
    def __init__(self):
        super().__init__()
        self.one = Membranes()

    def forward(self, x):
        spikes, v = self.one(self.fc1(x.transpose(0, 1)))
        return self.fc2(spikes).mean(0) + v[:, :3]


def test_a_state_beside_the_steps_has_no_axis_of_time(seeded, randn):
    sites = {site.name: site for site in find_sites(seeded(WithMembranes), randn(3, 8, 4) * 3)}
    assert (sites["one"].shape, sites["one"].steps) == ((8, 6), 0)
    assert (sites["one:1"].shape, sites["one:1"].steps) == ((6,), None)


def test_a_guard_is_not_struck(seeded, randn):
    """A clip behind an activation changes nothing as long as nothing fails; it clips what does."""
    net = seeded(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Hardtanh(0, 50.0), nn.Linear(6, 2))
    )
    x = randn(5, 4)
    assert hidden(net, x) == ["1"]
    guarded = score(net, x, StuckAt(0.1, value=1000.0), methods=["exact"])
    clipped = score(
        nn.Sequential(net[0], net[1], net[3]).eval(),
        x,
        StuckAt(0.1, value=50.0),
        methods=["exact"],
    )
    assert guarded.find("exact", "variance").value == pytest.approx(
        clipped.find("exact", "variance").value, rel=1e-5
    )


def test_an_activation_that_bends_what_another_returns_is_struck(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Tanh(), nn.Linear(6, 2)))
    assert hidden(net, randn(5, 4)) == ["1", "2"]


# A library of spiking networks.


class Snn(nn.Module):
    def __init__(self, snntorch, init_hidden):
        super().__init__()
        self.init_hidden = init_hidden
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.one = snntorch.Leaky(beta=0.9, init_hidden=init_hidden)
        self.two = snntorch.Leaky(beta=0.9, init_hidden=init_hidden, output=True)

    def forward(self, x, alive=1.0):
        one, two, total = x.new_zeros(len(x), 6), x.new_zeros(len(x), 3), 0
        for _ in range(10):
            if self.init_hidden:
                spikes, _ = self.two(self.fc2(self.one(self.fc1(x)) * alive))
            else:
                middle, one = self.one(self.fc1(x), one)
                spikes, two = self.two(self.fc2(middle * alive), two)
            total = total + spikes
        return total


@pytest.mark.parametrize("init_hidden", [False, True])
def test_a_network_of_snntorch_against_masks(init_hidden, seeded, randn):
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed")
    net = seeded(lambda: Snn(snntorch, init_hidden))
    with torch.no_grad():
        net.fc1.weight.mul_(3)
        net.fc2.weight.mul_(3)
    x = randn(4, 4).abs() * 2
    assert hidden(net, x) == ["one"]
    p = 0.2
    measured = score(net, x, NeuronCrash(p), samples=3000, methods=["monte-carlo", "exact"])
    outputs, weights = [], []
    if init_hidden:
        net = seeded(lambda: Snn(snntorch, False)).train(False)
        with torch.no_grad():
            net.fc1.weight.mul_(3)
            net.fc2.weight.mul_(3)
    for n in range(64):
        alive = torch.tensor([1.0 - (n >> i & 1) for i in range(6)])
        with torch.no_grad():
            outputs.append(net(x, alive).double())
        weights.append(p ** (6 - alive.sum()) * (1 - p) ** alive.sum())
    outputs, weights = torch.stack(outputs), torch.stack(weights).double()
    mean = torch.tensordot(weights, outputs, 1)
    variance = float((torch.tensordot(weights, outputs**2, 1) - mean**2).sum(-1).mean())
    assert variance > 0.1
    assert measured.find("exact", "variance").value == pytest.approx(variance, rel=1e-5)
    found = measured.find("monte-carlo", "variance")
    assert found.low <= variance <= found.high
