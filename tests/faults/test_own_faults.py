"""Faults that a user wrote: taken for what they are, or refused with what they lack."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import sympy
import torch
from crashsim_theory import BERNOULLI, law_from_moments

import crashsim
from crashsim import (
    CrashTraining,
    CrashVariance,
    FaultSpace,
    NeuronCrash,
    Score,
    SignFlip,
    StuckAt,
    WeightCrash,
    enumerate_exact,
    score,
)
from crashsim.chip.spiking import run_chip
from crashsim.errors import ArgumentError, CrashsimError
from crashsim.files.data import load_data
from crashsim.protection.replicas import simulate_vote
from crashsim.sampling.tilted.events import Event
from crashsim.sampling.tilted.importance import sample_union
from crashsim.scoring.methods import METHODS
from crashsim.training.hardening import harden

H = sympy.Symbol("h", positive=True)


class Own(crashsim.Fault):
    def displacement(self, value):
        return torch.ones_like(value)


@dataclass(frozen=True)
class Uniform(Own):
    """e uniform between -h and h, which its moments do not tell from other laws."""

    law: ClassVar = law_from_moments("uniform", mean=0, k2=H**2 / 3, k3=0, k4=H**4 / 5)
    parameter: ClassVar[str] = "h"
    name: ClassVar[str] = "uniform"
    h: float


@dataclass(frozen=True)
class Flip(crashsim.Fault):
    """What SignFlip does, with another name for p."""

    law: ClassVar = BERNOULLI
    parameter: ClassVar[str] = "q"
    name: ClassVar[str] = "flip"
    q: float
    note: object = None

    def displacement(self, value):
        return -2 * value


@dataclass(frozen=True)
class MyCrash(NeuronCrash):
    """A crash under another name."""

    name: ClassVar[str] = "my-crash"


@dataclass(frozen=True)
class StuckHigh(NeuronCrash):
    """No crash at all, though it says so."""

    name: ClassVar[str] = "stuck-high"

    def displacement(self, value):
        return 1 - value


@dataclass(frozen=True)
class Aged(NeuronCrash):
    """A crash whose probability is another number than its field."""

    name: ClassVar[str] = "aged"

    @property
    def rate(self):
        return self.p**2


@pytest.fixture
def net(make_net):
    return make_net((4, 6, 1), "tanh")


@pytest.fixture
def x(randn):
    return randn(3, 4)


def linear_variance(net, coordinate):
    """Of noise added to hidden neurons, that the last layer sums."""
    return coordinate * float((net[2].weight.detach().double() ** 2).sum())


def spaces_draw(space):
    return [
        lambda: crashsim.monte_carlo(space, samples=20),
        lambda: simulate_vote(space, count=3, epsilon=0.1, trials=4),
        lambda: run_chip(space, masks=4, steps=4, engine="numpy"),
        lambda: sample_union(space, [Event(np.ones(1), 0.1, np.ones(space.N), 1.0)], 0),
    ]


def test_a_law_of_moments_alone_is_not_drawn(net, x):
    fault = Uniform(0.3)
    for methods in (None, ["monte-carlo"], ["taylor", "+exact"], ["saddlepoint"], ["certificate"]):
        with pytest.raises(ArgumentError, match=r"Uniform: its law 'uniform'.*how it is drawn"):
            score(net, x, fault, methods=methods)
    for draw in spaces_draw(FaultSpace(net, x[:1], fault)):
        with pytest.raises(ArgumentError, match=r"Uniform|uniform"):
            draw()
    with pytest.raises(ArgumentError, match="law is uniform"):
        enumerate_exact(net, x, fault)
    with pytest.raises(ArgumentError, match=r"Uniform.*how it is drawn"):
        CrashTraining(net, {"hidden": fault})
    data = load_data("digits").first(40)
    with pytest.raises(ArgumentError, match=r"Uniform.*hardening"):
        harden("64-4-10", data, data, fault, epsilon=0.1, delta=0.1)


def test_its_moments_serve_the_methods_that_need_no_more(net, x, tmp_path):
    right = linear_variance(net, 0.3**2 / 3)
    names = [method.name for method in METHODS if method.moments_only]
    assert len(names) >= 6
    found = score(net, x, Uniform(0.3), methods=names, epsilon=0.2, delta=0.1)
    assert found.find("chebyshev", "tail").value > 0
    assert "cumulant generating function" in found.skipped["answers"]
    for method in set(names) - {"chebyshev"}:
        assert found.find(method, "variance").value == pytest.approx(right, rel=1e-5), method
        assert found.find(method, "mean", output=0).value == pytest.approx(0, abs=1e-9)
    for text in (found.to_text(), found.to_html(), found.verdict):
        assert "h 0.3 uniform" in text
    found.save(tmp_path / "score.json")
    again = Score.load(tmp_path / "score.json")
    assert again.to_dict() == found.to_dict()
    assert again.to_html() == found.to_html()

    penalty = CrashVariance(net.train(), Uniform(0.3), exact=True)
    assert float(penalty(net(x)).detach()) == pytest.approx(right, rel=1e-5)
    penalty.remove()


def test_a_bernoulli_fault_of_ones_own_is_as_good_as_the_built_in(net, x):
    options = {"epsilon": 0.5, "delta": 0.05, "samples": 3000, "seed": 4}
    own, known = (score(net, x, fault, **options) for fault in (Flip(0.1), SignFlip(0.1)))
    assert {e.method for e in own.estimates} == {e.method for e in known.estimates}
    for ours, theirs in zip(own.estimates, known.estimates, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-5, abs=1e-12)
    assert known.find("monte-carlo", "variance").value > 0
    answers = [[a.value for a in found.answers] for found in (own, known)]
    assert answers[0] == pytest.approx(answers[1], rel=1e-5)
    assert "10% flip" in own.verdict
    assert Score.from_dict(own.to_dict()).to_html() == own.to_html()


def test_a_subclass_of_a_crash_is_that_crash(net, x):
    options = {"epsilon": 0.2, "samples": 500, "proofs": True}
    own, known = (score(net, x, fault(0.05), **options) for fault in (MyCrash, NeuronCrash))
    assert own.skipped == known.skipped
    assert [e.value for e in own.estimates] == [e.value for e in known.estimates]
    assert FaultSpace(net, x, MyCrash(0.05)).plan() == [
        line.replace("neuron-crash", "my-crash")
        for line in FaultSpace(net, x, NeuronCrash(0.05)).plan()
    ]


@pytest.mark.parametrize("p", [0.02, 0.4])
@pytest.mark.parametrize("group", ["unit", 2])
def test_a_subclass_that_does_something_else_is_not_taken_for_a_crash(make_net, x, p, group):
    net = make_net((4, 6, 3), "tanh")
    found = score(
        net, x, StuckHigh(p, group), samples=4000, methods=["+norm", "+certificate"], seed=1
    )
    assert {"norm", "certificate"} <= set(found.skipped)
    # By hand: every pattern of groups, through the last layer alone.
    h = torch.tanh(net[0](x)).double()
    weight = net[2].weight.double()
    size = 1 if group == "unit" else group
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * (6 // size)).double()
    e = patterns.repeat_interleave(size, 1)
    chance = (p**patterns * (1 - p) ** (1 - patterns)).prod(1)
    delta = ((e[:, None] * (1 - h)) @ weight.T).detach()
    mean = (chance[:, None, None] * delta).sum(0)
    right = float((chance[:, None, None] * (delta - mean) ** 2).sum(0).mean(0).sum())
    assert found.find("exact", "variance").value == pytest.approx(right, rel=1e-4)
    sampled = found.find("monte-carlo", "variance")
    assert sampled.low <= right <= sampled.high
    if group == "unit":
        known = score(net, x, StuckAt(p, 1.0), samples=4000, seed=1)
        assert known.find("monte-carlo", "variance").value == pytest.approx(sampled.value, rel=1e-5)


def test_a_rate_that_is_no_field_answers_no_question_of_p(net, x):
    found = score(net, x, Aged(0.3), epsilon=0.2, delta=0.05, samples=2000)
    wanted = score(net, x, NeuronCrash(0.09), epsilon=0.2, delta=0.05, samples=2000)
    for method in ("exact", "monte-carlo", "saddlepoint"):
        assert found.find(method, "variance" if method != "saddlepoint" else "tail", output=0)
    assert found.find("exact", "variance").value == wanted.find("exact", "variance").value
    largest = [a for a in found.answers if "largest p" in a.question]
    assert largest
    for answer in largest:
        assert answer.value is None
        assert "another probability" in answer.note


def lacking(**changes):
    body = {"law": BERNOULLI, "parameter": "p", "name": "own", "p": 0.1, **changes}
    body = {k: v for k, v in body.items() if v is not None}
    return type("Lacking", (Own,), body)()


TWO = law_from_moments("two", mean=H, k2=sympy.Symbol("g") ** 2, k3=0, k4=1)
NONE = law_from_moments("none", mean=0, k2=H**2, k3=0, k4=0)  # k4 < k2^2 is no law's


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Flip(1.5), "Flip: q=1.5"),
        (lambda: Flip(-0.1), "Flip: q=-0.1"),
        (lambda: Flip(float("nan")), "Flip: q=nan"),
        (lambda: Flip("0.1"), "Flip: q='0.1'"),
        (lambda: Flip(torch.tensor([0.1, math.nan])), "Flip: q="),
        (lambda: Uniform(None), "Uniform: h=None"),
        (lambda: MyCrash(1.5), "MyCrash: p=1.5"),
        (lambda: lacking(law=None), "Lacking: has no law"),
        (lambda: lacking(law="uniform"), "Lacking: has no law"),
        (lambda: lacking(name=None), "Lacking: has no name"),
        (lambda: lacking(parameter=None), "Lacking: has no parameter"),
        (lambda: lacking(parameter="q"), "Lacking: has no field 'q'"),
        (lambda: lacking(law=TWO), "Lacking: law 'two' has parameters"),
        (lambda: lacking(law=NONE), "Lacking: p=0.1"),
    ],
)
def test_what_a_fault_lacks_is_told(net, x, make, told):
    for use in (lambda f: score(net, x, f), lambda f: CrashVariance(net, f)):
        with pytest.raises(CrashsimError, match=told):
            use(make())


def test_fields_of_any_kind_are_written(net, x):
    found = score(net, x, Flip(0.1, note=object()), samples=100)
    assert Score.from_dict(found.to_dict()).to_dict() == found.to_dict()


class Half:
    """A mixin that changes what a fault does."""

    def displacement(self, value):
        return -value / 2


@dataclass(frozen=True)
class HalfCrash(Half, NeuronCrash):
    name: ClassVar[str] = "half-crash"


@dataclass(frozen=True)
class Softer(MyCrash):
    """Says anew what it does, and that it acts on each unit alone."""

    name: ClassVar[str] = "softer"
    is_elementwise: ClassVar[bool] = True

    def displacement(self, value):
        return -value / 3


@dataclass(frozen=True)
class Centred(NeuronCrash):
    """Moves each unit to the mean of all: not a matter of the unit alone."""

    name: ClassVar[str] = "centred"

    def displacement(self, value):
        return value.mean() - value


def test_a_class_that_says_anew_what_it_does_makes_no_claim_of_its_parents():
    for fault in (NeuronCrash(0.1), MyCrash(0.1), Aged(0.1), WeightCrash(0.1)):
        assert fault.zeroes
        assert fault.is_elementwise
    for fault in (StuckHigh(0.1), HalfCrash(0.1)):  # found by trying them out
        assert not fault.zeroes
        assert fault.is_elementwise
    assert not Centred(0.1).is_elementwise
    assert not Softer(0.1).zeroes
    assert Softer(0.1).is_elementwise
    assert Aged(0.3).change_probability == pytest.approx(0.09)
