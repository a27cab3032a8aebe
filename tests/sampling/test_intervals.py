"""Intervals against scipy's and against their definitions."""

import numpy as np
import pytest
from scipy import stats

from crashsim.sampling import bounded_means
from crashsim.sampling.bounded_means import clustered_proportion_interval
from crashsim.sampling.intervals import (
    ENOUGH,
    Spread,
    degrees_of_freedom,
    half_width,
    mean_interval,
    proportion_interval,
    variance_interval,
)
from crashsim.sampling.quantiles import (
    pooled_quantile,
    quantile_interval,
    stratified_quantiles,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (3, 100_000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_clopper_pearson(hits, n, alpha):
    found = proportion_interval(np.array([hits]), n, alpha)
    wanted = stats.binomtest(hits, n).proportion_ci(1 - alpha, method="exact")
    assert found.low[0] == pytest.approx(wanted.low)
    assert found.high[0] == pytest.approx(wanted.high)
    assert found.value[0] == hits / n


def test_clusters_of_one_input_are_nearly_clopper_pearson():
    hits = np.zeros(500)
    hits[:20] = 1
    found = clustered_proportion_interval(
        np.array([hits.mean()]), np.array([hits.var(ddof=1)]), 500, 1, 0.05
    )
    wanted = stats.binomtest(20, 500).proportion_ci()
    assert found.low[0] == pytest.approx(wanted.low, rel=0.02)
    assert found.high[0] == pytest.approx(wanted.high, rel=0.02)


def test_inputs_that_share_their_fate_count_once():
    """Ten inputs that always fail together tell no more than one."""
    together = np.zeros(500)
    together[:20] = 1.0
    apart = np.random.default_rng(0).binomial(10, 0.04, 500) / 10
    widths = []
    for shares in (together, apart):
        found = clustered_proportion_interval(shares.mean(), shares.var(ddof=1), 500, 10, 0.05)
        widths.append(found.high - found.low)
    assert widths[0] > 2 * widths[1]


@pytest.mark.parametrize("rates", [(1e-3, 1e-3), (5e-3, 2e-4), (2e-3, 5e-3)])
@pytest.mark.parametrize("turned", [False, True], ids=["seldom", "nearly always"])
def test_masks_that_fail_few_inputs_say_little_of_those_that_fail_all(rates, turned):
    """Some masks fail one input of 16, some all: whichever were seen, the interval covers."""
    rng, runs, n, inside = np.random.default_rng(0), 400, 1000, 0
    truth = rates[0] / 16 + rates[1]
    for _ in range(runs):
        few, all_ = rng.random((2, n)) < np.array(rates)[:, None]
        shares = np.where(all_, 1.0, few / 16)
        shares = 1 - shares if turned else shares
        found = clustered_proportion_interval(shares.mean(), shares.var(ddof=1), n, 16, 0.05)
        wanted = 1 - truth if turned else truth
        inside += bool(found.low <= wanted + 1e-5) and bool(wanted - 1e-5 <= found.high)
    assert inside / runs >= 0.94


def test_outputs_that_failed_as_often_share_one_interval(monkeypatch):
    """Thousands of pixels: what takes long is found once for each way to fail, not for each."""
    rng, n = np.random.default_rng(0), 1000
    some = np.zeros((n, 5))
    for k in range(4):  # in each column, a few masks fail one, two or three inputs of three
        some[rng.choice(n, 2 + k, replace=False), k] = rng.integers(1, 4, 2 + k) / 3
    shares = np.concatenate([rng.permutation(some) for _ in range(200)], 1)
    asked = []
    monkeypatch.setattr(
        bounded_means,
        "_probability",
        lambda *given, found=bounded_means._probability: asked.append(1) or found(*given),
    )
    together = clustered_proportion_interval(shares.mean(0), shares.var(0, ddof=1), n, 3, 0.05)
    assert len(asked) < 200
    for k in range(5):
        mean, variance = some[:, k].mean(), some[:, k].var(ddof=1)
        alone = clustered_proportion_interval(mean, variance, n, 3, 0.05)
        assert together.low[k::5] == pytest.approx(float(alone.low), rel=1e-9)
        assert together.high[k::5] == pytest.approx(float(alone.high), rel=1e-9)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_clusters_without_a_hit_or_a_miss(mean):
    found = clustered_proportion_interval(np.array([mean]), np.array([0.0]), 50, 3, 0.05)
    wanted = stats.binomtest(int(50 * mean), 50).proportion_ci()
    assert (found.low[0], found.high[0]) == pytest.approx((wanted.low, wanted.high))


def test_clusters_tell_no_more_than_all_their_inputs():
    """Nearly always, one input of three fails under a mask."""
    found = clustered_proportion_interval(np.array([1 / 3]), np.array([1e-6]), 100, 3, 0.05)
    wanted = stats.binomtest(100, 300).proportion_ci()
    assert (found.low[0], found.high[0]) == pytest.approx((wanted.low, wanted.high))


def test_a_quantile_where_the_law_jumps_to_it():
    """P(X <= 1) is 0.9 itself: whichever of 1 and 2 is estimated, the interval holds both ends."""
    rng, runs, inside = np.random.default_rng(0), 300, 0
    for _ in range(runs):
        size = rng.choice([1.0, 2.0], p=[2 / 3, 1 / 3], size=(400, 1, 1))
        (found,) = stratified_quantiles(
            size, np.array([1.0, 2.0]).reshape(2, 1, 1), np.array([0.8, 0.05]), 0.15, [0.9], 0.05
        )
        inside += found.low[0] <= 1.0 <= found.high[0]
    assert inside / runs > 0.93


def test_many_proportions_are_each_as_alone():
    hits = np.random.default_rng(0).integers(0, 21, (3, 400)).astype(float)
    found = proportion_interval(hits, 20, 0.05)
    alone = proportion_interval(hits, np.full(hits.shape, 20.0), 0.05)
    for one, other in zip(
        (found.value, found.low, found.high), (alone.value, alone.low, alone.high), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    wanted = stats.binomtest(int(hits[1, 7]), 20).proportion_ci()
    assert (found.low[1, 7], found.high[1, 7]) == pytest.approx((wanted.low, wanted.high))


def test_student_of_many_is_from_a_table_that_is_never_below():
    freedom = np.geomspace(1, 5000, 40_000)
    spread = Spread(np.ones(40_000), 2 * 5000 / freedom + 1, np.zeros(40_000))
    known = degrees_of_freedom(spread, 5000)
    found = half_width(spread, 5000, 0.05) * np.sqrt(5000)
    over = found / stats.t.ppf(0.975, np.maximum(known, 1)) - 1
    assert len(np.unique(known)) > 1000
    assert over.min() > -1e-12
    assert 1e-9 < over.max() < 1e-4


def test_student():
    """What may not have been seen comes on top of it, and vanishes as 1/n."""
    x = np.random.default_rng(0).normal(size=12)
    spread = Spread.of(x)
    seen = half_width(Spread(spread.variance, np.float64(0), np.float64(0)), 12, 0.05)
    found = mean_interval(x.mean(), seen)
    wanted = stats.ttest_1samp(x, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    unseen = -np.log(0.05) / 12 * np.abs(x - x.mean()).max()
    assert half_width(spread, 12, 0.05) == pytest.approx(np.hypot(seen, unseen))


def test_degrees_of_freedom():
    rng = np.random.default_rng(0)
    normal, hits = rng.normal(size=100_000), (np.arange(10_000) < 5).astype(float)
    assert degrees_of_freedom(Spread.of(normal), 1000) == pytest.approx(1000, rel=0.05)
    assert degrees_of_freedom(Spread.of(hits), 10_000) == pytest.approx(10, rel=0.01)
    assert degrees_of_freedom(Spread.of(np.ones(10)), 10) == 0  # no spread was seen
    assert degrees_of_freedom(Spread.of(np.sign(normal)), 50, fitted=2) == 47


def test_rare_and_large_values_are_covered():
    """One value in fifty is large: Student's plain interval of 200 of them misses too often."""
    rng, n, runs = np.random.default_rng(0), 200, 2000
    values = np.where(rng.random((n, runs)) < 0.02, rng.exponential(size=(n, runs)) * 10, 0.1)
    truth, spread = 0.02 * 10 + 0.98 * 0.1, Spread.of(values)
    plain = stats.t.ppf(0.975, n - 1) * np.sqrt(spread.variance / n)
    half = half_width(spread, n, 0.05)
    assert (np.abs(values.mean(0) - truth) <= plain).mean() < 0.8
    assert (np.abs(values.mean(0) - truth) <= half).mean() > 0.87
    found = variance_interval(values.mean(0), half)
    assert ((found.low <= truth) & (truth <= found.high)).mean() > 0.91
    assert (degrees_of_freedom(spread, n) < ENOUGH).mean() > 0.95  # and it is told
    assert (
        degrees_of_freedom(Spread.of(values[:, :200].reshape(-1)), values[:, :200].size)
    ) > ENOUGH


def test_variance_of_nothing_seen_is_open_above():
    found = variance_interval(np.array([0.0, 2.0]), np.array([0.0, 0.5]))
    assert (found.low[0], found.high[0]) == (0, np.inf)
    assert (found.low[1], found.high[1]) == pytest.approx((2 * np.exp(-0.25), 2 * np.exp(0.25)))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("discrete", [False, True])
def test_quantiles_hold_at_their_rate(level, discrete):
    rng = np.random.default_rng(1)
    x = rng.exponential(size=(300, 2000))
    truth = stats.expon.ppf(level)
    if discrete:
        x, truth = np.ceil(x), np.ceil(truth)
    found = quantile_interval(np.sort(x, axis=0), level, 0.05)
    assert ((found.low <= truth) & (truth <= found.high)).mean() >= 0.94
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()


def test_a_quantile_beyond_the_sample_is_open():
    found = quantile_interval(np.arange(10.0)[:, None], 0.99, 0.05)
    assert found.high[0] == np.inf


@pytest.mark.parametrize("alpha", [0.5, 0.05, 1e-3, 1e-8])
def test_half_widths_of_very_many_values_are_those_of_each(alpha):
    draws = np.random.Generator(np.random.Philox(3))
    n, many = 5000, 40_000
    kurtosis = 1 + np.exp(draws.uniform(0, np.log(2 * n), many))
    spread = Spread(np.ones(many), kurtosis, np.zeros(many))
    found = half_width(spread, n, alpha)
    assert found.max() / found.min() > 1.1
    some = np.r_[np.argsort(kurtosis)[:50], np.argsort(kurtosis)[-50:], 0:100]
    for at in some:
        one = Spread(*(field[at] for field in (spread.variance, kurtosis, spread.largest)))
        wanted = half_width(one, n, alpha)
        assert wanted * (1 - 1e-9) <= found[at] <= wanted * (1 + 1e-4)


@pytest.mark.parametrize("inputs", [1, 5])
@pytest.mark.parametrize("step", [None, 0.5, 10.0])
def test_pooled_quantiles_by_the_definition_of_their_design_effect(inputs, step):
    """Of values that all differ, of many that are alike, and all alike."""
    rng = np.random.default_rng(3)
    size = np.abs(rng.normal(size=(400, inputs, 2)) + rng.normal(size=(400, 1, 2)))
    size = (size if step is None else step * np.round(size / step)).astype(np.float32)
    ordered = np.sort(size.reshape(-1, 2), axis=0).T
    for level in (0.5, 0.9):
        found = pooled_quantile(size, np.ascontiguousarray(ordered), level, 0.05)
        for k in range(2):
            value = ordered[k, int(np.ceil(level * size[:, :, k].size)) - 1]
            effects = []
            for hits in (size[:, :, k] <= value, size[:, :, k] < value):
                share = hits.mean(1)
                alone = share.mean() * (1 - share.mean())
                effects.append(share.var(ddof=1) / alone if alone > 0 else 1.0)
            shares = clustered_proportion_interval(
                np.array([level]), np.array([max(effects) * level * (1 - level)]), 400, inputs, 0.05
            )
            where = [
                int(np.ceil(ordered.shape[1] * end[0] - 1)) for end in (shares.low, shares.high)
            ]
            assert found.value[k] == value
            assert found.low[k] == min(ordered[k, max(where[0], 0)], value)
            assert found.high[k] == max(ordered[k, where[1]], value)
    assert step is not None or (found.low < found.high).all()
