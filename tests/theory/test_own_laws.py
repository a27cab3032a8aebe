"""Laws of one's own: moments, draws, generating functions and tails against integrals and sums."""

import itertools
import math

import crashsim_theory as ct
import numpy as np
import pytest
import sympy as sp
from crashsim_theory.laws import t
from crashsim_theory.laws.cumulants import cumulants, draw_tilted
from scipy import integrate, optimize, stats

W = sp.Symbol("w", positive=True)
Q = sp.Symbol("q", nonnegative=True)
UNIFORM = ct.law_from_cgf(
    "uniform",
    sp.log(sp.sinh(W * t) / (W * t)),
    draw=lambda rng, shape, w: rng.uniform(-w, w, shape),
    support=(-W, W),
)
LAPLACE = ct.law_from_cgf(
    "laplace",
    -sp.log(1 - W**2 * t**2),
    draw=lambda rng, shape, w: rng.laplace(0.0, w, shape),
)
TERNARY = ct.law_of_atoms("ternary", {-1: Q / 3, 0: 1 - Q, 2: 2 * Q / 3})
COIN = ct.law_of_atoms("coin", {-1: sp.Rational(1, 2), 1: sp.Rational(1, 2)})
MOMENTS = ct.law_from_moments("moments", mean=0, k2=W**2 / 3, k3=0, k4=W**4 / 5)
LAWS = [(UNIFORM, {"w": 0.7}), (LAPLACE, {"w": 0.4}), (TERNARY, {"q": 0.3}), (COIN, {})]
DENSITY = {
    "uniform": (stats.uniform(-0.7, 1.4).pdf, -0.7, 0.7),
    "laplace": (stats.laplace(0, 0.4).pdf, -90, 90),
}
ATOMS = {"ternary": ((-1, 0.1), (0, 0.7), (2, 0.2)), "coin": ((-1, 0.5), (1, 0.5))}


def average(law, function):
    """E function(e), by an integral or a sum that share nothing with the law."""
    if law.name in ATOMS:
        return sum(q * function(v) for v, q in ATOMS[law.name])
    density, low, high = DENSITY[law.name]
    options = {"points": [0.0], "limit": 400, "epsabs": 1e-13}
    return integrate.quad(lambda e: density(e) * function(e), low, high, **options)[0]


@pytest.mark.parametrize(("law", "parameters"), LAWS)
def test_moments_are_those_of_the_density(law, parameters):
    found = law.moments(**parameters)
    mean = average(law, lambda e: e)
    assert found.mean == pytest.approx(mean, abs=1e-12)
    for order, value in ((2, found.k2), (3, found.k3), (4, found.k4)):
        assert value == pytest.approx(average(law, lambda e, n=order: (e - mean) ** n), abs=1e-10)


@pytest.mark.parametrize(("law", "parameters"), LAWS)
@pytest.mark.parametrize("tilt", [-1.9, -0.02, -1e-4, 0.0, 1e-5, 0.0069, 0.0075, 0.3, 2.1])
def test_cumulants_are_those_of_the_tilted_density(law, parameters, tilt):
    total = average(law, lambda e: math.exp(tilt * e))
    mean = average(law, lambda e: e * math.exp(tilt * e)) / total
    central = [
        average(law, lambda e, n=n: (e - mean) ** n * math.exp(tilt * e)) / total for n in (2, 3)
    ]
    found = cumulants(law, np.array([tilt]), {k: np.asarray(v) for k, v in parameters.items()})
    wanted = [math.log(total), mean, *central]
    for value, right, close in zip(found, wanted, (1e-6, 1e-6, 1e-6, 1e-4), strict=True):
        assert value[0] == pytest.approx(right, rel=close, abs=1e-8)


@pytest.mark.parametrize(("law", "parameters"), LAWS)
def test_draws_follow_the_law(law, parameters):
    e = law.draw(np.random.default_rng(1), (200_000, 2), **parameters)
    assert e.shape == (200_000, 2)
    m = law.moments(**parameters)
    slack = 4 * math.sqrt(float(m.k2) / e.size)
    assert e.mean() == pytest.approx(float(m.mean), abs=slack)
    assert ((e - m.mean) ** 2).mean() == pytest.approx(float(m.k2), rel=0.03)
    assert abs(np.corrcoef(e.T)[0, 1]) < 0.01


@pytest.mark.parametrize(("law", "parameters"), [LAWS[0], *LAWS[2:]])
@pytest.mark.parametrize("tilt", [-3.0, 0.0, 1.5])
def test_tilted_draws_follow_the_tilted_law(law, parameters, tilt):
    given = {k: np.asarray(v) for k, v in parameters.items()}
    e = draw_tilted(law, np.random.default_rng(2), np.full((100_000, 1), tilt), given)
    total = average(law, lambda v: math.exp(tilt * v))
    mean = average(law, lambda v: v * math.exp(tilt * v)) / total
    k2 = average(law, lambda v: (v - mean) ** 2 * math.exp(tilt * v)) / total
    assert e.mean() == pytest.approx(mean, abs=4 * math.sqrt(k2 / e.size) + 1e-9)
    assert e.var() == pytest.approx(k2, rel=0.1)


def irwin_hall(c, count):
    """P(sum of uniforms on (-1, 1) >= c)."""
    x = (c + count) / 2
    terms = (
        (-1) ** k * math.comb(count, k) * max(x - k, 0) ** count for k in range(math.floor(x) + 1)
    )
    return 1 - sum(terms) / math.factorial(count)


@pytest.mark.parametrize("c", [0.5, 1.2, 2.4, 3.5])
def test_tails_of_a_sum_of_uniforms(c):
    count, w = 4, 0.5
    coordinates = ct.Coordinates([ct.block_of(UNIFORM, {"w": w}, count)])
    one = ct.LinearSurrogate(0.0, np.full(count, 1 / w), coordinates)
    exact = irwin_hall(c, count)
    assert 0 < exact < 0.5

    def exponent(s):
        return count * math.log(math.sinh(s) / s) - s * c

    best = optimize.minimize_scalar(exponent, bounds=(1e-3, 200), method="bounded")
    assert one.chernoff(c, "upper") == pytest.approx(math.exp(best.fun), rel=1e-6)
    assert one.chernoff(c, "upper") >= exact
    assert one.saddlepoint(c, "upper") == pytest.approx(exact, rel=0.1)
    assert one.saddlepoint(c) == pytest.approx(2 * exact, rel=0.1)
    assert one.chernoff(4.1, "upper") == one.saddlepoint(4.1, "upper") == 0
    assert one.variance == pytest.approx(count / 3)


def test_tails_of_a_mixture_of_laws():
    """Bernoulli, normal, three values and +-1: K is a sum, and so are mean and variance."""
    gains = np.array([1.0, -0.7, 0.4, 0.9, -0.3])
    coordinates = ct.Coordinates(
        [
            ct.Bernoulli([0.2]),
            ct.block_of(TERNARY, {"q": 0.3}, 2),
            ct.Normal([0.5]),
            ct.block_of(COIN, {}, 1),
        ]
    )
    one = ct.LinearSurrogate(0.1, gains, coordinates)
    atoms = [((0, 0.8), (1, 0.2)), ATOMS["ternary"], ATOMS["ternary"], ATOMS["coin"]]
    discrete = gains[[0, 1, 2, 4]]
    sums, chances = [], []
    for choice in itertools.product(*atoms):
        sums.append(0.1 + sum(g * v for g, (v, _) in zip(discrete, choice, strict=True)))
        chances.append(math.prod(q for _, q in choice))
    sums, chances = np.array(sums), np.array(chances)
    noise = stats.norm(0, 0.45)
    mean = chances @ sums
    assert one.mean == pytest.approx(mean)
    assert one.variance == pytest.approx(chances @ (sums - mean) ** 2 + 0.45**2)
    for eps in (0.8, 1.6, 3.0):
        exact = chances @ noise.sf(eps - sums)
        assert one.chernoff(eps, "upper") >= exact > 0
        assert one.saddlepoint(eps, "upper") == pytest.approx(exact, rel=0.25)


def test_the_largest_value_of_atoms_is_attained():
    coordinates = ct.Coordinates([ct.block_of(TERNARY, {"q": 0.3}, 3)])
    one = ct.LinearSurrogate(0.0, np.array([1.0, -2.0, 0.5]), coordinates)
    assert one.chernoff(5.0, "upper") == pytest.approx(0.2 * 0.1 * 0.2)
    assert one.saddlepoint(5.0, "upper") == pytest.approx(0.2 * 0.1 * 0.2)
    assert one.chernoff(5.0 + 1e-9, "upper") == 0


def test_heavy_tails_stay_in_the_domain_of_the_generating_function():
    """Laplace: E exp(t e) is infinite beyond 1/w."""
    coordinates = ct.Coordinates([ct.block_of(LAPLACE, {"w": 0.5}, 1)])
    one = ct.LinearSurrogate(0.0, np.ones(1), coordinates)
    for c in (0.5, 3.0, 12.0):
        exact = stats.laplace(0, 0.5).sf(c)
        best = optimize.minimize_scalar(
            lambda s, c=c: -math.log(1 - 0.25 * s * s) - s * c,
            bounds=(1e-3, 2 - 1e-9),
            method="bounded",
        )
        assert one.chernoff(c, "upper") == pytest.approx(math.exp(best.fun), rel=1e-4)
        assert one.chernoff(c, "upper") >= exact


def test_everything_may_be_given_beside_the_moments():
    """A normal law by hand, against the built-in one, which takes other ways."""
    given = ct.law_from_moments(
        "own normal", mean=0, k2=W**2, k3=0, k4=3 * W**4, cgf=W**2 * t**2 / 2,
        draw=lambda rng, shape, w: rng.normal(0, w, shape), nodes=lambda w: ct.NORMAL.nodes(s=w),
        draw_tilted=lambda rng, tilt, w: rng.normal(w**2 * tilt, w),
    )  # fmt: skip
    gains = np.array([1.0, -0.5])
    own, known = (
        ct.LinearSurrogate(0.1, gains, ct.Coordinates([ct.block_of(law, {name: 0.4}, 2)]))
        for law, name in ((given, "w"), (ct.NORMAL, "s"))
    )
    for eps in (0.3, 1.5):
        assert own.chernoff(eps) == pytest.approx(known.chernoff(eps), rel=1e-9)
        assert own.saddlepoint(eps) == pytest.approx(known.saddlepoint(eps), rel=1e-9)
    np.testing.assert_array_equal(given.nodes(w=0.4), ct.NORMAL.nodes(s=0.4))
    e = draw_tilted(given, np.random.default_rng(0), np.full((50_000, 1), 2.0), {"w": 0.4})
    assert e.mean() == pytest.approx(0.32, abs=0.01)


def test_a_law_without_a_generating_function_says_so():
    coordinates = ct.Coordinates([ct.Bernoulli([0.1]), ct.block_of(MOMENTS, {"w": 0.5}, 2)])
    one = ct.LinearSurrogate(0.0, np.ones(3), coordinates)
    assert one.variance == pytest.approx(0.09 + 2 * 0.25 / 3)
    for ask in (one.chernoff, one.saddlepoint, one.tilt, one.quantile):
        with pytest.raises(ct.TheoryError, match="law = 'moments': its cumulant generating"):
            ask(0.5)
    with pytest.raises(ct.TheoryError, match="Bernoulli coordinates"):
        ct.linear_exact(one, 0.5)
    assert not MOMENTS.can_be_drawn
    with pytest.raises(ct.TheoryError, match="sampler"):
        MOMENTS.draw(np.random.default_rng(0), (2,), w=0.1)
    assert not LAPLACE.can_be_tilted  # unbounded, and no sampler of the tilted law
    assert UNIFORM.can_be_tilted
    assert TERNARY.can_be_tilted


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ct.law_of_atoms("one", {0: 1}), "2 values or more"),
        (lambda: ct.law_of_atoms("odd", {0: 0.5, 1: 0.4}), "sum 1"),
        (lambda: ct.law_from_cgf("odd", 1 + t), "is 0 at t = 0"),
        (lambda: TERNARY.moments(q=-0.1), "q = -0.1"),
        (lambda: TERNARY.outcomes(q=1.5), "probabilities lie"),
        (lambda: UNIFORM.moments(w=-1.0), "must not be negative"),
        (
            lambda: ct.law_from_moments(
                "short", mean=0, k2=1, k3=0, k4=3, draw=lambda rng, shape: rng.normal(size=1)
            ).draw(np.random.default_rng(0), (3,)),
            "must return shape",
        ),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ct.TheoryError, match=words):
        make()
