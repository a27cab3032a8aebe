"""Factored gains against gains that are written out, and the exact sum over all fault patterns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, FaultSpace, GainNoise, NeuronCrash, StuckAt, WeightCrash
from crashsim.analytic.first_order import (
    Analysis,
    double_precision,
    margins_of,
    mean_point_taylor,
    tail_probability,
)
from crashsim.analytic.gains import MEMORY, Gains
from crashsim.analytic.shares import SharesByValue
from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.analytic.surrogates.surrogate_law import law_estimates
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points

FAULTS = [
    BitFlip(0.02, bits=4),
    {"0.weight": BitFlip(torch.tensor([0.01, 0.05, 0.1]), bits=3), "act": NeuronCrash(0.1)},
    {"0.weight": WeightCrash(0.05), "2.bias": StuckAt(0.2, 0.5)},
    {"0.weight": GainNoise(0.1), "act": NeuronCrash(0.3)},
]


def _net():
    draws = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / 2)
    return net, torch.randn(3, 4, generator=draws)


def _space(faults, batch=3):
    net, x = _net()
    x = x[:batch]
    if isinstance(faults, dict) and "act" in faults:
        faults = {("1" if name == "act" else name): fault for name, fault in faults.items()}
    sites = "weights" if isinstance(faults, BitFlip) else "hidden"
    return FaultSpace(net, x, faults, sites)


def _dense(space):
    analysis = Analysis()
    mean_point_taylor(double_precision(space), analysis)
    return analysis


def _factored(space, memory=MEMORY):
    gains = Gains.of(space, "mean", memory)
    return gains, FactoredSurrogate.of(gains, gains.shift - gains.sums.mean)


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("memory", [MEMORY, 1])
def test_moments_shares_and_tails_are_those_of_gains_written_out(faults, memory):
    space = _space(faults)
    dense = _dense(space)
    gains, surrogate = _factored(space, memory)
    assert (gains.kept is None) == (memory == 1)
    np.testing.assert_allclose(surrogate.mean, dense.surrogate.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(surrogate.variance, dense.surrogate.variance, rtol=1e-4)
    np.testing.assert_allclose(
        gains.sums.covariance.mean(0), dense.covariance, rtol=1e-3, atol=1e-7
    )
    shares = SharesByValue.of(gains)
    parts = [dense.shares[p.start : p.stop].sum() for p in space.placements]
    np.testing.assert_allclose(shares.by_placement, parts, rtol=1e-4)
    order = np.argsort(-dense.shares)[:5]
    found = shares.leading(5)
    np.testing.assert_allclose([share for _, share in found], dense.shares[order], rtol=1e-4)
    columns = [column for column, _ in found]  # several may be alike
    np.testing.assert_allclose(dense.shares[columns], dense.shares[order], rtol=1e-4)
    level = np.asarray(2 * np.sqrt(float(surrogate.variance.max())))
    for method in ("chebyshev", "chernoff", "saddlepoint"):
        wanted = tail_probability(method, dense.surrogate, level)
        assert (wanted > 0).any()
        found_tails = tail_probability(method, surrogate, level)
        np.testing.assert_allclose(found_tails, wanted, rtol=0.01, atol=1e-12)
    zero = np.asarray(0.0)
    dense_margins, margins = margins_of(space, dense.surrogate), margins_of(space, surrogate)
    np.testing.assert_allclose(margins.variance, dense_margins.variance, rtol=1e-3)
    np.testing.assert_allclose(
        tail_probability("saddlepoint", margins, zero, "upper"),
        tail_probability("saddlepoint", dense_margins, zero, "upper"),
        rtol=0.02,
        atol=1e-12,
    )


@pytest.mark.parametrize("faults", FAULTS)
def test_the_sum_along_a_samples_faults(faults):
    space = _space(faults)
    dense = _dense(space).surrogate
    points = sample_points(space.placements, 3, 40)
    wanted = np.einsum("sn,bkn->sbk", points.dense() - space.mean_point, dense.gains)
    assert np.abs(wanted).max() > 0.01
    gains, _ = _factored(space)
    np.testing.assert_allclose(gains.along(points), wanted, atol=1e-5)
    # By forward-mode derivatives, where no gains are kept.
    np.testing.assert_allclose(replace(gains, kept=None).along(points), wanted, atol=1e-5)


class Attention(nn.Module):
    """Whose kernel torch differentiates backwards alone."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_the_sum_along_a_samples_faults_where_no_derivative_goes_forwards(seeded, randn):
    net, x = seeded(Attention), randn(3, 5, 6)
    faults = {"head": GainNoise(0.1), "attention.in_proj_weight": WeightCrash(0.05)}
    space = FaultSpace(net, x, faults)
    assert not space.slopes.has_forward_derivatives
    points = sample_points(space.placements, 1, 4)
    every = np.concatenate([g for _, g in space.gradients(space.mean_point)])
    wanted = np.einsum("bkn,sn->sbk", every, points.dense() - space.mean_point)
    assert np.abs(wanted).max() > 0.01
    kept = Gains.of(space, "mean", MEMORY)
    for gains in (kept, replace(kept, kept=None)):
        np.testing.assert_allclose(gains.along(points), wanted, atol=1e-5)


def test_along_points_that_differ_from_another_base():
    space = _space(FAULTS[0])
    dense = _dense(space).surrogate
    base = (np.random.default_rng(0).random(space.N) < 0.5).astype(float)
    points = Points.one_at_a_time(base, np.arange(6), 1 - base[:6])
    wanted = np.einsum("sn,bkn->sbk", points.dense() - space.mean_point, dense.gains)
    gains, _ = _factored(space)
    np.testing.assert_allclose(gains.along(points), wanted, atol=1e-5)
    np.testing.assert_allclose(replace(gains, kept=None).along(points), wanted, atol=1e-5)


def test_slopes_are_differences_of_the_model_itself():
    """A flipped bit moves a weight; the slope is that of a plain network with the weight moved."""
    space = _space(FAULTS[0], batch=2)
    gains = Gains.of(space, "zero", MEMORY)
    x = space.examples.lone.double()
    plain = _net()[0].double()
    step = 1e-5
    for number, name in enumerate(("0.weight", "2.weight")):
        place = next(i for i, p in enumerate(space.placements) if p.site.name == name)
        weight = dict(plain.named_parameters())[name]
        with torch.no_grad():
            before = plain(x).numpy().copy()
            weight.view(-1)[3 + number] += step
            slope = (plain(x).numpy() - before) / step
            weight.view(-1)[3 + number] -= step
        for b, slopes in gains.each():
            np.testing.assert_allclose(slopes[place][3 + number], slope[b], atol=1e-4)


def test_the_users_model_stays_as_it_was():
    net, x = _net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    space = FaultSpace(net, x, BitFlip(0.1), "weights")
    gains = Gains.of(space, "mean", 1)
    gains.along(sample_points(space.placements, 0, 3))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("faults", FAULTS)
def test_the_exact_law_is_that_of_gains_written_out(faults):
    space = _space(faults)
    dense, (_, surrogate) = _dense(space).surrogate, _factored(space)
    epsilon = 2 * float(np.sqrt(surrogate.variance.max()))

    def laws(one):
        margins = margins_of(space, one)
        return law_estimates("surrogate-law", space, one, margins, epsilon, 0, "")

    pairs = list(zip(laws(dense), laws(surrogate), strict=True))
    assert sum(wanted.value > 1e-6 for wanted, _ in pairs) > 5
    for wanted, found in pairs:
        assert found.value == pytest.approx(wanted.value, rel=0.03, abs=1e-9)
