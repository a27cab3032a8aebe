"""Suprema and ranges of activations, verified with interval arithmetic and dense grids."""

import itertools
import math

import crashsim_theory as ct
import mpmath
import numpy as np
import pytest
import sympy as sp
from crashsim_theory.activations import ACTIVATIONS, RELU, Activation, leaky_relu, x

SMOOTH = ["sigmoid", "tanh", "softplus", "gelu", "gelu-tanh", "silu", "elu", "sine"]

KNOWN = {
    ("sigmoid", 1): 1 / 4,
    ("sigmoid", 2): 1 / (6 * math.sqrt(3)),
    ("sigmoid", 3): 1 / 8,
    ("tanh", 1): 1,
    ("tanh", 2): 4 / (3 * math.sqrt(3)),
    ("tanh", 3): 2,
    ("softplus", 1): 1,
    ("softplus", 2): 1 / 4,
    ("gelu", 2): 2 / math.sqrt(2 * math.pi),
    ("silu", 2): 1 / 2,
    ("sine", 3): 1,
    ("elu", 1): 1,
    ("elu", 2): 1,
}


@pytest.mark.parametrize(("name", "order"), KNOWN)
def test_suprema_with_closed_forms(name, order):
    assert ACTIVATIONS[name].supremum(order) == pytest.approx(KNOWN[name, order], rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", [n for n in SMOOTH if n != "elu"])
def test_suprema_hold_in_interval_arithmetic(name, order):
    """On cells of a grid, the interval enclosure exceeds the supremum by its own width at most."""
    a = ACTIVATIONS[name]
    expression = sp.diff(a.expression, x, order).rewrite(sp.tanh, sp.exp)
    enclosure = sp.lambdify(x, expression, [{"erf": interval_erf}, mpmath.iv])
    edges = np.linspace(-8, 8, 201)
    for low, high in itertools.pairwise(edges):
        cell = enclosure(mpmath.iv.mpf([low, high]))
        middle = enclosure(mpmath.iv.mpf((low + high) / 2))
        assert float(abs(middle).b) <= a.supremum(order) * (1 + 1e-12)
        width = float(cell.delta)
        assert float(abs(cell).b) <= a.supremum(order) + width


def interval_erf(z):
    """erf is increasing."""
    widen = mpmath.mpf(10) ** -14
    return mpmath.iv.mpf([mpmath.erf(z.a) - widen, mpmath.erf(z.b) + widen])


@pytest.mark.parametrize("name", [*SMOOTH, "relu"])
def test_ranges_contain_dense_samples_and_are_tight(name):
    a = ACTIVATIONS[name]
    rng = np.random.default_rng(0)
    low = rng.uniform(-8, 8, 200)
    high = low + rng.exponential(2, 200)
    grid = low + (high - low) * np.linspace(0, 1, 2001)[:, None]
    for bounds, values in (
        (a.range(low, high), a(grid)),
        (a.slope_range(low, high), a.derivative(1, grid)),
    ):
        assert np.all(bounds[0] <= values.min(0))
        assert np.all(values.max(0) <= bounds[1])
        np.testing.assert_allclose(bounds[0], values.min(0), atol=2e-3)
        np.testing.assert_allclose(bounds[1], values.max(0), atol=2e-3)


def test_numeric_and_symbolic_values_agree_even_far_out():
    z = np.array([-800.0, -30.0, -1.0, 0.0, 0.5, 30.0, 800.0])
    for a in ACTIVATIONS.values():
        np.testing.assert_allclose(a(z), a.derivative(0, z), rtol=1e-12, atol=1e-12)


def test_kinks_are_named():
    assert not RELU.smooth
    assert leaky_relu(0.1).kinks == (0.0,)
    assert leaky_relu(0.1).slope_range(-1.0, 1.0)[0] == pytest.approx(0.1)
    assert all(ACTIVATIONS[name].smooth for name in SMOOTH)


def test_a_users_expression():
    a = Activation("bump", sp.exp(-(x**2)))
    assert a.supremum(1) == pytest.approx(math.sqrt(2 / math.e))
    assert a.range(-1.0, 2.0)[1] == pytest.approx(1)
    assert Activation("square", x**2).supremum(1) == math.inf


def test_refusals():
    with pytest.raises(ct.TheoryError, match="choose one of"):
        ct.activation("swoosh")
    with pytest.raises(ct.TheoryError, match="choose 1, 2 or 3"):
        RELU.supremum(4)
    with pytest.raises(ct.TheoryError, match="exceed high"):
        RELU.range(1.0, 0.0)
    with pytest.raises(ct.TheoryError, match="slope"):
        leaky_relu(2.0)
