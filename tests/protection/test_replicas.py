"""Voters, replicas, the exact count and Byzantine copies."""

import numpy as np
import pytest
import torch
from crashsim_theory import median_failure
from scipy import stats
from torch import nn

from crashsim import FaultSpace, NeuronCrash, Replicated, byzantine_table, plan_replicas
from crashsim.errors import ArgumentError
from crashsim.protection.replicas import lie, simulate_vote
from crashsim.protection.voters import VOTERS, make_voter


@pytest.fixture
def net(seeded):
    return seeded(lambda: nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 3)))


@pytest.fixture
def x():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", VOTERS)
def test_unanimous_copies_win(name, randn):
    outputs = randn(1, 5, 3).expand(7, 5, 3)
    vote = make_voter(name, 7)(outputs)
    if name == "majority":
        assert torch.equal(vote.argmax(1), outputs[0].argmax(1))
        assert torch.equal(vote.sum(1), torch.ones(5))
    else:
        assert torch.allclose(vote, outputs[0], atol=1e-6)


@pytest.mark.parametrize("name", [v for v in VOTERS if v != "mean"])
@pytest.mark.parametrize("attack", ["far", "flip"])
def test_robust_voters_hold_and_the_mean_does_not(name, attack):
    generator = torch.Generator().manual_seed(1)
    clean = torch.tensor([[4.0, 0.0, 1.0]]).expand(5, 3)
    honest = clean + 0.1 * torch.randn(11, 5, 3, generator=generator)
    said = lie(honest, 3, attack)
    assert torch.equal(said[:8], honest[:8])
    assert (make_voter(name, 11, 3)(said).argmax(1) == 0).all()
    assert (make_voter("mean", 11)(said).argmax(1) != 0).all()


def test_voters_by_hand():
    outputs = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])[:, None, None].expand(5, 1, 2)
    assert make_voter("median", 5)(outputs)[0, 0] == 3
    assert make_voter("median", 4)(outputs[:4])[0, 0] == 2.5
    assert make_voter("trimmed-mean", 5, 1)(outputs)[0, 0] == 3
    assert make_voter("trimmed-mean", 5, 0)(outputs)[0, 0] == 22
    assert make_voter("krum", 5, 1)(outputs)[0, 0] in (2, 3)
    assert make_voter("multi-krum", 5, 1)(outputs)[0, 0] == 2.5
    square = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])[:, None]
    centre = make_voter("geometric-median", 4)(square)
    assert torch.allclose(centre, torch.ones(1, 2))


def test_geometric_median_minimises_the_sum_of_distances():
    points = torch.randn(9, 1, 3, generator=torch.Generator().manual_seed(0)).double()
    centre = make_voter("geometric-median", 9)(points)
    best = (points - centre).norm(dim=2).sum()
    for step in 0.01 * torch.randn(20, 1, 3, generator=torch.Generator().manual_seed(1)).double():
        assert (points - centre - step).norm(dim=2).sum() >= best - 1e-9


@pytest.mark.parametrize(
    ("name", "copies", "f", "words"),
    [("loudest", 5, None, "loudest"), ("krum", 5, 2, "f=2"), ("median", 5, 3, "f=3"),
     ("median", 0, None, "copies=0")],
)  # fmt: skip
def test_wrong_voters(name, copies, f, words):
    with pytest.raises(ArgumentError, match=words):
        make_voter(name, copies, f)


def test_replicas_fail_independently_and_for_good(net, x):
    replicated = Replicated(net, 5, "mean", faults=NeuronCrash(0.3), seed=4)
    copies = replicated.copies(x)
    assert copies.shape == (5, 6, 3)
    assert len({tuple(c.flatten().tolist()) for c in copies}) == 5
    assert torch.equal(replicated(x), copies.mean(0))
    assert torch.allclose(replicated.copies(x[:2]), copies[:, :2], atol=1e-6)  # the same chips
    other = Replicated(net, 5, "mean", faults=NeuronCrash(0.3), seed=5)
    assert not torch.equal(other(x), replicated(x))


def test_replicas_without_faults(net, x):
    with torch.no_grad():
        assert torch.equal(Replicated(net, 3)(x), net(x))


def test_voting_helps(net, x):
    clean = net(x).detach()
    errors = {}
    for count in (1, 9):
        shifts = [
            (Replicated(net, count, "mean", faults=NeuronCrash(0.05), seed=s)(x) - clean)
            for s in range(40)
        ]
        errors[count] = float(torch.stack(shifts).var(0).mean())
    assert errors[9] < 0.3 * errors[1]


def test_simulated_median_follows_the_binomial_law(net, x):
    space = FaultSpace(net, x[:1], NeuronCrash(0.1))

    def first_output_only(outputs):
        vote = torch.from_numpy(space.clean()).expand(outputs.shape[1], -1).clone()
        vote[:, 0] = outputs[:, :, 0].median(0).values
        return vote

    one = simulate_vote(space, 1, 0.2, first_output_only, trials=20_000, seed=1)
    delta = float(one.pooled.value)
    assert 0.05 < delta < 0.6
    three = simulate_vote(space, 3, 0.2, first_output_only, trials=8_000, seed=2, confidence=0.999)
    # The split of delta between the two sides bounds the exact law from both sides.
    assert three.pooled.low <= median_failure(3, delta)
    assert three.pooled.high >= median_failure(3, delta / 2, delta / 2)
    assert three.trials == 8_000
    assert three.per_input.value.shape == (1,)


@pytest.mark.parametrize("single", [0.01, 0.0918, 0.2, 1 / 3])
@pytest.mark.parametrize("target", [1e-2, 1e-6])
def test_exact_count(single, target):
    plan = plan_replicas(target, single)
    assert plan.count % 2 == 1

    def failure(count):
        return stats.binom.sf((count - 1) // 2, count, single)

    assert failure(plan.count) <= target
    assert plan.count == 1 or failure(plan.count - 2) > target
    assert plan.failure == pytest.approx(failure(plan.count))
    assert (plan.warning is not None) == (
        plan.published_failure > target or plan.published > plan.count
    )


def test_the_published_rule_fails_where_theory_says():
    plan = plan_replicas(1e-6, 1 / 3)
    assert (plan.published, plan.count) == (27, 193)
    assert plan.published_failure == pytest.approx(3.6e-2, rel=0.01)
    assert "fail with probability 0.036" in plan.warning
    assert plan_replicas(1e-6, 0.6).count is None
    with pytest.raises(ArgumentError, match="target"):
        plan_replicas(0.0, 0.1)


def test_byzantine_table(net, x, tmp_path):
    table = byzantine_table(net, x, 7, faults=NeuronCrash(0.01), trials=3)
    held = table.holds(0.2)
    assert held["mean"] == 0
    assert held["median"] >= 2
    assert table.worst[:, -1].min() == 1.0  # a majority of liars always wins
    assert len(table.rows()) == table.wrong.size
    assert "median" in table.text()
    table.plot(tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 1000
    clean = byzantine_table(net, x, 5, voters=("median",))
    assert np.all(clean.worst[0, :3] == 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"count": 0}, "count=0"), ({"count": 2.5}, "count=2.5"), ({"byzantine": 4}, "byzantine=4"),
     ({"attack": "shout", "byzantine": 1}, "attack='shout'")],
)  # fmt: skip
def test_wrong_replicas(net, x, arguments, words):
    with pytest.raises(ArgumentError, match=words):
        Replicated(net, **{"count": 3, **arguments})(x)
