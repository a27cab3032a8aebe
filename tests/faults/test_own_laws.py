"""Faults with laws of one's own: every method against closed forms and a plain injector."""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import crashsim_theory as ct
import numpy as np
import pytest
import sympy as sp
import torch
from crashsim_theory.laws import t

import crashsim
from crashsim import (
    CrashTraining,
    CrashVariance,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    Score,
    enumerate_exact,
    score,
)
from crashsim.errors import CrashsimError

W = sp.Symbol("w", positive=True)
Q = sp.Symbol("q", nonnegative=True)
UNIFORM = ct.law_from_cgf(
    "uniform",
    sp.log(sp.sinh(W * t) / (W * t)),
    draw=lambda rng, shape, w: rng.uniform(-w, w, shape),
    support=(-W, W),
)
NO_CGF = ct.law_from_moments(
    "uniform, its moments alone", mean=0, k2=W**2 / 3, k3=0, k4=W**4 / 5,
    draw=lambda rng, shape, w: rng.uniform(-w, w, shape),
)  # fmt: skip
TERNARY = ct.law_of_atoms("ternary", {-1: Q / 2, 0: 1 - Q, 2: Q / 2})
COIN = ct.law_of_atoms("coin", {-1: sp.Rational(1, 2), 1: sp.Rational(1, 2)})


class Added(crashsim.Fault):
    def displacement(self, value):
        return torch.ones_like(value)


@dataclass(frozen=True)
class UniformNoise(Added):
    law: ClassVar = UNIFORM
    parameter: ClassVar[str] = "width"
    name: ClassVar[str] = "uniform-noise"
    width: float


@dataclass(frozen=True)
class UnknownNoise(UniformNoise):
    law: ClassVar = NO_CGF


@dataclass(frozen=True)
class Glitch(crashsim.Fault):
    """A value is lost, or trebled, each with probability q / 2."""

    law: ClassVar = TERNARY
    parameter: ClassVar[str] = "q"
    name: ClassVar[str] = "glitch"
    is_elementwise: ClassVar[bool] = True
    q: float

    def displacement(self, value):
        return value


@dataclass(frozen=True)
class Jitter(Added):
    """+-size, equally likely."""

    law: ClassVar = COIN
    parameter: ClassVar[str] = "size"
    name: ClassVar[str] = "jitter"
    size: float

    def displacement(self, value):
        return self.size * torch.ones_like(value)


def draws_of(fault, rng, shape):
    """Coordinates from numpy alone."""
    if isinstance(fault, UniformNoise):
        return rng.uniform(-fault.width, fault.width, shape)
    if isinstance(fault, Glitch):
        return rng.choice([-1.0, 0.0, 2.0], shape, p=[fault.q / 2, 1 - fault.q, fault.q / 2])
    return rng.choice([-1.0, 1.0], shape)


def effect_of(fault, a):
    """The displacement, by hand."""
    return a if isinstance(fault, Glitch) else getattr(fault, "size", 1.0) * torch.ones_like(a)


def injected(net, x, fault, count, seed=5):
    """Delta (count, B, K) of faults at the hidden layer of Linear, activation, Linear."""
    hidden = net[:2](x).double()
    e = torch.from_numpy(draws_of(fault, np.random.default_rng(seed), (count, *hidden.shape[1:])))
    last = net[2].weight.double()
    moved = (hidden + e[:, None] * effect_of(fault, hidden)) @ last.T
    return (moved - hidden @ last.T).detach().numpy()


FAULTS = [UniformNoise(0.4), Glitch(0.3), Glitch(0.02), Jitter(0.2), UnknownNoise(0.4)]


@pytest.fixture
def net(make_net):
    return make_net((4, 6, 2), "tanh")


@pytest.fixture
def x(randn):
    return randn(3, 4)


def exact_variance(net, x, fault):
    """sum over hidden units of (g_i v_i)^2 Var e, (B, K)."""
    hidden = net[:2](x).double()
    k2 = {UniformNoise: 0.4**2 / 3, UnknownNoise: 0.4**2 / 3, Jitter: 1.0}.get(type(fault))
    if k2 is None:
        k2 = fault.q / 2 * 5 - (fault.q / 2) ** 2
    gains = net[2].weight.double() ** 2
    return ((effect_of(fault, hidden) ** 2) @ gains.T * k2).detach().numpy()


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_mean_and_variance_by_every_method(net, x, fault):
    right = exact_variance(net, x, fault)
    assert right.min() > 0
    found = score(net, x, fault, samples=3000, seed=1, epsilon=0.3)
    for method in ("taylor", "single", "mean-point-taylor", "mean-point-single"):
        for b, k in itertools.product(range(3), range(2)):
            value = found.find(method, "variance", input=b, output=k).value
            assert value == pytest.approx(right[b, k], rel=1e-4), (method, b, k)
    sampled = found.find("monte-carlo", "variance", output=1)
    assert sampled.low <= right[:, 1].mean() <= sampled.high
    assert not [w for w in found.warnings if "contradict" in w]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
@pytest.mark.parametrize("control", [False, True])
def test_monte_carlo_is_a_plain_injector(net, x, fault, control):
    """Without the control variate and with it, in mean, variance and tail."""
    plain = injected(net, x, fault, 40_000)
    space = FaultSpace(net, x, fault)
    analysis = crashsim.analytic.first_order.Analysis()
    crashsim.analytic.first_order.mean_point_taylor(space, analysis)
    found = crashsim.monte_carlo(
        space, samples=6000, epsilon=0.3, seed=3, confidence=0.999,
        control=analysis.surrogate if control else None,
    )  # fmt: skip
    spread = plain.var(0)
    for b, k in itertools.product(range(3), range(2)):
        mean, variance, tail = (
            next(e for e in found.estimates if (e.quantity, e.input, e.output) == (quantity, b, k))
            for quantity in ("mean", "variance", "tail")
        )
        slack = 4 * math.sqrt(spread[b, k] / len(plain))
        assert mean.low - slack <= plain[:, b, k].mean() <= mean.high + slack
        assert variance.low * 0.93 <= spread[b, k] <= variance.high * 1.07
        share = (np.abs(plain[:, b, k]) >= 0.3).mean()
        slack = 4 * math.sqrt(share * (1 - share) / len(plain)) + 1e-4
        assert tail.low - slack <= share <= tail.high + slack


@pytest.mark.parametrize("fault", [Glitch(0.02), Glitch(0.3), UniformNoise(0.2)], ids=repr)
@pytest.mark.parametrize("build", ["dense", "conv"])
def test_every_path_of_the_engine_moves_values_as_the_plain_one(make_net, randn, fault, build):
    """What FaultSpace computes at sampled points, against the layers written out by hand."""
    if build == "dense":
        net, x = make_net((4, 40, 30, 2), "relu"), randn(3, 4)
        first, rest = net[:2], net[2:]
    else:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            net = torch.nn.Sequential(
                torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Conv2d(3, 4, 3),
                torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(64, 2),
            ).eval()  # fmt: skip
        x = randn(3, 1, 8, 8)
        first, rest = net[:2], net[2:]
    space = FaultSpace(net, x, {"act1" if build == "dense" else "1": fault})
    points = crashsim.coordinates.drawing.sample_points(space.placements, 7, 60)
    e = points.dense()
    assert np.count_nonzero(e)
    hidden = first(x)
    for s in range(60):
        struck = hidden + torch.from_numpy(e[s]).float().reshape(hidden.shape[1:]) * effect_of(
            fault, hidden
        )
        right = rest(struck).detach().numpy()
        np.testing.assert_allclose(space.outputs(points.part(s, s + 1))[0], right, atol=2e-6)
    together = space.outputs(points)
    alone = np.concatenate([space.outputs(points.part(s, s + 1)) for s in range(60)])
    np.testing.assert_allclose(together, alone, atol=2e-6)


@pytest.mark.parametrize("fault", [Glitch(0.02), Glitch(0.3), Jitter(0.01)], ids=repr)
def test_faults_of_weights(make_net, randn, fault):
    net, x = make_net((4, 5, 2), "tanh"), randn(3, 4)
    space = FaultSpace(net, x, {"linear2.weight": fault})
    points = crashsim.coordinates.drawing.sample_points(space.placements, 1, 200)
    e = torch.from_numpy(points.dense()).float().reshape(200, 2, 5)
    weight = net[2].weight
    faulty = weight + e * effect_of(fault, weight)
    right = torch.einsum("bi,ski->sbk", net[:2](x), faulty) + net[2].bias
    np.testing.assert_allclose(space.outputs(points), right.detach().numpy(), atol=2e-6)
    assert np.abs(space.outputs(points) - space.clean()).max() > 1e-3


def test_a_law_whose_values_are_all_0_changes_nothing(net, x):
    law = ct.law_of_atoms("still", {-W: sp.Rational(1, 4), 0: sp.Rational(1, 2), W: 0.25})
    fault = dataclass(frozen=True)(type("Still", (UniformNoise,), {"law": law}))(0.0)
    assert not crashsim.monte_carlo(FaultSpace(net, x, fault), samples=64).variance.any()


@pytest.mark.parametrize("q", [0.004, 0.05, 0.4])
def test_draws_of_three_values(make_net, randn, q):
    net, x = make_net((4, 50, 2), "tanh"), randn(2, 4)
    space = FaultSpace(net, x, Glitch(q))
    e = crashsim.coordinates.drawing.sample_points(space.placements, 3, 4000).dense()
    for value, chance in ((-1, q / 2), (2, q / 2), (0, 1 - q)):
        slack = 4 * math.sqrt(chance * (1 - chance) / e.size)
        assert (e == value).mean() == pytest.approx(chance, abs=slack)
    again = crashsim.coordinates.drawing.sample_points(space.placements, 3, 1500).dense()
    np.testing.assert_array_equal(again, e[:1500])


@pytest.mark.parametrize("fault", [Glitch(0.3), Jitter(0.2)], ids=repr)
def test_every_outcome_is_enumerated(net, x, fault):
    """3^6 and 2^6 outcomes, by itertools."""
    values = {"glitch": [(-1, 0.15), (0, 0.7), (2, 0.15)], "jitter": [(-1, 0.5), (1, 0.5)]}
    patterns = list(itertools.product(values[fault.name], repeat=6))
    e = torch.tensor([[float(v) for v, _ in p] for p in patterns]).double()
    chance = np.array([math.prod(q for _, q in p) for p in patterns])
    hidden = net[:2](x).double()
    delta = ((e[:, None] * effect_of(fault, hidden)) @ net[2].weight.double().T).detach().numpy()
    mean = np.tensordot(chance, delta, 1)
    found = enumerate_exact(net, x, fault)
    np.testing.assert_allclose(found.probabilities.sum(), 1)
    np.testing.assert_allclose(found.mean, mean, atol=1e-7)
    np.testing.assert_allclose(
        found.variance, np.tensordot(chance, (delta - mean) ** 2, 1), rtol=1e-5
    )
    for epsilon in (0.4 * np.abs(delta).max(), 0.1):
        right = np.tensordot(chance, np.abs(delta) >= epsilon, 1)
        assert 0 < right.max() < 1
        np.testing.assert_allclose(found.tail(epsilon), right, rtol=1e-9)


def irwin_hall(gains, c):
    """P(sum g_i u_i >= c) of uniforms on (-1, 1), any gains (Bradley and Gupta 2002)."""
    n = len(gains)
    total = 0.0
    for signs in itertools.product((-1, 1), repeat=n):
        base = c + float(np.dot(signs, gains))
        total += math.prod(signs) * max(base, 0.0) ** n
    cdf = total / (math.factorial(n) * 2**n * math.prod(gains))
    return 1 - cdf


def test_tails_of_uniform_noise(make_net, randn):
    """A few uniforms: the exact tail is a polynomial."""
    net, x = make_net((4, 4, 1), "tanh"), randn(1, 4)
    gains = np.abs(net[2].weight.detach().double().numpy()[0])
    width = 0.5
    epsilon = 0.7 * width * gains.sum()
    exact = 2 * irwin_hall(width * gains, epsilon)
    assert 1e-3 < exact < 0.2
    found = score(
        net, x, UniformNoise(width), epsilon=epsilon, samples=20_000, seed=2,
        methods=["saddlepoint", "chernoff", "chebyshev", "monte-carlo", "importance-sampling"],
    )  # fmt: skip
    tail = {e.method: e for e in found.estimates if e.quantity == "tail" and e.input == 0}
    assert tail["chebyshev"].value >= tail["chernoff"].value >= exact
    assert tail["saddlepoint"].value == pytest.approx(exact, rel=0.15)
    for method in ("monte-carlo", "importance-sampling"):
        assert tail[method].low <= exact <= tail[method].high, method


def test_rare_events_of_uniform_noise(make_net, randn):
    net, x = make_net((4, 4, 1), "tanh"), randn(1, 4)
    gains = np.abs(net[2].weight.detach().double().numpy()[0])
    width = 0.05
    epsilon = 0.95 * width * gains.sum()
    exact = 2 * irwin_hall(width * gains, epsilon)
    assert 0 < exact < 1e-4
    found = score(
        net, x, UniformNoise(width), epsilon=epsilon, seed=2, methods=["importance-sampling"]
    )
    tail = next(e for e in found.estimates if e.quantity == "tail" and e.input == 0)
    assert tail.low <= exact <= tail.high
    assert tail.high < 2 * exact


def draw_tilted_laplace(rng, tilt, w):
    """Positive or negative exponentials; the tilt must stay within 1 / w."""
    assert (np.abs(tilt) < 1 / w).all()
    up, down = 1 / w - tilt, 1 / w + tilt
    is_up = rng.random(tilt.shape) < down / (up + down)
    return np.where(is_up, 1 / up, -1 / down) * rng.exponential(size=tilt.shape)


@dataclass(frozen=True)
class Laplace(Added):
    law: ClassVar = ct.law_from_cgf(
        "Laplace",
        -sp.log(1 - W**2 * t**2),
        draw=lambda rng, shape, w: rng.laplace(0, w, shape),
        draw_tilted=draw_tilted_laplace,
    )
    parameter: ClassVar[str] = "width"
    name: ClassVar[str] = "laplace-noise"
    width: float


@pytest.mark.parametrize("far", [6.0, 20.0])
def test_rare_events_of_a_law_that_cannot_be_tilted_at_will(make_net, randn, far):
    """E exp(t e) is finite for small t alone; one neuron, so the tail is an exponential."""
    net, x = make_net((4, 1, 1), "tanh"), randn(1, 4)
    epsilon = far * 0.1 * abs(net[2].weight.item())
    found = score(net, x, Laplace(0.1), epsilon=epsilon, seed=1, methods=["importance-sampling"])
    tail = next(e for e in found.estimates if e.quantity == "tail" and e.input == 0)
    assert tail.low <= np.exp(-far) <= tail.high
    assert tail.high < 2 * np.exp(-far)


def test_a_law_that_rejection_cannot_tilt_is_left_to_the_others(make_net, randn):
    wide = ct.law_from_cgf(
        "narrow in a wide support",
        W**2 * t**2 / 2,
        draw=lambda rng, shape, w: rng.normal(0, w, shape),
        support=(-1e4, 1e4),
    )
    fault = dataclass(frozen=True)(type("Wide", (UniformNoise,), {"law": wide}))(0.01)
    net, x = make_net((4, 2, 1), "tanh"), randn(1, 4)
    found = score(net, x, fault, epsilon=0.5, methods=["importance-sampling", "taylor"])
    assert "draw_tilted" in found.skipped["importance-sampling"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape, w: rng.uniform(-w, w, shape) + 0.1 * w,
        lambda rng, shape, w: rng.uniform(-w, w, shape) * 1.1,
    ],
    ids=["mean", "variance"],
)
def test_draws_of_other_moments_are_refused(net, x, draw):
    """A control variate would believe the law: Monte Carlo would agree with wrong theory."""
    law = ct.law_from_moments("off", mean=0, k2=W**2 / 3, k3=0, k4=W**4 / 5, draw=draw)
    fault = dataclass(frozen=True)(type("Off", (UniformNoise,), {"law": law}))(0.2)
    with pytest.raises(CrashsimError, match="of its draws have"):
        score(net, x, fault)


@pytest.mark.parametrize("fault", [Glitch(0.02), Jitter(0.3)], ids=repr)
def test_rare_events_of_atoms(make_net, randn, fault):
    net, x = make_net((4, 8, 2), "tanh"), randn(1, 4)
    exact = enumerate_exact(net, x, fault)
    size = np.abs(exact.deltas[:, 0, 0])
    order = np.argsort(-size)
    last = int(np.searchsorted(np.cumsum(exact.probabilities[order]), 0.009))
    epsilon = float(size[order][last - 1 : last + 1].mean())
    right = exact.tail(epsilon)[0, 0]
    assert 1e-4 < right < 0.01
    found = score(
        net, x, fault, epsilon=epsilon, seed=3, methods=["importance-sampling", "chernoff"]
    )
    for e in found.estimates:
        if e.quantity != "tail" or e.input != 0 or e.output != 0:
            continue
        if e.method == "chernoff":
            assert e.value >= right
        else:
            assert e.low <= right <= e.high


def test_what_has_no_generating_function_says_so_by_name(net, x, tmp_path):
    found = score(net, x, UnknownNoise(0.4), epsilon=0.3, delta=0.1, samples=3000)
    for method in ("chernoff", "saddlepoint", "importance-sampling", "answers"):
        assert "cumulant generating function" in found.skipped[method], method
        assert not [e for e in found.estimates if e.method == method]
    named = score(net, x, UnknownNoise(0.4), epsilon=0.5, methods=["chernoff", "taylor"])
    assert set(named.skipped) >= {"chernoff"}
    assert named.find("taylor", "variance")
    done = {e.method for e in found.estimates}
    assert done >= {"taylor", "single", "mean-point-taylor", "chebyshev", "monte-carlo"}
    assert Score.from_dict(found.to_dict()).to_html() == found.to_html()


@pytest.mark.parametrize("fault", [UniformNoise(0.4), Glitch(0.3)], ids=repr)
def test_reports_and_json(net, x, fault, tmp_path):
    found = score(net, x, fault, epsilon=0.3, delta=0.05, samples=500, seed=4)
    found.save(tmp_path / "s.json")
    again = Score.load(tmp_path / "s.json")
    assert again.to_dict() == found.to_dict()
    told = f"{fault.parameter} {getattr(fault, fault.parameter):g} {fault.name}"
    for text in (again.to_text(), again.to_html(), again.verdict):
        assert told in text
    assert {"exact", "pairs"} & set(found.skipped)


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_training_with_them(net, x, fault):
    penalty = CrashVariance(net.train(), fault, exact=True)
    right = exact_variance(net, x, fault).sum(1).mean()
    assert float(penalty(net(x)).detach()) == pytest.approx(right, rel=1e-4)
    penalty.remove()
    clean = net(x).detach()
    with CrashTraining(net, fault, seed=1), torch.no_grad():
        moved = torch.stack([net(x) - clean for _ in range(3000)]).double()
    np.testing.assert_allclose(moved.var(0).mean(), right / 2, rtol=0.1)
    with CrashTraining(net, fault, seed=1), torch.no_grad():
        again = torch.stack([net(x) - clean for _ in range(5)]).double()
    torch.testing.assert_close(again, moved[:5], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda rng, shape, w: 1 / 0, "ZeroDivisionError"),
        (lambda rng, shape, w: rng.normal(size=3), "must return shape"),
        (lambda rng, shape, w: np.full(shape, np.nan), "finite"),
        (lambda rng, shape, width: rng.normal(size=shape), "unexpected keyword argument"),
    ],
)
def test_a_sampler_that_fails_is_told(net, x, draw, told):
    law = ct.law_from_moments("odd", mean=0, k2=W**2, k3=0, k4=3 * W**4, draw=draw)
    fault = type("Odd", (UniformNoise,), {"law": law})(0.1)
    with pytest.raises(CrashsimError, match="Odd: drawing") as caught:
        score(net, x, fault, samples=100)
    assert told in str(caught.value)


def test_mixed_with_the_built_in_ones(net, x):
    """Faults of three laws at once: variances add up in a linear last layer."""
    faults = {
        "act1": UniformNoise(0.2),
        "input": NeuronCrash(0.1),
        "linear2.weight": GainNoise(0.1),
    }
    asked = ["+importance-sampling"]
    found = score(net, x, faults, epsilon=0.4, samples=4000, seed=6, methods=asked)
    sampled = found.find("monte-carlo", "variance", output=0)
    alone = [score(net, x, {s: f}, methods=["mean-point-single"]) for s, f in faults.items()]
    total = sum(a.find("mean-point-single", "variance", output=0).value for a in alone)
    assert found.find("mean-point-single", "variance", output=0).value == pytest.approx(
        total, rel=0.15
    )
    assert sampled.value == pytest.approx(total, rel=0.25)
    assert found.find("importance-sampling", "class-change")


def test_a_seed_is_a_seed_whatever_the_batches(net, x):
    space = FaultSpace(net, x, {"act1": Glitch(0.3), "input": UniformNoise(0.1)})
    first = crashsim.coordinates.drawing.sample_block(space.placements, 5, 2)
    again = crashsim.coordinates.drawing.sample_block(space.placements, 5, 2)
    other = crashsim.coordinates.drawing.sample_block(space.placements, 5, 3)
    np.testing.assert_array_equal(first.dense(), again.dense())
    assert not np.array_equal(first.dense(), other.dense())


@dataclass(frozen=True)
class StuckCore(NeuronCrash):
    """Groups of neurons that read 1 when they fail; each unit on its own value alone."""

    name: ClassVar[str] = "stuck-core"
    is_elementwise: ClassVar[bool] = True

    def displacement(self, value):
        return 1 - value


@pytest.mark.parametrize("p", [0.01, 0.2, 0.7])
def test_groups_of_a_class_that_acts_on_each_unit(make_net, randn, p):
    net, x = make_net((4, 41, 30, 2), "relu"), randn(3, 4)
    space = FaultSpace(net, x, {"act1": StuckCore(p, group=4)})
    assert space.N == 11
    points = crashsim.coordinates.drawing.sample_points(space.placements, 2, 100)
    e = torch.from_numpy(points.dense().repeat(4, axis=1)[:, None, :41]).float()
    assert 0 < e.mean() < 1
    hidden = net[:2](x)
    right = net[2:](hidden + e * (1 - hidden)).detach().numpy()
    np.testing.assert_allclose(space.outputs(points), right, atol=2e-6)
    for values in (np.full(11, 0.5), np.ones(11)):  # around a point that is not clean
        base = crashsim.coordinates.points.Points.one_at_a_time(values, np.arange(11), np.zeros(11))
        e = torch.from_numpy(base.dense().repeat(4, axis=1)[:, None, :41]).float()
        right = net[2:](hidden + e * (1 - hidden)).detach().numpy()
        np.testing.assert_allclose(space.outputs(base), right, atol=2e-6)
