"""Answers to a target: each is checked by putting it back into the question."""

import numpy as np
import pytest

from crashsim import FaultSpace, NeuronCrash, score
from crashsim.analytic.first_order import Analysis, double_precision, mean_point_single, of_output
from crashsim.analytic.questions import answers
from crashsim.errors import ArgumentError

EPSILON, DELTA = 0.5, 1e-3


@pytest.fixture
def asked(make_net, randn):
    space = double_precision(
        FaultSpace(make_net((5, 30, 3), "tanh"), randn(4, 5), NeuronCrash(0.02))
    )
    analysis = Analysis()
    mean_point_single(space, analysis)
    return space, analysis, answers(space, analysis, EPSILON, DELTA)


def find(found, start, method):
    return next(a for a in found if a.question.startswith(start) and a.method == method)


def test_the_reach_meets_delta(asked):
    _, analysis, found = asked
    output = int(analysis.surrogate.variance.mean(0).argmax())
    one = of_output(analysis.surrogate, output)
    for method in ("chernoff", "saddlepoint"):
        reach = find(found, "ε with", method).value
        tail = getattr(one, method)
        assert tail(reach).mean() <= DELTA < tail(0.98 * reach).mean()
    assert find(found, "ε with", "saddlepoint").value < find(found, "ε with", "chernoff").value


def test_the_largest_p_meets_the_target_and_no_larger_one_does(asked):
    space, analysis, found = asked
    output = int(analysis.surrogate.variance.mean(0).argmax())

    def tail(p):
        other = Analysis()
        mean_point_single(space.with_faults([NeuronCrash(p)]), other)
        return float(of_output(other.surrogate, output).chernoff(EPSILON).mean())

    p = find(found, "largest p", "chernoff").value
    assert 0 < p < 0.5
    # One network layer: gains are the same at every mean point up to its curvature.
    assert tail(p) == pytest.approx(DELTA, rel=0.05)
    assert tail(1.2 * p) > DELTA


def test_width_replicas_and_the_theorem(asked):
    _, analysis, found = asked
    width = find(found, "width", "chernoff").value
    assert width >= 1
    exact = find(found, "replicas", "saddlepoint").value
    assert exact % 2 == 1
    assert find(found, "replicas", "paper").value % 2 == 1
    theorem = find(found, "P(|Δ|", "chebyshev")
    worst = analysis.surrogate.variance.max()
    assert theorem.kind == "bound"
    assert worst / EPSILON**2 * 0.9 <= theorem.value <= 1
    constant = find(found, "constant C", "mean-point-single")
    output = int(analysis.surrogate.variance.mean(0).argmax())
    predicted = 0.02 * 0.98 * constant.value / 30
    assert predicted == pytest.approx(analysis.surrogate.variance[:, output].max(), rel=1e-9)


def test_a_target_needs_both_numbers(make_net, randn):
    net, x = make_net((3, 4, 2)), randn(2, 3)
    with pytest.raises(ArgumentError, match="epsilon too"):
        score(net, x, delta=1e-3)
    for delta in (0, 1, -1, float("nan"), "a"):
        with pytest.raises(ArgumentError, match="delta"):
            score(net, x, epsilon=0.1, delta=delta)


def test_unreachable_targets_say_why(make_net, randn):
    space = FaultSpace(make_net((3, 4, 2)), randn(2, 3), NeuronCrash(0.3))
    analysis = Analysis()
    mean_point_single(space, analysis)
    found = answers(space, analysis, 1e-6, 1e-9)
    none = [a for a in found if a.value is None]
    assert none
    assert all(a.note for a in none)
    assert np.isfinite([a.value for a in found if a.value is not None]).all()
