"""The answer in plain words."""

import pytest

from crashsim import GainNoise, NeuronCrash, WeightCrash, score
from crashsim.results.estimate import Estimate
from crashsim.results.numbers import percent
from crashsim.results.verdict import best, describe_faults


def test_it_quotes_the_most_trustworthy_method(make_net, randn):
    net, x = make_net((3, 5, 3), scale=2), randn(4, 3)
    sampled = ["monte-carlo", "taylor"]
    for methods, wanted in ((None, "exact"), (sampled, "monte-carlo"), (["taylor"], "taylor")):
        found = score(net, x, NeuronCrash(0.1), methods=methods, samples=300)
        assert best(found, "variance").method == wanted
        assert wanted in found.verdict
        assert "10% neuron-crash on 5 coordinates (act1)" in found.verdict
    assert "95% interval" in score(net, x, NeuronCrash(0.1), methods=sampled, samples=300).verdict


def test_it_speaks_of_class_tail_and_site(make_net, randn):
    net, x = make_net((3, 5, 4, 3), scale=2), randn(4, 3)
    found = score(net, x, NeuronCrash(0.1), epsilon=0.05, samples=300)
    assert "class changes with probability" in found.verdict
    assert "moves by 0.05 or more with probability" in found.verdict
    assert "of the variance comes from act" in found.verdict
    single = score(make_net((3, 5, 1)), x, NeuronCrash(0.1), epsilon=0.05, samples=300)
    assert "The output moves by" in single.verdict
    assert "class" not in single.verdict


@pytest.mark.parametrize(("high", "wanted"), [(1.2e-3, True), (1.0e-3, False)])
def test_weighted_samples_that_leave_out_what_plain_ones_saw_are_not_quoted(high, wanted):
    def measured(method, value, low, high):
        return Estimate(method, "tail", "all", 0, value, low, high, "statistical", 0.95, 0.5, None)

    class Found:
        quoted = ("exact", "monte-carlo")
        estimates = (
            measured("monte-carlo", 1.9e-3, 1.1e-3, 3.0e-3),
            measured("importance-sampling", 8e-4, 6e-4, high),
        )

        def find(self, method, quantity, output):
            return next((e for e in self.estimates if e.method == method), None)

    assert (best(Found(), "tail", 0).method == "importance-sampling") is wanted


def test_several_faults(make_net, randn):
    faults = {"act1": GainNoise(0.1), "linear2.weight": WeightCrash(1e-6)}
    found = score(make_net((3, 5, 2)), randn(2, 3), faults, methods=["taylor"])
    assert describe_faults(found) == (
        "std 0.1 gain-noise on 5 coordinates (act1) and "
        "1e-06 weight-crash on 10 coordinates (linear2.weight)"
    )


def test_nothing_computed(make_net, randn):
    found = score(make_net((3, 5, 2)), randn(2, 3), methods=["saddlepoint"])
    assert found.verdict


def test_what_samples_saw_too_seldom_is_told_by_theory_as_well(make_net, randn):
    net, x = make_net((4, 400, 3)), randn(2, 4)
    methods = ["monte-carlo", "surrogate-law"]
    seldom, often = (
        score(net, x, NeuronCrash(p), epsilon=epsilon, samples=300, methods=methods, seed=1)
        for p, epsilon in ((1e-3, None), (0.3, 0.05))
    )
    law = seldom.find("surrogate-law", "class-change")
    assert 0 < law.value < seldom.find("monte-carlo", "class-change").high
    assert f"; theory puts it at {percent(law.value)} (surrogate-law, estimate)." in seldom.verdict
    measured = often.find("monte-carlo", "tail")
    assert measured.high - measured.low < measured.value
    assert "theory puts it" not in often.verdict


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0%"), (1.0, "100%"), (0.0321, "3.21%"), (1.3e-6, "1.3e-06"), (0.5, "50%")],
)
def test_percent(value, shown):
    assert percent(value) == shown
