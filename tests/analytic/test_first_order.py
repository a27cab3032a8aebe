"""Theory's estimates: orders of convergence, closed forms, and what they are exact for."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from crashsim import (
    AdditiveNoise,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    SignFlip,
    WeightCrash,
    enumerate_exact,
    monte_carlo,
    score,
)
from crashsim.analytic.first_order import (
    Analysis,
    double_precision,
    mean_point_single,
    mean_point_taylor,
    single,
    tails,
    taylor,
)
from crashsim.files.data import load_data
from crashsim.results.estimates import values_of
from crashsim.training.classifier import Recipe, train_classifier

METHODS = {
    "taylor": taylor,
    "single": single,
    "mean-point-taylor": mean_point_taylor,
    "mean-point-single": mean_point_single,
}


def estimates(method, net, x, faults, sites="hidden"):
    analysis = Analysis()
    METHODS[method](FaultSpace(net, x, faults, sites).with_dtype(torch.float64), analysis)
    return tuple(values_of(analysis.estimates, method, q) for q in ("mean", "variance"))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_single_is_exact_to_first_order_in_p(activation, make_net, watch, randn):
    """The error falls as p^2: its slope on a log-log plot is 2."""
    net, x = watch(make_net((3, 5, 4, 2), activation, seed=1, scale=2.0)), randn(2, 3)
    rates = np.array([1e-2, 1e-3, 1e-4])
    errors = {"mean": [], "variance": []}
    for p in rates:
        law = enumerate_exact(net, x, NeuronCrash(p))
        mean, variance = estimates("single", net, x, NeuronCrash(p))
        errors["mean"].append(np.abs(mean - law.mean).max())
        errors["variance"].append(np.abs(variance - law.variance).max())
    for quantity, error in errors.items():
        assert error[0] > 1e-6, quantity  # there is an error to fall
        slope = np.polyfit(np.log(rates), np.log(error), 1)[0]
        assert slope == pytest.approx(2, abs=0.1), (quantity, error)


def test_taylor_is_not_exact_to_first_order(make_net, randn):
    net, x = make_net((3, 5, 4, 2), seed=1, scale=2.0), randn(2, 3)
    errors = []
    for p in (1e-3, 1e-4):
        law = enumerate_exact(net, x, NeuronCrash(p))
        errors.append(np.abs(estimates("taylor", net, x, NeuronCrash(p))[0] - law.mean).max())
    assert np.log10(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


def test_orders_in_the_size_of_the_displacements(make_net, randn):
    """With noise of deviation s, everything neglected is of higher order in s."""
    net, x = make_net((2, 3, 2), seed=1, scale=2.0), randn(2, 2)
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in net.parameters())
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    sizes = np.array([0.2, 0.1, 0.05])
    errors = {"taylor": [], "mean-point-single": []}
    for s in sizes:
        # Noise at the two inputs, integrated on a grid.
        e = s * np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
        weight = np.outer(weights, weights).ravel()
        noisy = x.double().numpy()[None] + e[:, None]
        out = np.tanh(noisy @ w1.T + b1) @ w2.T + b2
        mean = np.tensordot(weight, out, 1)
        variance = np.tensordot(weight, (out - mean) ** 2, 1)
        for method, error in errors.items():
            found = estimates(method, net, x, AdditiveNoise(float(s)), "input")[1]
            error.append(np.abs(found - variance).max())
    for method, error in errors.items():
        slope = np.polyfit(np.log(sizes), np.log(error), 1)[0]
        assert slope > 3.5, (method, error)  # of Var itself: 2


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_mean_point_single_is_exact_for_additive_outputs(p, seeded, watch, randn):
    """Two blocks of inputs, each coordinate with a nonlinearity of its own."""

    class Additive(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.b(torch.sin(3 * h) + h**2)  # each h_i on its own

    net, x = watch(seeded(Additive)), randn(3, 4)
    law = enumerate_exact(net, x, NeuronCrash(p))
    mean, variance = estimates("mean-point-single", net, x, NeuronCrash(p))
    np.testing.assert_allclose(mean, law.mean, atol=1e-12)
    np.testing.assert_allclose(variance, law.variance, atol=1e-12)
    assert law.variance.max() > 1e-3
    off = np.abs(estimates("taylor", net, x, NeuronCrash(p))[1] - law.variance).max()
    assert off > 1e-3  # the derivatives alone would not do


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("fault", "site"),
    [(NeuronCrash(0.3), "act1"), (SignFlip(0.2), "act1"), (WeightCrash(0.3), "linear2.weight")],
)
def test_all_are_exact_where_the_rest_is_linear(method, fault, site, make_net, randn):
    net, x = make_net((3, 4, 2), "relu"), randn(3, 3)
    law = enumerate_exact(net, x, fault, site)
    mean, variance = estimates(method, net, x, fault, site)
    np.testing.assert_allclose(mean, law.mean, atol=1e-12)
    np.testing.assert_allclose(variance, law.variance, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("law", [GainNoise, AdditiveNoise])
def test_gaussian_laws_on_a_linear_net(method, law, make_net, randn):
    net, x = make_net((4, 5, 2), "linear"), randn(3, 4)
    mean, variance = estimates(method, net, x, law(0.3), "input")
    w = (net.linear2.weight @ net.linear1.weight).detach().double().numpy()
    size = x.double().numpy() if law is GainNoise else np.ones((3, 4))
    np.testing.assert_allclose(variance, 0.09 * size**2 @ (w**2).T, rtol=1e-5)
    np.testing.assert_allclose(mean, 0, atol=1e-7)


def test_gaussian_tails_of_a_linear_net(make_net, randn):
    net, x = make_net((4, 2)), randn(3, 4)
    result = score(
        net, x, GainNoise(0.3), "input", epsilon=0.5, methods=["saddlepoint", "chernoff"]
    )
    w = net.linear1.weight.detach().double().numpy()
    deviation = 0.3 * np.sqrt(x.double().numpy() ** 2 @ (w**2).T)
    wanted = 2 * stats.norm.sf(0.5 / deviation)
    found = values_of(result.estimates, "saddlepoint", "tail")
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert (values_of(result.estimates, "chernoff", "tail") >= found).all()


def test_sums_over_a_layers_inputs_and_weights_agree(make_net, randn):
    """sum_i a_i df/da_i is the same over a layer's inputs and over its weights."""
    net, x = make_net((3, 6, 5, 2), dtype=torch.float64), randn(4, 3, dtype=torch.float64)
    for neurons, weights in (("act1", "linear2.weight"), ("act2", "linear3.weight")):
        sums = []
        for site, fault in ((neurons, NeuronCrash(0.1)), (weights, WeightCrash(0.1))):
            space = FaultSpace(net, x, fault, site)
            gradient = np.concatenate([rows for _, rows in space.gradients(np.zeros(space.N))])
            sums.append(gradient.sum(2))
        np.testing.assert_allclose(*sums, atol=1e-12)
        assert np.abs(sums[0]).max() > 0.01


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("method", ["mean-point-taylor", "mean-point-single"])
def test_certain_faults_are_exact(p, method, make_net, randn):
    net, x = make_net((3, 4, 4, 2), scale=2), randn(3, 3)
    law = enumerate_exact(net, x, NeuronCrash(p))
    mean, variance = estimates(method, net, x, NeuronCrash(p))
    np.testing.assert_allclose(mean, law.mean, atol=1e-12)
    assert (variance == 0).all()
    methods = ["exact", "saddlepoint", "monte-carlo", *METHODS]
    result = score(net, x, NeuronCrash(p), samples=50, methods=methods)
    exact = [e for e in result.estimates if e.method == "exact"]
    for e in result.estimates:
        if e.method == method:
            assert e.kind == "exact"
        if e.method in (method, "saddlepoint", "monte-carlo"):
            twins = [
                t
                for t in exact
                if (t.quantity, t.input, t.output) == (e.quantity, e.input, e.output)
            ]
            assert all(e.value == pytest.approx(t.value, abs=1e-6) for t in twins)


def test_tails_of_a_linear_network(make_net, randn):
    """Saddlepoint within a factor of 3, the bounds above, down to 1e-5."""
    net, x = make_net((3, 16, 2), "tanh", seed=5, scale=2), randn(3, 3)
    p = 0.05
    law = enumerate_exact(net, x, NeuronCrash(p))
    space = FaultSpace(net, x, NeuronCrash(p)).with_dtype(torch.float64)
    analysis = Analysis()
    mean_point_single(space, analysis)
    size = np.sort(np.abs(law.deltas[:, 0, 0]))
    seen = 0
    for epsilon in np.linspace(0.2, 0.99, 9) * size[-1]:
        names = ("saddlepoint", "chernoff", "chebyshev")
        found = [e for m in names for e in tails(m, analysis, None, float(epsilon))]
        truth = law.tail(float(epsilon))
        values = {m: values_of(found, m, "tail") for m in names}
        room = 1 + 1e-9
        assert (values["chernoff"] * room + 1e-15 >= truth).all()
        assert (values["chebyshev"] * room + 1e-15 >= truth).all()
        rare = (truth > 1e-5) & (truth < 0.05)
        seen += rare.sum()
        ratio = values["saddlepoint"][rare] / truth[rare]
        assert (ratio < 3).all(), ratio
        assert (ratio > 1 / 3).all(), ratio
    assert seen > 10


def test_what_needs_a_fault_is_no_likelier_than_one(make_net, randn):
    """Of a sum that is hardly ever struck the saddlepoint says a billion times too much."""
    net, x = make_net((3, 4, 2), "tanh", seed=5, scale=2), randn(2, 3)
    p = 1e-12
    law = enumerate_exact(net, x, NeuronCrash(p))
    analysis = Analysis()
    mean_point_single(FaultSpace(net, x, NeuronCrash(p)).with_dtype(torch.float64), analysis)
    smallest = 0.5 * float(np.abs(analysis.surrogate.gains[:, 0]).min())
    assert values_of(
        tails("saddlepoint", analysis, None, smallest), "saddlepoint", "tail"
    ).max() > (1e6 * law.tail(smallest).max())
    found = score(net, x, NeuronCrash(p), epsilon=smallest, methods=["saddlepoint"]).estimates
    tail = values_of(found, "saddlepoint", "tail")[:, 0]
    assert law.tail(smallest)[:, 0] == pytest.approx(4 * p, rel=1e-3)
    assert tail == pytest.approx(4 * p, rel=1e-3)
    assert values_of(found, "saddlepoint", "class-change").max() <= 4 * p * (1 + 1e-9)


def test_class_change_bounds_of_a_linear_tail(make_net, randn):
    net, x = make_net((3, 12, 3), "tanh", seed=3, scale=2), randn(6, 3)
    law = enumerate_exact(net, x, NeuronCrash(0.1))
    result = score(net, x, NeuronCrash(0.1), methods=["chernoff", "chebyshev", "saddlepoint"])
    for method in ("chernoff", "chebyshev"):
        found = values_of(result.estimates, method, "class-change")[:, 0]
        assert (found * (1 + 1e-9) >= law.class_change).all()
    assert law.class_change.max() > 0.01
    found = values_of(result.estimates, "saddlepoint", "class-change")[:, 0]
    likely = law.class_change > 1e-3
    assert (found[likely] < 3 * law.class_change[likely]).all()
    assert (found[likely] > law.class_change[likely] / 3).all()


def test_shares_are_those_of_the_variance(make_net, randn):
    net, x = make_net((3, 6, 2)), randn(4, 3)
    space = FaultSpace(net, x, NeuronCrash(0.2)).with_dtype(torch.float64)
    for method in (mean_point_taylor, mean_point_single):
        analysis = Analysis()
        method(space, analysis)
        w = net.linear2.weight.detach().double().numpy()
        h = torch.tanh(net.linear1(x)).detach().double().numpy()
        wanted = (h**2).sum(0) * (w**2).sum(0)
        np.testing.assert_allclose(analysis.shares, wanted / wanted.sum(), rtol=1e-6)
        law = enumerate_exact(net, x, NeuronCrash(0.2))
        np.testing.assert_allclose(analysis.covariance, law.covariance.mean(0), atol=1e-7)


def test_a_wide_network_at_a_high_rate(watch):
    """64-1000-50-10 tanh at p = 0.1: the mean point is right where the clean point is not."""
    data = load_data("digits", "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(64, 1000), nn.Tanh(), nn.Linear(1000, 50), nn.Tanh(), nn.Linear(50, 10)
        )
    train_classifier(net, data, Recipe(epochs=8, learning_rate=1e-3))
    watch(net)
    space = FaultSpace(net, load_data("digits").first(16).inputs, NeuronCrash(0.1))
    assert space.N == 1050
    truth = monte_carlo(space, samples=4000)
    total = next(
        e for e in truth.estimates if (e.quantity, e.input, e.output) == ("variance", "all", "all")
    )
    off = {}
    for method in ("taylor", "mean-point-taylor"):
        analysis = Analysis()
        METHODS[method](space, analysis)
        found = values_of(analysis.estimates, method, "variance").sum(1).mean()
        off[method] = abs(found / total.value - 1)
    noise = (total.high - total.low) / 2 / total.value
    print(f"relative errors {off}, Monte Carlo's half-width {noise:.4f}")
    assert noise < 0.02
    assert off["mean-point-taylor"] < 0.02
    assert off["taylor"] > 0.04


class Lowering(torch.nn.Module):
    """Computes in bfloat16, whatever it is converted to."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
        )

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x.float()).to(x.dtype)


def test_a_model_that_is_another_one_in_double_precision_keeps_its_type(seeded, randn):
    space = FaultSpace(seeded(Lowering), randn(4, 3), NeuronCrash(0.1), "net.1")
    assert double_precision(space) is space
    plain = FaultSpace(seeded(Lowering).net, randn(4, 3), NeuronCrash(0.1), "1")
    assert double_precision(plain).dtype == torch.float64
