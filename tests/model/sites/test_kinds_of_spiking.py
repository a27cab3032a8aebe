"""Spiking neurons in the ways in which people write them."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash
from crashsim.model.inputs import read_inputs
from crashsim.model.sites.neurons import neurons_of

STEPS = 6


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient / (1 + x.abs()) ** 2


class MembraneFirst(nn.Module):
    """Takes and returns the membrane before the current and the spikes, as scans do."""

    def forward(self, v, current):
        v = 0.9 * v + current
        spikes = (v > 1).to(v.dtype)
        return v - spikes, spikes


class Scan(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(4, 7), MembraneFirst(), nn.Linear(7, 3)

    def forward(self, x, alive=1.0):
        v, total = x.new_zeros(len(x), 7), 0
        for step in range(STEPS):
            v, spikes = self.lif(v, self.fc1(3 * x[:, step]))
            total = total + self.fc2(spikes * alive)
        return total


class Late(nn.Module):
    """Its current reaches the membrane a step later, so that its first answer is always silence."""

    def forward(self, x, current, v):
        v = 0.9 * v + current
        spikes = Surrogate.apply(v - 1)
        return spikes, x, v - spikes


class Delayed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 7), nn.Linear(7, 3)
        self.one, self.two = Late(), Late()

    def forward(self, x):
        first, second = [x.new_zeros(len(x), 7)] * 2, [x.new_zeros(len(x), 3)] * 2
        total = 0
        for step in range(STEPS):
            spikes, *first = self.one(self.fc1(3 * x[:, step]), *first)
            spikes, *second = self.two(3 * self.fc2(spikes), *second)
            total = total + spikes
        return total


class InLine(nn.Module):
    """Its last layer's spikes, which are the output, are computed by no module."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x):
        v, u, total = x.new_zeros(len(x), 7), x.new_zeros(len(x), 3), 0
        for step in range(STEPS):
            v = 0.9 * v + self.fc1(3 * x[:, step])
            spikes = Surrogate.apply(v - 1)
            v = v - spikes
            u = 0.9 * u + self.fc2(2 * spikes)
            fired = Surrogate.apply(u - 1)
            u = u - fired
            total = total + fired
        return total


class Leaky(nn.Module):
    """Of two steps' time constant, and a threshold that few drives pass late."""

    def __init__(self):
        super().__init__()
        self.v = None

    def forward(self, current):
        v = 0.0 if self.v is None else self.v
        v = v + (current - v) / 2
        spikes = Surrogate.apply(v - 1)
        self.v = v * (1 - spikes)
        return spikes


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 7), nn.Linear(7, 3)
        self.one, self.two = Leaky(), Leaky()

    def forward(self, x):
        return sum(self.two(3 * self.fc2(self.one(3 * self.fc1(x[:, t])))) for t in range(STEPS))


class Refractory(nn.Module):
    """Silent for two steps after a spike."""

    def __init__(self):
        super().__init__()
        self.v = self.rest = None

    def forward(self, current):
        if self.v is None:
            self.v = self.rest = torch.zeros_like(current)
        v = 0.9 * self.v + current * (self.rest <= 0)
        spikes = (v > 1).to(v.dtype)
        self.v = v * (1 - spikes)
        self.rest = torch.where(spikes > 0, 2.0, self.rest - 1)
        return spikes


def test_spikes_behind_a_membrane_are_what_is_struck(seeded, randn):
    net, x = seeded(Scan), randn(4, STEPS, 4).abs()
    space = FaultSpace(net, x, NeuronCrash(0.1))
    assert [(p.site.name, len(p.sites)) for p in space.placements] == [("lif:1", STEPS)]
    strikes = [("lif:1", (1,)), ("lif:1", (4,))]
    alive = torch.ones(7)
    alive[[1, 4]] = 0
    with torch.no_grad():
        expected = net(x, alive).numpy()
    assert np.abs(expected - space.clean()).max() > 0.1
    assert space.at_faults(strikes).outputs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", [Delayed, InLine, Counting])
@pytest.mark.parametrize("sites", ["hidden", "fc2"])
def test_no_surrogate_gradient_is_taken_for_a_derivative(kind, sites, seeded, randn):
    space = FaultSpace(seeded(kind), randn(4, STEPS, 4).abs(), NeuronCrash(0.1), sites)
    assert not space.has_derivatives
    assert "surrogate" in space.why_no_derivatives


def test_rounding_with_a_straight_through_gradient_keeps_it(seeded, randn):
    class Round(nn.Module):
        def forward(self, x):
            return x + ((x * 15).round() / 15 - x).detach()

    net = seeded(lambda: nn.Sequential(nn.Linear(8, 20), nn.Sigmoid(), Round(), nn.Linear(20, 3)))
    assert FaultSpace(net, randn(4, 8), NeuronCrash(0.1)).has_derivatives


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_state_shows_in_layers_of_few_neurons(count, seeded, randn):
    net, x = seeded(lambda: nn.Sequential(nn.Linear(4, count), Leaky())), randn(2, 4)
    twin = deepcopy(net)
    found = neurons_of(twin, read_inputs(x).part(0, 1), twin)
    assert found["1"].behaviour == "spiking"


def test_neurons_are_hidden_where_the_spikes_behind_them_stay_the_same(seeded, randn):
    """However the hidden neurons fire, the output neurons are silent on these inputs."""

    class Quiet(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 7), nn.Linear(7, 3)
            self.one, self.two = Refractory(), Refractory()

        def forward(self, x):
            steps = range(STEPS)
            return sum(self.two(0.01 * self.fc2(self.one(self.fc1(x[:, t])))) for t in steps)

    space = FaultSpace(seeded(Quiet), 3 * randn(4, STEPS, 4).abs(), NeuronCrash(0.1))
    assert [p.site.name for p in space.placements] == ["one"]


def test_a_quantiser_behind_an_activation_is_no_second_layer(seeded, randn):
    class Quantiser(nn.Module):
        def forward(self, x):
            return (x * 15).round() / 15

    net = seeded(
        lambda: nn.Sequential(nn.Linear(8, 20), nn.Sigmoid(), Quantiser(), nn.Linear(20, 3))
    )
    space = FaultSpace(net, randn(4, 8), NeuronCrash(0.1))
    assert [p.site.name for p in space.placements] == ["1"]
    assert any("2 (guards" in line for line in space.plan())
