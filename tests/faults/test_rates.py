"""A rate for each unit: against closed forms, sums over all patterns, and what one rate gives."""

import pickle
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pytest
import sympy
import torch
from crashsim_theory import (
    Bernoulli,
    Coordinates,
    Law,
    LinearSurrogate,
    law_from_cgf,
    law_of_atoms,
)
from crashsim_theory.laws import t
from torch import nn

from crashsim import (
    AdditiveNoise,
    BitFlip,
    CrashsimError,
    CrashTraining,
    CrashVariance,
    Fault,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    Score,
    WeightCrash,
    enumerate_exact,
    score,
)
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.placement import Placement
from crashsim.faults import Rates
from crashsim.model.sites.site import Site
from crashsim.sampling.monte_carlo import monte_carlo

RNG = np.random.default_rng(0)
P = RNG.uniform(0, 0.3, 6)
PW = RNG.uniform(0, 0.2, (3, 6))
Q, W = sympy.Symbol("q", positive=True), sympy.Symbol("w", positive=True)


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()


@pytest.fixture
def x():
    rng = torch.Generator().manual_seed(3)
    return torch.randn(7, 5, generator=rng, dtype=torch.float64)


def closed_form(net, x, weights):
    """Mean and variance of the readout's Delta, (B, K)."""
    with torch.no_grad():
        parts = (net[2].weight * torch.relu(net[0](x))[:, None]).numpy()
    if weights:
        return -(PW * parts).sum(-1), (PW * (1 - PW) * parts**2).sum(-1)
    return -(parts @ P), parts**2 @ (P * (1 - P))


@pytest.mark.parametrize("weights", [False, True])
def test_every_method_knows_the_rates(net, x, weights):
    fault = WeightCrash(PW) if weights else NeuronCrash(torch.from_numpy(P))
    where = "2.weight" if weights else "1"
    mean, variance = closed_form(net, x, weights)
    assert variance.max() > 1e-3
    found = score(net, x, fault, where, epsilon=0.12, samples=20_000, seed=2)
    for method in ("taylor", "single", "mean-point-taylor", "mean-point-single", "monte-carlo"):
        for name, right in (("mean", mean), ("variance", variance)):
            values = [found.find(method, name, b, o).value for b, o in np.ndindex(right.shape)]
            off = 0.1 if method == "monte-carlo" else 1e-9
            assert np.allclose(values, right.ravel(), atol=off * np.abs(right).max()), method
    for name in ("norm", "absolute"):
        assert "rates" in found.skipped[name]
    if not weights:
        with torch.no_grad():
            gains = -(net[2].weight * torch.relu(net[0](x))[:, None]).numpy()
        own = LinearSurrogate(np.zeros((7, 3)), gains, Coordinates([Bernoulli(P)]))
        for method in ("chernoff", "saddlepoint"):
            values = [found.find(method, "tail", b, 0).value for b in range(7)]
            assert np.allclose(values, getattr(own, method)(0.12)[:, 0], rtol=1e-5)
        others = ["pairs", "mean-point-curvature", "linear-exact", "certificate", "exact"]
        wide = score(net, x, fault, where, epsilon=0.12, methods=others)
        for method in ("pairs", "mean-point-curvature", "exact"):
            assert wide.find(method, "variance").value == pytest.approx(variance.mean(0).sum())
        for proof in (e for e in wide.estimates if e.method in ("linear-exact", "certificate")):
            exact = wide.find("exact", proof.quantity, proof.input, proof.output)
            high = proof.value if proof.high is None else proof.high
            assert (proof.low or 0.0) * (1 - 1e-6) <= exact.value <= high * (1 + 1e-6)
        again = score(net, x, fault, where, epsilon=0.12, methods=["importance-sampling", "exact"])
        rare = next(e for e in again.estimates if e.method == "importance-sampling")
        exact = again.find("exact", rare.quantity, rare.input, rare.output)
        assert rare.low * 0.9 <= exact.value <= rare.high * 1.1
        assert exact.value > 0


def test_the_sum_over_all_patterns(net, x):
    law = enumerate_exact(net, x, NeuronCrash(P), "1")
    with torch.no_grad():
        hidden = torch.relu(net[0](x)).numpy()
        weight = net[2].weight.numpy()
    chances, deltas = [], []
    for struck in product([0, 1], repeat=6):
        chances.append(np.prod(np.where(struck, P, 1 - P)))
        deltas.append(-(hidden * np.array(struck)) @ weight.T)
    mean = np.tensordot(chances, deltas, 1)
    assert np.allclose(law.mean, mean)
    assert np.allclose(law.variance, np.tensordot(chances, (np.stack(deltas) - mean) ** 2, 1))
    space = FaultSpace(net, x, NeuronCrash(P / 4), "1")
    few = monte_carlo(space, samples=20_000, few_exact=True)
    exact = enumerate_exact(net, x, NeuronCrash(P / 4), "1")
    assert np.allclose(few.variance, exact.variance, rtol=0.02)


def test_noise_of_its_own_for_each_unit(net, x):
    std = np.linspace(0, 0.5, 6)
    with torch.no_grad():
        variance = (net[2].weight.numpy() ** 2 * std**2).sum(-1)
    found = score(net, x, AdditiveNoise(std), "1", samples=20_000)
    for method in ("mean-point-taylor", "mean-point-single", "monte-carlo"):
        values = [found.find(method, "variance", 0, o).value for o in range(3)]
        assert np.allclose(values, variance, rtol=0.05 if method == "monte-carlo" else 1e-9)


@pytest.mark.parametrize("shift", [1.0, 1e-2])
def test_what_is_drawn(shift):
    """Frequencies of rates over many orders, in samples with many changes and with few."""
    n, samples = 3000, 20_480
    p = np.minimum(10 ** np.random.default_rng(1).uniform(-9, -0.5, n) * shift, 1.0)
    p[:3] = 0.0, shift, shift
    fault = NeuronCrash(p).at(None, (n,))
    place = Placement((Site("s", "activation", (n,)),), fault, 0, n)
    points = sample_points([place], 0, samples)
    rows, columns = points.rows, points.columns
    assert (np.diff(rows * n + columns) > 0).all()
    found = np.bincount(columns, minlength=n)
    spread = np.sqrt(samples * p * (1 - p))
    off = np.abs(found - samples * p)[spread > 3] / spread[spread > 3]
    assert off.max() < 5
    assert 0.8 < np.sqrt((off**2).mean()) < 1.2
    seldom = spread <= 3
    assert abs(found[seldom].sum() - samples * p[seldom].sum()) < 5 * np.sqrt(
        samples * p[seldom].sum()
    )
    assert found[0] == 0
    per_sample = np.bincount(rows, minlength=samples)
    assert per_sample.var() == pytest.approx((p * (1 - p)).sum(), rel=0.1)


def test_likely_rates_are_drawn(net, x):
    p = np.linspace(0, 1, 6)
    e = sample_points(FaultSpace(net, x, NeuronCrash(p), "1").placements, 0, 20_000).dense()
    assert np.allclose(e.mean(0), p, atol=0.02)
    assert np.abs(np.corrcoef(e[:, 1:5].T) - np.eye(4)).max() < 0.03


def test_a_function_of_the_site(net, x):
    seen = []

    def rate(site):
        seen.append(site)
        return 0.1 if site.name == "1" else PW

    space = FaultSpace(net, x, {"1": NeuronCrash(rate), "2.weight": WeightCrash(rate)})
    assert {site.name for site in seen} == {"1", "2.weight"}
    assert all(isinstance(site, Site) for site in seen)
    assert np.allclose(space.mean_point, [*[0.1] * 6, *PW.ravel()])
    everywhere = FaultSpace(net, x, WeightCrash(lambda site: 1 / site.shape[-1]), "*.weight")
    assert np.allclose(everywhere.mean_point, [*[1 / 5] * 30, *[1 / 6] * 18])


def test_how_rates_fit(net, x):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layers = nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
        channels = nn.Sequential(*layers).eval()
        for i, parameter in enumerate(channels.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) + i / 9)
    image = torch.linspace(-1, 1, 18).view(2, 1, 3, 3)
    own = [0.1, 0.2, 0.3]
    space = FaultSpace(channels, image, NeuronCrash(own, group="channel"), "1")
    assert np.allclose(space.mean_point, own)
    spread = np.reshape(own, (3, 1, 1))
    assert np.allclose(
        FaultSpace(channels, image, NeuronCrash(spread), "1").mean_point, np.repeat(own, 4)
    )
    cores = FaultSpace(net, x, NeuronCrash([0.1, 0.2], group=3), "1")
    assert np.allclose(cores.mean_point, [0.1, 0.2])
    bits = np.linspace(0, 0.1, 8)
    space = FaultSpace(net, x, BitFlip(bits), "2.weight")
    assert np.allclose(space.mean_point, np.tile(bits, 18))
    space = FaultSpace(net, x, BitFlip(PW[..., None], bits=4), "2.weight")
    assert np.allclose(space.mean_point, np.repeat(PW.ravel(), 4))
    rows = FaultSpace(net, x, WeightCrash(PW[:, :1]), "2.weight")
    assert np.allclose(rows.mean_point, np.repeat(PW[:, 0], 6))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: NeuronCrash(P[:5]), r"rates of shape \(5,\) do not fit '1'"),
        (lambda: NeuronCrash(np.full((2, 6), 0.1)), "do not fit"),
        (lambda: NeuronCrash(P, group=3), "do not fit"),
        (lambda: NeuronCrash(lambda site: 1.5), "p=1.5"),
        (lambda: NeuronCrash(lambda site: np.full(6, -0.1)), "not a probability"),
        (lambda: NeuronCrash(lambda site: "x"), "at '1'='x' is not a number"),
        (lambda: NeuronCrash(lambda site: 1 / 0), "called with site '1', raised ZeroDivisionError"),
        (lambda: NeuronCrash(lambda site: lambda s: 0.1), "function again"),
        (lambda: AdditiveNoise(lambda site: -1.0), "std=-1.0"),
        (lambda: GainNoise(np.full(6, 1e80)), "too large"),
    ],
)
def test_what_does_not_fit_is_told(net, x, make, told):
    with pytest.raises(CrashsimError, match=told):
        FaultSpace(net, x, make(), "1")


def test_faults_with_rates_are_values(net, x):
    a, b = NeuronCrash(P), NeuronCrash(torch.from_numpy(P.copy()))
    assert a == b
    assert hash(a) == hash(b)
    assert a != NeuronCrash(P + 1e-12)
    assert pickle.loads(pickle.dumps(a)) == a
    given = P.copy()
    kept = NeuronCrash(given)
    given[:] = 0.9
    assert kept == a
    assert NeuronCrash(torch.tensor(0.25)) == NeuronCrash(0.25)
    space = pickle.loads(pickle.dumps(FaultSpace(net, x, a, "1")))
    assert (space.mean_point == P).all()
    with pytest.raises(CrashsimError, match="once it is placed"):
        _ = NeuronCrash(lambda site: 0.1).rate


def test_records_hold_rates_in_short(net, x, tmp_path):
    found = score(net, x, WeightCrash(PW), "2.weight", samples=5000)
    (fault,) = found.to_dict()["faults"]
    assert fault["rates"] == Rates.of("p", PW.reshape(-1)).summary()
    assert fault["p"] == pytest.approx(PW.mean())
    assert (fault["rates"]["min"], fault["rates"]["max"]) == (PW.min(), PW.max())
    assert "rates from" in found.verdict
    found.save(tmp_path / "score.json")
    assert Score.load(tmp_path / "score.json").to_dict() == found.to_dict()


def test_training_against_rates(net, x):
    _, variance = closed_form(net, x, weights=False)
    penalty = CrashVariance(net, NeuronCrash(P), "1", strength=1.0, exact=True)
    assert penalty(net(x)).item() == pytest.approx(variance.sum(1).mean(), rel=1e-6)
    penalty.remove()
    net.train()
    with CrashTraining(net, NeuronCrash(P), "1", inverse_scaling=True), torch.no_grad():
        wide = x[:1].expand(40_000, -1)
        values = net(wide).numpy()
    net.eval()
    with torch.no_grad():
        parts = (net[2].weight * torch.relu(net[0](x[:1]))[:, None]).numpy()[0]
        clean = net(x[:1]).numpy()[0]
    assert np.allclose(values.mean(0), clean, atol=0.02)
    right = parts**2 @ (P / (1 - P))
    assert np.allclose(values.var(0), right, atol=0.03 * right.max())


THREE = law_of_atoms("three", {0: 1 - Q, 1: 0.75 * Q, -1: 0.25 * Q})
UNIFORM = law_from_cgf(
    "uniform",
    sympy.log(sympy.sinh(W * t) / (W * t)),
    draw=lambda rng, shape, w: rng.uniform(-w, w, shape),
    support=(-W, W),
)


@dataclass(frozen=True)
class Own(Fault):
    parameter: ClassVar[str] = "strength"
    name: ClassVar[str] = "own"
    strength: Any

    def displacement(self, value):
        return torch.ones_like(value)


@dataclass(frozen=True)
class OwnAtoms(Own):
    law: ClassVar[Law] = THREE


@dataclass(frozen=True)
class OwnNoise(Own):
    law: ClassVar[Law] = UNIFORM


@pytest.mark.parametrize(("cls", "scale"), [(OwnAtoms, 1.0), (OwnAtoms, 0.05), (OwnNoise, 1.0)])
def test_laws_of_ones_own(net, x, cls, scale):
    rates = P * scale + 0.01
    weight = net[2].weight.detach().numpy()
    if cls is OwnNoise:
        mean, variance = np.zeros(3), weight**2 @ (rates**2 / 3)
    else:
        mean, variance = weight @ (rates / 2), weight**2 @ (rates - rates**2 / 4)
    for fault in (cls(torch.from_numpy(rates)), cls(lambda site: rates)):
        run = monte_carlo(FaultSpace(net, x, fault, "1"), samples=40_000)
        assert np.allclose(run.mean[0], mean, atol=0.02 * np.sqrt(variance.max()))
        assert np.allclose(run.variance[0], variance, rtol=0.1)
        found = score(net, x, fault, "1", methods=["mean-point-single", "mean-point-taylor"])
        for method in ("mean-point-single", "mean-point-taylor"):
            values = [found.find(method, "variance", 0, o).value for o in range(3)]
            assert np.allclose(values, variance)
    if cls is OwnAtoms and scale == 1:
        law = enumerate_exact(net, x, cls(rates), "1")
        assert np.allclose(law.mean[0], mean)
        assert np.allclose(law.variance[0], variance)
