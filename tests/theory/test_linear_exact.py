"""The proved bracket of linear tails: never violated, and as tight as promised."""

import itertools
from fractions import Fraction

import crashsim_theory as ct
import numpy as np
import pytest
from crashsim_theory.tails import exact
from scipy import stats


def exact_tail(p, gains, shift, eps):
    """P(shift + sum b g >= eps) in rational arithmetic: no rounding anywhere."""
    total = Fraction(0)
    for mask in itertools.product((0, 1), repeat=len(p)):
        value = Fraction(shift) + sum(Fraction(g) for b, g in zip(mask, gains, strict=True) if b)
        if value >= Fraction(eps):
            weight = Fraction(1)
            for b, q in zip(mask, p, strict=True):
                weight *= Fraction(q) if b else 1 - Fraction(q)
            total += weight
    return total


@pytest.mark.parametrize("many", [0.0, exact.MANY_CRASHES])
@pytest.mark.parametrize("seed", range(20))
def test_brackets_the_exact_rational_tail(seed, many, monkeypatch):
    """With gains rounded outward, and (many = 0) to the nearest cell."""
    monkeypatch.setattr(exact, "MANY_CRASHES", many)
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 8))
    p = rng.choice([0.0, 1e-6, 0.01, 0.3, 0.97, 1.0], n)
    gains = rng.choice([rng.normal(size=n), rng.integers(-2, 3, n), 10.0 ** rng.uniform(-8, 3, n)])
    gains = gains * rng.choice([1, -1], n)
    shift = float(rng.choice([0.0, 0.1, -0.7]))
    mask = rng.integers(0, 2, n)
    on_atom = shift + float(mask @ gains)
    for eps in (on_atom, float(rng.normal()), 0.0, on_atom * 0.5):
        for cells in (16, 200, 4000):
            s = ct.LinearSurrogate(shift, gains, ct.Coordinates([ct.Bernoulli(p)]))
            low, high = ct.linear_exact(s, eps, cells=cells, side="upper")
            truth = exact_tail(p, gains, shift, eps)
            assert Fraction(float(low)) <= truth <= Fraction(float(high))
            low, high = ct.linear_exact(s, eps, cells=cells, side="lower")
            truth = exact_tail(p, -gains, -shift, eps)
            assert Fraction(float(low)) <= truth <= Fraction(float(high))


@pytest.mark.parametrize("seed", range(20))
def test_two_sided_bracket(seed):
    rng = np.random.default_rng(seed)
    p, gains = rng.uniform(0.001, 0.2, 10), rng.normal(size=10)
    masks = np.array(list(itertools.product((0, 1), repeat=10)))
    probabilities = np.prod(np.where(masks == 1, p, 1 - p), 1)
    eps = np.array([0.0, 0.5, 2.0, 4.0])
    truth = (np.abs(masks @ gains) >= eps[:, None]) @ probabilities
    s = ct.LinearSurrogate(0.0, gains, ct.Coordinates([ct.Bernoulli(p)]))
    low, high = ct.linear_exact(s, eps)
    assert np.all(low <= truth * (1 + 1e-12))
    assert np.all(truth * (1 - 1e-12) <= high)
    np.testing.assert_allclose(low, high, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("p", "ratio"), [(1e-3, 1.005), (0.01, 1.01), (0.05, 1.02)])
def test_ratio_of_the_bracket_for_a_thousand_crashes(p, ratio):
    rng = np.random.default_rng(0)
    n = 1000
    gains = rng.normal(size=n) / np.sqrt(n)
    s = ct.LinearSurrogate(0.0, gains, ct.Coordinates([ct.Bernoulli(np.full(n, p))]))
    delta = np.array([1e-3, 1e-9])
    eps = s.quantile(delta)
    low, high = ct.linear_exact(s, eps)
    assert np.all(low > 0.2 * delta)
    assert np.all(high <= ratio * low)


def test_binomial_counts():
    n, p = 200, 0.02
    s = ct.LinearSurrogate(0.0, np.ones(n), ct.Coordinates([ct.Bernoulli(np.full(n, p))]))
    for k in (1, 5, 20, 60):
        low, high = ct.linear_exact(s, float(k), side="upper")
        truth = stats.binom.sf(k - 1, n, p)
        assert low <= truth * (1 + 1e-9)
        assert high >= truth * (1 - 1e-9)


def test_refusals():
    normal = ct.LinearSurrogate(0.0, np.ones(2), ct.Coordinates([ct.Normal(np.ones(2))]))
    with pytest.raises(ct.TheoryError, match="use chernoff"):
        ct.linear_exact(normal, 1.0)
    bernoulli = ct.LinearSurrogate(0.0, np.ones(2), ct.Coordinates([ct.Bernoulli([0.1, 0.1])]))
    with pytest.raises(ct.TheoryError, match="at least 16"):
        ct.linear_exact(bernoulli, 1.0, cells=4)
    with pytest.raises(ct.TheoryError, match="choose"):
        ct.linear_exact(bernoulli, 1.0, side="left")
