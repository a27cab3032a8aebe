"""Weights that layers compute before they run: struck as what is multiplied, as in a plain twin."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import crashsim
from crashsim import (
    BitFlip,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    WeightCrash,
    enumerate_exact,
    find_sites,
)
from crashsim.analytic.proofs import provable
from crashsim.errors import CrashsimWarning, SiteError
from crashsim.model.layers import layers_of
from crashsim.noticing import collecting


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).mT


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))

    def forward(self, x):
        return x + self.a @ self.b


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


def trained(net):
    """The same with other latent tensors, so that none of them is the weight by chance."""
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter.mul_(1.3 + 0.1 * index)
    return net.eval()


WAYS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "symmetric": lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
    "adapted": lambda layer: parametrize.register_parametrization(layer, "weight", Adapted()),
    "two, and of the bias": lambda layer: (
        parametrize.register_parametrization(layer, "bias", nn.Tanh(), unsafe=True),
        parametrizations.weight_norm(layer),
        parametrize.register_parametrization(layer, "weight", Symmetric(), unsafe=True),
    ),
    "weight_norm hook": old_weight_norm,
    "spectral_norm hook": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.4),
    "pruned twice": lambda layer: (
        prune.random_unstructured(layer, "weight", 0.2),
        prune.ln_structured(layer, "weight", 0.3, 2, 0),
    ),
}


METHODS = ["taylor", "monte-carlo"]


def pair(way, seeded):
    """A net whose first layer computes its weight, and the plain net that multiplies the same."""

    def build():
        net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        WAYS[way](net[0])
        return trained(net)

    net = seeded(build)
    net(torch.ones(1, 6))
    plain = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)))
    with torch.no_grad():
        for mine, theirs in zip(plain, net, strict=True):
            if isinstance(mine, nn.Linear):
                mine.weight.copy_(theirs.weight)
                mine.bias.copy_(theirs.bias)
    return net, plain


@pytest.mark.parametrize("way", WAYS)
def test_the_same_numbers_as_the_plain_net(way, seeded, watch, randn):
    net, plain = pair(way, seeded)
    x = randn(4, 6)
    faults = {"weights": WeightCrash(0.05), "0.weight": BitFlip(0.01), "0.*": GainNoise(0.1)}
    for sites, fault in faults.items():
        with collecting():
            mine, theirs = (
                crashsim.score(n, x, fault, sites, samples=100, methods=METHODS).to_dict()
                for n in (watch(net), plain)
            )
        for part in ("estimates", "warnings", "sites"):
            assert mine[part] == theirs[part]
        assert any(e["quantity"] == "variance" and e["value"] > 0 for e in mine["estimates"])
    bias = crashsim.score(net, x, GainNoise(0.1), "0.bias", samples=300, methods=["monte-carlo"])
    assert bias.find("monte-carlo", "variance").value > 0


@pytest.mark.parametrize("way", WAYS)
def test_what_the_weight_is_computed_from_is_no_site(way, seeded, randn):
    net, _ = pair(way, seeded)
    x = randn(2, 6)
    sites = [site.name for site in find_sites(net, x) if site.kind == "parameter"]
    assert sites == ["0.weight", "0.bias", "2.weight", "2.bias"]
    latent = next(n for n, p in net.named_parameters() if "0.weight" in n or "ns.weight" in n)
    with pytest.raises(SiteError, match=r"use '0\.weight'"):
        FaultSpace(net, x, WeightCrash(0.1), latent)


def test_neurons_behind_it_proofs_and_bounds_read_plain_layers(seeded, randn):
    net, plain = (n.double() for n in pair("weight_norm", seeded))
    x = randn(2, 6).double()
    for fault, sites in ((NeuronCrash(0.1), "hidden"), (WeightCrash(1e-3), "weights")):
        mine, theirs = (FaultSpace(n, x, fault, sites) for n in (net, plain))
        assert mine.plan() == theirs.plan()
        assert len(layers_of(mine.model, x)) == 3
    assert provable(FaultSpace(net, x, NeuronCrash(0.1)))


def test_the_exact_law_of_a_pruned_layer(seeded, randn):
    """A crash of a pruned weight changes nothing; a crash of another is what a mask would do."""

    def build():
        net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, 1))
        prune.custom_from_mask(net[0], "weight", torch.tensor([[1, 0, 1], [0, 1, 0]]))
        return net.eval()

    net, x, p = seeded(build), randn(2, 3), 0.2
    exact = enumerate_exact(net, x, WeightCrash(p), "0.weight")
    weight, outputs, chances = net[0].weight.detach(), [], []
    for code in range(2**6):
        e = torch.tensor([(code >> k) & 1 for k in range(6)]).view(2, 3)
        with torch.no_grad():
            outputs.append(net[2](torch.tanh(x @ (weight * (1 - e)).T)).flatten())
        chances.append(p ** int(e.sum()) * (1 - p) ** int(6 - e.sum()))
    outputs, chances = torch.stack(outputs).double(), torch.tensor(chances).double()
    mean = chances @ outputs
    variance = chances @ (outputs - mean) ** 2
    assert variance.max() > 1e-3
    assert torch.allclose(torch.from_numpy(exact.variance).flatten(), variance, rtol=1e-4)


def test_a_convolution_and_a_recurrent_layer(seeded, randn):
    conv = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten()).eval())
    normed = copy.deepcopy(conv)
    parametrizations.weight_norm(normed[0])
    x = randn(2, 2, 4, 4)
    found = [
        crashsim.score(n, x, WeightCrash(0.05), "weights", samples=300, methods=["monte-carlo"])
        for n in (conv, normed)
    ]
    values = [score.find("monte-carlo", "variance").value for score in found]
    assert values[1] == pytest.approx(values[0], rel=1e-5)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    plain = seeded(Last).eval()
    normed = copy.deepcopy(plain)
    parametrizations.weight_norm(normed.lstm, "weight_hh_l0")
    found = [
        crashsim.score(n, randn(2, 5, 3), WeightCrash(0.05), "lstm.weight_hh_l0", samples=300,
                       methods=["monte-carlo"])
        for n in (plain, normed)
    ]  # fmt: skip
    values = [score.find("monte-carlo", "variance").value for score in found]
    assert values[1] == pytest.approx(values[0], rel=1e-5)


def test_a_random_weight_is_left_and_named(seeded, randn):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + 0 * torch.rand_like(x)

    def build():
        first = nn.Linear(3, 4)
        parametrize.register_parametrization(first, "weight", Noisy())
        return nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))

    net = seeded(build)
    with pytest.warns(CrashsimWarning, match=r"leaves out.*'0\.weight' \(it is random"):
        FaultSpace(net, randn(2, 3), WeightCrash(0.1), "weights")


def test_one_memory_is_one_fault(seeded, randn):
    """Tied layers by object, by memory and by what they are computed from: both names work."""

    def build(way):
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).eval()
        if way == "object":
            net[2].weight = net[0].weight
        elif way == "memory":
            net[2].weight = nn.Parameter(net[0].weight.data)
        else:
            net[2].weight = net[0].weight
            for layer in (net[0], net[2]):
                parametrize.register_parametrization(layer, "weight", Symmetric(), unsafe=True)
        return net

    x = randn(2, 4)
    for way in ("object", "memory", "computed"):
        net = seeded(lambda way=way: build(way))
        weight, spaces = net[0].weight.detach(), []
        for name in ("0.weight", "2.weight", "2.weigh*", "weights"):
            spaces.append(FaultSpace(net, x, WeightCrash(0.1), name))
        assert {space.N for space in spaces} == {16}
        exact = enumerate_exact(net, x, WeightCrash(0.1), "2.weight")
        struck = weight.repeat(2**16, 1, 1)
        e = (torch.arange(2**16)[:, None] >> torch.arange(16)) & 1
        struck = (struck.flatten(1) * (1 - e)).view_as(struck)
        with torch.no_grad():
            hidden = torch.tanh(torch.einsum("bi,noi->nbo", x, struck) + net[0].bias)
            out = torch.einsum("nbi,noi->nbo", hidden, struck) + net[2].bias
        chance = (0.1 ** e.sum(1).double()) * 0.9 ** (16 - e.sum(1).double())
        mean = torch.einsum("n,nbo->bo", chance, out.double())
        variance = torch.einsum("n,nbo->bo", chance, (out - mean) ** 2)
        assert torch.allclose(torch.from_numpy(exact.variance), variance, rtol=1e-4)
