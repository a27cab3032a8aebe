"""Every way of computing samples gives what the plain one gives: masks over the whole model."""

import itertools
from collections import OrderedDict

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
from crashsim.injection.program import Program
from crashsim.sampling.enumeration import enumerate_space


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval().double()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def mlp(sizes=(6, 30, 20, 3), act=nn.Tanh):
    layers = OrderedDict()
    for i, (a, b) in enumerate(itertools.pairwise(sizes), start=1):
        layers[f"linear{i}"] = nn.Linear(a, b)
        layers[f"act{i}"] = act()
    del layers[f"act{len(sizes) - 1}"]
    return nn.Sequential(layers)


class Residual(nn.Module):
    """Convolutions with batch norm, a skip, an in-place ReLU called twice, and code that reads
    the batch size."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.wide = nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=2, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x, scale=None):
        batch = x.shape[0]
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(x + self.conv(x))
        x = torch.tanh(self.wide(x)).mean((2, 3))
        return self.head(x.view(batch, -1))


class Twice(nn.Module):
    """A layer and an activation that are called twice, and a concatenation."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.act = nn.Linear(6, 8), nn.Linear(8, 8), nn.GELU()
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        a = self.act(self.first(x))
        b = self.act(self.shared(a))
        return self.last(torch.cat([b, F.relu(self.shared(b))], 1))


class Tokens(nn.Module):
    """Attention written out, layer norm, and a Linear on (B, T, C)."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.position = nn.Parameter(torch.randn(4, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        batch, length, width = x.shape
        x = x + self.position
        q, k, v = self.qkv(x).view(batch, length, 3, width).unbind(2)
        x = x + self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(6, 8), nn.Linear(8, 3), nn.Sigmoid()

    def forward(self, x):
        h = self.act(self.a(x))
        return self.b(F.relu(h) if h.sum() > -1e9 else h)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Folded(nn.Module):
    """Every step of a sequence is an example of its own, then a sequence again."""

    def __init__(self):
        super().__init__()
        self.each, self.act, self.mix = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        batch, length, width = x.shape
        steps = self.mix(self.act(self.each(x.reshape(batch * length, width))))
        return self.head(F.relu(steps.reshape(batch, length, -1)).flatten(1))


class Convs(nn.Module):
    """One-, two- and three-dimensional and transposed convolutions with group norm."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 2, stride=2)
        self.norm = nn.GroupNorm(3, 3)
        self.flat, self.deep = nn.Conv1d(3, 4, 3), nn.Conv3d(1, 2, 3)
        self.head = nn.LazyLinear(3)
        with torch.no_grad():
            self(torch.zeros(1, 2, 6, 6))

    def forward(self, x):
        x = F.leaky_relu(self.norm(self.up(x)))
        a = F.relu(self.flat(x.flatten(2)))
        b = torch.tanh(self.deep(x.unsqueeze(1)))
        return self.head(torch.cat([a.flatten(1), b.flatten(1)], dim=1))


class FlatConv(nn.Module):
    """A convolution whose activations feed a Linear through Flatten and Dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(3 * 16, 3)

    def forward(self, x):
        return self.head(self.body(x))


class OneConv(nn.Module):
    """A single convolution between an activation and a linear layer."""

    def __init__(self, conv, shape, skip=False):
        super().__init__()
        self.act, self.conv, self.skip = nn.Tanh(), conv(), skip
        self.head = nn.Linear(self.conv(torch.zeros(1, *shape)).numel(), 3)

    def forward(self, x):
        x = self.act(x)
        y = self.conv(x)
        return self.head(F.relu(y + x.mean(1, keepdim=True) if self.skip else y).flatten(1))


VECTOR, IMAGE, SERIES = (6,), (2, 6, 6), (4, 6)
LINE, VOLUME = (2, 9), (2, 3, 4, 3)
CONVOLUTIONS = {
    "plain": (IMAGE, lambda: nn.Conv2d(2, 4, 3, padding=1)),
    "stride": (IMAGE, lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0))),
    "groups": (IMAGE, lambda: nn.Conv2d(2, 4, 3, groups=2, padding="same", dilation=2)),
    "circular": (IMAGE, lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular")),
    "reflect": (IMAGE, lambda: nn.Conv2d(2, 3, (2, 4), padding="same", padding_mode="reflect")),
    "replicate": (IMAGE, lambda: nn.Conv2d(2, 3, 3, 2, padding=(2, 1), padding_mode="replicate")),
    "line": (LINE, lambda: nn.Conv1d(2, 4, 4, padding="same", dilation=2, bias=False)),
    "line, stride": (LINE, lambda: nn.Conv1d(2, 4, 3, stride=3, padding=2, dilation=2)),
    "volume": (VOLUME, lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1))),
    "line up": (LINE, lambda: nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1)),
    "up": (IMAGE, lambda: nn.ConvTranspose2d(2, 4, (3, 2), (2, 1), dilation=(1, 2), groups=2)),
    "volume up": (VOLUME, lambda: nn.ConvTranspose3d(2, 3, 2, stride=(2, 1, 1), padding=(0, 1, 0))),
}
SHORT = [
    (mlp, VECTOR, {"hidden": NeuronCrash(0.05)}),
    (mlp, VECTOR, {"hidden": NeuronCrash(0.5)}),
    (mlp, VECTOR, {"input": NeuronCrash(0.02)}),
    (mlp, VECTOR, {"act1": NeuronCrash(0.1, group=7), "act2": NeuronCrash(0.3, group=3)}),
    (mlp, VECTOR, {"act1": StuckAt(0.03, 1.5), "act2": SignFlip(0.2)}),
    (mlp, VECTOR, {"act1": SignFlip(0.1), "act?": StuckAt(0.1, 0.5)}),
    (mlp, VECTOR, {"hidden": GainNoise(0.3)}),
    (mlp, VECTOR, {"input": AdditiveNoise(0.3), "act2": NeuronCrash(0.01)}),
    (mlp, VECTOR, {"weights": WeightCrash(0.02)}),
    (mlp, VECTOR, {"*": WeightCrash(0.03)}),
    (mlp, VECTOR, {"linear2.weight": BitFlip(0.01, bits=5)}),
    (mlp, VECTOR, {"weights": StuckAt(0.02, 0.3), "act1": NeuronCrash(0.02)}),
    (mlp, VECTOR, {"linear2.*": SignFlip(0.02), "act1": NeuronCrash(0.05), "act2": SignFlip(0.1)}),
    (Residual, IMAGE, {"hidden": NeuronCrash(0.02)}),
    (Residual, IMAGE, {"relu#1": NeuronCrash(0.3, group="channel")}),
    (Residual, IMAGE, {"stem": NeuronCrash(0.04), ":tanh": GainNoise(0.1)}),
    (Residual, IMAGE, {"norm": StuckAt(0.2, 1.0)}),
    (Residual, IMAGE, {"weights": WeightCrash(0.02)}),
    (Residual, IMAGE, {"conv.*": WeightCrash(0.03)}),
    (Residual, IMAGE, {"stem.*": WeightCrash(0.03), "wide.weight": BitFlip(0.01)}),
    (Residual, IMAGE, {"wide.weight": SignFlip(0.02)}),
    (Residual, IMAGE, {"input": NeuronCrash(0.02), "conv.weight": WeightCrash(0.02)}),
    (Twice, VECTOR, {"hidden": NeuronCrash(0.05)}),
    (Twice, VECTOR, {"act#1": NeuronCrash(0.2), ":relu": NeuronCrash(0.01)}),
    (Twice, VECTOR, {"shared": NeuronCrash(0.03)}),
    (Twice, VECTOR, {"shared#1": NeuronCrash(0.03)}),
    (Twice, VECTOR, {"shared.*": WeightCrash(0.03)}),
    (Twice, VECTOR, {"last.weight": WeightCrash(0.03), "shared.weight": SignFlip(0.03)}),
    (Tokens, SERIES, {"hidden": NeuronCrash(0.04)}),
    (Tokens, SERIES, {"norm": NeuronCrash(0.2), "input": SignFlip(0.04)}),
    (Tokens, SERIES, {"qkv.*": WeightCrash(0.03), "down.weight": WeightCrash(0.03)}),
    (Encoder, SERIES, {"hidden": NeuronCrash(0.04)}),
    (Encoder, SERIES, {"encoder.layers.0.linear2": StuckAt(0.3, 0.1), "input": SignFlip(0.02)}),
    (Encoder, SERIES, {"encoder.layers.1.linear1.*": WeightCrash(0.03)}),
    (Folded, SERIES, {"hidden": NeuronCrash(0.04)}),
    (Folded, SERIES, {":relu": NeuronCrash(0.3), "each": StuckAt(0.1, 0.4)}),
    (Folded, SERIES, {"act": NeuronCrash(0.2), "mix.*": WeightCrash(0.03)}),
    (Convs, IMAGE, {"hidden": NeuronCrash(0.03)}),
    (Convs, IMAGE, {"up.*": WeightCrash(0.03), "flat.*": SignFlip(0.03), "deep.*": BitFlip(0.01)}),
    (Convs, IMAGE, {"up": NeuronCrash(0.3), "flat": NeuronCrash(0.02), "deep": SignFlip(0.5)}),
    (FlatConv, IMAGE, {"hidden": NeuronCrash(0.05)}),
    (FlatConv, IMAGE, {"hidden": NeuronCrash(0.05, group="channel")}),
    (FlatConv, IMAGE, {"body.2": NeuronCrash(0.05)}),
    (FlatConv, IMAGE, {"body.0": StuckAt(0.05, 0.5), "head.*": WeightCrash(0.02)}),
]
WHOLE = [
    (Untraceable, VECTOR, {"hidden": NeuronCrash(0.03)}),
    (Untraceable, VECTOR, {"hidden": NeuronCrash(0.3), "input": GainNoise(0.2)}),
]
PATCHED = [
    (Untraceable, VECTOR, {"a.weight": WeightCrash(0.03), "act": NeuronCrash(0.1)}),
    (Encoder, SERIES, {"weights": WeightCrash(0.03)}),
    (mlp, VECTOR, {"weights": GainNoise(0.1)}),
    (mlp, VECTOR, {"weights": WeightCrash(0.5)}),
    (mlp, VECTOR, {"linear1.weight": WeightCrash(0.01), "linear1.*": SignFlip(0.01)}),
    (Residual, IMAGE, {"norm.weight": WeightCrash(0.1)}),
    (Tokens, SERIES, {"position": WeightCrash(0.1)}),
]


for _name, (_shape, _conv) in CONVOLUTIONS.items():

    def _build(conv=_conv, shape=_shape):
        return OneConv(conv, shape)

    _build.__name__ = _name
    SHORT += [
        (_build, _shape, {"act": NeuronCrash(0.04)}),
        (_build, _shape, {"conv.*": WeightCrash(0.03)}),
        (_build, _shape, {"input": NeuronCrash(0.2), "conv.weight": BitFlip(0.01, bits=3)}),
    ]


def plain_outputs(space, points):
    """Every sample in a plain pass of its own through the whole model."""
    return space.faulty_model.outputs(space.examples, points)


def compare(space, points):
    found = space.outputs(points)
    wanted = plain_outputs(space, points)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    return wanted


def make(build, shape, faults, count=3):
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return FaultSpace(seeded(build), x, faults)


def named(value):
    """A name of a parameter that is the same in every process."""
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("build", "shape", "faults"), SHORT + WHOLE + PATCHED, ids=named)
@pytest.mark.parametrize("count", [1, 3])
def test_samples_are_those_of_the_whole_model(build, shape, faults, count):
    space = make(build, shape, faults, count)
    wanted = compare(space, sample_points(space.placements, 3, 40))
    assert (np.abs(wanted - space.clean()) > 1e-6).any()
    lines = space.plan()[: len(space.placements)]  # what follows says in how many steps
    for line, placement in zip(lines, space.placements, strict=True):
        assert line.startswith(placement.site.name)


@pytest.mark.parametrize(("build", "shape", "faults"), SHORT, ids=named)
def test_these_models_are_taken_apart(build, shape, faults):
    space = make(build, shape, faults)
    assert isinstance(space.strategies.program(), Program), space.plan()
    plan = " ".join(space.plan())
    assert "whole model" not in plan
    assert "one sample at a time" not in plan
    assert "what comes before is" in plan


@pytest.mark.parametrize(("build", "shape", "faults"), SHORT + PATCHED, ids=named)
def test_points_around_a_base(build, shape, faults):
    space = make(build, shape, faults)
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 0.3, space.N)
    columns = np.sort(rng.choice(space.N, min(30, space.N), replace=False))
    single = Points.one_at_a_time(base, columns, np.ones(len(columns)))
    compare(space, single)
    compare(space, Points.one_at_a_time(0 * base, columns, np.ones(len(columns))))
    rows = np.sort(rng.integers(0, 5, 3 * space.N))
    pairs = np.unique(np.stack([rows, rng.integers(0, space.N, len(rows))]), axis=1)
    values = rng.normal(size=pairs.shape[1])
    compare(space, Points(5, base, pairs[0], pairs[1], values))
    # Changes of one point need not be sorted by coordinate.
    order = np.lexsort((-pairs[1], pairs[0]))
    compare(space, Points(5, 0 * base, *pairs[:, order], values[order]))


@pytest.mark.parametrize(("build", "shape", "faults"), SHORT + WHOLE, ids=named)
def test_chunks_join(build, shape, faults, monkeypatch):
    space = make(build, shape, faults)
    points = sample_points(space.placements, 0, 10)
    whole = space.outputs(points)
    monkeypatch.setattr("crashsim.injection.batches._BATCH_SCALARS", 3 * space._scalars)
    np.testing.assert_allclose(space.outputs(points), whole, rtol=0, atol=1e-12)
    monkeypatch.setattr("crashsim.injection.batches._BATCH_SCALARS", 1)
    np.testing.assert_allclose(space.outputs(points), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("build", [mlp, Residual, Encoder], ids=named)
def test_other_number_types(build):
    shape = {mlp: VECTOR, Residual: IMAGE, Encoder: SERIES}[build]
    space = make(build, shape, {"hidden": NeuronCrash(0.05)})
    points = sample_points(space.placements, 0, 20)
    exact = space.outputs(points)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        outputs = space.with_dtype(dtype).outputs(points)
        np.testing.assert_allclose(outputs, exact, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "skip"), [*((name, False) for name in CONVOLUTIONS), ("plain", True)]
)
def test_crashes_are_followed_through_convolutions(name, skip, monkeypatch):
    shape, conv = CONVOLUTIONS[name]
    monkeypatch.setattr("crashsim.injection.sparse.chains.rare_limit", lambda layer: 0.1)
    build = lambda: OneConv(conv, shape, skip)  # noqa: E731
    for fault in (
        NeuronCrash(0.05),
        NeuronCrash(0.1, group="channel"),
        NeuronCrash(0.05, group=5),
        SignFlip(0.05),
        StuckAt(0.1, 0.5),
    ):
        for site in ("act", "input"):
            space = make(build, shape, {site: fault})
            if site == "act":
                assert "struck inputs alone are subtracted in conv" in space.plan()[0]
            compare(space, sample_points(space.placements, 0, 40))
            base = np.random.default_rng(1).uniform(0, 0.3, space.N)
            pairs = np.random.default_rng(0).integers(0, [[5], [space.N]], (2, 2 * space.N))
            pairs = np.unique(pairs, axis=1)
            compare(space, Points(5, base, *pairs, np.ones(pairs.shape[1])))
            every = np.arange(space.N)
            compare(space, Points.one_at_a_time(base, every, np.ones(space.N)))


@pytest.mark.parametrize(
    ("build", "shape", "faults"),
    [
        (mlp, VECTOR, {"weights": WeightCrash(0.001), "hidden": NeuronCrash(0.002)}),
        (Residual, IMAGE, {"weights": WeightCrash(0.001), "relu#1": NeuronCrash(0.001)}),
        (Twice, VECTOR, {"first.*": WeightCrash(0.002), "act#1": NeuronCrash(0.01)}),
        (Tokens, SERIES, {"qkv.*": WeightCrash(0.002), "down.*": WeightCrash(0.002)}),
        (Tokens, SERIES, {"down.bias": WeightCrash(0.05), "head.*": WeightCrash(0.02)}),
        (Convs, IMAGE, {"up.*": WeightCrash(0.005), "flat.*": WeightCrash(0.005)}),
        (FlatConv, IMAGE, {"weights": WeightCrash(0.003), "body.0": SignFlip(0.001)}),
    ],
    ids=named,
)
def test_unaffected_samples_are_left_out(build, shape, faults, monkeypatch):
    monkeypatch.setattr(
        "crashsim.injection.sparse.affected_samples._ACCOUNT", -1e12
    )  # however little it spares
    space = make(build, shape, faults)
    points = sample_points(space.placements, 0, 100)
    struck = np.unique(points.rows)
    assert 10 < len(struck) < 100
    program = space.strategies.program()
    changes = space.strategies.changes_of(points)
    reference = program.reference(space.examples, changes)
    assert reference.clean is not None
    affected = program._affected(changes, 100)
    for node in program._traced.nodes:
        if node in affected.after:
            assert set(affected.before[node]) <= set(affected.after[node])
    assert set(struck) <= set(affected.after[program._traced.output])
    wanted = compare(space, points)
    unaffected = np.setdiff1d(np.arange(100), struck)
    np.testing.assert_allclose(wanted[unaffected], space.clean()[None].repeat(len(unaffected), 0))
    monkeypatch.setattr("crashsim.injection.batches._BATCH_SCALARS", 40 * space._scalars)
    compare(space, points)


def test_unaffected_samples_are_left_out_where_that_spares_much():
    def leaves_out(p, width, count, batch=1):
        space = make(lambda: mlp((6, 9, width, width, 3)), VECTOR, {"act1": NeuronCrash(p)}, batch)
        changes = space.strategies.changes_of(sample_points(space.placements, 0, count))
        return space.strategies.program().reference(space.examples, changes).clean is not None

    assert leaves_out(0.01, 200, 1000)
    assert leaves_out(0.01, 200, 200, batch=8)
    assert not leaves_out(0.01, 200, 200)
    assert not leaves_out(0.01, 20, 1000)
    assert not leaves_out(0.3, 200, 1000)


@pytest.mark.parametrize(
    ("faults", "whole"),
    [
        ({"input": NeuronCrash(0.3)}, {0, 1}),
        ({"encoder.layers.0": NeuronCrash(0.3)}, {0, 1}),
        ({"encoder.layers.0:relu": NeuronCrash(0.3)}, {1}),
        ({"encoder.layers.1.linear1": SignFlip(0.3)}, {0}),
        ({"encoder.layers.1.linear1.bias": SignFlip(0.03)}, {0}),
        ({"hidden": NeuronCrash(0.3)}, set()),
    ],
    ids=named,
)
def test_encoder_layers_without_faults_inside_keep_their_kernel(faults, whole):
    space = make(Encoder, SERIES, faults)
    program = space.strategies.program()
    assert isinstance(program, Program)
    called = {str(node.target) for node in program._traced.nodes if node.op == "call_module"}
    assert {i for i in (0, 1) if f"encoder.layers.{i}" in called} == whole
    compare(space, sample_points(space.placements, 0, 30))


def test_tied_weights_are_patched():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    space = make(Tied, VECTOR, {"a.weight": WeightCrash(0.02)})
    assert "other parts of the model read it too" in space.plan()[0]


def test_a_model_that_reads_its_weights_itself():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x) @ self.a.weight))

    space = make(Reads, VECTOR, {"a.weight": WeightCrash(0.02)})
    assert "other parts of the model read it too" in space.plan()[0]
    compare(space, sample_points(space.placements, 0, 30))


def test_the_plan_says_why():
    def line(build, shape, faults):
        return make(build, shape, faults).plan()[0]

    net = lambda: mlp((6, 200, 20, 3))  # noqa: E731
    crash = line(net, VECTOR, {"act1": NeuronCrash(0.01)})
    assert "struck inputs alone are subtracted in linear2: about 2 of 200" in crash
    assert "what comes before is computed once" in crash
    assert "masked" in line(net, VECTOR, {"act1": NeuronCrash(0.5)})
    weights = line(net, VECTOR, {"linear2.weight": WeightCrash(0.01)})
    assert "added to the layer's output: about 40 of 4000" in weights
    assert "torch.fx cannot trace it" in line(Untraceable, VECTOR, {"act": NeuronCrash(0.1)})
    many = line(net, VECTOR, {"linear2.weight": WeightCrash(0.5)})
    assert "stacked, many samples in one pass" in many
    assert "too many of its weights change" in many


def test_the_users_model_and_its_hooks_are_left_alone():
    net = seeded(mlp)
    net.act1.register_forward_hook(lambda _, __, out: out * 2)
    before = {name: p.clone() for name, p in net.named_parameters()}
    hooks = {name: len(m._forward_hooks) for name, m in net.named_modules()}
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    space = FaultSpace(net, x, {"hidden": NeuronCrash(0.05)})
    compare(space, sample_points(space.placements, 0, 30))
    assert hooks == {name: len(m._forward_hooks) for name, m in net.named_modules()}
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("hidden", ["hook of the model", "pre-hook of the model", "forward"])
def test_what_a_trace_does_not_see_is_run_as_it_is(scale, hidden, randn):
    """However small the outputs: closed form, for the readout is linear in the faults."""
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 2))).float()
    x = randn(3, 4)
    with torch.no_grad():
        net[2].weight.mul_(scale)
        net[2].bias.zero_()
    last, gain = net[2], 3.0
    if hidden == "hook of the model":
        net.register_forward_hook(lambda module, given, out: gain * out)
    elif hidden == "forward":
        usual = last.forward
        last.forward = lambda h: gain * usual(h)
    else:
        gain = 1.0
        net.register_forward_pre_hook(lambda module, given: (given[0] / 2,))
    h = net[1](net[0](x / 2 if hidden == "pre-hook of the model" else x)).detach().double()
    p, weight = 0.2, gain * last.weight.detach().double()
    truth = p * (1 - p) * (h**2 @ (weight**2).T).numpy()
    space = FaultSpace(net, x, NeuronCrash(p), "1")
    np.testing.assert_allclose(enumerate_space(space).variance, truth, rtol=1e-5)
    found = monte_carlo(space, samples=4000)
    np.testing.assert_allclose(found.variance, truth, rtol=0.15)
