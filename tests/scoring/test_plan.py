"""What a score computes unasked, and why not the rest."""

import pytest

from crashsim import FaultSpace, GainNoise, NeuronCrash, WeightCrash
from crashsim.errors import ArgumentError
from crashsim.scoring.methods import METHODS
from crashsim.scoring.planning.plan import plan

SCORED = [method.name for method in METHODS]
PROOFS = [method.name for method in METHODS if method.option == "proofs"]


@pytest.fixture
def small(make_net, randn):
    return FaultSpace(make_net((3, 5, 2)), randn(2, 3), NeuronCrash(0.1))


def test_a_plan_is_the_same_every_time(small):
    first, again = plan(small, None, None, None), plan(small, None, None, None)
    assert first == again
    assert not set(first.methods) & set(first.skipped)
    assert set(first.methods) | set(first.skipped) == set(SCORED)


def test_small_spaces_get_everything_unasked(small):
    found = plan(small, None, 500, None)
    others = {"hardware", "importance-sampling", "single-law", "word-strata", "word-importance"}
    assert set(found.skipped) == {*PROOFS, *others, "nearest-rivals"}
    assert "--proofs" in found.skipped["certificate"]
    assert "--hardware" in found.skipped["hardware"]
    assert found.samples == 500


def test_names_with_a_plus_are_added(small):
    default = set(plan(small, None, None, None).methods)
    assert set(plan(small, ["+certificate"], None, None).methods) == default | {"certificate"}
    assert set(plan(small, None, None, None, proofs=True).methods) == default | set(PROOFS)
    assert set(plan(small, None, None, None, hardware=True).methods) == default | {"hardware"}
    assert plan(small, ["taylor"], None, None).methods == ("taylor",)
    assert set(plan(small, ["taylor", "+pairs"], None, None).methods) == {"taylor", "pairs"}


@pytest.mark.parametrize("methods", [["tailor"], ["+tailor"], ["++pairs"], [], "", 7])
def test_unknown_names(methods, small):
    with pytest.raises(ArgumentError, match="methods"):
        plan(small, methods, None, None)


def test_what_costs_too_much_says_so(make_net, randn):
    space = FaultSpace(make_net((3, 300, 40, 2)), randn(2, 3), NeuronCrash(0.1))
    skipped = plan(space, None, None, None).skipped
    assert "too many to sum over" in skipped["exact"]
    assert "150" in skipped["pairs"]
    many = FaultSpace(make_net((3, 300, 40, 2)), randn(3000, 3), NeuronCrash(0.1))
    skipped = plan(many, None, None, None).skipped
    assert "fewer inputs" in skipped["importance-sampling"]
    assert "+mean-point-curvature" in skipped["mean-point-curvature"]


def test_what_is_not_defined_says_so(make_net, randn):
    net, x = make_net((3, 5, 2)), randn(2, 3)
    noise = plan(FaultSpace(net, x, GainNoise(0.1)), None, None, None)
    assert "gain-noise" in noise.skipped["norm"]
    assert "pairs" in noise.skipped
    assert "exact" in noise.skipped
    weights = plan(FaultSpace(net, x, WeightCrash(0.1)), None, None, None)
    assert "norm" in weights.methods
