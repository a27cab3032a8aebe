"""Agreement of methods with Monte Carlo."""

import numpy as np
import pytest

from crashsim.results.agreement import agreements, correlation, rank_loss
from crashsim.results.estimate import Interval
from crashsim.results.estimates import deterministic, estimates_of


def sampled(values, half, quantity="variance"):
    return estimates_of(
        "monte-carlo",
        quantity,
        "statistical",
        per_input=Interval(values, values - half, values + half),
    )


def test_shares_inside_and_distance():
    truth = np.array([[1.0, 2.0], [3.0, 4.0]])
    found = sampled(truth, 0.5) + deterministic(
        "taylor", "variance", "estimate", truth + np.array([[0.4, -0.5], [1.0, 0.0]])
    )
    (a,) = agreements(found)
    assert (a.method, a.quantity) == ("taylor", "variance")
    assert a.inside == 0.75
    assert a.worst == pytest.approx(2.0)
    assert tuple(a.worst_at) == (1, 0)
    assert a.relative_error == pytest.approx(1.9 / 10)
    assert a.noise == pytest.approx(2.0 / 10)
    assert a.ratio == pytest.approx(10.9 / 10)


def test_a_bound_may_be_above_but_not_below():
    truth = np.array([[1.0, -2.0]])
    for factor, inside in ((50.0, 1.0), (0.1, 0.0)):
        bound = deterministic("absolute", "mean", "bound", np.abs(truth) * factor)
        (a,) = agreements(sampled(truth, 0.1, "mean") + bound)
        assert a.inside == inside


def test_rank_loss_counts_pairs():
    assert rank_loss(np.array([1.0, 2, 3]), np.array([10.0, 20, 30])) == 0
    assert rank_loss(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == 1
    assert rank_loss(np.array([1.0, 2, 3]), np.array([1.0, 1, 3])) == pytest.approx(1 / 3)


def test_correlation():
    x = np.array([1.0, 2.0, 4.0])
    assert correlation(x, -3 * x) == pytest.approx(-1)
    assert correlation(x, np.ones(3)) is None


def test_infinite_intervals_and_zeros_do_not_break():
    zero = np.zeros((1, 2))
    found = estimates_of(
        "monte-carlo", "variance", "statistical", per_input=Interval(zero, zero, zero + np.inf)
    )
    (a,) = agreements(found + deterministic("taylor", "variance", "estimate", zero + 1e-6))
    assert (a.inside, a.worst, a.ratio, a.relative_error) == (1.0, 0.0, None, None)


def test_nothing_to_compare_with():
    assert agreements(deterministic("taylor", "mean", "estimate", np.ones((1, 1)))) == []
