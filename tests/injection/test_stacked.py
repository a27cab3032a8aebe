"""Each sample's own parameters, stacked: the same samples as patching them in one at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import (
    AdditiveNoise,
    BitFlip,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    SignFlip,
    StuckAt,
    WeightCrash,
    monte_carlo,
)
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.up, self.head = nn.ConvTranspose2d(4, 2, 2), nn.Linear(50, 3)

    def forward(self, x):
        return self.head(self.up(F.relu(self.norm(self.conv(x)))).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind, head=5, **options):
        super().__init__()
        self.cell = kind(3, 5, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(head, 2)

    def forward(self, x):
        sequence, state = self.cell(x)
        return self.head(sequence[:, 1]) + sum(s.sum((0, 2)) for s in _tensors(state))[:, None]


def _tensors(state):
    return state if isinstance(state, tuple) else (state,)


class Cell(nn.Module):
    """A layer whose state before the first step is given, and the batch second."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(7, 3), nn.LSTM(3, 4), nn.Linear(4, 2)
        self.start = nn.Parameter(torch.randn(2, 1, 1, 4))

    def forward(self, x):
        h, c = self.start.expand(2, 1, len(x), 4)
        return self.head(self.cell(self.embed(x.T), (h.contiguous(), c.contiguous()))[0][-1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Keeps(nn.Module):
    """Keeps what it computed, and counts its calls, of any size of the batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.seen = None

    def forward(self, x):
        self.calls += 1
        self.seen = torch.tanh(self.a(x))
        return self.b(self.seen)


class Steps(nn.Module):
    """A loop of a recurrent cell."""

    def __init__(self, kind, **options):
        super().__init__()
        self.cell, self.head = kind(3, 4, **options), nn.Linear(4, 2)

    def forward(self, x):
        state = None
        for t in range(4):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Decides(nn.Module):
    """Data-dependent control flow."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.tanh(h) if h.sum() > 0 else torch.relu(h))


class Packed(nn.Module):
    """A packed sequence, for which there is no rule."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        lengths = torch.full((len(x),), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(self.cell(packed)[1][0])


def mlp():
    return nn.Sequential(nn.Linear(6, 7), nn.ELU(), nn.Linear(7, 3))


VECTOR, SERIES = (6,), (4, 3)
STACKED = {
    "crash": (mlp, VECTOR, {"weights": WeightCrash(0.3)}),
    "one layer": (mlp, VECTOR, {"2.*": WeightCrash(0.3)}),
    "stuck": (mlp, VECTOR, {"0.weight": StuckAt(0.3, 0.7)}),
    "bits": (mlp, VECTOR, {"weights": BitFlip(0.1, bits=6)}),
    "gain": (mlp, VECTOR, {"weights": GainNoise(0.2)}),
    "additive": (mlp, VECTOR, {"*.weight": AdditiveNoise(0.2)}),
    "and neurons": (mlp, VECTOR, {"weights": SignFlip(0.2), "1": NeuronCrash(0.3)}),
    "and inputs": (mlp, VECTOR, {"weights": SignFlip(0.2), "input": GainNoise(0.3)}),
    "rare neurons": (mlp, VECTOR, {"0.weight": WeightCrash(0.2), "1": StuckAt(0.02, 0.3)}),
    "several": (mlp, VECTOR, {"0.weight": BitFlip(0.1), "0.*": SignFlip(0.2), "2.*": GainNoise(1)}),
    "conv": (Convolutional, (2, 6, 6), {"weights": WeightCrash(0.3)}),
    "norm": (Convolutional, (2, 6, 6), {"norm.*": GainNoise(0.3), "up.bias": StuckAt(0.2, 1.0)}),
    "lstm": (lambda: Recurrent(nn.LSTM), SERIES, {"weights": WeightCrash(0.2)}),
    "lstm, projected": (
        lambda: Recurrent(nn.LSTM, 4, proj_size=2, bidirectional=True),
        SERIES,
        {"cell.*_l?*": GainNoise(0.2)},
    ),
    "gru": (lambda: Recurrent(nn.GRU, 10, bidirectional=True), SERIES, {"*": WeightCrash(0.2)}),
    "gru, no bias": (lambda: Recurrent(nn.GRU, bias=False), SERIES, {"weights": BitFlip(0.1)}),
    "rnn": (lambda: Recurrent(nn.RNN), SERIES, {"cell.*": SignFlip(0.2)}),
    "rnn, relu": (
        lambda: Recurrent(nn.RNN, nonlinearity="relu"),
        SERIES,
        {"cell.bias_hh_l?": StuckAt(0.2, 0.1), "cell": NeuronCrash(0.1)},
    ),
    "lstm cells": (lambda: Steps(nn.LSTMCell), SERIES, {"weights": WeightCrash(0.3)}),
    "gru cells": (lambda: Steps(nn.GRUCell, bias=False), SERIES, {"weights": GainNoise(0.3)}),
    "rnn cells": (
        lambda: Steps(nn.RNNCell, nonlinearity="relu"), SERIES, {"cell.*": StuckAt(0.3, 0.2)},
    ),
    "cell": (Cell, 7, {"*": WeightCrash(0.2)}),
    "encoder": (Encoder, (5, 4), {"weights": WeightCrash(0.2)}),
    "keeps": (Keeps, VECTOR, {"weights": WeightCrash(0.3)}),
    "prelu": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.PReLU(4), nn.Linear(4, 2)),
        VECTOR,
        {"1.weight": StuckAt(0.5, 1.0)},
    ),
}  # fmt: skip
ALONE = {
    "control flow": (Decides, VECTOR, {"weights": WeightCrash(0.3)}, "data-dependent control flow"),
    "packed": (Packed, SERIES, {"weights": WeightCrash(0.3)}, "torch.vmap cannot run it"),
}


def make(build, shape, faults, count=2, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        x = torch.randint(shape, (count, 5)) if isinstance(shape, int) else None
        x = torch.randn(count, *shape) if x is None else x
    return FaultSpace(model, x, faults, dtype=dtype)


def plain_outputs(space, points):
    """Every sample in a plain pass of its own through the whole model."""
    return space.faulty_model.outputs(space.examples, points)


def compare(space, points, atol=1e-10):
    found = space.outputs(points)
    wanted = plain_outputs(space, points)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)
    return wanted


@pytest.mark.parametrize("case", STACKED)
@pytest.mark.parametrize("count", [1, 3])
def test_samples_are_those_of_patching(case, count):
    space = make(*STACKED[case], count)
    assert "stacked, many samples in one pass" in " ".join(space.plan())
    assert "one sample at a time" not in " ".join(space.plan())
    wanted = compare(space, sample_points(space.placements, 1, 30))
    assert (np.abs(wanted - space.clean()) > 1e-6).any()


@pytest.mark.parametrize("case", STACKED)
def test_points_around_a_base(case):
    space = make(*STACKED[case])
    rng = np.random.default_rng(0)
    base, every = rng.uniform(0, 0.3, space.N), np.arange(space.N)
    rows = np.sort(rng.integers(0, 5, 3 * space.N))
    pairs = np.unique(np.stack([rows, rng.integers(0, space.N, len(rows))]), axis=1)
    compare(space, Points(5, base, *pairs, rng.normal(size=pairs.shape[1])), 1e-8)
    compare(space, Points.one_at_a_time(base, every, np.ones(space.N)))


@pytest.mark.parametrize("case", ["crash", "several", "conv", "lstm"])
def test_chunks_join(case, monkeypatch):
    space = make(*STACKED[case])
    points = sample_points(space.placements, 0, 20)
    whole = space.outputs(points)
    monkeypatch.setattr(
        "crashsim.injection.weights.stacked._SCALARS", 7 * (4 * space.N + 2 * space._scalars)
    )
    np.testing.assert_allclose(space.outputs(points), whole, rtol=0, atol=1e-12)
    monkeypatch.setattr("crashsim.injection.weights.stacked._SCALARS", 1)
    np.testing.assert_allclose(space.outputs(points), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_number_types(dtype):
    space = make(*STACKED["crash"], dtype=dtype)
    points = sample_points(space.placements, 0, 20)
    compare(space, points, 0.05 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("case", ALONE)
def test_models_that_cannot_be_mapped_run_one_sample_at_a_time(case):
    *rest, why = ALONE[case]
    space = make(*rest)
    for line in space.plan():
        assert "one sample at a time" in line
        assert why in line
    compare(space, sample_points(space.placements, 1, 30))


def test_rare_faults_among_many_weights_are_patched():
    """A weight that is used twice cannot be added; to copy all of it for each sample is slow."""

    class Tied(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))[:, :3]

    def plan(width, p):
        return make(lambda: Tied(width), (width,), {"a.weight": WeightCrash(p)}).plan()[0]

    assert "patched, one sample at a time" in plan(300, 0.001)
    assert "costs less for so many weights" in plan(300, 0.001)
    assert "stacked" in plan(300, 0.1)
    assert "stacked" in plan(30, 0.001)
    space = make(lambda: Tied(300), (300,), {"a.weight": WeightCrash(0.001)})
    compare(space, sample_points(space.placements, 1, 10))


def test_the_users_model_keeps_nothing_of_a_pass(seeded):
    model = seeded(Keeps)
    space = FaultSpace(model, torch.ones(2, *VECTOR), {"weights": WeightCrash(0.3)})
    space.outputs(sample_points(space.placements, 0, 20))
    assert (model.calls, model.seen) == (0, None)


def test_an_estimate_is_that_of_patching(monkeypatch):
    """Of the same masks, hence of the same samples."""
    space = make(*STACKED["crash"])
    found = monte_carlo(space, samples=500, seed=3)
    monkeypatch.setattr(FaultSpace, "outputs", plain_outputs)
    wanted = monte_carlo(space, samples=500, seed=3)
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.variance, wanted.variance, rtol=1e-9)
    assert found.variance.min() > 0
