"""Certify, then sample: the intervals hold, however rare the event and however few the samples."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash, score
from crashsim.analytic.first_order import double_precision
from crashsim.analytic.proofs import certificates, certify, linear_tails, provable
from crashsim.campaign.tasks import fold
from crashsim.sampling.certified import certified_sampling
from crashsim.sampling.enumeration import enumerate_space


def prepared(net, x, faults, sites="hidden"):
    space = FaultSpace(net, x, faults, sites)
    law = enumerate_space(space)
    return space, law, int(law.variance[0].argmax())


def epsilon_for(law, output, tail):
    """The level between two outcomes whose tail is nearest to the one wanted."""
    outcomes = np.unique(np.round(np.abs(law.deltas[:, 0, output]), 9))
    middles = (outcomes[1:] + outcomes[:-1]) / 2
    truths = np.array([law.tail(e)[0, output] for e in middles])
    return float(middles[np.abs(np.log(np.maximum(truths, 1e-300) / tail)).argmin()])


@pytest.mark.parametrize(
    ("activation", "p", "tail"),
    [("sigmoid", 0.01, 1e-3), ("relu", 0.01, 1e-6), ("tanh", 0.003, 1e-9), ("relu", 0.1, 0.05)],
)
def test_intervals_hold(activation, p, tail, make_net, randn):
    net = make_net((3, 6, 5, 3), activation, seed=1, scale=1.5)
    space, law, output = prepared(net, randn(1, 3), NeuronCrash(p))
    epsilon = epsilon_for(law, output, tail)
    truth = {"tail": law.tail(epsilon)[0, output], "class-change": law.class_change[0]}
    assert tail / 30 < truth["tail"] < 30 * tail
    found = certify(space, provable(space), epsilon, output, [0])
    held, values = {"tail": [], "class-change": []}, []
    for seed in range(60):
        runs = certified_sampling(
            double_precision(space), found, epsilon, output, seed=seed, samples=700
        )
        for e in runs:
            if e.input == 0:
                held[e.quantity].append(e.low <= truth[e.quantity] * (1 + 1e-9) <= e.high)
                values += [e.value] if e.quantity == "tail" else []
                assert e.low <= e.value <= e.high
                assert e.high <= max(found[e.quantity, 0].probability * (1 + 1e-6), 1e-300)
    for quantity, rates in held.items():
        assert np.mean(rates) >= 0.95, quantity
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    exceptions = sum(e.exceptions for e in found["tail", 0].envelopes)
    assert abs(np.mean(values) - truth["tail"]) < 4 * error + exceptions


def test_few_samples_give_wide_intervals_that_hold(make_net, randn):
    net = make_net((3, 6, 5, 2), "sigmoid", seed=1, scale=2.0)
    space, law, output = prepared(net, randn(1, 3), NeuronCrash(0.01))
    epsilon = epsilon_for(law, output, 1e-4)
    found = certify(space, provable(space), epsilon, output, [0])
    truth = law.tail(epsilon)[0, output]
    wide = double_precision(space)
    for seed in range(20):
        few = certified_sampling(wide, found, epsilon, output, seed=seed, samples=1)[0]
        many = certified_sampling(wide, found, epsilon, output, seed=seed, samples=4000)[0]
        assert few.low <= truth <= few.high
        assert many.high - many.low <= few.high - few.low
        again = certified_sampling(wide, found, epsilon, output, seed=seed, samples=1)[0]
        assert again == few


def test_events_out_of_reach_need_no_sample(make_net, randn):
    space = FaultSpace(make_net((3, 5, 2)), randn(1, 3), NeuronCrash(0.01))
    found = certify(space, provable(space), 1e6, 0, [0])
    tail = certified_sampling(double_precision(space), found, 1e6, 0)[0]
    assert (tail.value, tail.low) == (0, 0)
    assert tail.high < 1e-6
    assert "0 samples" in tail.note


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e8])
def test_an_outcome_at_epsilon_lies_in_the_interval_on_both_sides(offset):
    """The tail with the outcome and the one without: which it is, rounding decides."""
    weights, p = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.7, 0.01], 0.05
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).double().eval()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(1.0)
        net[2].weight.copy_(torch.tensor([weights], dtype=torch.float64))
        net[2].bias.fill_(offset)
    x, faults = torch.zeros(1, 4).double(), NeuronCrash(p)
    tails = []
    for level in (0.699, 0.701):  # no other outcome lies between
        masks = np.array(list(itertools.product((0, 1), repeat=8)))
        chances = np.prod(np.where(masks == 1, p, 1 - p), axis=1)
        tails.append(float(chances[masks @ weights >= level].sum()))
    assert tails[1] < 0.5 * tails[0]
    space = FaultSpace(net, x, faults, "1")
    found = certify(space, provable(space), 0.7, 0, [0])
    for seed in range(5):
        one = certified_sampling(space, found, 0.7, 0, seed=seed)[0]
        assert one.low <= tails[1] < tails[0] <= one.high
    (bound,) = [e for e in certificates(found, 0.7, 0) if e.input == 0]
    assert tails[0] <= bound.value
    (linear, _) = linear_tails(provable(space), 0.7, 0)
    assert linear.low <= tails[1] < tails[0] <= linear.high


def test_the_average_over_inputs(make_net, randn):
    net, x = make_net((3, 6, 5, 3), "tanh", seed=1, scale=1.5), randn(3, 3)
    space, law, output = prepared(net, x, NeuronCrash(0.01))
    epsilon = epsilon_for(law, output, 1e-4)
    found = certify(space, provable(space), epsilon, output, range(3))
    every = certified_sampling(double_precision(space), found, epsilon, output)
    for quantity, truth in (
        ("tail", law.tail(epsilon)[:, output].mean()),
        ("class-change", law.class_change.mean()),
    ):
        chosen = {e.input: e for e in every if e.quantity == quantity}
        pooled = chosen.pop("all")
        assert pooled.value == pytest.approx(np.mean([e.value for e in chosen.values()]))
        assert pooled.low <= truth <= pooled.high
        assert {e.kind for e in chosen.values()} == {"statistical"}


def test_a_score_has_them_among_its_proofs(make_net, randn):
    net, x = make_net((3, 20, 10, 3), "relu", seed=1), randn(6, 3)
    result = score(net, x, NeuronCrash(0.01), epsilon=0.1, samples=500, proofs=True)
    tail = next(e for e in result.estimates if e.method == "certified-sampling")
    assert tail.note.startswith("exact interval")
    bound = result.find("certificate", tail.quantity, tail.input, tail.output)
    assert tail.high <= bound.value * (1 + 1e-6)
    assert {e.input for e in result.estimates if e.method == "certified-sampling"} == {
        0, 1, 2, 3, "all",
    }  # fmt: skip
    assert "certified-sampling" in result.to_text(80)
    assert max(map(len, result.to_text(80).splitlines())) <= 80
    assert "certified-sampling" in result.to_html()
    noise = score(net, x[:1], NeuronCrash(1e-3), methods=["certified-sampling"], samples=500)
    assert {e.quantity for e in noise.estimates} == {"class-change"}


def test_blocks_of_masks_are_tasks(make_net, randn, monkeypatch):
    """Each block is drawn from a stream of its own; together they are what the method reports."""
    net = make_net((3, 6, 5, 2), "sigmoid", seed=1, scale=2.0)
    space, law, output = prepared(net, randn(1, 3), NeuronCrash(0.01))
    epsilon = epsilon_for(law, output, 1e-4)
    found = certify(space, provable(space), epsilon, output, [0])
    wide, tasks = double_precision(space), []

    def watched(task, blocks):
        tasks.append(task)
        return fold(task, blocks)

    monkeypatch.setattr("crashsim.sampling.certified.fold", watched)
    report = certified_sampling(wide, found, epsilon, output, samples=1100, rel_width=1e-9)
    task = tasks[0]
    assert task.blocks == 3
    blocks = {block: task.run(block) for block in (2, 0, 1)}
    assert len({(*b.samples, *b.hits) for b in blocks.values()}) == 3  # they differ
    total = blocks[0] + blocks[1] + blocks[2]
    sampled = sum(
        event.reach * hits / n
        for event, hits, n in zip(task.events, total.hits, total.samples, strict=True)
        if n
    )
    assert report[0].value == pytest.approx(sampled, rel=1e-12)
    assert f"{total.samples.sum()} samples" in report[0].note
    assert (total.sure <= total.hits).all()
    assert (total.hits <= total.possible).all()
