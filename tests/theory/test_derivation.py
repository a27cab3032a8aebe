"""The derived formulas against expectations computed by enumeration of random polynomials."""

import itertools
import time

import crashsim_theory as ct
import numpy as np
import pytest
import sympy as sp


def enumerate_two_point(values, weights, function):
    """Exact E and Var of function(e) for independent e_i with nodes values[:, i]."""
    nodes, size = values.shape
    total = np.array([0.0, 0.0])
    for choice in itertools.product(range(nodes), repeat=size):
        probability = np.prod([weights[k, i] for i, k in enumerate(choice)])
        f = function(np.array([values[k, i] for i, k in enumerate(choice)]))
        total += probability * np.array([f, f * f])
    return total[0], total[1] - total[0] ** 2


def random_symmetric(rng, size, rank):
    tensor = rng.normal(size=(size,) * rank)
    return sum(tensor.transpose(order) for order in itertools.permutations(range(rank)))


def polynomial(gradient, hessian, third, e):
    value = gradient @ e + e @ hessian @ e / 2
    return value + np.einsum("ijk,i,j,k", third, e, e, e) / 6


LAWS = {
    "bernoulli": (ct.BERNOULLI, {"p": np.array([0.1, 0.3, 0.45, 0.8])}),
    "skewed": (ct.law_from_moments("skewed", mean=0.2, k2=0.5, k3=0.1, k4=1.0), {}),
    "normal": (ct.NORMAL, {"s": np.array([0.3, 1.0, 0.7, 0.2])}),
}


@pytest.mark.parametrize("point", ["mean", "zero"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("law", LAWS)
def test_exact_for_polynomials_of_the_same_order(law, order, point):
    rng = np.random.default_rng(order)
    law, parameters = LAWS[law]
    size = 4
    nodes, weights = (
        np.broadcast_to(a if a.ndim == 2 else a[:, None], (len(a), size))
        for a in law.nodes(**parameters)
    )
    one = law.moments(**parameters)
    moments = ct.Moments(
        *(np.broadcast_to(a, size).copy() for a in (one.mean, one.k2, one.k3, one.k4))
    )
    gradient = rng.normal(size=size)
    hessian = random_symmetric(rng, size, 2) * (order == 2)
    third = np.zeros((size,) * 3)
    centre = moments.mean * (point == "mean")
    exact = enumerate_two_point(
        nodes, weights, lambda e: polynomial(gradient, hessian, third, e - centre)
    )
    d = ct.derive(order, point)
    mean = d.evaluate_mean(moments, gradient, hessian=hessian)
    variance = d.evaluate_variance(moments, gradient, hessian)
    np.testing.assert_allclose([mean, variance], exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("point", ["mean", "zero"])
@pytest.mark.parametrize("law", LAWS)
def test_fourth_order_mean_is_exact_for_quartics(law, point):
    rng = np.random.default_rng(4)
    law, parameters = LAWS[law]
    size = 4
    nodes, weights = (
        np.broadcast_to(a if a.ndim == 2 else a[:, None], (len(a), size))
        for a in law.nodes(**parameters)
    )
    one = law.moments(**parameters)
    moments = ct.Moments(
        *(np.broadcast_to(a, size).copy() for a in (one.mean, one.k2, one.k3, one.k4))
    )
    gradient, hessian, third, fourth = (random_symmetric(rng, size, rank) for rank in (1, 2, 3, 4))
    centre = moments.mean * (point == "mean")

    def quartic(e):
        last = np.einsum("ijkl,i,j,k,l", fourth, e, e, e, e) / 24
        return polynomial(gradient, hessian, third, e) + last

    exact, _ = enumerate_two_point(nodes, weights, lambda e: quartic(e - centre))
    d = ct.derive(4, point)
    given = {"hessian": hessian, "third": third}
    assert d.evaluate_mean(moments, gradient, **given, fourth=fourth) == pytest.approx(exact)
    lower = ct.derive(3, point).evaluate_mean(moments, gradient, **given)
    assert abs(lower - exact) > 1e-2 * abs(exact)
    with pytest.raises(ct.TheoryError, match="fourth"):
        d.evaluate_mean(moments, gradient, **given)
    # The variance is that of order 3: what the fourth derivatives add needs higher moments.
    assert d.variance_terms == ct.derive(3, point).variance_terms
    assert "total order above 4" in d.text()


@pytest.mark.parametrize("point", ["mean", "zero"])
def test_third_order_mean_is_exact_for_cubics(point):
    rng = np.random.default_rng(3)
    p = np.array([0.1, 0.3, 0.45, 0.8, 0.5])
    nodes, weights = ct.BERNOULLI.nodes(p=p)
    moments = ct.BERNOULLI.moments(p=p)
    gradient, hessian, third = (random_symmetric(rng, 5, rank) for rank in (1, 2, 3))
    centre = p * (point == "mean")
    exact, _ = enumerate_two_point(
        nodes, weights, lambda e: polynomial(gradient, hessian, third, e - centre)
    )
    found = ct.derive(3, point).evaluate_mean(moments, gradient, hessian=hessian, third=third)
    assert found == pytest.approx(exact, rel=1e-10)


def test_errors_fall_with_the_order_as_derived():
    """For F = exp(g.e), e normal of scale s, the error of order r at the mean is O(s^(r+1))."""
    g = np.array([0.7, -0.4, 0.9])
    slopes = []
    for order, expected_mean, expected_variance in ((1, 2, 4), (2, 4, 4), (3, 4, 6)):
        errors = []
        for s in (0.1, 0.05):
            moments = ct.NORMAL.moments(s=np.full(3, s))
            v = s * s * (g @ g)
            args = {
                "gradient": g,
                "hessian": np.multiply.outer(g, g),
                "third": np.multiply.outer(np.multiply.outer(g, g), g),
            }
            d = ct.derive(order)
            mean = d.evaluate_mean(moments, **args) - np.expm1(v / 2)
            variance = d.evaluate_variance(moments, **args) - np.exp(v) * np.expm1(v)
            errors.append((abs(mean), abs(variance)))
        slopes = np.log2(np.divide(errors[0], errors[1]))
        assert slopes == pytest.approx([expected_mean, expected_variance], abs=0.1)


def test_the_mean_point_formula_of_order_two():
    """The curvature row of the estimates, term by term."""
    s = sp.Symbol
    expected = (
        s("sum_i k2_i F_i^2")
        + s("sum_i k3_i F_i F_ii")
        + s("sum_{i!=j} k2_i k2_j F_ij^2") / 2
        + (s("sum_i k4_i F_ii^2") - s("sum_i k2_i^2 F_ii^2")) / 4
    )
    assert sp.expand(ct.derive(2).variance - expected) == 0
    assert ct.derive(2).mean == s("sum_i k2_i F_ii") / 2


def test_zero_expansion_has_k2_where_the_paper_writes_p():
    d = ct.derive(1, "zero", ct.BERNOULLI)
    p = ct.BERNOULLI.parameters[0]
    assert sp.expand(d.variance - (p - p**2) * sp.Symbol("sum_i F_i^2")) == 0
    assert d.mean == p * sp.Symbol("sum_i F_i")


def test_leading_axes_broadcast_and_contractions_replace_the_hessian():
    rng = np.random.default_rng(5)
    moments = ct.BERNOULLI.moments(p=np.full(6, 0.2))
    gradient, h = rng.normal(size=(2, 3, 6)), random_symmetric(rng, 6, 2)
    d = ct.derive(2)
    full = d.evaluate_variance(moments, gradient, np.broadcast_to(h, (2, 3, 6, 6)))
    assert full.shape == (2, 3)
    off = h - np.diag(np.diag(h))
    pair = {"sum_{i!=j} k2_i k2_j F_ij^2": np.sum(off**2) * 0.16**2}
    diagonal = np.broadcast_to(np.diag(h), (2, 3, 6))
    less = d.evaluate_variance(moments, gradient, hessian_diagonal=diagonal, contractions=pair)
    np.testing.assert_allclose(less, full)
    with pytest.raises(ct.TheoryError, match="pass hessian="):
        d.evaluate_variance(moments, gradient, hessian_diagonal=diagonal)
    with pytest.raises(ct.TheoryError, match="N = 6"):
        d.evaluate_variance(moments, gradient[..., :5])


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("point", ["mean", "zero"])
@pytest.mark.parametrize("law", [None, ct.BERNOULLI, ct.NORMAL])
def test_text_and_latex(order, point, law):
    d = ct.derive(order, point, law)
    assert d.text().count("\n") == 2
    assert "neglected: derivatives" in d.text()
    assert d.latex().startswith("\\begin{aligned}")
    assert "sum_{i!=" not in d.latex()


def test_derivations_are_cached_and_refuse_other_orders():
    started = time.perf_counter()
    assert ct.derive(2, "zero") is ct.derive(2, "zero")
    assert time.perf_counter() - started < 1
    for order in (0, 5, 1.0, "4"):
        with pytest.raises(ct.TheoryError, match="choose 1, 2, 3 or 4"):
            ct.derive(order)
    with pytest.raises(ct.TheoryError, match='choose "mean" or "zero"'):
        ct.derive(1, "origin")


def test_single_faults_are_exact_for_additive_functions():
    p = np.array([0.2, 0.5, 0.01])
    values = np.array([[1.0, -2.0, 0.3], [0.4, 1.0, 5.0]])
    nodes, weights = ct.BERNOULLI.nodes(p=p)
    exact = enumerate_two_point(
        nodes, weights, lambda e: sum(values[int(k), i] for i, k in enumerate(e))
    )
    at_mean = p * values[1] + (1 - p) * values[0]
    single = ct.derive_single("mean")
    differences = values - at_mean
    mean = single.evaluate_mean(weights, differences) + at_mean.sum()
    variance = single.evaluate_variance(weights, differences)
    np.testing.assert_allclose([mean, variance], exact)
    zero = ct.derive_single("zero")
    moments = ct.BERNOULLI.moments(p=p)
    mean = zero.evaluate_mean(moments, values[1] - values[0]) + values[0].sum()
    variance = zero.evaluate_variance(moments, values[1] - values[0])
    np.testing.assert_allclose([mean, variance], exact)
    assert "sum_i k2_i D_i^2" in zero.text()
    p_, d0, d1 = sp.symbols("p D_0 D_1")
    assert sp.expand(single.two_point_variance() - p_ * (1 - p_) * (d1 - d0) ** 2) == 0
    with pytest.raises(ct.TheoryError, match="nodes, N"):
        single.evaluate_mean(weights, differences[0])
