"""Methods: the table, and one's own beside it, from estimates to reports."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from torch import nn

import crashsim.scoring.shared
from crashsim import (
    CrashsimWarning,
    Estimate,
    FaultSpace,
    GainNoise,
    Interrupted,
    Method,
    NeuronCrash,
    Score,
    score,
)
from crashsim.errors import ArgumentError, NotApplicableError
from crashsim.results.record import Record
from crashsim.results.verdict import best
from crashsim.scoring.methods import METHODS
from crashsim.scoring.planning.plan import plan
from crashsim.scoring.shared import NEEDS


def everywhere(name, kind, value, space, epsilon):
    """A tail of this value at each input and output, and of their averages."""
    return [
        Estimate(name, "tail", b, k, value, None, None, kind, level=epsilon)
        for b in (*range(space.B), "all")
        for k in (*range(space.K), "all")
    ]


def any_fault(given):
    """Without a fault nothing changes, so P(|Delta| >= epsilon) is at most P(some fault)."""
    if given.asked.epsilon is None:
        raise NotApplicableError("give epsilon to any-fault")
    p = np.concatenate([np.full(place.size, place.fault.rate) for place in given.space.placements])
    value = float(1 - np.prod(1 - p))
    return everywhere("any-fault", "bound", value, given.space, given.asked.epsilon)


ANY_FAULT = Method("any-fault", "probability that anything fails", any_fault, "bound")


@pytest.fixture
def net(make_net):
    return make_net((3, 6, 2), scale=2)


@pytest.fixture
def x(randn):
    return randn(4, 3)


def test_the_table_is_consistent():
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names) >= 19
    for method in METHODS:
        assert method.about
        assert set(method.needs) | set(method.uses) <= set(NEEDS)
    ranks = [(m.kind, m.rank) for m in METHODS if m.rank is not None and m.kind != "proof"]
    assert len(set(ranks)) == len(ranks)  # a verdict has no ties to break
    assert {m.name for m in METHODS if m.option == "hardware"} == {"hardware"}


def test_ones_own_method_is_everywhere(net, x):
    """A crude bound, beside the sum over all fault patterns and in closed form."""
    found = score(
        net, x, NeuronCrash(0.1), epsilon=0.3, samples=2000, methods=["+pairs", ANY_FAULT]
    )
    value = found.find("any-fault", "tail", 0, 0).value
    assert value == pytest.approx(1 - 0.9**6)
    for b in range(4):
        for k in range(2):
            assert 0 < found.find("exact", "tail", b, k).value <= value
    assert found.find("pairs", "variance") is not None
    agreement = next(a for a in found.agreement if a.method == "any-fault")
    assert (agreement.quantity, agreement.inside) == ("tail", 1)
    text, page = found.to_text(), found.to_html()
    assert "any-fault" in text
    assert "≤ 0.469" in text
    assert "probability that anything fails" in page
    assert found.timings["any-fault"] >= 0
    plain = json.loads(json.dumps(found.to_dict()))
    facts = next(m for m in plain["methods"] if m["name"] == "any-fault")
    assert facts["about"] == "probability that anything fails"
    again = Score.from_dict(plain)
    assert again.to_dict() == found.to_dict()
    assert again.to_text() == text
    assert again.to_html() == page


def test_a_wrong_bound_of_ones_own_is_refuted(net, x):
    def nothing(given):
        return everywhere("never", "bound", 1e-9, given.space, given.asked.epsilon)

    with pytest.warns(CrashsimWarning, match="never tail: its bound is refuted"):
        found = score(
            net, x, NeuronCrash(0.1), epsilon=0.3, samples=2000,
            methods=["monte-carlo", Method("never", "wrong", nothing, "bound")],
        )  # fmt: skip
    assert {c.method for c in found.contradictions} == {"never"}
    assert next(a for a in found.agreement if a.method == "never").inside < 1


@pytest.mark.parametrize(
    ("kind", "beside", "wanted"),
    [
        ("exact", None, "exact"),
        ("exact", "monte-carlo", "mine"),
        ("statistical", "monte-carlo", "monte-carlo"),
        ("statistical", "saddlepoint", "mine"),
        ("estimate", "saddlepoint", "saddlepoint"),
        ("estimate", "chernoff", "mine"),
        ("bound", "chernoff", "chernoff"),
        ("bound", "mine", "mine"),
        ("proof", "chernoff", "chernoff"),
        ("proof", "mine", None),
    ],
)
def test_the_verdict_trusts_it_as_its_kind_says(kind, beside, wanted, net, x):
    """After crashsim's own of its kind; a proof is a limit, not a value to quote."""

    def run(given):
        low, high = (0.3, 0.5) if kind in ("statistical", "proof") else (None, None)
        found = everywhere("mine", kind, 0.4, given.space, given.asked.epsilon)
        return [replace(e, low=low, high=high, confidence=0.95) for e in found]

    mine = Method("mine", "always 0.4", run, kind)
    names = None if beside is None else [beside]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CrashsimWarning)
        found = score(
            net, x, NeuronCrash(0.1), epsilon=0.3, samples=500, methods=[*(names or []), mine]
        )
    quoted = best(found, "tail", 0)
    assert (quoted and quoted.method) == wanted
    if wanted == "mine":
        assert "mine" in found.verdict
        assert "mine" in Record.from_dict(found.to_dict()).quoted


def test_a_rank_puts_it_before_others_of_its_kind(net, x):
    first = replace(ANY_FAULT, rank=-1)
    found = score(net, x, NeuronCrash(0.1), epsilon=0.3, methods=["chernoff", first])
    assert best(found, "tail").method == "any-fault"
    assert Method("plain", "says no more", any_fault).kind == "estimate"
    never = replace(ANY_FAULT, rank=None)
    found = score(net, x, NeuronCrash(0.1), epsilon=0.3, methods=["any-fault", never])
    assert best(found, "tail") is None


def test_shared_results_are_made_once_and_given(net, x, monkeypatch):
    made = []
    for name in ("mean_point_single", "mean_point_taylor", "double_precision", "margins_of"):
        work = getattr(crashsim.scoring.shared.first_order, name)

        def counted(*args, work=work, name=name):
            made.append(name)
            return work(*args)

        monkeypatch.setattr(crashsim.scoring.shared.first_order, name, counted)

    def normal(given):
        assert given.wide.dtype.itemsize == 8
        surrogate, epsilon = given.surrogate, given.asked.epsilon
        scale = np.sqrt(surrogate.variance)
        tail = norm.sf(epsilon, surrogate.mean, scale) + norm.cdf(-epsilon, surrogate.mean, scale)
        return [
            Estimate(
                "normal", "tail", b, k, float(tail[b, k]), None, None, "estimate", None, epsilon
            )
            for b, k in np.ndindex(tail.shape)
        ]

    mine = Method("normal", "normal law", normal, "estimate", needs=("surrogate", "wide"))
    found = score(net, x, NeuronCrash(0.1), epsilon=0.3, samples=500, methods=[mine])
    assert sorted(made) == [
        "double_precision", "margins_of", "mean_point_single", "mean_point_taylor",
    ]  # fmt: skip
    mean = found.find("mean-point-single", "mean", 1, 0).value
    spread = found.find("mean-point-single", "variance", 1, 0).value ** 0.5
    wanted = norm.sf((0.3 - mean) / spread) + norm.cdf((-0.3 - mean) / spread)
    assert found.find("normal", "tail", 1, 0).value == pytest.approx(wanted, rel=1e-6)
    assert {"double precision", "gradients", "differences", "normal"} <= set(found.timings)
    # Where the differences are not asked for, the gradients serve alone.
    made.clear()
    score(net, x, NeuronCrash(0.1), epsilon=0.3, methods=["normal", mine])
    assert sorted(made) == ["double_precision", "mean_point_taylor"]


def test_monte_carlo_takes_a_surrogate_only_where_another_method_needs_it(net, x):
    options = {"epsilon": 0.3, "samples": 500, "seed": 3}
    alone = score(net, x, NeuronCrash(0.1), methods=["monte-carlo"], **options)
    beside = score(net, x, NeuronCrash(0.1), methods=["monte-carlo", "chernoff"], **options)
    later = score(
        net, x, NeuronCrash(0.1), methods=["monte-carlo", "importance-sampling"], **options
    )
    worth = [s.find("monte-carlo", "variance").worth for s in (alone, beside)]
    assert worth[1] > 2 * worth[0]
    assert later.find("monte-carlo", "variance") == beside.find("monte-carlo", "variance")


def test_a_method_that_does_not_apply_says_why(net, x):
    found = score(net, x, NeuronCrash(0.1), samples=200, methods=["taylor", ANY_FAULT])
    assert found.skipped["any-fault"] == "give epsilon to any-fault"
    assert "give epsilon to any-fault" in found.to_text()
    assert "give epsilon to any-fault" in found.to_html()
    bounds = Method(
        "bounds", "", lambda given: given.layer_bounds, "bound", needs=("layer_bounds",)
    )
    found = score(net, x, GainNoise(0.1), samples=200, methods=["+bounds", "taylor", bounds])
    assert "defined for crashes of single units" in found.skipped["bounds"]
    empty = Method("empty", "", lambda given: [], "bound")
    found = score(net, x, NeuronCrash(0.1), methods=["empty", empty])
    assert "no estimates" in found.skipped["empty"]


def test_it_refuses_or_costs_too_much_unless_it_is_named(net, x):
    space = FaultSpace(net, x, NeuronCrash(0.1))
    never = replace(ANY_FAULT, refuses=lambda size: f"not for {size.space.N} neurons")
    dear = replace(ANY_FAULT, name="dear", cost=lambda size: 1e30 * size.operations)
    cheap = replace(ANY_FAULT, name="cheap", cost=lambda size: size.operations_of_one)
    found = plan(space, [never, dear, cheap], None, None)
    assert found.skipped["any-fault"] == "not for 6 neurons"
    assert found.skipped["dear"] == "it takes longer; ask for it as +dear"
    assert "cheap" in found.methods
    assert "monte-carlo" in found.methods
    named = plan(space, ["+any-fault", "+dear", never, dear], None, None)
    assert {"any-fault", "dear", "monte-carlo"} <= set(named.methods)
    assert plan(space, ["any-fault", never], None, None).methods == ("any-fault",)
    assert plan(space, ["taylor", cheap], None, None).methods == ("taylor", "cheap")
    assert "taylor" in plan(space, [METHODS[3]], None, None).methods


def test_a_need_that_cannot_be_afforded_is_told(seeded, randn):
    class Steps(nn.Module):
        """Has no derivatives, and too many neurons to try one at a time."""

        def __init__(self):
            super().__init__()
            self.wide, self.out = nn.Linear(3, 60_000), nn.Linear(60_000, 2)

        def forward(self, x):
            return self.out((self.wide(x) > 0).to(x.dtype).round())

    mine = Method("mine", "", lambda given: [], "estimate", needs=("differences",))
    space = FaultSpace(seeded(Steps), randn(40, 3), NeuronCrash(0.1), "wide")
    found = plan(space, [mine], None, None)
    assert "60000 coordinates" in found.skipped["mine"]
    assert found.skipped["chernoff"].endswith(found.skipped["mine"])
    assert "mean-point-single" in found.methods  # of a sample of them


def test_moments_are_all_that_some_methods_ask_of_a_law(net, x):
    assert {m.name for m in METHODS if m.moments_only} == {
        "taylor", "single", "mean-point-taylor", "mean-point-curvature", "mean-point-single",
        "chebyshev",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": ""}, "name="),
        ({"name": "two words"}, "name="),
        ({"name": "+more"}, "name="),
        ({"name": 7}, "name=7"),
        ({"name": "answers"}, "another name"),
        ({"about": None}, "about="),
        ({"kind": "guess"}, "kind='guess'"),
        ({"run": None}, "run=None"),
        ({"cost": 3}, "cost=3"),
        ({"refuses": "no"}, "refuses="),
        ({"rank": "first"}, "rank="),
    ],
)
def test_fields_that_make_no_sense(fields, told):
    with pytest.raises(ArgumentError, match=told):
        replace(ANY_FAULT, **fields)


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ([replace(ANY_FAULT, name="taylor")], "'taylor' names two methods"),
        ([ANY_FAULT, replace(ANY_FAULT, about="another")], "'any-fault' names two methods"),
        ([replace(ANY_FAULT, needs=("hessian",))], "needs 'hessian'; choose among wide"),
        ([any_fault], "choose among"),
        (["any-fault"], "choose among"),
    ],
)
def test_methods_that_cannot_be_taken(methods, told, net, x):
    with pytest.raises(ArgumentError, match=told):
        score(net, x, NeuronCrash(0.1), methods=methods)


ONE = Estimate("mine", "tail", 0, 0, 0.1, None, None, "bound", level=0.3)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([0.1], "crashsim.Estimate"),
        ([replace(ONE, method="exact")], "method='mine'"),
        ([replace(ONE, quantity="median")], "quantity='median'"),
        ([replace(ONE, kind="guess")], "kind='guess'"),
        ([replace(ONE, input=4)], "input=4; give an int below 4"),
        ([replace(ONE, input=np.int64(0))], "give an int below 4"),
        ([replace(ONE, note=3)], "note=3"),
        ([replace(ONE, output=-1)], "output=-1"),
        ([replace(ONE, level=0.2)], "level=0.3"),
        ([replace(ONE, value=float("nan"))], "NaN"),
        ([replace(ONE, value="0.1")], "float"),
        (None, "NoneType"),
    ],
)
def test_what_it_returns_is_checked(found, told, net, x):
    mine = Method("mine", "", lambda given: found, "bound")
    with pytest.raises(ArgumentError, match=told):
        score(net, x, NeuronCrash(0.1), epsilon=0.3, methods=["mine", mine])


def test_what_fails_in_it_is_told_as_its_own(net, x):
    with pytest.raises(ArgumentError, match=r"any-fault raised ZeroDivisionError.*test_methods.py"):
        score(net, x, methods=["any-fault", replace(ANY_FAULT, run=lambda given: 1 / 0)])
    for fields in ({"cost": lambda size: size.M}, {"refuses": lambda size: size.M}):
        with pytest.raises(ArgumentError, match=r"any-fault raised Attr.*test_methods.py"):
            score(net, x, methods=[replace(ANY_FAULT, **fields)])
    with pytest.raises(ArgumentError, match="the reason or None"):
        score(net, x, methods=[replace(ANY_FAULT, refuses=lambda size: True)])
    eager = Method("mine", "", lambda given: [ONE], "bound")
    with pytest.raises(ArgumentError, match="no epsilon was asked"):
        score(net, x, methods=["mine", eager])
    greedy = replace(ANY_FAULT, run=lambda given: [given.surrogate])
    with pytest.raises(ArgumentError, match=r"takes 'surrogate', which is not among its needs"):
        score(net, x, methods=["any-fault", greedy])


def test_an_interrupt_in_it_leaves_the_others(net, x):
    def stops(given):
        given.progress(1, 2)
        raise KeyboardInterrupt

    told = []
    with pytest.raises(Interrupted) as raised:
        score(
            net, x, NeuronCrash(0.1), epsilon=0.3, samples=300,
            methods=["taylor", "hardware", replace(ANY_FAULT, run=stops)],
            progress=lambda *step: told.append(step),
        )  # fmt: skip
    found = raised.value.partial
    assert found.find("taylor", "variance") is not None
    assert "interrupted" in found.skipped["any-fault"]
    assert ("any-fault", 1, 2) in told
    assert "any-fault" in [m.name for m in Score.from_dict(found.to_dict()).methods]


def test_scores_of_the_first_schema_are_read_as_before(net, x):
    found = score(net, x, NeuronCrash(0.1), epsilon=0.3, samples=500)
    old = found.to_dict() | {"schema": 1}
    del old["methods"]
    again = Score.from_dict(old)
    assert again.verdict == found.verdict
    assert again.to_text() == found.to_text()
    assert again.to_html() == found.to_html()
    assert again.to_dict()["schema"] == 3
    # Of methods that nobody knows, there are the name and the kind.
    strange = json.loads(json.dumps(old).replace("saddlepoint", "forgotten"))
    assert "forgotten" in Score.from_dict(strange).to_text()
    assert "forgotten" in Score.from_dict(strange).to_html()
    with pytest.raises(crashsim.errors.FileError, match="schema 4"):
        Score.from_dict(old | {"schema": 4})
