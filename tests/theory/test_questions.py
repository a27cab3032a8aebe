"""The engineer's questions, replicas, the paper's theorem, groups, mixtures, continuous limit."""

import itertools
import math

import crashsim_theory as ct
import numpy as np
import pytest
from scipy import stats


def enumerate_sum(p, gains):
    masks = np.array(list(itertools.product((0, 1), repeat=len(gains))))
    return masks @ gains, np.prod(np.where(masks == 1, p, 1 - p), 1)


def test_largest_p_chebyshev_meets_the_requirement_with_equality():
    for s1, s2, eps, delta in ((0.5, 1.0, 1.0, 0.1), (0.0, 2.0, 3.0, 0.01), (4.0, 1.0, 0.2, 1e-3)):
        p = ct.largest_p_chebyshev(s1, s2, eps, delta)
        assert 0 < p < 1
        assert p * (1 - p) * s2 / (eps - p * s1) ** 2 == pytest.approx(delta, rel=1e-6)
        assert p * s1 < eps
    assert ct.largest_p_chebyshev(0.0, 1e-6, 10.0, 0.5) == 1
    assert {"S1", "S2", "eps", "delta"} == set(map(str, ct.largest_p_expression().free_symbols))


@pytest.mark.parametrize("method", ["chernoff", "saddlepoint"])
def test_largest_p_of_gains(method):
    gains = np.random.default_rng(0).normal(size=200) / 14
    p = ct.largest_p_of_gains(gains, 1.0, 1e-5, method)
    for factor, meets in ((0.99, True), (1.01, False)):
        s = ct.LinearSurrogate(0.0, gains, ct.Coordinates([ct.Bernoulli(np.full(200, p * factor))]))
        assert (getattr(s, method)(1.0) <= 1e-5) == meets


def test_eps_chebyshev():
    eps = ct.eps_chebyshev(-0.3, 0.04, [0.01, 0.25])
    np.testing.assert_allclose(eps, [2.3, 0.7])
    assert ct.chebyshev(-0.3, 0.04, 2.3) <= 0.01 + 1e-12


def test_width_in_the_continuous_limit():
    """Copying each neuron r times with 1/r of its gain reaches delta just at the factor found."""
    gains = np.random.default_rng(1).normal(size=40) / 10
    found = ct.width_needed(gains, 0.05, 0.5, 1e-4)
    for method, check in (("chernoff", "chernoff"), ("chebyshev", None)):
        found = ct.width_needed(gains, 0.05, 0.5, 1e-4, method)
        r = math.ceil(found.factor)
        assert 40 * (r - 1) < found.neurons <= 40 * r
        for copies, meets in ((r, True), (r - 1, False)):
            wide = np.repeat(gains / copies, copies)
            c = ct.Coordinates([ct.Bernoulli(np.full(wide.size, 0.05))])
            s = ct.LinearSurrogate(0.0, wide, c)
            variance_bound = s.variance / (0.5 - abs(s.mean)) ** 2
            tail = s.chernoff(0.5) if check else variance_bound
            assert (tail <= 1e-4 * (1 + 1e-9)) == meets


def test_variance_shares_add_up_and_give_slopes():
    p, gains = np.array([0.1, 0.1, 0.2]), np.array([1.0, 2.0, 3.0])
    shares = ct.variance_shares(p, gains, ["first", "first", "second"])
    assert shares["first"].variance == pytest.approx(0.45)
    assert sum(share.share for share in shares.values()) == pytest.approx(1)
    raised = ct.variance_shares([0.1, 0.1, 0.2 + 1e-6], gains, ["first", "first", "second"])
    slope = (raised["second"].variance - shares["second"].variance) / 1e-6
    assert shares["second"].sensitivity == pytest.approx(slope, rel=1e-4)


def test_median_of_replicas_is_exact():
    """Against the sum over all patterns of up, down and fine replicas."""
    up, down = 0.2, 0.1
    for replicas in (1, 3, 5):
        total = 0.0
        for pattern in itertools.product((1, -1, 0), repeat=replicas):
            weight = math.prod({1: up, -1: down, 0: 1 - up - down}[s] for s in pattern)
            total += weight * (sorted(pattern)[replicas // 2] != 0)
        assert ct.median_failure(replicas, up, down) == pytest.approx(total)


def test_replicas_needed_is_the_smallest():
    for delta, target in ((1 / 3, 1e-6), (0.01, 1e-6), (0.0918, 1e-9), (1e-4, 1e-3), (0.45, 0.01)):
        r = ct.replicas_needed(target, delta)
        assert r % 2 == 1
        assert ct.median_failure(r, delta) <= target
        assert r == 1 or ct.median_failure(r - 2, delta) > target


def test_the_published_rule_falls_short():
    """27 replicas of failure 1/3 fail with 3.6e-2, not 1e-6; 193 are needed. At 0.01, 7 do."""
    assert ct.published_replicas(1e-6) == 27
    assert ct.median_failure(27, 1 / 3) == pytest.approx(3.6e-2, rel=0.01)
    assert ct.replicas_needed(1e-6, 1 / 3) == 193
    assert ct.replicas_needed(1e-6, 0.01) == 7
    assert pytest.approx(0.0918, abs=1e-4) == ct.PUBLISHED_LIMIT
    assert ct.median_failure(27, ct.PUBLISHED_LIMIT) <= 1e-6


def test_theorem_tail_holds_for_a_linear_layer():
    n, p = 12, 0.1
    gains = np.full(n, 1 / n)
    values, probabilities = enumerate_sum(p, gains)
    mean, variance = p, p * (1 - p) / n
    for eps in (0.3, 0.5, 0.8):
        truth = probabilities[values >= eps - 1e-12].sum()
        found = ct.theorem_tail(mean, variance, eps, n=n, p=p)
        assert found.probability >= truth
        for alpha in (0.3, 0.6, 1.0):
            fixed = ct.theorem_tail(mean, variance, eps, n=n, p=p, alpha=alpha)
            assert found.probability <= fixed.probability * (1 + 1e-6)
    exceed = stats.binom.sf(math.ceil(0.5 * n) - 1, n, p)
    assert ct.theorem_tail(0, 1, 5, n=n, p=p, alpha=0.5).delta_0 >= exceed


def test_theorem_tail_trades_alpha_against_curvature():
    flat = ct.theorem_tail(0.01, 1e-4, 0.5, n=1000, p=0.01, q=0.5)
    bent = ct.theorem_tail(0.01, 1e-4, 0.5, n=1000, p=0.01, q=0.5, curvature=20.0)
    assert 0.01 < bent.alpha < flat.alpha
    assert flat.probability < bent.probability < 1


def test_groups_are_one_coordinate():
    rng = np.random.default_rng(2)
    ids = np.array([0, 1, 0, -1, 1, 2])
    gains = rng.normal(size=(2, 6))
    grouped = ct.group_sum(gains, ids)
    np.testing.assert_allclose(grouped[:, 0], gains[:, 0] + gains[:, 2])
    assert grouped.shape == (2, 3)
    hessian = rng.normal(size=(6, 6))
    expected = [[hessian[np.ix_(ids == a, ids == b)].sum() for b in range(3)] for a in range(3)]
    np.testing.assert_allclose(ct.group_hessian(hessian, ids), expected)
    values, probabilities = enumerate_sum(0.2, grouped[0])
    s = ct.LinearSurrogate(0.0, grouped[0], ct.Coordinates([ct.Bernoulli(np.full(3, 0.2))]))
    low, high = ct.linear_exact(s, 0.5)
    assert low <= probabilities[np.abs(values) >= 0.5].sum() <= high


def test_a_common_random_p_adds_variance_that_width_does_not_remove():
    rate = ct.CommonRate.beta(0.02, 0.01)
    gains = np.full(10, 0.1)
    mean, variance = rate.mean_and_variance(
        lambda p: (p * gains.sum(), p * (1 - p) * (gains**2).sum())
    )
    assert mean == pytest.approx(0.02)
    second = 0.02**2 + 0.01**2
    assert variance == pytest.approx((0.02 - second) * 0.1 + 0.01**2)
    size = 0.02 * 0.98 / 0.01**2 - 1
    truth = stats.betabinom.sf(2, 10, 0.02 * size, 0.98 * size)
    assert rate.average(lambda p: stats.binom.sf(2, 10, p)) == pytest.approx(truth, rel=1e-9)
    two = ct.CommonRate([0.0, 0.5], [0.9, 0.1])
    assert two.average(lambda p: p) == pytest.approx(0.05)


def test_continuous_limit_tells_smooth_from_rough():
    n = 200
    y = np.linspace(0, 1, n)
    smooth = np.stack([np.sin(3 * y) + 2, np.cos(2 * y)], 1)
    gains = (1 + y) / n
    verdict = ct.continuous_limit(smooth, gains)
    assert verdict.holds
    assert verdict.variance(0.01) == pytest.approx(0.01 * 0.99 * (gains**2).sum())
    assert verdict.variance(0.01, 2 * n) == pytest.approx(verdict.variance(0.01) / 2)
    rng = np.random.default_rng(3)
    rough = ct.continuous_limit(smooth[rng.permutation(n)], gains)
    assert not rough.holds
    assert rough.roughness == pytest.approx(1, abs=0.2)
    assert ct.smoothing_residual(smooth) < 0.02 < ct.smoothing_residual(rng.normal(size=(n, 2)))
    lone = ct.continuous_limit(smooth, np.where(y == 0, 1.0, 1e-3))
    assert "participation" in lone.reasons[0]
    assert ct.balance([[1, -1], [0.5, 0]]) == 0.25
    assert (
        "unbalanced"
        in ct.continuous_limit(smooth * np.where(y < 0.5, 1, 0.01)[:, None], gains).reasons[0]
    )


def test_decay_exponents():
    n = np.array([10, 20, 40])
    assert ct.decay_exponents(n, 3 / n, 5 / n**2.0) == pytest.approx((-1, -2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ct.largest_p(lambda p: 1.0, 0.1), "no p reaches it"),
        (lambda: ct.largest_p_chebyshev(1, 1, 1, 0.0), "strictly between"),
        (lambda: ct.width_needed(np.ones(3), 0.5, 1.0, 0.1), "must exceed"),
        (lambda: ct.width_needed(np.ones(3), 0.1, 1.0, 0.1, "luck"), "choose"),
        (lambda: ct.variance_shares(0.1, np.ones(3), ["a"]), "one label per coordinate"),
        (lambda: ct.median_failure(4, 0.1), "odd number"),
        (lambda: ct.median_failure(3, 1.1), "probability"),
        (lambda: ct.replicas_needed(1e-3, 0.5), "below 1/2"),
        (lambda: ct.replicas_needed(0.0, 0.1), "strictly between"),
        (lambda: ct.published_replicas(2.0), "strictly between"),
        (lambda: ct.theorem_tail(0, 1, 1, n=5, p=0.0), "strictly between"),
        (lambda: ct.theorem_tail(0, 1, 1, n=5, p=0.1, q=2.0), "balance factor"),
        (lambda: ct.theorem_tail(0, 1, 1, n=5, p=0.1, alpha=0.05), "between p"),
        (lambda: ct.group_sum(np.ones(3), [0, 1]), "3 integers"),
        (lambda: ct.group_sum(np.ones(2), [0, 3], groups=2), "ids run"),
        (lambda: ct.CommonRate([0.1], [0.5]), "summing to 1"),
        (lambda: ct.CommonRate.beta(0.1, 0.5), "std"),
        (lambda: ct.CommonRate.beta(0.0, 0.5), "mean"),
        (lambda: ct.continuous_limit(np.ones((4, 2)), np.ones(3)), "one gain per row"),
        (lambda: ct.roughness(np.ones((2, 2))), "at least three"),
        (lambda: ct.balance(np.ones(2)), "neurons, inputs"),
        (lambda: ct.decay_exponents([1.0], [1.0]), "two positive widths"),
        (lambda: ct.decay_exponents([1.0, 2.0], [1.0]), "one positive number"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ct.TheoryError, match=words):
        call()
