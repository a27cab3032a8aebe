"""Exactly k faults: against the sum over all choices, written here, and closed forms."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import (
    AdditiveNoise,
    BitFlip,
    CrashsimError,
    CrashTraining,
    CrashVariance,
    FaultSpace,
    NeuronCrash,
    SignFlip,
    StuckAt,
    WeightCrash,
    enumerate_exact,
    score,
)
from crashsim.analytic.first_order import (
    Analysis,
    mean_point_single,
    mean_point_taylor,
    single,
    taylor,
)
from crashsim.cli.fault_specs import parse_fault
from crashsim.coordinates.counts import Count
from crashsim.coordinates.drawing import sample_points
from crashsim.sampling.monte_carlo import monte_carlo


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)
        return nn.Sequential(*layers).double().eval()


@pytest.fixture
def x():
    rng = torch.Generator().manual_seed(3)
    return torch.randn(7, 5, generator=rng, dtype=torch.float64)


def masked(net, x, dead):
    """The outputs with these hidden neurons dead, of (6 of the first layer, 4 of the second)."""
    with torch.no_grad():
        first = torch.relu(net[0](x))
        first[:, [i for i in dead if i < 6]] = 0
        second = torch.tanh(net[2](first))
        second[:, [i - 6 for i in dead if i >= 6]] = 0
        return net[4](second).numpy()


def moments(outputs, clean):
    """Mean and variance of Delta (B, K), and the share of changed classes (B,)."""
    delta = np.stack(outputs) - clean
    changed = (np.stack(outputs).argmax(-1) != clean.argmax(-1)).mean(0)
    return delta.mean(0), delta.var(0), changed


@pytest.mark.parametrize("k", [0, 1, 3, 9, 10])
def test_k_of_all_sites_together(net, x, k):
    mean, variance, changed = moments(
        [masked(net, x, dead) for dead in combinations(range(10), k)], masked(net, x, ())
    )
    law = enumerate_exact(net, x, NeuronCrash(count=k))
    assert np.allclose(law.mean, mean)
    assert np.allclose(law.variance, variance)
    assert np.allclose(law.class_change, changed)
    if 0 < k < 10:
        assert variance.max() > 1e-3
        run = monte_carlo(FaultSpace(net, x, NeuronCrash(count=k)), samples=20_000, seed=1)
        assert np.allclose(run.mean, mean, atol=5 * np.sqrt(variance.max() / 20_000))
        assert np.allclose(run.variance, variance, atol=0.04 * variance.max())


def test_k_of_each_site(net, x):
    pairs = product(combinations(range(6), 2), combinations(range(6, 10), 2))
    mean, variance, changed = moments([masked(net, x, a + b) for a, b in pairs], masked(net, x, ()))
    law = enumerate_exact(net, x, NeuronCrash(count=2, per="site"))
    assert len(law.probabilities) == 15 * 6
    assert np.allclose(law.mean, mean)
    assert np.allclose(law.variance, variance)
    assert np.allclose(law.class_change, changed)
    assert not np.allclose(enumerate_exact(net, x, NeuronCrash(count=4)).variance, variance)
    space = FaultSpace(net, x, NeuronCrash(count=2, per="site"))
    e = sample_points(space.placements, 0, 3000).dense()
    assert (e[:, :6].sum(1) == 2).all()
    assert (e[:, 6:].sum(1) == 2).all()


def test_one_fault_is_exact_by_single(net, x):
    law = enumerate_exact(net, x, NeuronCrash(count=1))
    found = Analysis()
    single(FaultSpace(net, x, NeuronCrash(count=1)), found)
    values = {(e.quantity, e.input, e.output): e.value for e in found.estimates}
    for b, o in np.ndindex(law.mean.shape):
        assert values["mean", b, o] == pytest.approx(law.mean[b, o], rel=1e-9, abs=1e-12)
        assert values["variance", b, o] == pytest.approx(law.variance[b, o], rel=1e-9)


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (NeuronCrash(count=3), "3"),
        (StuckAt(count=3, value=0.5), "3"),
        (SignFlip(count=2), "3"),
        (WeightCrash(count=5), "4.weight"),
        (BitFlip(count=7, bits=2), "4.weight"),
    ],
)
def test_a_linear_readout_has_the_hypergeometric_variance(net, x, fault, where):
    space = FaultSpace(net, x, fault, where)
    n, k = space.N, fault.count
    singles = [space.at_faults([strike]).outputs for strike in every(space)]
    g = np.stack(singles, -1) - space.clean()[..., None]
    wanted = k * (n - k) / (n * (n - 1)) * ((g - g.mean(-1, keepdims=True)) ** 2).sum(-1)
    assert wanted.max() > 1e-4
    for method in (taylor, single, mean_point_taylor, mean_point_single):
        found = Analysis()
        method(space, found)
        for name, right in (("mean", k * g.mean(-1)), ("variance", wanted)):
            values = np.zeros_like(right)
            for e in found.estimates:
                if e.quantity == name and e.input != "all":
                    values[e.input, e.output] = e.value
            assert np.allclose(values, right, rtol=1e-9, atol=1e-12), (method, name)
        assert found.surrogate is None
        if found.covariance is not None:
            assert np.allclose(np.diag(found.covariance), wanted.mean(0))
    run = monte_carlo(space, samples=20_000)
    assert np.allclose(run.variance, wanted, rtol=0.08)


def every(space):
    (p,) = space.placements
    shape = p.fault.coordinate_shape(p.shape)
    return [(p.site.name, np.unravel_index(i, shape)) for i in range(p.size)]


def test_beside_independent_faults(net, x):
    """Of a linear readout the variances add up, and exact knows both."""
    own = {"3": NeuronCrash(count=2)}, {"input": NeuronCrash(0.0)}, {"4.bias": AdditiveNoise(0.3)}
    space = FaultSpace(net, x, {**own[0], **own[2]})
    alone = enumerate_exact(net, x, own[0]).variance
    for method in (taylor, single, mean_point_taylor, mean_point_single):
        found = Analysis()
        method(space, found)
        values = [e.value for e in found.estimates if e.quantity == "variance" and e.input != "all"]
        assert np.allclose(values, (alone + 0.09).ravel())
    mixed = enumerate_exact(net, x, {"1": NeuronCrash(0.3), "3": NeuronCrash(count=2)})
    weights, deltas = [], []
    for struck, dead in product(product([0, 1], repeat=6), combinations(range(6, 10), 2)):
        weights.append(np.prod([0.3 if s else 0.7 for s in struck]) / 6)
        first = tuple(i for i in range(6) if struck[i])
        deltas.append(masked(net, x, first + dead) - masked(net, x, ()))
    mean = np.tensordot(weights, deltas, 1)
    assert np.allclose(mixed.mean, mean)
    assert np.allclose(mixed.variance, np.tensordot(weights, (np.stack(deltas) - mean) ** 2, 1))


@pytest.mark.parametrize(("n", "k"), [(6, 1), (6, 2), (6, 3), (6, 5), (12, 2), (9, 9), (5, 0)])
def test_all_choices_are_alike(n, k):
    count = Count(k, 10, 10 + n)
    drawn = count.draw(np.random.default_rng(0), 30_000)
    patterns, found = np.unique(drawn, axis=0, return_counts=True)
    assert patterns.tolist() == count.every().tolist()
    assert len(patterns) == count.patterns
    expected = 30_000 / count.patterns
    chi = ((found - expected) ** 2 / expected).sum()
    assert chi <= count.patterns - 1 + 5 * np.sqrt(2 * count.patterns)


def test_many_coordinates():
    for k in (3, 2000, 9000):
        drawn = Count(k, 0, 10_000).draw(np.random.default_rng(1), 20)
        assert (np.diff(drawn, axis=1) > 0).all()
        assert abs(drawn.mean() / 4999.5 - 1) < 5 / np.sqrt(3 * drawn.size)


def test_others_are_drawn_as_without_them(net, x):
    alone = FaultSpace(net, x, {"1": NeuronCrash(0.3)})
    both = FaultSpace(net, x, {"1": NeuronCrash(0.3), "3": NeuronCrash(count=2)})
    e = sample_points(both.placements, 4, 2000).dense()
    assert (e[:, :6] == sample_points(alone.placements, 4, 2000).dense()).all()
    assert abs(np.corrcoef(e[:, :6].sum(1), e[:, 6])[0, 1]) < 0.1


def test_what_is_for_independent_faults_says_so(net, x):
    fault = NeuronCrash(count=2)
    asked = ["chernoff", "importance-sampling", "pairs", "monte-carlo", "certificate", "norm"]
    found = score(net, x, fault, epsilon=0.2, delta=0.1, methods=asked, samples=500)
    assert {e.method for e in found.estimates} == {"monte-carlo"}
    for name in set(asked) - {"monte-carlo"}:
        assert "independently" in found.skipped[name]
    plain = found.to_dict()["faults"]
    assert [(f["count"], f["of"], f["p"]) for f in plain] == [(2, 10, 0.2)] * 2
    assert "exactly 2 of 10 neuron-crash" in found.verdict
    space = FaultSpace(net, x, fault)
    with pytest.raises(CrashsimError, match="few_exact"):
        monte_carlo(space, few_exact=True)
    control = Analysis()
    mean_point_taylor(FaultSpace(net, x, NeuronCrash(0.2)), control)
    with pytest.raises(CrashsimError, match="control"):
        monte_carlo(space, control=control.surrogate)
    with pytest.raises(CrashsimError, match="with_faults"):
        space.with_faults([NeuronCrash(0.1)] * 2)
    for train in (CrashTraining, CrashVariance):
        with pytest.raises(CrashsimError, match="count"):
            train(net, fault)
    with pytest.raises(CrashsimError, match="at most as many"):
        FaultSpace(net, x, NeuronCrash(count=11))


def test_many_patterns_are_not_enumerated(net, x):
    with pytest.raises(CrashsimError, match="too many"):
        enumerate_exact(net, x, WeightCrash(count=5), "*.weight")
    assert enumerate_exact(net, x, WeightCrash(count=1), "*.weight").probabilities.size == 66


def test_on_the_command_line():
    assert parse_fault("neuron-crash:count=3")[1] == NeuronCrash(count=3)
    assert parse_fault("neuron-crash:count=3", default_p=0.01)[1] == NeuronCrash(count=3)
    where, fault = parse_fault("conv*=bit-flip:count=2,per=site,bits=4")
    assert (where, fault) == ("conv*", BitFlip(count=2, per="site", bits=4))
    for spec in ("neuron-crash:count=1.5", "neuron-crash:count=3,p=0.1", "weight-crash"):
        with pytest.raises(CrashsimError, match=r"count|weight-crash:p"):
            parse_fault(spec)
    assert crashsim.NeuronCrash(count=3).to_dict() == {
        "fault": "neuron-crash",
        "count": 3,
        "group": "unit",
    }


class Loop(nn.Module):
    """A functional activation that runs in three steps."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.Linear(7, 4), nn.Linear(4, 3)

    def forward(self, x, masks=None):
        h = x.new_zeros(len(x), 4)
        for step in range(3):
            h = torch.tanh(self.cell(torch.cat([x[:, step], h], 1)))
            h = h if masks is None else h * masks[step]
        return self.out(h)


@pytest.mark.parametrize("duration", ["permanent", "transient"])
def test_neurons_over_steps(duration):
    """A permanent fault counts a neuron once, a transient one each of its steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = Loop().double().eval()
    x = torch.linspace(-2, 2, 18, dtype=torch.float64).view(2, 3, 3)
    outputs = []
    with torch.no_grad():
        for dead in combinations(range(4 if duration == "permanent" else 12), 2):
            masks = torch.ones(3, 4, dtype=torch.float64)
            for i in dead:
                masks[slice(None) if duration == "permanent" else i // 4, i % 4] = 0
            outputs.append(net(x, masks).numpy())
        mean, variance, _ = moments(outputs, net(x).numpy())
    law = enumerate_exact(net, x, NeuronCrash(count=2, duration=duration))
    assert variance.max() > 1e-3
    assert np.allclose(law.mean, mean)
    assert np.allclose(law.variance, variance)
