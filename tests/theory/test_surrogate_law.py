"""The law of linear surrogates by FFT: against enumeration, closed forms and plain draws."""

import itertools
from fractions import Fraction

import crashsim_theory as ct
import numpy as np
import pytest
from crashsim_theory.sums import profile
from scipy import stats


def surrogate(shift, gains, *laws):
    return ct.LinearSurrogate(shift, gains, ct.Coordinates(list(laws)))


def enumerated(gains, p):
    """All sums, and their probabilities."""
    sums, chances = np.zeros(1), np.ones(1)
    for g, q in zip(gains, p, strict=True):
        sums = np.concatenate([sums, sums + g])
        chances = np.concatenate([chances * (1 - q), chances * q])
    return sums, chances


@pytest.mark.parametrize("rates", [(0.1, 0.1), (1e-3, 1e-3), (0.5, 0.5), (0.01, 0.9), (1e-6, 1e-4)])
@pytest.mark.parametrize("seed", range(4))
def test_tails_are_those_of_all_patterns(seed, rates):
    rng = np.random.default_rng(seed)
    gains, p, shift = rng.normal(size=14), rng.uniform(*rates, 14), float(rng.normal()) / 4
    sums, chances = enumerated(gains, p)
    law = ct.SurrogateLaw.of(surrogate(shift, gains, ct.Bernoulli(p)))
    reach = np.abs(gains).sum()
    seen = []
    for c in np.linspace(-0.9, 0.9, 13) * reach:
        for side, values in (("upper", shift + sums), ("lower", -shift - sums)):
            # The lattice cannot tell sums within two thousandths of the range from each other.
            low, high = (
                chances[values >= c + off].sum() for off in (0.002 * reach, -0.002 * reach)
            )
            found = float(law.tail(c, side))
            assert low * 0.99 - 1e-300 <= found <= high * 1.01 + 1e-300
            seen.append(found)
    assert sum(0 < found < 0.1 for found in seen) >= 2
    assert law.mean == pytest.approx(shift + gains @ p, rel=1e-12)
    assert law.variance == pytest.approx(gains**2 @ (p * (1 - p)), rel=1e-12)


@pytest.mark.parametrize(
    ("n", "p"), [(100, 0.3), (1000, 0.01), (10_000, 0.5), (1000, 1e-4), (300, 0.97)]
)
def test_equal_gains_give_a_binomial_law_however_far_the_tail(n, p):
    law = ct.SurrogateLaw.of(surrogate(0.0, np.full(n, 0.37), ct.Bernoulli(np.full(n, p))))
    steps = np.array([-1, 0, 1, 3, 6, 10]) * np.sqrt(n * p * (1 - p))
    k = np.unique(np.clip(np.rint(n * p + steps), 1, n))
    exact = stats.binom.sf(k - 1, n, p)
    assert exact.min() < 1e-3
    np.testing.assert_allclose(law.tail(0.37 * k, "upper"), exact, rtol=1e-4)
    np.testing.assert_allclose(law.tail(-0.37 * k, "lower"), stats.binom.cdf(k, n, p), rtol=1e-4)


def test_different_rates_give_a_poisson_binomial_law():
    p = np.random.default_rng(0).uniform(0, 0.6, 200)
    exact = np.ones(1)
    for q in p:
        exact = np.convolve(exact, [1 - q, q])
    law = ct.SurrogateLaw.of(surrogate(0.0, np.full(200, -2.0), ct.Bernoulli(p)))
    k = np.array([40, 60, 80, 110, 140])
    upper = np.array([exact[j:].sum() for j in k])
    assert upper[-1] < 1e-15
    np.testing.assert_allclose(law.tail(2.0 * k, "lower"), upper, rtol=1e-4)


def bits(n, seed):
    rng = np.random.default_rng(seed)
    slopes = (0.1 * rng.standard_t(3, (2, n))).astype(np.float32)
    moved = rng.choice([-1.0, 1.0], (n, 8)) * 2.0 ** np.arange(8) / 100
    return slopes, moved


@pytest.mark.parametrize("p", [1e-5, 1e-4, 1e-3])
def test_many_coordinates_against_draws(p):
    slopes, moved = bits(8000, 1)
    law = ct.SurrogateLaw.of_chunks([ct.GainChunk(slopes, moved, p)], np.zeros(2))
    assert len(law.profiles[0].gains) < 40_000 < moved.size
    rng = np.random.default_rng(2)
    gains = (slopes[1].astype(float)[:, None] * moved).ravel()
    struck = rng.binomial(gains.size, p, 50_000)
    sample = np.repeat(np.arange(50_000), struck)
    drawn = np.bincount(sample, gains[rng.integers(0, gains.size, struck.sum())], 50_000)
    eps = np.maximum(np.quantile(np.abs(drawn), [0.9, 0.99]), 0.01)
    measured = (np.abs(drawn)[:, None] >= eps).mean(0)
    error = 4 * np.sqrt(measured / 50_000)
    assert np.all(np.abs(law.tail(eps)[1] - measured) <= error)


def test_chunks_and_dense_gains_have_one_law():
    slopes, moved = bits(1000, 3)
    chunks = [
        ct.GainChunk(slopes[:, part], moved[part], 0.002) for part in (slice(400), slice(400, None))
    ]
    dense = (slopes.astype(float)[:, :, None] * moved).reshape(2, -1)
    both = (
        ct.SurrogateLaw.of_chunks(iter(chunks), [0.1, -0.2]),
        ct.SurrogateLaw.of(surrogate([0.1, -0.2], dense, ct.Bernoulli(np.full(8000, 0.002)))),
    )
    eps = [0.2, 0.5]
    np.testing.assert_allclose(both[0].tail(eps), both[1].tail(eps), rtol=1e-9)
    assert both[0].tail(eps).min() < 0.2


def test_many_rates_from_gains_read_once():
    rates = np.array([1e-6, 1e-4, 0.01, 0.4])
    chunk = ct.GainChunk(np.ones((2, 500)), np.full(500, 3.0), 0.9)
    found = ct.law_over_rates(iter([chunk]), np.zeros(2), rates, [3.0, 9.0], "upper")
    exact = stats.binom.sf([0, 2], 500, rates[:, None])
    np.testing.assert_allclose(found, np.stack([exact, exact], 1), rtol=1e-6)


def test_many_different_rates_go_to_a_grid_that_keeps_the_tails():
    rng = np.random.default_rng(4)
    gains, p = rng.normal(size=20_000), 10 ** rng.uniform(-3, -1, 20_000)
    given = surrogate(0.0, gains, ct.Bernoulli(p))
    law = ct.SurrogateLaw.of(given)
    assert law.mean == pytest.approx(given.mean, rel=1e-9)
    assert law.variance == pytest.approx(given.variance, rel=1e-3)
    eps = np.sqrt(given.variance) * np.array([2.0, 4.0])
    np.testing.assert_allclose(law.tail(eps), given.saddlepoint(eps), rtol=0.02)
    assert law.why_no_bracket is not None
    with pytest.raises(ct.TheoryError, match="rates"):
        law.bracket(eps)


def test_normal_coordinates_multiply_in():
    gains, p, std = np.array([1.0, -0.5, 2.0]), np.array([0.1, 0.3, 0.01]), 0.2
    given = surrogate(0.1, np.append(gains, [1.5, 2.0]), ct.Bernoulli(p), ct.Normal([std, std]))
    sums, chances = enumerated(gains, p)
    scale = std * np.hypot(1.5, 2.0)
    eps = np.array([0.5, 1.5, 4.0, 7.0])
    exact = [chances @ stats.norm.sf(e, 0.1 + sums, scale) for e in eps]
    assert exact[-1] < 1e-8
    np.testing.assert_allclose(ct.SurrogateLaw.of(given).tail(eps, "upper"), exact, rtol=1e-4)


def test_other_laws_serve_by_their_outcomes():
    law = ct.law_of_atoms("three", {-1: 0.2, 0: 0.5, 2: 0.3})
    gains = np.random.default_rng(5).normal(size=7)
    given = surrogate(0.0, gains, ct.OfLaw(law, {}, 7))
    values = np.array(list(itertools.product((-1, 0, 2), repeat=7)))
    chances = np.prod(np.select([values < 0, values == 0], [0.2, 0.5], 0.3), 1)
    for eps in (1.0, 3.0, 5.0):
        exact = chances[values @ gains >= eps].sum()
        assert exact > 1e-4
        assert float(ct.SurrogateLaw.of(given).tail(eps, "upper")) == pytest.approx(exact, rel=0.02)
    t = ct.laws.t
    unknown = ct.law_from_cgf("shifted", t**2 / 2 + t)
    with pytest.raises(ct.TheoryError, match="outcomes"):
        ct.SurrogateLaw.of(surrogate(0.0, gains, ct.OfLaw(unknown, {}, 7)))


def test_contributions_beyond_all_measure_count_as_what_they_decide():
    """The exponent bits of stored numbers: gains of 1e30 beside some of 1."""
    rng = np.random.default_rng(6)
    small, p = rng.normal(size=300), 0.01
    huge = np.array([1e30, 3e32, -1e30])
    law = ct.SurrogateLaw.of(surrogate(0.0, np.append(small, huge), ct.Bernoulli(np.full(303, p))))
    rest = ct.SurrogateLaw.of(surrogate(0.0, small, ct.Bernoulli(np.full(300, p))))
    of_rest = rest.tail([4.0, 8.0], "upper")
    assert of_rest[1] < 1e-3 < of_rest[0]
    above, none = 1 - (1 - p) ** 2, (1 - p) ** 3
    hit = above * (1 - p) + above * p / 2
    np.testing.assert_allclose(law.tail([4.0, 8.0], "upper"), none * of_rest + hit, rtol=1e-3)
    low, high = law.bracket([4.0, 8.0], "upper")
    assert np.all(low <= none * of_rest + hit + above * p)
    assert np.all(none * of_rest + above * (1 - p) <= high)
    assert np.all(high <= 1.7 * low)


def test_quantiles_invert_the_tail():
    rng = np.random.default_rng(7)
    gains, p = rng.normal(size=14), np.full(14, 0.05)
    sums, chances = enumerated(gains, p)
    delta = np.array([0.3, 0.01, 1e-5, 1e-12])
    eps = ct.SurrogateLaw.of(surrogate(0.0, gains, ct.Bernoulli(p))).quantile(delta)
    for d, e in zip(delta, eps, strict=True):
        assert chances[np.abs(sums) >= e * 1.002].sum() <= d * 1.001
        assert d <= chances[np.abs(sums) >= e * 0.998].sum() * 1.001
    assert np.all(np.diff(eps) > 0)


def rational_tail(gains, p, shift, eps):
    """P(shift + sum >= eps) without rounding anywhere."""
    total = Fraction(0)
    for mask in itertools.product((0, 1), repeat=len(p)):
        value = Fraction(shift) + sum(Fraction(g) for b, g in zip(mask, gains, strict=True) if b)
        if value >= Fraction(eps):
            weight = Fraction(1)
            for b, q in zip(mask, p, strict=True):
                weight *= Fraction(q) if b else 1 - Fraction(q)
            total += weight
    return total


@pytest.mark.parametrize("alone", [2**14, 0])
@pytest.mark.parametrize("seed", range(10))
def test_brackets_hold_in_rational_arithmetic(seed, alone, monkeypatch):
    """Of coordinates one by one, and (alone = 0) counted together."""
    monkeypatch.setattr(profile, "_ALONE", alone)
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 8))
    p = rng.choice([0.0, 1e-6, 0.01, 0.3, 0.97, 1.0], n)
    gains = rng.choice([rng.normal(size=n), rng.integers(-2, 3, n), 10.0 ** rng.uniform(-8, 3, n)])
    gains = gains * rng.choice([1, -1], n)
    shift = float(rng.choice([0.0, 0.1, -0.7]))
    on_atom = shift + float(rng.integers(0, 2, n) @ gains)
    law = ct.SurrogateLaw.of(surrogate(shift, gains, ct.Bernoulli(p)))
    for eps in (on_atom, float(rng.normal()), 0.0, on_atom * 0.5):
        for side, sign in (("upper", 1), ("lower", -1)):
            low, high = law.bracket(eps, side)
            truth = rational_tail(sign * gains, p, sign * shift, eps)
            assert Fraction(float(low)) <= truth <= Fraction(float(high))


@pytest.mark.parametrize("p", [1e-4, 0.02])
def test_brackets_of_many_coordinates_are_tight_and_meet_dynamic_programming(p):
    gains = np.random.default_rng(8).normal(size=500)
    given = surrogate(0.0, gains, ct.Bernoulli(np.full(500, p)))
    law = ct.SurrogateLaw.of(given)
    eps = given.quantile(np.array([1e-2, 1e-9]))
    low, high = law.bracket(eps)
    its_low, its_high = ct.linear_exact(given, eps, cells=16_000)
    assert np.all((low <= its_high) & (its_low <= high))
    assert np.all(high <= 1.02 * low)
    found = law.tail(eps)
    assert np.all((low <= 1.001 * found) & (found <= 1.001 * high))


def test_linear_exact_of_more_coordinates_than_can_be_added_one_by_one():
    n, p = 60_000, 1e-4
    given = surrogate(0.0, np.full(n, 0.5), ct.Bernoulli(np.full(n, p)))
    low, high = ct.linear_exact(given, [5.0, 12.0, 20.0])
    exact = stats.binom.sf([9, 23, 39], n, p)
    assert exact[-1] < 1e-16
    assert np.all((low <= exact) & (exact <= high))


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5])
def test_the_chance_of_any_counts_no_fault_twice(p):
    rng = np.random.default_rng(9)
    shared, own = rng.normal(size=12), 0.6 * rng.normal(size=(4, 12))
    gains, shift = shared + own, np.array([-1.5, -1.0, -2.0, -3.0])
    given = surrogate(shift, gains, ct.Bernoulli(np.full(12, p)))
    masks = np.array(list(itertools.product((0, 1), repeat=12)))
    chances = np.prod(np.where(masks == 1, p, 1 - p), 1)
    exact = chances[(masks @ gains.T + shift >= 0).any(1)].sum()
    law = ct.SurrogateLaw.of(given)
    tails = law.tail(0.0, "upper")
    contributions = ct.Contributions([ct.chunk_of(given)], shift)
    found = ct.chance_of_any(law.profiles, tails, contributions, np.random.default_rng(0))
    assert tails.sum() > 1.2 * exact
    assert found == pytest.approx(exact, rel=0.04)


def test_the_chance_of_any_of_very_many_that_one_fault_brings_about():
    """As pixels that are overtaken together: each alone is a small part of their sum."""
    rng = np.random.default_rng(11)
    rivals, p = 300, 0.004
    gains = np.concatenate([np.full((rivals, 1), 2.0), 0.4 * rng.normal(size=(rivals, 9))], 1)
    gains[:40, 0] = 0.0  # these are overtaken by a fault of their own
    gains[:40, 1:] = np.where(np.arange(9) == np.arange(40)[:, None] % 9, 1.5, 0.0)
    given = surrogate(np.full(rivals, -1.0), gains, ct.Bernoulli(np.full(10, p)))
    masks = np.array(list(itertools.product((0, 1), repeat=10)))
    chances = np.prod(np.where(masks == 1, p, 1 - p), 1)
    exact = chances[(masks @ gains.T - 1 >= 0).any(1)].sum()
    law = ct.SurrogateLaw.of(given)
    tails = law.tail(0.0, "upper")
    contributions = ct.Contributions([ct.chunk_of(given)], given.shift)
    found = [
        ct.chance_of_any(law.profiles, tails, contributions, np.random.default_rng(seed))
        for seed in range(5)
    ]
    assert tails.max() < 0.01 * tails.sum()
    assert tails.sum() > 20 * exact
    assert found == pytest.approx([exact] * 5, rel=0.35)
    assert np.mean(found) == pytest.approx(exact, rel=0.15)


def test_the_chance_of_any_with_normal_coordinates_beside():
    rng = np.random.default_rng(10)
    crashes, noise = rng.normal(size=8) + 0.4 * rng.normal(size=(3, 8)), rng.normal(size=4) / 2
    noise = noise + 0.2 * rng.normal(size=(3, 4))
    shift = -2.5 * np.sqrt(0.09 * (crashes**2).sum(1) + 0.49 * (noise**2).sum(1))
    laws = [ct.Bernoulli(np.full(8, 0.1)), ct.Normal(np.full(4, 0.7))]
    given = surrogate(shift, np.concatenate([crashes, noise], 1), *laws)
    struck = rng.random((400_000, 8)) < 0.1
    drawn = shift + struck @ crashes.T + 0.7 * rng.standard_normal((400_000, 4)) @ noise.T
    measured = (drawn >= 0).any(1).mean()
    law = ct.SurrogateLaw.of(given)
    tails = law.tail(0.0, "upper")
    covariance = 0.49 * noise @ noise.T
    contributions = ct.Contributions([ct.chunk_of(given)], shift, covariance)
    found = ct.chance_of_any(law.profiles, tails, contributions, np.random.default_rng(0))
    assert tails.sum() > 1.1 * measured > 1e-3
    assert found == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("seed", range(8, 20))
def test_rates_at_the_ends_of_what_numbers_hold(seed):
    """Nothing random is left at a rate of 1; at the least number, products of it vanish."""
    gains = np.random.default_rng(seed).normal(scale=0.3, size=5)
    for rate, rest in ((1.0, gains.sum()), (1e-320, 0.0)):
        law = ct.SurrogateLaw.of(surrogate(0.01, gains, ct.Bernoulli(np.full(5, rate))))
        reach = np.abs(gains).sum()
        for c in (-2 * reach, -0.7 * reach, 0.6 * reach, 2 * reach):
            happens = float(0.01 + rest >= c)
            assert float(law.tail(c, "upper")) == pytest.approx(happens, abs=1e-12)
