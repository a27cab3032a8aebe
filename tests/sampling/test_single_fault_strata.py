"""Intervals and plans of sampling in strata: coverage against laws drawn here, and limits."""

import numpy as np
import pytest
from scipy.stats import beta

from crashsim.sampling.single_faults.means import MeanStrata
from crashsim.sampling.single_faults.strata import Strata, plan

MANY = 10**6


def strata(sizes, drawn, hits, stronger=None, sign=None):
    stronger = np.full(len(sizes), -1) if stronger is None else np.array(stronger)
    falls = np.where(stronger >= 0, 0.25, 1.0)
    sign = np.ones(len(sizes)) if sign is None else np.array(sign, float)
    return Strata(np.array(sizes), np.array(drawn), np.array(hits), stronger, falls, sign)


def test_a_single_stratum_has_clopper_and_pearsons_interval():
    found = strata([10**12], [40], [3]).interval(0.05)
    assert found.low == pytest.approx(beta.ppf(0.025, 3, 38), rel=1e-6)
    assert found.high == pytest.approx(beta.ppf(0.975, 4, 37), rel=1e-6)
    none = strata([10**12], [40], [0]).interval(0.05)
    assert none.low == 0
    assert none.high == pytest.approx(beta.ppf(0.975, 1, 40), rel=1e-6)


LAWS = [
    ([MANY], [0.01], [1000], None, None),
    ([50], [0.1], [30], None, None),
    ([MANY, MANY // 10, MANY // 100], [1e-4, 0.02, 0.8], [200, 300, 100], None, None),
    ([MANY, MANY // 10, MANY // 100], [1e-4, 0.02, 0.8], [200, 300, 100], [1, 2, -1], None),
    ([MANY, MANY], [0.001, 0.3], [100, 100], None, [-1, 1]),
    ([MANY] * 10, [0.01] * 10, [30] * 10, None, None),
    ([720, 90, 40], [0.02, 0.1, 0.9], [60, 40, 20], None, None),
]


@pytest.mark.parametrize("law", LAWS)
def test_coverage_and_no_bias(law):
    sizes, p, drawn, stronger, sign = law
    rng, repeats = np.random.default_rng(1), 800
    sizes = np.array(sizes)
    all_hits = np.round(np.array(p) * sizes).astype(int)
    truth = (all_hits * (1 if sign is None else np.array(sign))).sum() / sizes.sum()
    missed, values = 0, []
    for _ in range(repeats):
        hits = rng.hypergeometric(all_hits, sizes - all_hits, drawn)
        found = strata(sizes, drawn, hits, stronger, sign)
        interval = found.interval(0.05)
        missed += not interval.low <= truth <= interval.high
        values.append(found.value)
    assert missed / repeats < 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / np.sqrt(repeats)


def test_a_chain_limits_what_is_not_seen_until_a_hit_contradicts_it():
    sizes, drawn = [MANY, MANY // 100], [5, 400]
    free = strata(sizes, drawn, [0, 4]).interval(0.05)
    chained = strata(sizes, drawn, [0, 4], [1, -1]).interval(0.05)
    assert chained.high < 0.05 * free.high
    limit = beta.ppf(0.975, 5, 396)
    assert chained.high > 0.25 * limit * sizes[0] / sum(sizes)  # what is assumed is allowed for
    seen = strata(sizes, drawn, [1, 4], [1, -1]).interval(0.05)
    assert seen.high > 0.5 * beta.ppf(0.975, 2, 4)


def test_everything_drawn_is_exact():
    found = strata([30, 20], [30, 20], [3, 2]).interval(0.05)
    assert found.low == found.value == found.high == pytest.approx(0.1)


def test_a_plan_reaches_the_width_it_is_made_for():
    sizes = [MANY, MANY // 10, MANY // 100]
    p = np.array([1e-5, 0.01, 0.9])
    before = strata(sizes, [0, 0, 0], [0, 0, 0])
    value = float(before.shares @ p)
    drawn = plan(before, p, 0.2 * value, 0.05, 10**6)
    expected = np.round(drawn * p).astype(int)
    found = strata(sizes, drawn, expected).interval(0.05)
    assert 0.5 * 0.2 * value < (found.high - found.low) / 2 < 1.3 * 0.2 * value
    uniform = 1.96**2 * (1 - value) / value / 0.2**2
    assert drawn.sum() < 10 * uniform
    assert plan(before, p, 1e-9, 0.05, 500).sum() < 1000  # as far as it is allowed to


def test_means_cover():
    rng, missed, values = np.random.default_rng(2), 0, []
    sizes, drawn = np.array([20_000, 1000]), np.array([60, 80])
    low, high = rng.random(20_000) < 0.02, rng.exponential(size=1000)
    truth = (low.sum() + high.sum()) / 21_000
    for _ in range(500):
        a, b = rng.choice(low, 60, False).astype(float), rng.choice(high, 80, False)
        sums, squares = (np.array([(x**k).sum() for x in (a, b)]) for k in (1, 2))
        found = MeanStrata(sizes, drawn, sums, squares, 10.0).interval(0.05)
        missed += not found.low <= truth <= found.high
        values.append(found.value)
    assert missed < 500 * 0.08
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / np.sqrt(500)
