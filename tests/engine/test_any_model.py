"""Layers of many kinds: their sites are found, and crashes there do what they should."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import FaultSpace, NeuronCrash, WeightCrash, find_sites, score
from crashsim.errors import SiteError
from crashsim.points import Points, sample_points


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
    "cells": (Cells, (4, 3), ["cell", "cell#1", "cell#2", "cell#3"]),
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


@pytest.mark.parametrize("case", CASES)
def test_hidden_neurons(case, seeded, randn, monkeypatch):
    space = make(seeded, randn, case, NeuronCrash(0.1))
    assert [p.site.name for p in space.placements] == CASES[case][2]
    points = sample_points(space.placements, 0, 40)
    found = space.outputs(points)
    assert np.abs(found - space.clean()).max() > 1e-3
    monkeypatch.setattr("crashsim.space._SHORT_CUTS", False)
    np.testing.assert_allclose(found, space.outputs(points), atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_every_site_counts(case, seeded, randn):
    """Crashing all of any site but its last use changes nothing else than it should."""
    build, shape, _ = CASES[case]
    model, x = seeded(build).double(), randn(3, *shape).double()
    for site in find_sites(model, x):
        if site.kind == "parameter":
            continue
        if not site.is_read:
            with pytest.raises(SiteError, match=f"does not depend on '{site.name}'"):
                FaultSpace(model, x, {site.name: NeuronCrash(1.0)})
            continue
        space = FaultSpace(model, x, {site.name: NeuronCrash(1.0)})
        single = space.outputs(Points.at(space.mean_point))[0]
        twice = space.outputs(sample_points(space.placements, 0, 2))
        np.testing.assert_allclose(twice, np.stack([single, single]), atol=1e-10)
        if not site.is_output and not site.name.startswith("cell#"):
            assert np.abs(single - space.clean()).max() > 1e-6, site.name
        if site.is_output:
            np.testing.assert_allclose(single, 0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_weights(case, seeded, randn, monkeypatch):
    space = make(seeded, randn, case, WeightCrash(0.02))
    points = sample_points(space.placements, 0, 15)
    found = space.outputs(points)
    assert np.abs(found - space.clean()).max() > 1e-4
    monkeypatch.setattr("crashsim.space._SHORT_CUTS", False)
    np.testing.assert_allclose(found, space.outputs(points), atol=1e-10)


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
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)
        except (AttributeError, RuntimeError, ImportError) as error:
            pytest.skip(f"this torch does not quantise here: {error}")
        x = randn(1, 6)
        space = FaultSpace(quantised, x, NeuronCrash(0.2), "hidden")
        points = sample_points(space.placements, 0, 20)
        # Activations are quantised with a scale of the whole batch: near, not equal.
        expected = FaultSpace(net, x, NeuronCrash(0.2)).outputs(points)
        np.testing.assert_allclose(space.outputs(points), expected, atol=0.1)


def test_half_precision(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))).bfloat16()
    space = FaultSpace(net, randn(2, 6), NeuronCrash(0.2))
    exact = space.with_dtype(torch.float64)
    points = sample_points(space.placements, 0, 20)
    np.testing.assert_allclose(space.outputs(points), exact.outputs(points), atol=0.05)


def test_a_score_of_a_recurrent_net(seeded, randn):
    result = score(seeded(Recurrent), randn(2, 4, 3), NeuronCrash(0.05), samples=500)
    assert result.find("monte-carlo", "variance").value > 0
