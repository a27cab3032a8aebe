"""Weights made in forward, in buffers, in attributes: struck as those of a plain layer."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crashsim
from crashsim import (
    AdditiveNoise,
    BitFlip,
    FaultSpace,
    NeuronCrash,
    SignFlip,
    WeightCrash,
    find_sites,
)
from crashsim.coordinates.points import Points
from crashsim.errors import SiteError
from crashsim.noticing import collecting


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return (7 * w).round() / 7

    @staticmethod
    def backward(ctx, g):
        return g


class Quantised(nn.Linear):
    def forward(self, x):
        bent = torch.tanh(self.weight)
        return F.linear(x, (bent / bent.abs().max() * 7).round() / 7, self.bias)


class StraightThrough(nn.Linear):
    def forward(self, x):
        return F.linear(input=x, weight=Rounded.apply(self.weight), bias=self.bias)


class Detached(nn.Linear):
    def forward(self, x):
        return x @ (self.weight.detach() * 4).round().t() / 4 + self.bias


class Adapted(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.a = nn.Parameter(torch.randn(outputs, 2))
        self.b = nn.Parameter(torch.randn(2, inputs))

    def forward(self, x):
        return F.linear(x, self.weight + self.a @ self.b, self.bias)


class Bytes(nn.Module):
    """Stores int8 words and a scale for each output."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.register_buffer("words", torch.randint(-128, 128, (outputs, inputs)).to(torch.int8))
        self.register_buffer("scale", 0.01 * torch.rand(outputs, 1))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return F.linear(x, self.words.to(x.dtype) * self.scale, self.bias)


class Frozen(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(outputs))
        self.register_buffer("weight", torch.randn(outputs, inputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight.T)


class Cached(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.copy = 1.5 * self.weight.detach()

    def forward(self, x):
        return torch.einsum("bi,oi->bo", x, self.copy) + self.bias


class Clipped(nn.Linear):
    """Writes to its own parameter before it multiplies."""

    def forward(self, x):
        self.weight.data.clamp_(-0.2, 0.2)
        return F.linear(x, self.weight, self.bias)


class Parent(nn.Module):
    """Quantises the weight of a layer that it holds."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.inner = nn.Linear(inputs, outputs)

    def forward(self, x):
        return F.linear(x, (4 * self.inner.weight).round() / 4, self.inner.bias)


def weight_of(kind, layer):
    """What the layer multiplies by, written down once more."""
    w = getattr(layer, "weight", None)
    if kind is Quantised:
        return (torch.tanh(w) / torch.tanh(w).abs().max() * 7).round() / 7
    if kind is Parent:
        return (4 * layer.inner.weight).round() / 4
    return {
        StraightThrough: lambda: (7 * w).round() / 7,
        Detached: lambda: (4 * w).round() / 4,
        Adapted: lambda: w + layer.a @ layer.b,
        Bytes: lambda: layer.words.float() * layer.scale,
        Frozen: lambda: w,
        Cached: lambda: layer.copy,
        Clipped: lambda: w.clamp(-0.2, 0.2),
    }[kind]()


# Each kind of layer with the name of its weight.
KINDS = {
    Quantised: "0.weight",
    StraightThrough: "0.weight",
    Detached: "0.weight",
    Adapted: "0.weight",
    Bytes: "0.weight",
    Frozen: "0.weight",
    Cached: "0.copy",
    Clipped: "0.weight",
    Parent: "0.inner.weight",
}


def pair(kind, seeded):
    """A net with a layer of this kind, and the plain net that multiplies the same."""
    net = seeded(lambda: nn.Sequential(kind(5, 4), nn.Tanh(), nn.Linear(4, 2)))
    plain = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)))
    with torch.no_grad():
        plain[0].weight.copy_(weight_of(kind, net[0]))
        plain[0].bias.copy_(net[0].inner.bias if kind is Parent else net[0].bias)
        plain[2].load_state_dict(net[2].state_dict())
    return net, plain


def each_alone(space):
    """The outputs with each coordinate struck alone, after a guard that something changes."""
    found = [o for _, o in space.single_changes(np.zeros(space.N), np.ones(space.N))]
    found = np.concatenate(found)
    assert np.abs(found - space.clean()).max() > 1e-3
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_same_numbers_as_the_plain_net(kind, seeded, watch, randn):
    net, plain = pair(kind, seeded)
    x = randn(3, 5)
    bits = BitFlip(0.01, bits=4)
    for fault in (WeightCrash(0.1), bits if kind is not Bytes else SignFlip(0.1)):
        mine = FaultSpace(watch(net), x, fault, KINDS[kind])
        theirs = FaultSpace(plain, x, fault, "0.weight")
        assert mine.N == theirs.N
        np.testing.assert_allclose(each_alone(mine), each_alone(theirs), rtol=2e-5, atol=2e-6)
    names = (KINDS[kind], "0.weight")
    mine, theirs = (
        FaultSpace(n, x, {name: WeightCrash(0.1), "2.weight": WeightCrash(0.1)})
        for n, name in zip((net, plain), names, strict=True)
    )
    assert [p.site.shape for p in mine.placements] == [p.site.shape for p in theirs.placements]
    assert mine.has_derivatives
    gradients = [np.concatenate([g for _, g in s.gradients(s.mean_point)]) for s in (mine, theirs)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)
    wide = mine.with_dtype(torch.float64)
    np.testing.assert_allclose(each_alone(wide), each_alone(mine), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_score_agrees_with_the_plain_net(kind, seeded, randn):
    x, names, found = randn(3, 5), ("weights", "weights"), []
    if kind is Cached:  # whose parameter, which nothing reads, is a site too
        names = KINDS[kind], "0.weight"
    for net, sites in zip(pair(kind, seeded), names, strict=True):
        with collecting() as told:
            score = crashsim.score(
                net, x, WeightCrash(0.1), sites, samples=300, methods=["monte-carlo"]
            )
        found.append(score.find("monte-carlo", "variance").value)
        assert not any("weight'" in message for message in (*told, *score.warnings))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_flips_of_words_that_forward_scales(seeded, randn):
    """Of stored int8 words and not of a grid up to the largest weight."""
    net, x = pair(Bytes, seeded)[0], randn(2, 5)
    found = each_alone(FaultSpace(net, x, BitFlip(0.01), "0.weight"))
    words, wanted = net[0].words, []
    with torch.no_grad():
        for number in range(20):
            for bit in (1, 2, 4, 8, 16, 32, 64, -128):
                old = words.view(-1)[number].clone()
                words.view(-1)[number] = old ^ torch.tensor(bit, dtype=torch.int8)
                wanted.append(net(x))
                words.view(-1)[number] = old
    np.testing.assert_allclose(found, torch.stack(wanted).numpy(), atol=2e-6)


def test_a_graph_that_keeps_the_rounded_weight_beside(seeded, randn):
    """As converted graphs do: the name of the weight before it was rounded is that of the words."""

    class Converted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            words = (self.layer.weight.detach() * 200).round().to(torch.int8)
            self.register_buffer("frozen", words)

        def forward(self, x):
            return F.linear(x, self.frozen.float() / 200, self.layer.bias)

    net, x = seeded(Converted), randn(2, 4)
    space = FaultSpace(net, x, BitFlip(0.01), "weights")
    assert [p.site.name for p in space.placements] == ["layer.weight"]
    with torch.no_grad():
        net.frozen[0, 0] ^= 64
        wanted = net(x)
        net.frozen[0, 0] ^= 64
    np.testing.assert_allclose(each_alone(space)[6], wanted.numpy(), atol=1e-6)


def test_what_a_weight_is_computed_from_is_no_site(seeded, randn):
    net, _ = pair(Adapted, seeded)
    sites = [s.name for s in find_sites(net, randn(2, 5)) if s.kind == "parameter"]
    assert sites == ["0.weight", "0.bias", "2.weight", "2.bias"]
    with pytest.raises(SiteError, match=r"use '0\.weight'"):
        FaultSpace(net, randn(2, 5), WeightCrash(0.1), "0.a")


def test_a_layer_that_steps_through_time(seeded, randn):
    """A recurrent layer that quantises in each step has one weight, struck in all of them."""

    class Cell(nn.Module):
        def __init__(self, rounds):
            super().__init__()
            self.weight, self.rounds = nn.Parameter(torch.randn(4, 4)), rounds

        def forward(self, x):
            h = x[:, 0]
            for step in range(1, x.shape[1]):
                w = (4 * self.weight).round() / 4 if self.rounds else self.weight
                h = torch.tanh(x[:, step] + h @ w)
            return h

    net, plain = (seeded(lambda r=r: nn.Sequential(Cell(r))) for r in (True, False))
    with torch.no_grad():
        plain[0].weight.copy_((4 * net[0].weight).round() / 4)
    spaces = [FaultSpace(n, randn(2, 5, 4), WeightCrash(0.1), "weights") for n in (net, plain)]
    assert [space.N for space in spaces] == [16, 16]
    np.testing.assert_allclose(*map(each_alone, spaces), rtol=1e-5, atol=1e-6)


def test_quantisation_aware_training_of_torch(seeded, randn):
    from torch.ao import quantization

    def build():
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
            net = quantization.prepare_qat(net)
        net(torch.randn(16, 1, 4, 4))
        return net.eval().apply(quantization.disable_observer)

    net, x = seeded(build), randn(2, 1, 4, 4)
    space = FaultSpace(net, x, WeightCrash(0.1), "weights")
    assert [p.site.name for p in space.placements] == ["0.weight", "3.weight"]
    layer = net[3]
    with torch.no_grad():
        held = layer.weight_fake_quant(layer.weight)
        assert not torch.equal(held, layer.weight)
        seen = layer.activation_post_process
        hidden = net[:3](x)
        wanted = [
            seen(
                F.linear(hidden, torch.where(torch.arange(24).view(3, 8) == i, 0, held), layer.bias)
            )
            for i in range(24)
        ]
    start = space.placements[1].start
    np.testing.assert_allclose(each_alone(space)[start:], torch.stack(wanted).numpy(), atol=1e-6)


def test_what_depends_on_the_input_is_no_weight(seeded, randn):
    """Attention multiplies values by each other; so does a layer that makes its weight of x."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            scores = self.q(x) @ self.k(x).transpose(1, 2)
            return (scores.softmax(-1) @ x).mean(1)

    net = seeded(Attention)
    sites = [s.name for s in find_sites(net, randn(2, 3, 4)) if s.kind == "parameter"]
    assert sites == ["q.weight", "q.bias", "k.weight", "k.bias"]
    space = FaultSpace(net, randn(2, 3, 4), NeuronCrash(0.1), "q")
    assert "forward" not in vars(space.model)


class Normed(nn.Linear):
    """Divides its weight by its largest number."""

    def forward(self, x):
        return F.linear(x, self.normed(), self.bias)

    def normed(self):
        return self.weight / self.weight.detach().abs().max()


class Autoencoder(Normed):
    def forward(self, x):
        return F.linear(F.linear(x, self.normed()).tanh(), self.normed().t())


class TwoSigns(nn.Linear):
    """Holds the positive and the negative part apart, as two crossbars do."""

    def forward(self, x):
        return F.linear(x, self.weight.relu()) - F.linear(x, (-self.weight).relu())


class HalfRead(nn.Linear):
    """Multiplies by its weight, and by twice the same."""

    def forward(self, x):
        return F.linear(F.linear(x, self.weight).tanh(), 2 * self.weight)


def noisy(space):
    """Outputs (4, B, K) and the coordinates (4, N) of normal noise that they come from."""
    e = np.random.default_rng(0).normal(size=(4, space.N))
    rows, columns = np.nonzero(e)
    return space.outputs(Points(4, np.zeros(space.N), rows, columns, e[rows, columns])), e


@pytest.mark.parametrize("make", [lambda: Autoencoder(4, 6), lambda: HalfRead(4, 4)])
def test_what_is_multiplied_twice_is_one_memory(seeded, randn, make):
    net, x = seeded(make), randn(2, 4)
    space = FaultSpace(net, x, AdditiveNoise(0.1), "weights")
    assert [p.site.name for p in space.placements] == ["weight"]
    found, e = noisy(space)
    weight = net.weight.detach() if isinstance(net, HalfRead) else net.normed().detach()
    for outputs, noise in zip(found, torch.from_numpy(e).float(), strict=True):
        struck = weight + noise.view(weight.shape)
        second = 2 * struck if isinstance(net, HalfRead) else struck.t()
        wanted = F.linear(F.linear(x, struck).tanh(), second)
        np.testing.assert_allclose(outputs, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_two_weights_of_one_parameter(seeded, randn):
    net, x = seeded(lambda: TwoSigns(4, 3)), randn(2, 4)
    space = FaultSpace(net, x, AdditiveNoise(0.1), "weights")
    parts = {p.site.name: p for p in space.placements}
    assert parts.keys() == {"weight", "multiplied_weight_0"}
    found, e = noisy(space)
    plus, minus = net.weight.detach().relu(), (-net.weight.detach()).relu()
    for outputs, noise in zip(found, torch.from_numpy(e).float(), strict=True):
        up, down = (
            noise[parts[n].start : parts[n].stop].view(3, 4)
            for n in ("weight", "multiplied_weight_0")
        )
        wanted = F.linear(x, plus + up) - F.linear(x, minus + down)
        np.testing.assert_allclose(outputs, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_layers_that_compute_from_a_tied_weight_share_one_memory(seeded, randn):
    def build():
        first, last = Normed(4, 4), Normed(4, 4)
        last.weight = first.weight
        return nn.Sequential(first, nn.Tanh(), last)

    net, x = seeded(build), randn(2, 4)
    space = FaultSpace(net, x, AdditiveNoise(0.1), "weights")
    assert [p.site.name for p in space.placements] == ["0.weight"]
    assert FaultSpace(net, x, AdditiveNoise(0.1), "2.weight").N == 16
    found, e = noisy(space)
    for outputs, noise in zip(found, torch.from_numpy(e).float(), strict=True):
        struck = net[0].normed().detach() + noise.view(4, 4)
        hidden = F.linear(x, struck, net[0].bias).tanh()
        wanted = F.linear(hidden, struck, net[2].bias).detach()
        np.testing.assert_allclose(outputs, wanted.numpy(), rtol=1e-4, atol=1e-4)
