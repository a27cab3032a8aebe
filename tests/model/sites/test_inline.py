"""Activations that a model computes in its own forward pass, against masks written into it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import CrashsimWarning, FaultSpace, NeuronCrash, find_sites
from crashsim.coordinates.points import Points
from crashsim.errors import SiteError


class Sign(torch.autograd.Function):
    """A sign with a straight-through gradient."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


ACTIVATIONS = {
    "clamp": lambda h: torch.clamp(h, 0, 1),
    "snake": lambda h: h + torch.sin(h) ** 2,
    "sign": Sign.apply,
    "binary": lambda h: torch.where(h > 0, 1.0, -1.0),
}


class Inline(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.activation = [activation]

    def forward(self, x, keep=1.0):
        return self.fc3(torch.relu(self.fc2(self.activation[0](self.fc1(x)) * keep)))


class Spiking(nn.Module):
    """Spikes by a comparison in the model's own loop, read by one layer or fed back by another."""

    def __init__(self, recurrent):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.back = nn.Linear(6, 6) if recurrent else None

    def forward(self, x, keep=1.0):
        v, spikes, out = torch.zeros(len(x), 6), torch.zeros(len(x), 6), 0
        for _ in range(5):
            v = 0.9 * v + self.fc1(x)
            if self.back is not None:
                v = v + self.back(spikes * keep)
            spikes = (v > 0.3).float()
            v = v - 0.3 * spikes
            out = out + self.fc2(spikes * keep)
        return out


class LayerByLayer(nn.Module):
    """All steps of a layer at once, spikes in a loop of the model's own, then the next layer."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, keep=1.0):
        drive, spikes = self.fc1(x), []
        v = torch.zeros(len(x), 6)
        for t in range(x.shape[1]):
            v = 0.9 * v + drive[:, t]
            spikes.append((v > 0.3).float())
            v = v - 0.3 * spikes[-1]
        return self.fc2(torch.stack(spikes, 1) * keep).sum(1)


class Images(nn.Module):
    def __init__(self, pools):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3)
        self.fc, self.pools = nn.Linear(64, 3), pools

    def forward(self, x):
        h = torch.clamp(self.conv1(x), 0, 1)
        h = F.max_pool2d(h, 2) if self.pools else h
        return self.fc(torch.sin(self.conv2(h)).flatten(1))


def patterns(space, units, seed=0):
    """Six patterns of dead neurons of the first placement, and the outputs under each."""
    dead = np.random.default_rng(seed).random((6, units)) < 0.3
    rows, columns = np.nonzero(dead)
    points = Points(6, np.zeros(space.N), rows, columns, np.ones(len(rows)))
    return dead, space.outputs(points)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_input_of_the_next_layer_is_struck(name, seeded, randn):
    net, x = seeded(lambda: Inline(ACTIVATIONS[name])), randn(3, 4)
    space = FaultSpace(net, x, NeuronCrash(0.1))
    assert [p.site.name for p in space.placements] == ["fc2:input", ":relu"]
    dead, found = patterns(space, 6)
    for row, output in zip(dead, found, strict=True):
        with torch.no_grad():
            wanted = net(x, torch.from_numpy(~row).float())
        assert np.allclose(output, wanted, atol=1e-6)
    assert abs(found - space.clean()).max() > 1e-3


@pytest.mark.parametrize("recurrent", [False, True])
def test_spikes_of_a_loop_are_dead_in_every_step_and_for_every_reader(recurrent, seeded, randn):
    net, x = seeded(lambda: Spiking(recurrent)), 2 * randn(3, 4)
    space = FaultSpace(net, x, NeuronCrash(0.1))
    assert space.N == 6
    assert len(space.placements[0].sites) == (9 if recurrent else 5)
    assert space.has_derivatives != recurrent
    dead, found = patterns(space, 6)
    for row, output in zip(dead, found, strict=True):
        with torch.no_grad():
            wanted = net(x, torch.from_numpy(~row).float())
        assert np.allclose(output, wanted, atol=1e-5)
    assert abs(found - space.clean()).max() > 1e-2


def test_neurons_that_follow_all_earlier_steps_are_dead_in_all(seeded, randn):
    net, x = seeded(LayerByLayer), 2 * randn(3, 5, 4)
    space = FaultSpace(net, x, NeuronCrash(0.1))
    assert [p.site.name for p in space.placements] == ["fc2:input"]
    assert space.N == 6
    dead, found = patterns(space, 6)
    for row, output in zip(dead, found, strict=True):
        with torch.no_grad():
            wanted = net(x, torch.from_numpy(~row).float())
        assert np.allclose(output, wanted, atol=1e-5)
    assert abs(found - space.clean()).max() > 1e-2


class Pooled(nn.Module):
    """Neurons whose values are mixed before a layer reads them; there are no others."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv1d(1, 3, 3), nn.Linear(9, 2)

    def forward(self, x):
        return self.fc(F.avg_pool1d(torch.sin(self.conv(x)), 2).flatten(1))


def test_layers_are_not_taken_for_neurons_that_cannot_be_struck(seeded, randn):
    with pytest.raises(SiteError, match=r"between 'conv' and 'fc'.*nothing else"):
        FaultSpace(seeded(Pooled), randn(2, 1, 8), NeuronCrash(0.1))
    FaultSpace(seeded(Pooled), randn(2, 1, 8), NeuronCrash(0.1), sites="conv")


def test_images_and_what_is_pooled(seeded, randn):
    space = FaultSpace(seeded(lambda: Images(False)), randn(2, 1, 6, 6), NeuronCrash(0.1))
    assert [p.site.name for p in space.placements] == ["conv2:input", "fc:input"]
    assert space.placements[0].shape == (3, 6, 6)
    with pytest.warns(CrashsimWarning, match="between 'conv1' and 'conv2'"):
        space = FaultSpace(seeded(lambda: Images(True)), randn(2, 1, 12, 12), NeuronCrash(0.1))
    assert [p.site.name for p in space.placements] == ["fc:input"]


class Split(nn.Module):
    """Two halves of a layer's values go through two activations to two layers."""

    def __init__(self):
        super().__init__()
        self.fc1, self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        a, b = self.fc1(x).chunk(2, -1)
        return self.left(torch.clamp(a, 0, 1)) + self.right(torch.sin(b))


class Shared(nn.Module):
    """Two layers read the same neurons."""

    def __init__(self):
        super().__init__()
        self.fc1, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        h = torch.clamp(self.fc1(x), 0, 1)
        return self.left(h) + self.right(h)


def test_what_two_layers_read_is_struck_once(seeded, randn):
    space = FaultSpace(seeded(Shared), randn(3, 4), NeuronCrash(0.1))
    assert [[s.name for s in p.sites] for p in space.placements] == [["left:input", "right:input"]]
    assert space.N == 6


def test_plain_models_have_no_such_sites(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    assert not [s for s in find_sites(net, randn(3, 4)) if s.function == "input"]
    net = seeded(lambda: Inline(lambda h: 2 * h + 1))
    assert not [s for s in find_sites(net, randn(3, 4)) if s.function == "input"]


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.act, self.head = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        return torch.cat([self.head(self.act(self.body(row[None]))) for row in x])


def test_a_loop_over_the_examples_is_told(seeded, randn):
    with pytest.raises(SiteError, match=r"'body', 'act'.* no batch axis"):
        FaultSpace(seeded(Loop), randn(3, 4), NeuronCrash(0.1))
