"""What a score computes unasked, and why not the rest."""

import pytest

from crashsim import BitFlip, FaultSpace, GainNoise, NeuronCrash, WeightCrash, score
from crashsim.errors import ArgumentError, CrashsimWarning
from crashsim.noticing import speaking
from crashsim.scoring.methods import METHODS
from crashsim.scoring.planning import preview
from crashsim.scoring.planning.costs import cost_of
from crashsim.scoring.planning.plan import plan
from crashsim.scoring.planning.size import singles_sampled

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


@pytest.mark.parametrize(
    ("faults", "sites"),
    [
        (BitFlip(1e-4, format="float32"), "weights"),
        (BitFlip(1e-4, format="float16", bits="exponent"), "hidden"),
        (BitFlip(1e-4, bits=8), "weights"),
        (GainNoise(std=0.1), "hidden"),
        (NeuronCrash(count=2), "hidden"),
        (NeuronCrash(0.1), "hidden"),
    ],
)
@pytest.mark.filterwarnings("ignore::crashsim.errors.CrashsimWarning")
def test_what_is_planned_or_hinted_at_runs(make_net, randn, faults, sites):
    space = FaultSpace(make_net((3, 5, 2)), randn(2, 3), faults, sites)
    planned = plan(space, None, None, None)
    hinted = {m for m, reason in planned.skipped.items() if f"+{m}" in reason}
    wanted = ["monte-carlo", *planned.methods, *hinted]
    found = score(space.model, space.examples, faults, sites, 0.1, set(wanted), 300)
    refused = {m: why for m, why in found.skipped.items() if m in wanted and "give" not in why}
    assert not {m for m in refused if m in hinted}
    assert "single-law" not in refused
    assert len(found.method_facts) >= len(set(wanted))


def test_a_sample_of_single_faults_is_counted_as_one(make_net, randn):
    size = plan(FaultSpace(make_net((3, 5, 2)), randn(2, 3), NeuronCrash(0.1)), None, 9, None).size
    assert cost_of("single", size).operations == 2 * size.N * size.operations_of_change
    assert cost_of("mean-point-single", size).operations == 0
    wide = FaultSpace(make_net((64, 20_000, 2)), randn(20, 64), NeuronCrash(1e-4))
    large = plan(wide, None, 9, None).size
    count = singles_sampled(large)
    assert 64 <= count <= 512 < large.N
    for method in ("single", "mean-point-single"):
        assert cost_of(method, large).operations == 2 * count * large.operations


def test_a_long_score_says_so_before_it_runs(make_net, randn, monkeypatch):
    net, x = make_net((3, 5, 2)), randn(2, 3)
    told = []
    with speaking(told.append):
        score(net, x, NeuronCrash(0.1), samples=100)
        assert told == []
        monkeypatch.setattr(preview, "_LONG", 0.0)
        score(net, x, NeuronCrash(0.1), samples=100)
    assert len(told) == 1
    assert "budget='2m'" in told[0]
    with pytest.warns(CrashsimWarning, match="this score takes about"):
        score(net, x, NeuronCrash(0.1), samples=100)


def test_what_is_planned_of_float_words_is_computed(make_net, randn):
    """There is no mean point of an exponent's bit, nor what is expanded about it."""
    net, x, fault = make_net((3, 20, 3)), randn(2, 3), BitFlip(1e-4, format="float32")
    planned = preview.plan(net, x, fault, "weights", epsilon=0.3)
    found = score(net, x, fault, "weights", epsilon=0.3)
    assert not set(planned.methods) & set(found.skipped)
    assert {e.method for e in found.estimates} == set(planned.methods)
    assert "mean point" in planned.skipped["saddlepoint"]
    assert "mean point" in planned.skipped["mean-point-single"]
