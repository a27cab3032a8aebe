"""Masks drawn given U >= eps: the right event, the right law."""

import itertools

import crashsim_theory as ct
import numpy as np
import pytest
from scipy import stats


def surrogate(rng, n=9):
    gains = rng.normal(size=n)
    p = rng.choice([0.02, 0.1, 0.4], n)
    return ct.LinearSurrogate(rng.normal() * 0.1, gains, ct.Coordinates([ct.Bernoulli(p)]))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("cells", [64, 4000])
def test_the_event_contains_the_tail_and_its_probability_is_bracketed(seed, cells):
    s = surrogate(np.random.default_rng(seed))
    masks = np.array(list(itertools.product((0, 1), repeat=9)))
    weights = np.prod(np.where(masks == 1, s.coordinates.p, 1 - s.coordinates.p), 1)
    values = s.shift + masks @ s.gains
    for eps in (0.3, 1.0, values.max() - 1e-9):
        sampler = ct.exceedance_sampler(s, eps, cells)
        inside = sampler.contains(masks)
        assert np.all(inside[values >= eps])
        assert sampler.low <= weights[inside].sum() * (1 + 1e-12)
        assert weights[inside].sum() * (1 - 1e-12) <= sampler.high
        assert np.all(sampler.contains(sampler.draw(200, np.random.default_rng(0))))


@pytest.mark.parametrize("cells", [64, 4000])
def test_masks_follow_the_conditional_law(cells):
    s = surrogate(np.random.default_rng(3), n=7)
    masks = np.array(list(itertools.product((0, 1), repeat=7)))
    weights = np.prod(np.where(masks == 1, s.coordinates.p, 1 - s.coordinates.p), 1)
    sampler = ct.exceedance_sampler(s, 0.8, cells)
    inside = sampler.contains(masks)
    law = np.where(inside, weights, 0) / weights[inside].sum()
    draws = sampler.draw(40_000, np.random.default_rng(1)) @ (1 << np.arange(6, -1, -1))
    counts = np.bincount(draws, minlength=128)
    assert counts[law == 0].sum() == 0
    common = law * 40_000 >= 5
    expected = np.append(law[common], law[~common].sum()) * 40_000
    seen = np.append(counts[common], counts[~common].sum())
    kept = expected > 0
    assert stats.chisquare(seen[kept], expected[kept]).pvalue > 1e-4


def test_certify_then_sample_covers_a_known_tail():
    """A linear output, whose tail is bracketed by dynamic programming."""
    rng = np.random.default_rng(4)
    gains = rng.normal(size=400) / 20
    s = ct.LinearSurrogate(0.0, gains, ct.Coordinates([ct.Bernoulli(np.full(400, 0.01))]))
    eps = float(s.quantile(1e-6))
    low, high = ct.linear_exact(s, eps, side="upper")
    sampler = ct.exceedance_sampler(s, eps)
    hits = int((sampler.draw(2000, rng) @ gains >= eps).sum())
    interval = stats.binomtest(hits, 2000).proportion_ci(0.999)
    assert sampler.low * interval.low <= high
    assert low <= sampler.high * interval.high
    assert hits > 1500


def test_refusals():
    s = surrogate(np.random.default_rng(0))
    with pytest.raises(ct.TheoryError, match="never reaches it"):
        ct.exceedance_sampler(s, 100.0)
    many = ct.LinearSurrogate(np.zeros(2), np.ones((2, 9)), s.coordinates)
    with pytest.raises(ct.TheoryError, match="one surrogate"):
        ct.exceedance_sampler(many, 1.0)
    normal = ct.LinearSurrogate(0.0, np.ones(1), ct.Coordinates([ct.Normal(1.0)]))
    with pytest.raises(ct.TheoryError, match="lattice"):
        ct.exceedance_sampler(normal, 1.0)
