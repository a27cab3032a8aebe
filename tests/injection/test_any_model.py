"""Layers of many kinds: their sites are found, and crashes there do what they should."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from crashsim import FaultSpace, NeuronCrash, WeightCrash, enumerate_exact, find_sites, score
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points
from crashsim.errors import ModelError, SiteError


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, batch_first=True):
        super().__init__()
        self.cell = kind(3, 5, num_layers=2, batch_first=batch_first)
        self.head, self.batch_first = nn.Linear(5, 2), batch_first

    def forward(self, x):
        h, _ = self.cell(x if self.batch_first else x.transpose(0, 1))
        return self.head(h[:, -1] if self.batch_first else h[-1])


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        state = None
        for t in range(4):
            state = self.cell(x[:, t], state)
        return self.head(state[0])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attend = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        h = F.relu(self.embed(x.transpose(0, 1)))  # (T, B, C)
        return self.head((h + self.attend(h, h, h)[0]).mean(0))


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, **options)
        self.first = options.get("batch_first", False)
        self.embed, self.encoder = (
            nn.Linear(3, 4),
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(x)
        h = self.encoder(x if self.first else x.transpose(0, 1))
        return self.head(h.mean(1 if self.first else 0))


class Dense(nn.Module):
    """Concatenating, as DenseNet does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 3, 1), nn.Conv1d(7, 2, 3, padding="same")
        self.norm, self.head = nn.BatchNorm1d(9), nn.Linear(9, 2)

    def forward(self, x):
        x = torch.cat([x, F.silu(self.a(x))], 1)
        x = torch.cat([x, F.silu(self.b(x))], 1)
        return self.head(self.norm(x).mean(2))


CASES = {
    "LSTM": (Recurrent, (4, 3), ["cell"]),
    "GRU": (lambda: Recurrent(nn.GRU), (4, 3), ["cell"]),
    "batch second": (lambda: Recurrent(nn.RNN, False), (4, 3), ["cell"]),
    "cells": (Cells, (4, 3), ["cell"]),
    "attention": (Attention, (4, 3), [":relu"]),
    "encoder": (
        lambda: Encoder(batch_first=True),
        (5, 3),
        ["encoder.layers.0:relu", "encoder.layers.1:relu"],
    ),
    "encoder, batch second": (
        lambda: Encoder(activation="gelu", norm_first=True),
        (5, 3),
        ["encoder.layers.0:gelu", "encoder.layers.1:gelu"],
    ),
    "dense": (Dense, (4, 6), [":silu", ":silu#1"]),
}


def make(seeded, randn, case, faults, double=True):
    build, shape, _ = CASES[case]
    model = seeded(build)
    return FaultSpace(model.double() if double else model, randn(3, *shape), faults)


@pytest.fixture
def seeded():
    def build_seeded(build, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build().eval()

    return build_seeded


@pytest.fixture
def randn():
    return lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def plain_outputs(space, points):
    """Every sample in a plain pass of its own through the whole model."""
    return space.faulty_model.outputs(space.examples, points)


@pytest.mark.parametrize("case", CASES)
def test_hidden_neurons(case, seeded, randn):
    space = make(seeded, randn, case, NeuronCrash(0.1))
    assert [p.site.name for p in space.placements] == CASES[case][2]
    points = sample_points(space.placements, 0, 40)
    found = space.outputs(points)
    assert np.abs(found - space.clean()).max() > 1e-3
    np.testing.assert_allclose(found, plain_outputs(space, points), atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_every_site_counts(case, seeded, randn):
    """Crashing all of any site but its last use changes nothing else than it should."""
    build, shape, _ = CASES[case]
    model, x = seeded(build).double(), randn(3, *shape).double()
    for site in find_sites(model, x):
        if site.kind == "parameter" or site.call:
            continue  # a name stands for all calls
        if not site.is_read:
            with pytest.raises(SiteError, match=f"does not depend on '{site.name}'"):
                FaultSpace(model, x, {site.name: NeuronCrash(1.0)})
            continue
        space = FaultSpace(model, x, {site.name: NeuronCrash(1.0)})
        single = space.outputs(Points.at(space.mean_point))[0]
        twice = space.outputs(sample_points(space.placements, 0, 2))
        np.testing.assert_allclose(twice, np.stack([single, single]), atol=1e-10)
        if not site.is_output:
            assert np.abs(single - space.clean()).max() > 1e-6, site.name
        if site.is_output:
            np.testing.assert_allclose(single, 0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_weights(case, seeded, randn):
    space = make(seeded, randn, case, WeightCrash(0.02))
    points = sample_points(space.placements, 0, 15)
    found = space.outputs(points)
    assert np.abs(found - space.clean()).max() > 1e-4
    np.testing.assert_allclose(found, plain_outputs(space, points), atol=1e-10)


def test_sequences_of_either_layout_agree(seeded, randn):
    """The same net with the batch on the first and on the second axis, under the same crashes."""
    first, second = seeded(lambda: Recurrent(nn.LSTM)), seeded(lambda: Recurrent(nn.LSTM, False))
    x = randn(3, 4, 3)
    spaces = [FaultSpace(net, x, {"cell": NeuronCrash(0.2)}) for net in (first, second)]
    assert [space.placements[0].site.axis for space in spaces] == [0, 1]
    assert [space.placements[0].site.shape for space in spaces] == [(4, 5), (4, 5)]
    points = sample_points(spaces[0].placements, 0, 20)
    np.testing.assert_allclose(*(space.outputs(points) for space in spaces), atol=1e-6)
    gradients = [np.concatenate([g for _, g in s.gradients(s.mean_point)]) for s in spaces]
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_crashed_units_of_an_lstm_are_zero(seeded, randn):
    net, x = seeded(Recurrent), randn(2, 4, 3)
    space = FaultSpace(net, x, {"cell": NeuronCrash(1.0)})
    outputs = space.outputs(sample_points(space.placements, 0, 3))
    wanted = np.tile(net.head.bias.detach().numpy(), (3, 2, 1))
    np.testing.assert_allclose(outputs, wanted, atol=1e-6)


def test_quantised_layers(seeded, randn):
    """int8 layers round by the largest number of their batch: one sample and input at a time."""
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: it will move to another package
        quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)
    x = randn(3, 6)
    space = FaultSpace(quantised, x, NeuronCrash(0.2))
    points = sample_points(space.placements, 0, 20)
    found = space.outputs(points)
    with torch.no_grad():
        alone = torch.cat([quantised(x[i : i + 1]) for i in range(3)])
    np.testing.assert_array_equal(space.clean(), alone.double())
    np.testing.assert_allclose(
        found, FaultSpace(net, x, NeuronCrash(0.2)).outputs(points), atol=0.1
    )
    assert np.abs(found - space.clean()).max() > 0.05
    np.testing.assert_array_equal(plain_outputs(space, points), found)
    result = score(quantised, x, NeuronCrash(0.2), samples=200)
    assert "without derivatives" in result.skipped["taylor"]
    assert result.find("exact", "variance").value > 0
    struck = FaultSpace(quantised, x, WeightCrash(0.1))
    assert [p.site.name for p in struck.placements] == ["0.weight", "2.weight"]


def test_half_precision(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))).bfloat16()
    space = FaultSpace(net, randn(2, 6), NeuronCrash(0.2))
    exact = space.with_dtype(torch.float64)
    points = sample_points(space.placements, 0, 20)
    np.testing.assert_allclose(space.outputs(points), exact.outputs(points), atol=0.05)


@pytest.mark.filterwarnings("ignore:mean-point-taylor variance:crashsim.CrashsimWarning")
def test_a_score_of_a_recurrent_net(seeded, randn):
    result = score(seeded(Recurrent), randn(2, 4, 3), NeuronCrash(0.01), samples=500)
    assert result.find("monte-carlo", "variance").value > 0


class Final(nn.Module):
    """Reads the final state of a recurrent layer alone."""

    def __init__(self, kind=nn.GRU, read=lambda final: final[-1], **options):
        super().__init__()
        self.rnn, self.read = kind(3, 4, batch_first=True, **options), read
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.read(self.rnn(x)[1]))


FINAL = {
    "GRU": (Final, "rnn:h_n"),
    "RNN": (lambda: Final(nn.RNN, num_layers=2), "rnn:h_n"),
    "LSTM": (lambda: Final(nn.LSTM, lambda final: final[0][0]), "rnn:h_n"),
    "memory": (lambda: Final(nn.LSTM, lambda final: final[1].squeeze(0)), "rnn:c_n"),
    "both": (lambda: Final(nn.LSTM, lambda final: final[0][0] * final[1][0]), "rnn:h_n"),
}


@pytest.mark.parametrize("case", FINAL)
def test_the_final_state_is_a_site_of_its_own(case, seeded, randn):
    build, wanted = FINAL[case]
    net, x = seeded(build), randn(3, 5, 3)
    assert [p.site.name for p in FaultSpace(net, x, NeuronCrash(0.3)).placements] == ["rnn"]
    space = FaultSpace(net, x, NeuronCrash(0.3), wanted)
    assert [p.site.name for p in space.placements] == [wanted]
    assert space.placements[0].site.axis == 1
    points = sample_points(space.placements, 0, 30)
    found = space.outputs(points)
    assert np.abs(found - space.clean()).max() > 1e-3
    assert "computed once" in space.plan()[0]  # the layer itself, for one
    np.testing.assert_allclose(found, plain_outputs(space, points), atol=1e-6)
    dead = FaultSpace(net, x, {wanted: NeuronCrash(1.0)})
    everything = dead.outputs(Points.at(dead.mean_point))[0]
    np.testing.assert_allclose(everything, np.tile(net.head.bias.detach(), (3, 1)), atol=1e-6)


def test_monte_carlo_of_a_final_state_against_all_patterns(seeded, randn):
    net, x = seeded(Final), randn(2, 5, 3)
    exact = enumerate_exact(net, x, NeuronCrash(0.3)).variance.sum(1).mean()
    sampled = score(net, x, NeuronCrash(0.3), samples=4000, methods=["monte-carlo"])
    variance = sampled.find("monte-carlo", "variance")
    assert variance.value == pytest.approx(exact, rel=0.05)
    assert exact > 0.01


def test_faults_that_cannot_reach_the_output_are_refused(seeded, randn):
    net, x = seeded(lambda: Final(nn.LSTM, lambda final: final[0][0])), randn(2, 5, 3)
    with pytest.raises(SiteError, match=r"does not depend on 'rnn:c_n', .*'rnn:h_n'"):
        FaultSpace(net, x, NeuronCrash(0.1), "rnn:c_n")
    both = FaultSpace(net, x, {"rnn:c_n": NeuronCrash(0.1), "head": NeuronCrash(0.1)})
    assert [p.site.name for p in both.placements] == ["rnn:c_n", "head"]  # one of the two does
    glob = FaultSpace(net, x, NeuronCrash(0.1), "rnn*")
    assert [p.site.name for p in glob.placements] == ["rnn"]


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.encoder = nn.LSTM(4, 5, batch_first=True)
        self.decoder = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 9)

    def forward(self, source, target):
        _, state = self.encoder(self.embed(source))
        return self.head(self.decoder(self.embed(target), state)[0])


class Folded(nn.Module):
    """Frames of a video folded into the batch, then a recurrent layer."""

    def __init__(self, first=True):
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(1, 2, 3, 2), nn.GRU(8, 4, batch_first=True)
        self.head, self.first = nn.Linear(4, 2), first

    def forward(self, x):
        if not self.first:
            x = x.transpose(0, 1)
        h = F.relu(self.conv(x.flatten(0, 1))).flatten(1).reshape(*x.shape[:2], -1)
        return self.head(self.rnn(h if self.first else h.transpose(0, 1))[1][0])


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.7 * x)


class Gelu(nn.Module):
    def forward(self, x):
        return F.gelu(x)


class Composed(nn.Module):
    def __init__(self, act=Swish):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(3, 5), act(), nn.Linear(5, 2)

    def forward(self, x):
        return self.b(self.act(self.a(x)))


class Mixture(nn.Module):
    """Every example runs through one of three experts."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Linear(3, 4), nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        chosen, out = self.gate(x).argmax(-1), x.new_zeros(len(x), 2)
        for i, expert in enumerate(self.experts):
            if (chosen == i).any():
                out[chosen == i] = expert(x[chosen == i])
        return out


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 5), nn.ReLU()), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class Spectral(nn.Module):
    """Complex numbers on the way."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=4)
        return self.b(F.gelu(self.a(x)) + x)


class InPlace(nn.Module):
    """Uses what an in-place activation leaves behind, not what it returns."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)

    def forward(self, x):
        h = self.a(x)
        self.act(h)
        return self.b(h)


class Parametrised(nn.Module):
    def __init__(self):
        super().__init__()
        wrap = nn.utils.parametrizations
        self.a, self.b = wrap.weight_norm(nn.Linear(3, 4)), wrap.spectral_norm(nn.Linear(4, 4))
        self.c = wrap.orthogonal(nn.Linear(4, 2))

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.relu(self.a(x)))))


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(3, 4), torch.randn(4, 2)])
        self.more = nn.ParameterDict({"bias": torch.zeros(2)})

    def forward(self, x):
        return torch.sigmoid(x @ self.weights[0]) @ self.weights[1] + self.more["bias"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(F.gelu(self.mix(self.embed(x))))


class Padded(nn.Module):
    """torch would pack the padded sequences here and leave the activations out."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(4, 2)

    def forward(self, x, mask):
        return self.head(self.encoder(x, src_key_padding_mask=mask)[:, 0])


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, edges):
        h = torch.relu(self.a(edges @ x))
        return self.b(edges @ h).sum(1)


def volume():
    return nn.Sequential(
        nn.Conv3d(1, 2, 3, padding=1), nn.InstanceNorm3d(2, affine=True), nn.LeakyReLU(),
        nn.MaxPool3d(2), nn.ConvTranspose3d(2, 1, 2, 2), nn.ELU(), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip


def signal():
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, groups=1), nn.GroupNorm(2, 4), nn.Mish(), nn.ConvTranspose1d(4, 2, 2),
        nn.PReLU(), nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 0], [8, 8, 1]])
MASK = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
UNSEEN = {
    "seq2seq": (Seq2Seq, lambda r: (TOKENS, TOKENS[:, :2]), ["encoder", "decoder"]),
    "folded": (Folded, lambda r: r(2, 3, 1, 6, 6), [":relu", "rnn"]),
    "folded, time first": (lambda: Folded(False), lambda r: r(2, 3, 1, 6, 6), [":relu", "rnn"]),
    "wrapped": (lambda: Composed(Gelu), lambda r: r(3, 3), ["act:gelu"]),
    "composed": (Composed, lambda r: r(3, 3), ["act"]),
    "mixture": (Mixture, lambda r: r(9, 3), [":tanh"]),
    "checkpointed": (Checkpointed, lambda r: r(3, 3), ["body.1"]),
    "spectral": (Spectral, lambda r: r(3, 4), [":gelu"]),
    "in place": (InPlace, lambda r: r(3, 3), ["a"]),
    "parametrised": (Parametrised, lambda r: r(3, 3), [":relu", ":tanh"]),
    "listed": (Listed, lambda r: r(3, 3), [":sigmoid"]),
    "tied": (Tied, lambda r: TOKENS, [":gelu"]),
    "padded": (
        Padded,
        lambda r: {"x": r(2, 5, 4), "mask": MASK},
        ["encoder.layers.0:relu", "encoder.layers.1:relu"],
    ),
    "graph": (Graph, lambda r: {"x": r(2, 4, 3), "edges": torch.ones(2, 4, 4)}, [":relu"]),
    "volume": (volume, lambda r: r(2, 1, 4, 4, 4), ["2", "5"]),
    "signal": (signal, lambda r: r(2, 3, 7), ["2", "4"]),
    "bag": (
        lambda: nn.Sequential(nn.EmbeddingBag(9, 4), nn.Tanh(), nn.Linear(4, 2)),
        lambda r: TOKENS,
        ["1"],
    ),
    "parallel": (
        lambda: nn.DataParallel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))),
        lambda r: r(2, 3),
        ["1"],
    ),
    "view": (nn.Flatten, lambda r: r(2, 3, 2), "input"),
}


# Run as a whole, for torch.fx cannot follow them, or faults would not find their way.
WHOLE = {"seq2seq", "folded", "folded, time first", "mixture", "in place"}


@pytest.mark.filterwarnings("ignore:sites. no fault in 'experts:crashsim.CrashsimWarning")
@pytest.mark.parametrize("case", UNSEEN)
def test_models_of_every_kind(case, seeded, randn):
    build, inputs, wanted = UNSEEN[case]
    net, x = seeded(build), inputs(randn)
    where = wanted if isinstance(wanted, str) else "hidden"
    space = FaultSpace(net, x, NeuronCrash(0.2), where)
    assert [p.site.name for p in space.placements] == ([where] if where == "input" else wanted)
    assert ("whole model" in " ".join(space.plan())) == (case in WHOLE)
    for struck in (
        space,
        FaultSpace(net, x, NeuronCrash(0.02), where),
        *(FaultSpace(net, x, WeightCrash(0.02)) for _ in range(where == "hidden")),
    ):
        points = sample_points(struck.placements, 0, 25)
        found = struck.outputs(points)
        assert np.abs(found - struck.clean()).max() > 1e-5
        wanted_outputs = plain_outputs(struck, points)
        np.testing.assert_allclose(found, wanted_outputs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("first", [True, False])
def test_the_layer_inside_a_folded_batch_counts_every_frame(first, seeded, randn):
    """Crashing a unit of a frame sets just that unit, of that frame, of every example to zero."""
    net, x = seeded(lambda: Folded(first)), randn(2, 3, 1, 6, 6)
    tied = FaultSpace(net, x, {":relu": NeuronCrash(0.1)})  # the RNN shows what is time
    assert tied.placements[0].shape == (2, 2, 2)
    space = FaultSpace(net, x, {":relu": NeuronCrash(0.1, duration="transient")})
    assert space.placements[0].site.shape == (3, 2, 2, 2)
    unit = 1 * 8 + 5  # of the second frame
    e = np.zeros(space.N)
    e[unit] = 1
    found = space.outputs(Points.at(e))[0]
    pair = Points(2, np.zeros(space.N), np.array([1]), np.array([unit]), np.ones(1))
    np.testing.assert_allclose(space.outputs(pair)[1], found, atol=1e-6)
    with torch.no_grad():
        h = F.relu(net.conv(x.flatten(0, 1))).flatten(1).reshape(2, 3, -1)
        every = h.clone()
        h[:, 1, 5] = 0
        every[:, :, 5] = 0
        np.testing.assert_allclose(found, net.head(net.rnn(h)[1][0]).double(), atol=1e-6)
        dead = tied.outputs(Points.at(np.eye(8)[5]))[0]
        np.testing.assert_allclose(dead, net.head(net.rnn(every)[1][0]).double(), atol=1e-6)
    assert np.abs(found - space.clean()).max() > 1e-5
    assert np.abs(dead - found).max() > 1e-5


def test_compiled_models_and_parts_run_as_they_were_written(seeded, randn):
    plain = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on loading its compiler
        whole = torch.compile(plain)
        part = nn.Sequential(torch.compile(plain[:2], backend="eager"), plain[2]).eval()
    x = randn(3, 3)
    points = sample_points(FaultSpace(plain, x, NeuronCrash(0.3)).placements, 0, 20)
    wanted = FaultSpace(plain, x, NeuronCrash(0.3)).outputs(points)
    for net, name in ((whole, "1"), (part, "0._orig_mod.1")):
        space = FaultSpace(net, x, NeuronCrash(0.3))
        assert [p.site.name for p in space.placements] == [name]
        np.testing.assert_allclose(space.outputs(points), wanted, atol=1e-6)
    result = score(part, x, NeuronCrash(0.3), samples=200)
    assert result.find("exact", "variance").value > 0


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.b((torch.sigmoid(self.a(x)) > 0.4).to(x.dtype))


def test_without_derivatives_the_methods_that_need_them_are_skipped(seeded, randn):
    net, x = seeded(Steps), randn(3, 3)
    result = score(net, x, NeuronCrash(0.2), samples=2000, epsilon=0.5)
    for method in ("taylor", "mean-point-taylor", "mean-point-curvature"):
        assert "without derivatives" in result.skipped[method]
        assert result.find(method, "variance") is None
    exact, sampled = (result.find(m, "variance") for m in ("exact", "monte-carlo"))
    assert sampled.low < exact.value < sampled.high
    assert result.find("saddlepoint", "tail", output=0) is not None  # from the differences
    alone = score(net, x, NeuronCrash(0.2), methods=["mean-point-taylor"])
    assert "without derivatives" in alone.skipped["mean-point-taylor"]
    assert alone.estimates == []


class Fixed(nn.Module):
    """Computes in the type of its own choice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).float())


def test_models_that_fix_their_type_are_enumerated_in_it(seeded, randn):
    net, x = seeded(Fixed), randn(2, 3)
    exact = enumerate_exact(net, x, NeuronCrash(0.2))
    assert exact.variance.max() > 0
    with pytest.raises(ModelError, match=r"torch\.float64"):
        FaultSpace(net, x, NeuronCrash(0.2)).with_dtype(torch.float64)


class Sorting(nn.Module):
    """Passes its batch in an order of its own, and puts it back."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.a, self.act, self.b, self.scale = nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), scale

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.scale * self.b(self.act(self.a(x[order])))[order.argsort()]


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_an_order_of_its_own_is_noticed_however_small_the_outputs(scale, seeded, randn):
    net, x = seeded(lambda: Sorting(scale)), randn(4, 3)
    assert not FaultSpace(net, x, NeuronCrash(0.3), "act").keeps_order
    assert FaultSpace(net.b, randn(4, 5), NeuronCrash(0.3), "input").keeps_order
