"""Surrogates gathered for pictures, against the surrogates themselves."""

import numpy as np
import pytest
from crashsim_theory import Bernoulli, Coordinates, LinearSurrogate, Normal
from crashsim_theory.tails.gathered import gathered


def _surrogate(p, extra=()):
    rng = np.random.default_rng(3)
    n = sum(len(b) for b in (*p, *extra))
    gains = rng.standard_normal((2, n)) * np.exp(2 * rng.standard_normal(n))
    coordinates = Coordinates([*p, *extra])
    return LinearSurrogate(rng.standard_normal(2), gains, coordinates)


@pytest.mark.parametrize(
    ("p", "extra"),
    [
        ([Bernoulli(np.full(5000, 1e-3))], ()),
        ([Bernoulli(np.full(3000, 0.02)), Bernoulli(np.full(3000, 1e-4))], ()),
        ([Bernoulli(np.full(5000, 1e-3))], [Normal(np.full(4, 0.1))]),
        ([Bernoulli(np.repeat([0.0, 1e-3, 1.0], [100, 3000, 5]))], ()),
    ],
)
def test_tails_are_those_of_the_surrogate(p, extra):
    whole = _surrogate(p, extra)
    found = gathered(whole)
    assert found is not whole
    spread = np.sqrt(whole.variance.max())
    at = np.array([0.5, 2.0, 5.0, 10.0]) * spread
    exact = whole.chernoff(at)
    assert (exact > 0).all()
    assert (exact < 1).any()
    assert (found.chernoff(at) >= exact * (1 - 1e-9)).all()  # stays a bound
    np.testing.assert_allclose(found.chernoff(at), exact, rtol=0.05)
    np.testing.assert_allclose(found.saddlepoint(at), whole.saddlepoint(at), rtol=0.05)
    np.testing.assert_allclose(
        found.saddlepoint(at, "lower"), whole.saddlepoint(at, "lower"), rtol=0.05
    )


def test_few_coordinates_stay_as_they_are():
    small = _surrogate([Bernoulli(np.full(2000, 0.01))])
    rates = _surrogate([Bernoulli(np.linspace(0.01, 0.02, 5000))])
    assert gathered(small) is small
    assert gathered(rates) is rates
