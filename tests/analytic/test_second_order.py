"""Pairs and curvature: orders of convergence, finite differences, and Hutchinson's intervals."""

import numpy as np
import pytest
import torch

from crashsim import AdditiveNoise, BitFlip, FaultSpace, NeuronCrash, WeightCrash, score
from crashsim.analytic import second_order
from crashsim.analytic.first_order import Analysis
from crashsim.analytic.second_order import mean_point_curvature, pairs
from crashsim.results.estimates import values_of
from crashsim.sampling.enumeration import enumerate_space


def paired(space):
    analysis = Analysis()
    pairs(space, analysis)
    return [values_of(analysis.estimates, "pairs", q) for q in ("mean", "variance")]


def curved(space, **options):
    analysis = Analysis()
    mean_point_curvature(space, analysis, **{"seed": 0, "confidence": 0.95, **options})
    return analysis.estimates


def slope(rates, errors):
    return np.polyfit(np.log(rates), np.log(errors), 1)[0]


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_pairs_are_exact_to_second_order(activation, make_net, randn):
    net, x = make_net((3, 5, 4, 2), activation, scale=2.0).double(), randn(2, 3).double()
    rates = np.array([1e-2, 2e-3])
    errors = []
    for p in rates:
        space = FaultSpace(net, x, NeuronCrash(p))
        law = enumerate_space(space)
        mean, variance = paired(space)
        errors.append([np.abs(mean - law.mean).max(), np.abs(variance - law.variance).max()])
    for error in np.transpose(errors):
        assert error.min() > 1e-13  # there is an effect of third order
        assert slope(rates, error) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize(
    ("faults", "n"),
    [
        ({"act1": NeuronCrash(0.3, group=3)}, 2),
        ({"act1": NeuronCrash(0.3, group=6), "act2": NeuronCrash(0.4, group=4)}, 2),
        ({"act1": NeuronCrash(0.3, group=6)}, 1),
    ],
)
def test_pairs_of_two_coordinates_are_exact(faults, n, make_net, randn):
    space = FaultSpace(make_net((3, 6, 4, 2), "tanh", scale=2.0).double(), randn(2, 3), faults)
    assert n == space.N
    law = enumerate_space(space)
    mean, variance = paired(space)
    np.testing.assert_allclose(mean, law.mean, atol=1e-12)
    np.testing.assert_allclose(variance, law.variance, atol=1e-12)


def test_pairs_of_weights_and_bits(make_net, randn):
    for fault in (WeightCrash(1e-3), BitFlip(1e-3, bits=2)):
        space = FaultSpace(make_net((2, 3, 1), "tanh", scale=2.0).double(), randn(1, 2), fault)
        law = enumerate_space(space)
        mean, variance = paired(space)
        np.testing.assert_allclose(mean, law.mean, rtol=1e-4)
        np.testing.assert_allclose(variance, law.variance, rtol=1e-4)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_curvature_against_finite_differences(activation, make_net, randn):
    net, x = make_net((3, 4, 4, 2), activation, scale=2.0).double(), randn(2, 3).double()
    for faults in (NeuronCrash(0.2), {"linear2.weight": WeightCrash(0.2)}):
        space = FaultSpace(net, x, faults)
        m, n, h = space.mean_point, space.N, 1e-4

        def gradient(at, space=space):
            return np.concatenate([found for _, found in space.gradients(at)])

        for part, _, hessian in space.hessian_products(m, np.eye(n)):
            for i in range(n):
                step = h * np.eye(n)[i]
                slope = (gradient(m + step) - gradient(m - step)) / (2 * h)
                np.testing.assert_allclose(hessian[:, :, i], slope[part], atol=1e-6)
            assert np.abs(hessian).max() > 1e-2


def test_curvature_is_nearer_than_first_order(make_net, randn):
    net, x = make_net((3, 5, 4, 2), "sigmoid", scale=3.0), randn(4, 3)
    law = enumerate_space(FaultSpace(net, x, NeuronCrash(0.1)))
    found = score(net, x, NeuronCrash(0.1), methods=["mean-point-taylor", "mean-point-curvature"])
    for quantity, truth in (("mean", law.mean), ("variance", law.variance)):
        error = {
            method: np.abs(values_of(found.estimates, method, quantity) - truth).mean()
            for method in ("mean-point-taylor", "mean-point-curvature")
        }
        assert error["mean-point-curvature"] < 0.3 * error["mean-point-taylor"]


def test_curvature_of_a_quadratic_is_exact(randn):
    """F = (w . x)^2 under Gaussian noise has no third derivative."""

    class Square(torch.nn.Module):
        def forward(self, x):
            return x.sum(1, keepdim=True) ** 2

    x, std = randn(2, 3).double(), 0.3
    space = FaultSpace(Square(), x, AdditiveNoise(std), "input", dtype=torch.float64)
    total, spread = x.sum(1).numpy(), 3 * std**2  # E s, Var s
    estimates = curved(space)
    np.testing.assert_allclose(
        values_of(estimates, "mean-point-curvature", "mean")[:, 0], spread, rtol=1e-10
    )
    np.testing.assert_allclose(
        values_of(estimates, "mean-point-curvature", "variance")[:, 0],
        4 * total**2 * spread + 2 * spread**2,
        rtol=1e-10,
    )


def test_probes_cover_the_exact_value(make_net, randn, monkeypatch):
    net, x = make_net((3, 8, 6, 2), "tanh", scale=2.0).double(), randn(1, 3).double()
    space = FaultSpace(net, x, NeuronCrash(0.1))
    exact = {(e.quantity, e.input, e.output): e.value for e in curved(space)}
    monkeypatch.setattr(second_order, "MAX_EXACT_HESSIAN", 4)
    inside = {key: [] for key in exact}
    values = {key: [] for key in exact}
    for seed in range(40):
        for e in curved(space, seed=seed):
            key = e.quantity, e.input, e.output
            values[key].append(e.value)
            inside[key].append(e.low <= exact[key] <= e.high)
    for key, found in values.items():
        error = np.std(found, ddof=1) / np.sqrt(len(found))
        assert error > 0
        assert abs(np.mean(found) - exact[key]) < 4 * error
    assert np.mean(list(inside.values())) == pytest.approx(0.95, abs=0.05)


def test_probes_depend_on_the_seed_alone(make_net, randn, monkeypatch):
    monkeypatch.setattr(second_order, "MAX_EXACT_HESSIAN", 4)
    space = FaultSpace(make_net((3, 5, 4, 2)), randn(2, 3), NeuronCrash(0.1))
    assert curved(space, seed=1) == curved(space, seed=1)
    assert curved(space, seed=1) != curved(space, seed=2)


def test_inside_inference_mode(make_net, randn):
    net, x = make_net((3, 5, 2)), randn(2, 3)
    with torch.inference_mode():
        found = score(net, x, NeuronCrash(0.1), methods=["mean-point-curvature", "pairs"])
    outside = score(net, x, NeuronCrash(0.1), methods=["mean-point-curvature", "pairs"])
    assert found.estimates == outside.estimates


def test_no_curvature_where_nothing_bends(make_net, randn):
    net, x = make_net((3, 5, 2), "relu"), randn(2, 3)
    found = score(net, x, NeuronCrash(0.1), methods=["mean-point-curvature", "exact"])
    law = values_of(found.estimates, "exact", "variance")
    np.testing.assert_allclose(
        values_of(found.estimates, "mean-point-curvature", "variance"), law, rtol=1e-6
    )


def test_pairs_are_for_crashes(make_net, randn):
    found = score(make_net((3, 5, 2)), randn(2, 3), AdditiveNoise(0.1), methods=["taylor", "pairs"])
    assert "additive-noise" in found.skipped["pairs"]
    assert not [e for e in found.estimates if e.method == "pairs"]
