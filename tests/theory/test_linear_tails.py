"""Tails of linear surrogates against enumeration over all masks and closed forms."""

import itertools

import crashsim_theory as ct
import mpmath
import numpy as np
import pytest
from crashsim_theory.tails.compressed import CompressedRows
from crashsim_theory.tails.rows import Rows
from scipy import stats


def enumerated(p, gains, shift=0.0):
    """(values, probabilities) of shift + sum b_i g_i over the 2^N masks."""
    masks = np.array(list(itertools.product([0, 1], repeat=len(p))))
    probabilities = np.prod(np.where(masks == 1, p, 1 - p), axis=1)
    return shift + masks @ gains, probabilities


def bernoulli_surrogate(rng, size=12, leading=()):
    p = rng.uniform(0.01, 0.4, size)
    gains = rng.normal(size=(*leading, size))
    shift = rng.normal(size=leading)
    return ct.LinearSurrogate(shift, gains, ct.Coordinates([ct.Bernoulli(p)]))


def test_mean_variance_and_cumulants():
    rng = np.random.default_rng(0)
    s = bernoulli_surrogate(rng)
    values, probabilities = enumerated(s.coordinates.p, s.gains, s.shift)
    assert s.mean == pytest.approx(probabilities @ values)
    assert s.variance == pytest.approx(probabilities @ values**2 - s.mean**2)
    for t in (-30.0, -1.0, 0.0, 1e-9, 0.7, 40.0):
        k = s.cumulants(t)
        tilted = probabilities * np.exp(t * values - np.max(t * values))
        tilted /= tilted.sum()
        mean = tilted @ values
        log_mgf = np.log(probabilities @ np.exp(t * values - np.max(t * values)))
        assert k.k == pytest.approx(log_mgf + np.max(t * values), abs=1e-12)
        assert k.k1 == pytest.approx(mean)
        assert k.k2 == pytest.approx(tilted @ (values - mean) ** 2, rel=1e-6, abs=1e-12)
        assert k.k3 == pytest.approx(tilted @ (values - mean) ** 3, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_chernoff_is_never_below_the_truth(seed):
    rng = np.random.default_rng(seed)
    s = bernoulli_surrogate(rng)
    values, probabilities = enumerated(s.coordinates.p, s.gains, s.shift)
    eps = np.concatenate([np.linspace(0.1, 1.2 * np.abs(values).max(), 40), np.abs(values[:20])])
    for side, hit in (
        ("upper", values >= eps[:, None] + 1e-12),
        ("lower", values <= -eps[:, None] - 1e-12),
        ("both", np.abs(values) >= eps[:, None] + 1e-12),
    ):
        truth = hit @ probabilities
        bound = s.chernoff(eps, side)
        assert bound.shape == eps.shape
        assert np.all(bound >= truth * (1 - 1e-9))
        assert np.all(bound <= 1)
        saddlepoint = s.saddlepoint(eps, side)
        assert np.all((saddlepoint >= 0) & (saddlepoint <= bound * (1 + 1e-9)))


def test_saddlepoint_is_within_a_factor_of_two_on_smooth_sums():
    rng = np.random.default_rng(1)
    s = bernoulli_surrogate(rng, size=16)
    values, probabilities = enumerated(s.coordinates.p, s.gains, s.shift)
    eps = s.mean + np.sqrt(s.variance) * np.linspace(-2, 2.5, 30)
    truth = (values >= eps[:, None]) @ probabilities
    ratio = s.saddlepoint(eps, "upper") / truth
    assert truth[-1] < 1e-2
    assert np.all((ratio > 0.5) & (ratio < 2))
    fine = s.mean + np.sqrt(s.variance) * np.linspace(-1e-2, 1e-2, 2001)
    steps = np.diff(s.saddlepoint(fine, "upper"))
    assert np.all(steps < 0)
    assert steps.min() > -1e-4


def test_normal_coordinates_give_the_normal_tail():
    std = np.array([0.5, 1.0])
    s = ct.LinearSurrogate(0.3, np.array([2.0, -1.0]), ct.Coordinates([ct.Normal(std)]))
    eps = np.linspace(0.31, 12, 30)
    truth = stats.norm.sf((eps - 0.3) / np.sqrt(2.0))
    np.testing.assert_allclose(s.saddlepoint(eps, "upper"), truth, rtol=1e-5)
    exponent = -((eps - 0.3) ** 2) / 4
    np.testing.assert_allclose(s.chernoff(eps, "upper"), np.exp(exponent), rtol=1e-9)
    np.testing.assert_allclose(s.tilt(eps), (eps - 0.3) / 2, rtol=1e-6)


def test_mixed_coordinates_are_told_apart_by_their_blocks():
    gains = np.array([1.0, 3.0, 2.0])
    blocks = [ct.Normal(np.array([0.5])), ct.Bernoulli(np.array([0.1])), ct.Normal(np.array([1.0]))]
    s = ct.LinearSurrogate(0.0, gains, ct.Coordinates(blocks))
    assert s.mean == pytest.approx(0.3)
    assert s.variance == pytest.approx(0.25 + 9 * 0.09 + 4)
    z = np.sqrt(4.25)
    truth = 0.9 * stats.norm.sf(5 / z) + 0.1 * stats.norm.sf(2 / z)
    assert s.saddlepoint(5.0, "upper") == pytest.approx(truth, rel=0.2)


def test_lattice_and_degenerate_cases_give_numbers():
    n, p = 50, 0.1
    lattice = ct.LinearSurrogate(0.0, np.ones(n), ct.Coordinates([ct.Bernoulli(np.full(n, p))]))
    eps = np.array([0.0, 2.5, 5.0, 10.0, 49.5, 50.0, 50.5])
    found = lattice.saddlepoint(eps, "upper")
    assert np.all(np.isfinite(found))
    assert found[-1] == 0
    truth = stats.binom.sf(np.ceil(eps) - 1, n, p)
    assert np.all(found[1:4] / truth[1:4] < 2.5)
    assert np.all(found[1:4] / truth[1:4] > 0.4)
    assert lattice.saddlepoint(50.0, "upper") == pytest.approx(p**n)
    assert lattice.chernoff(50.0, "upper") == pytest.approx(p**n)
    assert lattice.chernoff(50.1, "upper") == 0
    constant = ct.LinearSurrogate(1.0, np.zeros(3), ct.Coordinates([ct.Bernoulli(np.full(3, p))]))
    np.testing.assert_array_equal(constant.saddlepoint([0.5, 1.0, 1.5], "upper"), [1, 1, 0])
    np.testing.assert_array_equal(constant.chernoff([0.5, 1.0, 1.5], "upper"), [1, 1, 0])
    sure = ct.Coordinates([ct.Bernoulli(np.array([0.0, 1.0, 0.5]))])
    s = ct.LinearSurrogate(0.0, np.array([7.0, 2.0, 1.0]), sure)
    np.testing.assert_allclose(s.chernoff([2.0, 3.0, 3.1], "upper"), [1, 0.5, 0])


def test_shapes_curves_and_quantiles():
    rng = np.random.default_rng(2)
    s = bernoulli_surrogate(rng, size=30, leading=(4, 3))
    eps = np.array([[1.0, 2.0]])
    assert s.saddlepoint(eps).shape == (4, 3, 1, 2)
    assert s.tilt(1.0).shape == (4, 3)
    delta = np.array([1e-2, 1e-6])
    for method in ("saddlepoint", "chernoff"):
        q = s.quantile(delta, method)
        assert q.shape == (4, 3, 2)
        for i, j in np.ndindex(4, 3):
            one = ct.LinearSurrogate(s.shift[i, j], s.gains[i, j], s.coordinates)
            np.testing.assert_allclose(getattr(one, method)(q[i, j]), delta, rtol=1e-4)


def test_tilt_solves_for_the_mean():
    rng = np.random.default_rng(4)
    s = bernoulli_surrogate(rng, size=40, leading=(5,))
    t = s.tilt(2.0)
    np.testing.assert_allclose(s.cumulants(t).k1, 2.0, rtol=1e-6)
    assert np.all(np.isinf(s.tilt(1e6)))


def test_chebyshev_and_union():
    rng = np.random.default_rng(6)
    s = bernoulli_surrogate(rng)
    values, probabilities = enumerated(s.coordinates.p, s.gains, s.shift)
    for eps in (0.5, 1.0, 3.0):
        both = ct.chebyshev(s.mean, s.variance, eps)
        assert both >= probabilities[np.abs(values) >= eps].sum()
        assert ct.chebyshev(s.mean, s.variance, eps, "upper") >= probabilities[values >= eps].sum()
        assert ct.chebyshev(s.mean, s.variance, eps, "lower") >= probabilities[values <= -eps].sum()
    assert ct.chebyshev(0.0, 1.0, 2.0) == 0.25
    assert ct.chebyshev(0.0, 1.0, 2.0, "upper") == 0.2
    assert ct.union([0.2, 0.3]) == 0.5
    assert ct.union([0.7, 0.6]) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.chernoff(1.0, "left"), "choose"),
        (lambda s: s.quantile(0.0), "must be positive"),
        (lambda s: s.quantile(0.1, "normal"), "choose one of"),
        (lambda s: ct.LinearSurrogate(0.0, np.ones(3), s.coordinates), "length 12"),
        (lambda s: ct.LinearSurrogate(np.ones(2), np.ones((3, 12)), s.coordinates), "broadcast"),
        (lambda s: ct.Coordinates([]), "at least one"),
        (lambda s: ct.Bernoulli(2.0), "probability"),
        (lambda s: ct.chebyshev(0.0, 1.0, 1.0, "left"), "choose"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ct.TheoryError, match=words):
        call(bernoulli_surrogate(np.random.default_rng(0)))


def test_cumulants_keep_their_digits_at_extreme_p_and_tilt():
    p = np.array([0.0, 1e-30, 1e-17, 1e-3, 1 - 1e-12, 1.0])
    for gain in (1.0, -1.0, 1e-9):
        for t in (50.0, 0.5, 1e-3, 900.0):
            s = ct.LinearSurrogate(0.0, np.full(6, gain), ct.Coordinates([ct.Bernoulli(p)]))
            with mpmath.workdps(500):
                exact = [mpmath.log(1 - mpmath.mpf(q) * (1 - mpmath.exp(t * gain))) for q in p]
            assert s.cumulants(t).k == pytest.approx(float(sum(exact)), rel=1e-12)


@pytest.mark.parametrize("in_cells", [False, True])
def test_the_smallest_value_is_that_of_all_points(in_cells):
    rng = np.random.default_rng(0)
    gains, p = rng.normal(size=(3, 6)), np.array([0.2, 0.7, 0.1, 0.5, 0.0, 1.0])
    shift, spread = rng.normal(size=3), np.array([0.0, 0.0, 1.0])
    if in_cells:
        p = np.full(6, 0.3)
        rows = CompressedRows(shift, gains, spread, p, counts=np.ones((3, 6)))
    else:
        rows = Rows(shift, gains, spread, p)
    points = np.array(list(itertools.product((0, 1), repeat=6)))
    possible = points[((points == 0) | (p > 0)).all(1) & ((points == 1) | (p < 1)).all(1)]
    values = shift + possible @ gains.T
    np.testing.assert_allclose(rows.lowest[:2], values.min(0)[:2], rtol=1e-12)
    np.testing.assert_allclose(rows.maximum()[0][:2], values.max(0)[:2], rtol=1e-12)
    assert rows.lowest[2] == -np.inf


def test_strikes_that_decide_are_counted():
    """Of equal strikes it is the binomial's mean under the tilt, all but; and the saddlepoint
    is off where they are few."""
    n, p, gain = 2000, 1e-3, 0.5
    one = ct.LinearSurrogate(0.0, np.full(n, gain), ct.Coordinates([ct.Bernoulli(np.full(n, p))]))
    for strikes in (4, 10, 40):
        q = strikes / n
        wanted = n * q * (1 - q) / (1 - 2 * q) ** 2
        assert float(one.deciding_strikes(strikes * gain)) == pytest.approx(wanted, rel=1e-6)
    assert np.isinf(one.deciding_strikes(0.0))
    assert np.isinf(one.deciding_strikes(n * gain + 1))
    # One of a thousand is large: a single strike of it decides.
    gains = np.r_[1.0, np.full(999, 1e-3)]
    rare = ct.LinearSurrogate(0.0, gains, ct.Coordinates([ct.Bernoulli(np.full(1000, 1e-5))]))
    assert float(rare.deciding_strikes(0.9)) < 2
    assert not 0.5e-5 < float(rare.saddlepoint(0.9, "upper")) < 2e-5
