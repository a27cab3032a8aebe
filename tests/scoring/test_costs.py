"""What a score would cost is counted, and a budget decides what runs; nothing is timed."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import BitFlip, FaultSpace, NeuronCrash, WeightCrash
from crashsim.errors import ArgumentError
from crashsim.results.numbers import CORE, words_of_time
from crashsim.scoring.planning.costs import read_budget, words_of_memory
from crashsim.scoring.planning.plan import plan
from crashsim.scoring.planning.size import Size


@pytest.fixture
def net(make_net):
    return make_net((8, 40, 20, 3))


@pytest.mark.parametrize(
    ("budget", "operations"),
    [("2m", 120 * CORE), ("90s", 90 * CORE), (" 1.5 h ", 5400 * CORE), (1e12, 1e12), (None, None)],
)
def test_budgets(budget, operations):
    assert read_budget(budget) == operations


@pytest.mark.parametrize("budget", ["2", "m", "-1s", "1d", "0s", "1e99h", 0, -1e9, True, [], "٢m"])
def test_what_is_no_budget(budget, net, randn):
    with pytest.raises(ArgumentError, match=r"budget=.*2m"):
        crashsim.score(net, randn(2, 8), NeuronCrash(0.1), budget=budget)


def test_a_plan_runs_nothing_and_a_score_runs_what_it_says(net, randn, monkeypatch):
    x, fault = randn(2, 8), NeuronCrash(0.1)
    with monkeypatch.context() as patch:
        patch.setattr("crashsim.scoring.score.compute", lambda *_: pytest.fail("it ran"))
        found = crashsim.plan(net, x, fault, samples=300, epsilon=0.1, seed=3)
    score = crashsim.score(net, x, fault, samples=300, epsilon=0.1, seed=3)
    assert found.samples == score.samples == 300
    ran = {e.method for e in score.estimates}
    assert ran <= set(found.methods)
    assert set(found.methods) - ran <= score.skipped.keys()
    assert found.skipped.items() <= score.skipped.items()
    assert found.sampling == score.plan


def test_a_plan_as_text_and_dict(net, randn):
    found = crashsim.plan(net, randn(2, 8), WeightCrash(0.01), sites="weights", samples=300)
    text = found.to_text()
    assert "monte-carlo (300)" in text
    assert "1e10 operations a second" in text
    assert "ask for proofs" in text
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["operations"] == sum(step["operations"] for step in plain["steps"])
    assert plain["seconds"] == plain["operations"] / CORE
    assert [s["name"] for s in plain["steps"] if s["method"]] == list(found.methods)


def test_a_plan_refuses_what_a_score_refuses(net, randn):
    with pytest.raises(ArgumentError, match="sampels"):
        crashsim.plan(net, randn(2, 8), sampels=3)
    with pytest.raises(ArgumentError, match="samples"):
        crashsim.plan(net, randn(2, 8), samples=-1)


def test_samples_follow_a_budget(net, randn):
    space = FaultSpace(net, randn(20, 8), NeuronCrash(0.1))
    found = [plan(space, None, None, None, budget=b) for b in (5e7, 2e10, 2e11)]
    assert found[0].samples < found[1].samples < found[2].samples
    for one, budget in zip(found, (5e7, 2e10, 2e11), strict=True):
        spent = sum(cost.operations for cost in one.steps.values())
        assert 0.8 * budget < spent <= 1.01 * budget
    assert set(found[0].methods) < set(found[2].methods)
    left_out = [r for r in found[0].skipped.values() if "of the budget" in r]
    assert left_out
    # What is named is computed whatever the budget says, and at its cost.
    named = plan(space, ["+importance-sampling"], 77, None, budget=1e8)
    assert "importance-sampling" in named.methods
    assert named.samples == 77


def test_a_budget_gives_the_same_numbers_as_its_samples(net, randn):
    x, fault = randn(4, 8), NeuronCrash(0.1)
    budgeted = crashsim.score(net, x, fault, methods=["monte-carlo"], budget="0.01s")
    assert 2 <= budgeted.samples < 1000
    wanted = crashsim.score(net, x, fault, methods=["monte-carlo"], samples=budgeted.samples)
    assert budgeted.estimates == wanted.estimates


def test_rare_events_that_take_longer_than_all_else_are_left_out(seeded, randn):
    """A small convolutional network of 11,072 bits, of which few samples are asked."""
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )
    )
    x = randn(1, 1, 28, 28)
    space = FaultSpace(net, x, BitFlip(1e-4), "weights")
    found = plan(space, None, 50, None)
    assert "more than all the rest" in found.skipped["importance-sampling"]
    assert "importance-sampling" in plan(space, ["+importance-sampling"], 50, None).methods
    small = FaultSpace(net, x, NeuronCrash(1e-2), "1")
    assert "importance-sampling" in plan(small, None, 50, None).methods


def test_theory_that_takes_many_times_the_samples_asked_for_is_left_out(make_net, randn):
    """Unless it is named, or takes no more than a tenth of a second of a core."""
    space = FaultSpace(make_net((16, 200, 100, 10)), randn(4, 16), BitFlip(1e-4), "weights")
    few, default = plan(space, None, 20, None), plan(space, None, None, None)
    dear = [name for name, reason in few.skipped.items() if "times as long as 20 samples" in reason]
    assert "surrogate-law" in dear
    assert not set(dear) & default.skipped.keys()
    sampling = few.steps["monte-carlo"].operations
    theory = sum(cost.operations for cost in few.steps.values()) - sampling
    most = max(1e9, 4 * sampling * max(few.size.arithmetic / few.size.operations, 1.0))
    assert sampling < theory <= most
    cheapest = min(default.cost_of(m).operations for m in default.chosen if m.name in dear)
    assert theory + cheapest > most
    assert "surrogate-law" in plan(space, ["+surrogate-law"], 20, None).methods
    small = FaultSpace(make_net((4, 6, 3)), randn(1, 4), NeuronCrash(0.1))
    assert not any(
        "times as long" in reason for reason in plan(small, None, 2, None).skipped.values()
    )


def test_differences_that_a_method_takes_count(net, randn):
    """mean-point-single runs the network twice for each coordinate, as single does."""
    space = FaultSpace(net, randn(2, 8), NeuronCrash(0.1))
    found = plan(space, ["mean-point-single"], None, None)
    assert found.steps["differences"].operations >= 2 * space.N * found.size.operations_of_change


class Text(nn.Module):
    """100 tokens through two LSTMs in both directions."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.lstm = nn.LSTM(32, 64, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 4)

    def forward(self, ids):
        return self.head(self.lstm(self.embedding(ids))[0][:, -1])


def test_recurrent_layers_count(seeded):
    ids = torch.arange(200).reshape(2, 100) % 50
    space = FaultSpace(seeded(Text), ids, NeuronCrash(0.01), "embedding")
    step = sum(2 * 4 * 64 * (size + 64) for size in (32, 128))  # one direction, multiply and add
    by_hand = 2 * 2 * 100 * step
    counted = plan(space, ["monte-carlo"], 7, None)
    assert by_hand < counted.size.arithmetic < 2 * by_hand
    # Products count a twelfth, and what moves counts beside them.
    assert by_hand / 12 < counted.size.operations < by_hand
    assert counted.steps["monte-carlo"].operations >= 7 * by_hand / 12


def test_many_inputs_of_a_large_model_get_fewer_samples(net, randn, monkeypatch):
    space = FaultSpace(net, randn(2, 8), NeuronCrash(0.1))
    assert plan(space, None, None, None).samples == 10_000
    # A control variate makes each worth many: three tenths as many do.
    for operations, samples in ((1e9, 200), (3e8, 500), (1e10, 100), (1e12, 10)):
        monkeypatch.setattr(Size, "operations", operations)
        assert plan(space, None, None, None).samples == samples
    counted = FaultSpace(net, randn(2, 8), NeuronCrash(count=1))
    monkeypatch.setattr(Size, "operations", 1e9)
    assert plan(counted, None, None, None).samples == 500


def test_words():
    assert [words_of_time(s) for s in (0.2, 1.0, 75, 100, 5400, 2e5, 9e5)] == [
        "under 1 s", "1 s", "75 s", "1.7 min", "1.5 h", "2.3 days", "10 days",
    ]  # fmt: skip
    assert [words_of_memory(m) for m in (3e6, 2**31)] == ["3 MiB", "2 GiB"]
    assert np.isfinite(CORE)


def test_a_budget_buys_class_changes_beside_the_total_variance(seeded, randn):
    """Many outputs: random sums of them take most of what theory may, the nearest rivals little."""
    wide = seeded(lambda: nn.Sequential(nn.Linear(8, 400), nn.ReLU(), nn.Linear(400, 1200)))
    space = FaultSpace(wide, randn(4, 8), NeuronCrash(0.01))
    free = plan(space, None, None, None)
    assert {"mean-point-taylor", "nearest-rivals"} <= set(free.methods)
    sums, margins = (free.steps[name].operations for name in ("gradients", "nearest_margins"))
    assert margins < sums / 3  # three backward passes of each input, not sixteen
    theory = sum(c.operations for name, c in free.steps.items() if name != "monte-carlo")
    both = plan(space, None, None, None, budget=1.01 * theory / 0.6)
    assert {"mean-point-taylor", "nearest-rivals"} <= set(both.methods)
    assert both.samples > 10
    # Where one of them alone is affordable, it is the one that costs less.
    one = plan(space, None, None, None, budget=0.99 * theory / 0.6)
    rivals = margins + free.steps["nearest-rivals"].operations
    cheaper, dearer = "nearest-rivals", "mean-point-taylor"
    if rivals > sums:
        cheaper, dearer = dearer, cheaper
    assert cheaper in one.methods
    assert "of the budget" in one.skipped[dearer]


def test_chips_are_counted_by_what_is_struck_of_all_examples(randn):
    """By hand: two operations for each weight, of each example of each chip with a fault."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 10)).eval()
    x = randn(300, 64)
    y = torch.zeros(300, dtype=torch.long)
    told = {}
    for p, examples, chips in (
        (0.05, 300, 100),
        (0.05, 300, 400),
        (0.05, 150, 100),
        (1e-5, 300, 100),
    ):
        given = crashsim.plan(
            net,
            (x[:examples], y[:examples]),
            NeuronCrash(p),
            samples=chips,
            methods=["monte-carlo"],
        )
        assert given.chips == chips
        told[p, examples, chips] = given.steps["chips"].operations
    struck = 1 - 0.95**500
    by_hand = 100 * 300 * 2 * (500 * 10) * struck  # what comes before the faults runs once
    assert by_hand < told[0.05, 300, 100] < 15 * by_hand
    assert told[0.05, 300, 400] == pytest.approx(4 * told[0.05, 300, 100])
    assert told[0.05, 150, 100] == pytest.approx(told[0.05, 300, 100] / 2, rel=0.2)
    assert told[1e-5, 300, 100] < 0.05 * told[0.05, 300, 100]  # most chips are as new
    given = crashsim.plan(net, (x, y), NeuronCrash(0.05), virtual=1000, methods=["monte-carlo"])
    plain = crashsim.plan(net, (x, y), NeuronCrash(0.05), methods=["monte-carlo"])
    assert given.steps["chips"].operations > plain.steps["chips"].operations
    assert "chips (1,000)" in str(plain)
    assert json.loads(json.dumps(plain.to_dict()))["chips"] == 1000
    assert crashsim.plan(net, x, NeuronCrash(0.05)).chips is None
