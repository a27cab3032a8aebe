"""Laws: moments against direct sums and integrals, quadrature, and refusals."""

import copy
import pickle

import crashsim_theory as ct
import numpy as np
import pytest
import sympy as sp


def test_bernoulli_moments_are_those_of_the_two_point_sum():
    p = np.array([0.0, 1e-3, 0.3, 1.0])
    moments = ct.BERNOULLI.moments(p=p)
    for order, found in zip((2, 3, 4), (moments.k2, moments.k3, moments.k4), strict=True):
        np.testing.assert_allclose(found, p * (1 - p) ** order + (1 - p) * (-p) ** order)
    np.testing.assert_array_equal(moments.mean, p)


def test_normal_moments():
    s = np.array([0.5, 2.0])
    moments = ct.NORMAL.moments(s=s)
    np.testing.assert_allclose(moments.k2, s**2)
    np.testing.assert_array_equal(moments.k3, 0)
    np.testing.assert_allclose(moments.k4, 3 * s**4)


@pytest.mark.parametrize("law", [ct.BERNOULLI, ct.NORMAL])
def test_cumulants_of_the_generating_function_agree_with_the_moments(law):
    from crashsim_theory.laws import t

    assert sp.simplify(sp.diff(law.cgf, t).subs(t, 0) - law.mean) == 0
    assert sp.simplify(sp.diff(law.cgf, t, 2).subs(t, 0) - law.k2) == 0
    fourth = sp.diff(law.cgf, t, 4).subs(t, 0)
    assert sp.simplify(fourth - (law.k4 - 3 * law.k2**2)) == 0


@pytest.mark.parametrize(("law", "parameter"), [(ct.BERNOULLI, "p"), (ct.NORMAL, "s")])
def test_numbers_of_built_in_laws_are_what_their_derived_formulas_come_to(law, parameter):
    from crashsim_theory.laws import t

    values = np.array([1e-9, 1e-4, 0.03, 0.3, 0.5, 0.9])
    tilts = np.array([-4.0, -0.3, 0.2, 1.0, 2.5, 5.0])
    (symbol,) = law.parameters
    assert law.parameter_names == (str(symbol),) == (parameter,)

    def of(expression):
        at = [
            {symbol: sp.Float(v, 40), t: sp.Float(s, 40)}
            for v, s in zip(values, tilts, strict=True)
        ]
        return np.array([float(sp.N(sp.sympify(expression).subs(a), 30)) for a in at])

    moments = law.moments(**{parameter: values})
    for name in ("mean", "k2", "k3", "k4"):
        np.testing.assert_allclose(getattr(moments, name), of(getattr(law, name)), rtol=1e-12)
    for order, found in enumerate(law.numbers.cumulants(tilts, values)):
        wanted = of(sp.diff(law.cgf, t, order) if order else law.cgf)
        np.testing.assert_allclose(np.broadcast_to(found, 6), wanted, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(law.bounds(**{parameter: values}), [of(end) for end in law.support])
    if law.atoms:
        wanted = [[of(part) for part in column] for column in zip(*law.atoms, strict=True)]
        np.testing.assert_allclose(law.outcomes(**{parameter: values}), wanted, rtol=1e-12)


@pytest.mark.parametrize("law", [ct.BERNOULLI, ct.NORMAL])
def test_a_built_in_law_is_itself_after_a_journey_and_equals_its_derived_form(law):
    assert pickle.loads(pickle.dumps(law)) is copy.deepcopy(law) is law
    derived = ct.Law(
        law.name, law.parameters, law.mean, law.k2, law.k3, law.k4, law.cgf, atoms=law.atoms,
        support=law.support,
    )  # fmt: skip
    assert derived == law
    assert law == derived
    assert hash(derived) == hash(law)
    assert law != (ct.NORMAL if law is ct.BERNOULLI else ct.BERNOULLI)


@pytest.mark.parametrize(
    ("law", "parameters"),
    [
        (ct.BERNOULLI, {"p": np.array([0.2, 0.7])}),
        (ct.NORMAL, {"s": np.array([0.5, 2.0])}),
        (ct.law_from_moments("skewed", mean=1, k2=2, k3=1, k4=13), {}),
    ],
)
def test_quadrature_reproduces_the_moments(law, parameters):
    nodes, weights = law.nodes(**parameters)
    moments = law.moments(**parameters)
    np.testing.assert_allclose(weights.sum(0), 1)
    np.testing.assert_allclose((weights * nodes).sum(0), moments.mean, atol=1e-12)
    for order, wanted in ((2, moments.k2), (3, moments.k3), (4, moments.k4)):
        found = (weights * (nodes - moments.mean) ** order).sum(0)
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_moments_concatenate():
    joined = ct.Moments.concatenate(
        [ct.BERNOULLI.moments(p=np.full(3, 0.1)), ct.NORMAL.moments(s=np.full(2, 0.1))]
    )
    assert joined.k4.shape == (5,)
    np.testing.assert_array_equal(joined.mean, [0.1, 0.1, 0.1, 0, 0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ct.BERNOULLI.moments(p=1.5), "p = 1.5: a probability lies between 0 and 1"),
        (lambda: ct.BERNOULLI.moments(q=0.5), "Bernoulli takes"),
        (lambda: ct.NORMAL.moments(s=-1.0), "must not be negative"),
        (lambda: ct.NORMAL.moments(s=np.nan), "finite"),
        (lambda: ct.Moments.concatenate([]), "at least one"),
        (lambda: ct.law_from_moments("no", mean=0, k2=1, k3=2, k4=3).nodes(), "no law has"),
        (lambda: ct.Law("x", (), sp.Symbol("q"), 1, 0, 3), "add .'q'. to parameters"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ct.TheoryError, match=words):
        call()


@pytest.mark.parametrize("field", ["mean", "k2", "k3", "k4"])
def test_text_is_no_expression(field, tmp_path):
    """sympy would run it."""
    numbers = {"mean": 0, "k2": 1, "k3": 0, "k4": 3}
    text = f"__import__('os').mkdir({str(tmp_path / 'ran')!r})"
    with pytest.raises(ct.TheoryError, match=field):
        ct.law_from_moments("own", **numbers | {field: text})
    with pytest.raises(ct.TheoryError, match=field):
        ct.Law("own", (), **numbers | {field: text})
    assert not (tmp_path / "ran").exists()
