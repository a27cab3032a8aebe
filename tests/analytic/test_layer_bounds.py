"""b1 and b2 are never below the enumerated |E Delta|, whatever the small network."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crashsim import FaultSpace, GainNoise, NeuronCrash, WeightCrash, monte_carlo
from crashsim.analytic.layer_bounds import layer_bounds
from crashsim.errors import NotApplicableError
from crashsim.results.estimates import values_of
from crashsim.sampling.enumeration import enumerate_space

MODULES = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "selu": nn.SELU,
    "elu": nn.ELU,
    "hardswish": nn.Hardswish,
    "leaky": lambda: nn.LeakyReLU(0.3),
    "none": nn.Identity,
}


def check(space):
    """Both bounds hold for every input and output, and b1 is no sharper than b2."""
    truth = np.abs(enumerate_space(space).mean)
    found = layer_bounds(space)
    absolute, norm = (values_of(found, m, "mean") for m in ("absolute", "norm"))
    assert (absolute >= truth * (1 - 1e-4) - 1e-6).all(), (absolute, truth)
    assert (norm >= absolute * (1 - 1e-4) - 1e-6).all(), (norm, absolute)
    return truth, absolute


def draw_net(build, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_()
        return net


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    activation=st.sampled_from(sorted(MODULES)),
    sizes=st.lists(st.integers(1, 3), min_size=3, max_size=5),
    p=st.sampled_from([0.01, 0.1, 0.5, 0.9, 1.0]),
    where=st.sampled_from(["hidden", "input", "both", "weights"]),
    seed=st.integers(0, 10_000),
)
def test_random_feed_forward_nets(activation, sizes, p, where, seed):
    def build():
        layers = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), MODULES[activation]()]
        return nn.Sequential(*layers[:-1])

    net = draw_net(build, seed)
    x = torch.randn(2, sizes[0], generator=torch.Generator().manual_seed(seed))
    faults = {
        "hidden": {"[0-9]*": NeuronCrash(p)}
        if activation == "none"
        else {"hidden": NeuronCrash(p)},
        "input": {"input": NeuronCrash(p)},
        "both": {"input": NeuronCrash(p), "0": NeuronCrash(p / 2)},
        "weights": {"0.weight": WeightCrash(p), "input": NeuronCrash(p)},
    }[where]
    space = FaultSpace(net, x, faults)
    if space.N <= 12:
        check(space)


class Pooling(nn.Module):
    def __init__(self, pool, channels=2):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 2, padding=1)
        self.pool, self.head = pool, nn.LazyLinear(2)

    def forward(self, x):
        return self.head(torch.flatten(self.pool(F.leaky_relu(self.conv(x))), 1))


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d((3, 1)),
        nn.MaxPool2d(2, padding=1),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_pooling(pool, seed, randn):
    def build():
        net = Pooling(pool)
        net(torch.zeros(1, 1, 2, 2))
        return net

    net = draw_net(build, seed)
    check(FaultSpace(net, randn(2, 1, 2, 2, seed=seed), NeuronCrash(0.4), "input"))


class FromMap(nn.Module):
    """Wraps a function of the hidden layer between two linear layers."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 4), nn.LazyLinear(2), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h + h,
        lambda h: h + torch.relu(h),
        lambda h: torch.relu(h) + 1,
        lambda h: torch.cat([h, torch.tanh(h)], dim=1),
        lambda h: torch.cat((h, h), 1),
        lambda h: h.view(-1, 2, 2).transpose(1, 2).flatten(1),
        lambda h: h.mean(1, keepdim=True),
        lambda h: F.avg_pool1d(h, 2),
        lambda h: F.leaky_relu(h, 0.5) + F.softplus(h),
    ],
)
def test_functions(function):
    def build():
        net = FromMap(function)
        net(torch.zeros(1, 4))
        return net

    for seed in range(3):
        net = draw_net(build, seed)
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
        truth, _ = check(FaultSpace(net, x, {"input": NeuronCrash(0.3), "a": NeuronCrash(0.2)}))
        assert truth.max() > 0.01


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h * h,
        lambda h: h * 3,
        lambda h: torch.add(h, h, alpha=3),
        lambda h: h + h.mean(1, keepdim=True),
        lambda h: torch.softmax(h, 1),
        lambda h: F.elu(h, 5.0),
        lambda h: F.leaky_relu(h, 2.0),
        lambda h: h - torch.relu(h),
        lambda h: h.chunk(2, 1)[1],
        lambda h: torch.max(h, 1, keepdim=True)[0],
        lambda h: F.normalize(h),
        lambda h: -h,
        lambda h: h if h.sum() > 0 else -h,
    ],
)
def test_what_has_no_known_bound_is_refused_in_one_line(function):
    def build():
        net = FromMap(function)
        net(torch.ones(1, 4))
        return net

    net = draw_net(build, 0)
    with pytest.raises(NotApplicableError) as raised:
        layer_bounds(FaultSpace(net, torch.ones(1, 4), NeuronCrash(0.3), "input"))
    assert "While executing" not in str(raised.value)


def test_a_residual_net_with_batch_norm(residual_net, watch, randn):
    net = watch(residual_net)
    # Too many coordinates to enumerate: Monte Carlo, less its own error.
    for faults in ({"input": NeuronCrash(0.3)}, {"hidden": NeuronCrash(0.1)}):
        space = FaultSpace(net, randn(2, 1, 4, 4), faults)
        found = monte_carlo(space, samples=2000)
        truth = np.abs(found.mean) - 5 * np.sqrt(found.variance / 2000)
        assert truth.max() > 0
        assert (values_of(layer_bounds(space), "absolute", "mean") > truth).all()


def test_cancelling_weights_and_kinks():
    """Where A's entries cancel, the 2-norm of A itself would be no bound."""
    n = 16
    hadamard = torch.tensor(scipy.linalg.hadamard(n), dtype=torch.float32)
    net = draw_net(
        lambda: nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 1, bias=False)), 0
    )
    with torch.no_grad():
        net[0].weight.copy_(hadamard)
        net[0].bias.copy_(-hadamard.sum(1))  # every neuron at its kink
        net[2].weight.fill_(1.0)
    p = 0.01
    truth, _ = check(FaultSpace(net, torch.ones(1, n), NeuronCrash(p), "input"))
    two_norms = p * np.sqrt(n) * np.sqrt(n) * np.sqrt(n)  # of the weights, A and the input
    assert truth[0, 0] > 1.5 * two_norms


def test_max_of_errors_adds_up():
    net = draw_net(lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.MaxPool1d(4)), 0)
    with torch.no_grad():
        net[0].weight.copy_(-torch.eye(4))
    truth, bound = check(FaultSpace(net, torch.ones(1, 1, 4), NeuronCrash(0.3), "input"))
    assert truth[0, 0] == pytest.approx(1 - 0.7**4)
    assert bound[0, 0] == pytest.approx(1.2)


@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_layers_share(shared, make_net, randn):
    net = make_net((2, 2, 2, 2), "relu", scale=2)
    if shared:
        net.linear2.weight = net.linear1.weight
    space = FaultSpace(net, randn(2, 2), WeightCrash(0.3), "linear1.weight")
    if shared:
        with pytest.raises(NotApplicableError, match="used twice"):
            layer_bounds(space)
    else:
        check(space)


@pytest.mark.parametrize(
    ("fault", "site"),
    [
        (GainNoise(0.1), "hidden"),
        (NeuronCrash(0.1, group=2), "hidden"),
        (WeightCrash(0.1), "*.bias"),
    ],
)
def test_other_faults_are_refused(fault, site, make_net, randn):
    with pytest.raises(NotApplicableError, match="defined for"):
        layer_bounds(FaultSpace(make_net((3, 4, 2)), randn(1, 3), fault, site))


def test_layers_of_several_types_are_refused(make_net, randn):
    """They are computed in one type, which the layers themselves are not of."""
    net = make_net((3, 4, 2))
    net[-1].double()
    with pytest.raises(NotApplicableError, match="one floating-point type"):
        layer_bounds(FaultSpace(net, randn(2, 3), NeuronCrash(0.1)))


def test_tracing_does_not_touch_the_model(seeded, watch, randn):
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.last = None

        def forward(self, x):
            self.calls += 1
            self.last = x
            return torch.relu(self.a(x))

    net = watch(seeded(Remembers))
    space = FaultSpace(net, randn(2, 3), NeuronCrash(0.1), "input")
    net.last = None
    layer_bounds(space)
    assert net.last is None
