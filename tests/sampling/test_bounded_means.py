"""Intervals of bounded means, against sampled gaps, closed forms, and binomial intervals."""

import numpy as np
import pytest
from scipy import stats

from crashsim.sampling.bounded_means import bounded_mean_interval, mean_end


def by_sampling(values, bound, level, rng, draws=200_000):
    """The quantile of the mean weighted by gaps between uniform numbers, which are drawn."""
    gaps = rng.standard_exponential((draws, len(values) + 1))
    return np.quantile(gaps @ np.append(values, bound) / gaps.sum(1), level)


@pytest.mark.parametrize(
    "values",
    [
        [0.3],
        [0.2, 0.9],
        [0.9] * 30,
        [0.93] * 30 + [0.2, 0.4],
        list(0.9 + 0.01 * np.sin(np.arange(40))),
    ],
)
@pytest.mark.parametrize(("bound", "level"), [(0, 0.02), (1, 0.97)])
def test_ends_are_those_of_sampled_gaps(values, bound, level):
    rng = np.random.default_rng(3)
    wanted = by_sampling(np.array(values), bound, level, rng)
    spread = abs(by_sampling(np.array(values), bound, level, rng) - wanted)
    found = mean_end(np.array(values), bound, level)
    assert found == pytest.approx(wanted, abs=3 * spread + 2e-3)
    assert min(values) - 1 < found < max(values) + 1
    assert abs(found - np.mean(values)) > 1e-3


def test_of_events_it_is_the_binomial_interval():
    values = np.r_[np.ones(7), np.zeros(193)]
    low = stats.beta.ppf(0.02, 7, 194)
    high = stats.beta.ppf(0.98, 8, 193)
    assert mean_end(values, 0.0, 0.02) == pytest.approx(low, rel=1e-6)
    assert mean_end(values, 1.0, 0.98) == pytest.approx(high, rel=1e-6)


def test_values_that_are_alike_leave_room_for_what_was_not_seen():
    # All weight but the last gap's lies on 0.9: the gap is at least g with probability (1 - g)^n.
    n, level = 50, 0.01
    gap = 1 - level ** (1 / n)
    assert mean_end(np.full(n, 0.9), 0.0, level) == pytest.approx(0.9 * (1 - gap), rel=1e-6)


def test_many_values_have_the_leading_terms_and_few_the_integral():
    rng = np.random.default_rng(0)
    many = rng.normal(0.9, 0.01, 3000)
    few = np.round(many, 4)  # all but the same numbers
    assert len(np.unique(few)) < len(np.unique(many)) == 3000
    for bound, level in ((0, 0.02), (1, 0.98)):
        exact = mean_end(np.round(many, 3), bound, level) + (many - np.round(many, 3)).mean()
        assert mean_end(many, bound, level) == pytest.approx(exact, abs=3e-6)
        assert abs(exact - many.mean()) > 1e-4


def test_infinite_values_and_none():
    found = bounded_mean_interval(np.array([0.5, np.inf]), 0, np.inf, 0.05)
    assert (found.value, found.low, found.high) == (np.inf, 0, np.inf)
    found = bounded_mean_interval(np.array([0.5, np.inf]), -np.inf, np.inf, 0.05)
    assert (found.value, found.low, found.high) == (np.inf, np.inf, np.inf)
    found = bounded_mean_interval(np.empty(0), 0, 1, 0.05)
    assert (found.low, found.high) == (0, 1)
    assert np.isnan(bounded_mean_interval(np.array([np.nan]), 0, 1, 0.05).value)


def test_without_bounds_it_is_students_and_wider():
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = bounded_mean_interval(values, -np.inf, np.inf, 0.05)
    half = 1.96 * values.std() / 20
    assert half < found.high - found.value < 2 * half
    assert found.low < 3 < found.high
