"""Intervals and proofs against rational arithmetic: rounding excludes nothing."""

import itertools
from fractions import Fraction

import crashsim_theory as ct
import mpmath
import numpy as np
import pytest


def plain_net(rng, activation, offset=0.0):
    """A network, its input, its faults, and the weights."""
    sizes = [int(n) for n in rng.integers(1, 5, size=3)]
    layers = []
    for fan_in, out in itertools.pairwise([*sizes, 2]):
        scale = 10.0 ** rng.integers(-3, 4)
        layers += [ct.Linear(scale * rng.normal(size=(out, fan_in)), rng.normal(size=out))]
        layers += [activation]
    last = layers[-2]
    layers[-2] = ct.Linear(last.weight, last.bias + offset)
    network = ct.Network(layers[:-1], (sizes[0],))
    faults = ct.neuron_crashes(network, {1: 0.1, 3: 0.3})
    return network, rng.normal(size=sizes[0]), faults, layers[:-1]


def forward(layers, x, e, function, number):
    """Outputs under coordinates e, in the arithmetic of ``number``."""
    values, left = [number(float(v)) for v in x], [number(float(v)) for v in e]
    for layer in layers:
        if isinstance(layer, str):
            values = [function(v) * (1 - left.pop(0)) for v in values]
        else:
            values = [
                sum(
                    (number(float(w)) * v for w, v in zip(row, values, strict=True)),
                    number(float(b)),
                )
                for row, b in zip(layer.weight, layer.bias, strict=True)
            ]
    return values


def masks_of(n):
    return np.array(list(itertools.product((0.0, 1.0), repeat=n)))


@pytest.mark.parametrize("seed", range(12))
def test_enclosures_hold_the_rational_outputs(seed):
    rng = np.random.default_rng(seed)
    offset = float(rng.choice([0.0, 1e8]))
    network, x, faults, layers = plain_net(rng, "relu", offset)
    n = len(faults.p)
    points = np.concatenate([rng.integers(0, 2, (6, n)), rng.random((6, n)), faults.p[None]])
    low, high = ct.enclosure(network, x, faults, points)
    assert (high - low <= 1e-12 * (1 + np.abs(high)) * 1e4).all()
    for e, below, above in zip(points, low, high, strict=True):
        truth = forward(layers, x, e, lambda v: max(v, Fraction(0)), Fraction)
        for value, a, b in zip(truth, below, above, strict=True):
            assert Fraction(float(a)) <= value <= Fraction(float(b))


@pytest.mark.parametrize("seed", range(6))
def test_enclosures_hold_outputs_of_sixty_digits(seed):
    network, x, faults, layers = plain_net(np.random.default_rng(seed), "tanh")
    points = np.random.default_rng(seed).random((8, len(faults.p)))
    low, high = ct.enclosure(network, x, faults, points)
    with mpmath.workdps(60):
        for e, below, above in zip(points, low, high, strict=True):
            truth = forward(layers, x, e, mpmath.tanh, mpmath.mpf)
            for value, a, b in zip(truth, below, above, strict=True):
                assert mpmath.mpf(float(a)) <= value <= mpmath.mpf(float(b))


def rational_law(layers, x, p, function):
    """Delta and probability of every pattern."""
    clean = forward(layers, x, np.zeros(len(p)), function, Fraction)
    for mask in masks_of(len(p)):
        chance = Fraction(1)
        for struck, q in zip(mask, p, strict=True):
            chance *= Fraction(float(q)) if struck else 1 - Fraction(float(q))
        found = forward(layers, x, mask, function, Fraction)
        yield chance, [f - c for f, c in zip(found, clean, strict=True)]


@pytest.mark.parametrize("seed", range(12))
def test_moments_of_a_linear_network_lie_in_their_bounds(seed):
    """Nothing is left over there but rounding: an end that is not rounded outward is missed."""
    rng = np.random.default_rng(seed)
    n, offset = int(rng.integers(1, 6)), float(rng.choice([0.0, 1e6]))
    layers = [
        ct.Linear(rng.normal(size=(n, 2)), rng.normal(size=n)),
        "identity",
        ct.Linear(rng.normal(size=(2, n)), rng.normal(size=2) + offset),
    ]
    network, x = ct.Network(layers, (2,)), rng.normal(size=2)
    faults = ct.neuron_crashes(network, {1: 0.1})
    found = ct.moment_bounds(network, x, faults)
    law = list(rational_law(layers, x, faults.p, lambda v: v))
    for k in range(2):
        mean = sum(chance * delta[k] for chance, delta in law)
        variance = sum(chance * (delta[k] - mean) ** 2 for chance, delta in law)
        assert Fraction(float(found.mean_low[k])) <= mean <= Fraction(float(found.mean_high[k]))
        low, high = float(found.variance_low[k]), float(found.variance_high[k])
        assert Fraction(low) <= variance <= Fraction(high)
        assert high - low <= 1e-8 * (1 + offset) * float(variance) + 1e-200
        assert found.mean_low[k] <= found.mean[k] <= found.mean_high[k]
        assert low <= found.variance[k] <= high


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9])
@pytest.mark.parametrize("seed", range(8))
def test_linear_certificates_hold_an_outcome_at_epsilon(seed, offset):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    weight = rng.choice([0.1, 0.2, 0.3, 0.7, -0.4], (1, n))
    layers = [
        ct.Linear(np.zeros((n, 1)), np.ones(n)),
        "relu",
        ct.Linear(weight, np.array([offset])),
    ]
    network, x = ct.Network(layers, (1,)), np.zeros(1)
    faults = ct.neuron_crashes(network, {1: 0.05})
    law = list(rational_law(layers, x, faults.p, lambda v: max(v, Fraction(0))))
    for eps in (0.3, 0.7, float(np.abs(weight).max()), float(np.abs(weight[0, :2].sum())), 0.4):
        if eps < 1e-6:
            continue
        truth = sum(chance for chance, delta in law if abs(delta[0]) >= Fraction(eps))
        low, high = ct.certify_linear(network, x, faults, eps, cells=4000)
        assert Fraction(low) <= truth <= Fraction(high)
        above = ct.certify(network, x, faults, eps).probability
        assert truth <= Fraction(above)


def test_linear_certificates_are_tight_between_outcomes():
    rng = np.random.default_rng(0)
    layers = [
        ct.Linear(np.zeros((8, 1)), np.ones(8)),
        "relu",
        ct.Linear(rng.normal(size=(1, 8)), np.array([1e6])),
    ]
    network, faults_of = ct.Network(layers, (1,)), {1: 0.05}
    faults = ct.neuron_crashes(network, faults_of)
    law = list(rational_law(layers, np.zeros(1), faults.p, lambda v: max(v, Fraction(0))))
    sizes = sorted({float(abs(delta[0])) for _, delta in law})
    middle = int(np.argmax(np.diff(sizes)))
    eps = (sizes[middle] + sizes[middle + 1]) / 2
    truth = float(sum(chance for chance, delta in law if abs(delta[0]) >= Fraction(eps)))
    low, high = ct.certify_linear(network, np.zeros(1), faults, eps)
    assert 0 < truth < 0.5
    assert low <= truth <= high <= 1.001 * low
    assert ct.certify_linear(network, np.zeros(1), faults, 0.0) == (1.0, 1.0)
