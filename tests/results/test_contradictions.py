"""Numbers that cannot all be true are told; numbers that can are not."""

import json
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from crashsim import CrashsimWarning, NeuronCrash, Score, score
from crashsim.results.contradictions import Contradiction, contradictions
from crashsim.results.estimate import Estimate
from crashsim.results.estimates import Estimates
from crashsim.sampling.intervals import proportion_interval
from crashsim.scoring.cautions import doubts_of


def number(method, kind, value, low=None, high=None, **where):
    names = {"quantity": "tail", "input": "all", "output": 0, "level": 0.5, **where}
    confidence = 0.95 if kind == "statistical" else None
    return Estimate(
        method, names["quantity"], names["input"], names["output"], value, low, high, kind,
        confidence, names["level"], names.get("note"),
    )  # fmt: skip


def exact(value, **where):
    return number("exact", "exact", value, **where)


def proof(low, high, **where):
    return number("certificate", "proof", high, low, high, **where)


def bound(value, **where):
    return number("chernoff", "bound", value, note="the linear surrogate", **where)


def measured(low, high, method="monte-carlo", **where):
    return number(method, "statistical", (low * high) ** 0.5, low, high, **where)


def rough(value, **where):
    return number("saddlepoint", "estimate", value, **where)


EXCLUDE = {
    "exact, proof": (exact(0.3), proof(0, 0.2)),
    "exact below proof": (exact(0.1), proof(0.2, 0.4)),
    "proofs": (proof(0, 0.2), number("linear-exact", "proof", 0.35, 0.3, 0.4)),
    "exact values": (exact(0.3), number("taylor", "exact", 0.31)),
    "exact, measured": (exact(0.9), measured(0.1, 0.12)),
    "proof, measured": (proof(0, 1e-5), measured(0.01, 0.011)),
    "measured twice": (measured(0.1, 0.11), measured(0.3, 0.31, "importance-sampling")),
    "bound, exact": (bound(0.1), exact(0.11)),
    "bound, proof": (bound(0.1), proof(0.2, 0.3)),
    "bound, measured": (bound(0), measured(2e-5, 6e-5)),
    "estimate, exact": (rough(1e-4), exact(0.01)),
    "estimate, proof": (rough(0.5), proof(0, 0.01)),
    "estimate, measured": (rough(1e-4), measured(0.01, 0.011)),
    "mean": (
        number("absolute", "bound", 0.1, quantity="mean", level=None),
        number("monte-carlo", "statistical", -0.2, -0.21, -0.19, quantity="mean", level=None),
    ),
    "variance": (
        exact(2.0, quantity="variance", level=None),
        measured(0.5, 0.6, quantity="variance", level=None),
    ),
    "one output moves more often than any": (exact(0.1, output="all"), exact(0.3, output=1)),
    "any, proved": (
        number("certificate", "proof", 0.1, 0.0, 0.1, output="all"), measured(0.3, 0.31, output=1),
    ),
}  # fmt: skip
AGREE = {
    "above a bound's reach": (bound(0.1), measured(0.01, 0.02)),
    "inside": (exact(0.2), proof(0.1, 0.3), measured(0.19, 0.21)),
    "chance": (exact(0.2), measured(0.205, 0.25)),
    "a bound missed by little": (bound(0.2), measured(0.205, 0.3)),
    "an estimate off by some": (rough(0.1), exact(0.3)),
    "estimates": (rough(1e-9), number("taylor", "estimate", 0.3)),
    "another output": (exact(0.3, output=0), proof(0, 0.1, output=1)),
    "another epsilon": (exact(0.3), proof(0, 0.1, level=0.9)),
    "another input": (exact(0.3, input=0), proof(0, 0.1, input=1)),
    "the chip": (exact(0.3), measured(0.01, 0.02, "hardware")),
    "rounding": (exact(0.3), proof(0, 0.3 - 1e-12)),
    "any output moves more often": (exact(0.3, output="all"), exact(0.1, output=1)),
    "not a number": (exact(math.nan), proof(0, 0.1)),
    "without an end": (exact(5.0, quantity="variance"),
                       number("monte-carlo", "statistical", 0.0, 0.0, None, quantity="variance")),
}  # fmt: skip


@pytest.mark.parametrize("name", EXCLUDE)
@pytest.mark.parametrize("turn", [1, -1])
def test_what_excludes_each_other(name, turn):
    (found,) = contradictions(EXCLUDE[name][::turn], 1)
    names = {e.method for e in EXCLUDE[name]}
    assert {found.method, found.against} == names
    assert all(method in str(found) for method in names)
    assert found.places == 1
    weak = [e for e in EXCLUDE[name] if e.kind in ("bound", "estimate")]
    assert found.is_mutual == (not weak)
    assert [found.method] == [e.method for e in weak] or not weak
    if weak and weak[0].kind == "bound":
        assert "assumes does not hold" in str(found)


@pytest.mark.parametrize("name", AGREE)
def test_what_does_not(name):
    assert contradictions(AGREE[name], 1) == []


def test_one_record_for_all_places_of_two_methods():
    many = []
    for b in range(3):
        for k in range(2):
            many += [exact(0.3 + b / 10, input=b, output=k), proof(0, 0.35, input=b, output=k)]
    (found,) = contradictions(many, 3)
    assert (found.places, found.input, found.outputs) == (4, 2, [0, 1])
    assert "and 3 more" in str(found)
    pooled = [exact(0.4, output=1), proof(0, 0.38, output=1)]
    (found,) = contradictions(many + pooled, 3)
    assert (found.places, found.input, found.output) == (5, "all", 1)


def test_an_average_over_some_inputs_is_another_number():
    some = [proof(0, 0.1, input=b) for b in range(2)] + [proof(0, 0.1)]
    every = [exact(0.05, input=b) for b in range(3)] + [exact(0.3)]
    assert contradictions(some + every, 3) == []
    assert len(contradictions(some + every, 2)) == 1


def test_chance_is_allowed_for_in_the_number_of_comparisons():
    """The same miss is told where it is the only comparison, not among ten thousand."""
    miss = [exact(0.2, input=0), measured(0.25, 0.35, input=0)]
    others = [
        e for b in range(1, 10_000) for e in (exact(0.2, input=b), measured(0.15, 0.25, input=b))
    ]
    assert len(contradictions(miss, 10_000)) == 1
    assert contradictions(miss + others, 10_000) == []


@pytest.mark.parametrize("p", [1e-4, 0.003, 0.2])
def test_true_numbers_are_hardly_ever_called_contradictions(p):
    """Shares of 300 and 3,000 samples beside the truth, in 400 scores of 24 numbers each."""
    rng = np.random.default_rng(0)
    told, missed = 0, 0
    for _ in range(400):
        estimates = []
        for b in range(24):
            n = (300, 3000)[b % 2]
            found = proportion_interval(np.asarray(float(rng.binomial(n, p))), n, 0.05)
            ends = float(found.low), float(found.high)
            missed += not ends[0] <= p <= ends[1]
            estimates += [
                exact(p, input=b),
                number("monte-carlo", "statistical", float(found.value), *ends, input=b),
            ]
        told += bool(contradictions(estimates, 24))
    assert missed > 0 or p < 1e-3
    assert told <= stats.binom.ppf(0.999, 400, 0.01)


def test_means_and_variances_of_normal_samples():
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        x = rng.normal(size=(20, 400))
        mean, std = x.mean(1), x.std(1, ddof=1)
        half = 1.96 * std / 20
        factor = np.exp(1.96 * np.sqrt(2 / 400))
        estimates = []
        for b in range(20):
            for e in (
                exact(0.0, input=b, quantity="mean"),
                number("monte-carlo", "statistical", mean[b], mean[b] - half[b],
                       mean[b] + half[b], input=b, quantity="mean"),
                exact(1.0, input=b, quantity="variance"),
                number("monte-carlo", "statistical", std[b] ** 2, std[b] ** 2 / factor,
                       std[b] ** 2 * factor, input=b, quantity="variance"),
            ):  # fmt: skip
                estimates.append(e)
        told += bool(contradictions(estimates, 20))
    assert told <= stats.binom.ppf(0.999, 300, 0.01)


def test_rounding_of_large_outputs_is_no_contradiction():
    found = [
        number("exact", "exact", 1e-3, quantity="mean"),
        number("monte-carlo", "statistical", 0.05, 0.04, 0.06, quantity="mean"),
    ]
    assert len(contradictions(found, 1)) == 1
    assert contradictions(found, 1, (1e-9, 0.1)) == []


def steep(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3),
            nn.Softmax(-1),
        ).eval()  # fmt: skip
        x = torch.randn(4, 4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(4)
    return net, x


METHODS = ["mean-point-single", "chernoff", "chebyshev", "monte-carlo"]


@pytest.fixture(scope="module")
def refuted():
    """A score with a bound on averages that Monte Carlo refutes, and the bound."""
    for seed in range(40):
        net, x = steep(seed)
        for p, epsilon in ((0.01, 0.8), (0.1, 0.9)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CrashsimWarning)
                found = score(
                    net, x, NeuronCrash(p), epsilon=epsilon, methods=METHODS, samples=4000
                )
            for e in found.estimates:
                other = found.find("monte-carlo", e.quantity, "all", e.output)
                if e.kind == "bound" and e.input == "all" and other.low > 1.1 * e.value:
                    return found, e
    raise AssertionError("no bound is refuted: nothing is tested")


def test_a_refuted_bound_is_told_everywhere(refuted):
    found, e = refuted
    (record,) = [
        c for c in found.contradictions if (c.method, c.quantity) == (e.method, e.quantity)
    ]
    assert record.against == "monte-carlo"
    told = [w for w in found.warnings if e.method in w and "refuted by monte-carlo" in w]
    assert len(told) == 1
    assert "linear surrogate" in told[0]
    assert not any("rely on" in w and e.method in w.split("rely on")[1] for w in found.warnings)
    text, html = found.to_text(200), found.to_html()
    assert "✗" in next(line for line in text.splitlines() if line.startswith(e.method))
    assert "contradicts another number" in text
    assert "✗" in html
    plain = found.to_dict()["contradictions"]
    assert plain[0]["method"] in METHODS
    again = Score.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.contradictions == found.contradictions
    assert again.to_text(100) == found.to_text(100)


def test_scores_of_before_still_load(refuted):
    plain = json.loads(json.dumps(refuted[0].to_dict()))
    del plain["contradictions"]
    loaded = Score.from_dict(plain)
    assert loaded.contradictions == []
    assert "✗" not in loaded.to_text(100)


def test_a_score_that_holds_has_no_marks(make_net, randn):
    found = score(make_net((3, 5, 2)), randn(2, 3), NeuronCrash(0.1), epsilon=0.05, samples=500)
    assert found.contradictions == []
    assert "✗" not in found.to_text(100)
    assert "✗" not in found.to_html()


def test_few_samples_point_to_methods_that_are_there_and_hold():
    class Sampled:
        samples, variance, mean = 100, np.ones((1, 1)), np.ones((1, 1))
        estimates = Estimates([number("monte-carlo", "statistical", 0.0, 0.0, 0.03, output="all")])

    at_hand = [rough(1e-9), bound(1e-9)]
    (told,) = doubts_of(at_hand, [], [], Sampled(), 0.5)
    assert told.endswith("rely on saddlepoint and chernoff")
    refuted = contradictions([bound(1e-9), exact(1e-3)], 1)
    (told,) = doubts_of(at_hand, [], refuted, Sampled(), 0.5)
    assert told.endswith("rely on saddlepoint")
    (told,) = doubts_of([], [], [], Sampled(), 0.5)
    assert "rely" not in told


def test_the_work_grows_with_the_number_of_estimates():
    def calls(n):
        given = [e for k in range(n) for e in (measured(0.1, 0.2, output=k), exact(0.15, output=k))]
        count = 0

        def counted(frame, event, argument):
            nonlocal count
            count += event == "call"

        sys.setprofile(counted)
        try:
            found = contradictions(given, 1)
        finally:
            sys.setprofile(None)
        assert found == []
        return count

    few, more, many = (calls(n) for n in (100, 200, 400))
    assert more - few > 100
    assert many - more < 2.1 * (more - few)


def test_contradictions_are_plain_data():
    (found,) = contradictions([exact(0.3), proof(0, 0.2)], 1)
    assert isinstance(found, Contradiction)
    assert json.loads(json.dumps(found.to_dict()))["against_low"] == 0.3


def test_weighted_samples_that_leave_out_what_plain_ones_saw_are_told():
    """Their intervals as shown, where many other comparisons would widen both."""
    others = [measured(0.1, 0.2, input=b, output=1) for b in range(300)]
    others += [exact(0.15, input=b, output=1) for b in range(300)]
    few, plain = measured(0.0006, 0.00103, "importance-sampling"), measured(0.00104, 0.0032)
    (found,) = contradictions([few, plain, *others], 300)
    assert (found.method, found.against, found.is_mutual) == (
        "importance-sampling", "monte-carlo", False,
    )  # fmt: skip
    assert found.doubted == ("importance-sampling",)
    assert "does not know; trust monte-carlo" in str(found)
    near = measured(0.0006, 0.0011, "importance-sampling")
    assert contradictions([near, plain, *others], 300) == []
    above = measured(0.0033, 0.004, "importance-sampling")
    assert contradictions([above, plain, *others], 300) == []  # chance, as far as one can tell
