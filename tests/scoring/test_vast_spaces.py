"""Millions of coordinates: plans and samples hold no number for each of them."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import BitFlip, FaultSpace, NeuronCrash, WeightCrash
from crashsim.coordinates.placement import moments_at
from crashsim.coordinates.points import is_no_fault, no_fault
from crashsim.sampling.exact_strata import few_strike, probability_of_two, usual_state
from crashsim.scoring.planning.plan import plan


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.004, 0.03, 0.2, 0.8, 0.999, 1.0])
def test_few_strikes_are_those_of_all_coordinates_written_out(p, make_net, randn):
    space = FaultSpace(make_net((8, 40, 20, 3)), randn(1, 8), NeuronCrash(p))
    usual = usual_state(space)
    assert usual is not None
    several = (usual[1] > 0).sum() >= 2
    two = probability_of_two(usual[1])
    for most in (0.5, 0.9 * two, 1.1 * two):
        assert few_strike(space, most) == (several and two < most)


def test_few_strikes_of_rates_of_their_own(make_net, randn):
    rates = np.random.default_rng(0).random(40)
    rates[:30] *= 1e-3
    net = make_net((8, 40, 3))
    space = FaultSpace(net, randn(1, 8), NeuronCrash(rates))
    two = probability_of_two(usual_state(space)[1])
    assert 0.1 < two < 0.999
    assert not few_strike(space, 0.99 * two)
    assert few_strike(space, 1.01 * two)


def test_few_strike_never_where_one_excludes_another_or_none_can(make_net, randn):
    net, x = make_net((8, 40, 20, 3)), randn(1, 8)
    assert not few_strike(FaultSpace(net, x, NeuronCrash(count=1)), 1.0)
    assert not few_strike(FaultSpace(net, x, crashsim.GainNoise(0.1)), 1.0)


def test_moments_of_some_coordinates(make_net, randn):
    faults = {"linear1.weight": WeightCrash(0.1), "linear2.weight": BitFlip(0.02, format="int8")}
    space = FaultSpace(make_net((8, 40, 3)), randn(1, 8), faults)
    columns = np.random.default_rng(1).integers(0, space.N, 50)
    mean, k2 = moments_at(space.placements, columns)
    np.testing.assert_array_equal(mean, space.mean_point[columns])
    np.testing.assert_array_equal(k2, space.moments.k2[columns])
    assert len(np.unique(mean)) == 2


def test_no_fault_takes_no_memory_and_is_not_written_to():
    zeros = no_fault(10**12)
    assert is_no_fault(zeros)
    assert is_no_fault(zeros[5 : 10**11])
    assert not is_no_fault(np.array([0.0, 1.0]))
    assert not is_no_fault(np.broadcast_to(np.ones(()), (4,)))
    with pytest.raises(ValueError, match="read-only"):
        zeros[3] = 1.0


def peak_of(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_plans_and_samples_of_a_vast_space_hold_no_number_for_each_coordinate(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(2000, 1500), nn.ReLU(), nn.Linear(1500, 3)))
    space = FaultSpace(net.eval(), randn(1, 2000), BitFlip(1e-7, format="int8"), "weights")
    assert space.N > 2e7
    assert peak_of(lambda: plan(space, None, None, None, budget=1e12)) < 4 * space.N
    with pytest.warns(crashsim.CrashsimWarning, match="too few times"):
        sampled = peak_of(lambda: crashsim.monte_carlo(space, samples=20))
    assert sampled < 4 * space.N


def test_a_budget_pays_for_the_single_faults_before_samples_too(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(700, 400), nn.ReLU(), nn.Linear(400, 3))).eval()
    space = FaultSpace(net, randn(1, 700), BitFlip(1e-4, format="int8"), "weights")
    for budget in (1e10, 1e11):
        found = plan(space, ["monte-carlo", "mean-point-taylor"], None, None, budget=budget)
        spent = sum(cost.operations for cost in found.steps.values())
        assert 0.3 * budget < spent <= 1.01 * budget


def test_named_outputs_of_very_many_have_first_order_by_the_formula(seeded, randn):
    """Var F_k = p (1 - p) sum_j (W_kj h_j)^2, exactly, as the outputs are linear in the crashes."""
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 1500))).eval()
    x, p = randn(2, 5), 0.05
    found = crashsim.score(net, x, NeuronCrash(p), methods=["mean-point-taylor"], outputs=[700, 3])
    with torch.no_grad():
        hidden, weight = net[1](net[0](x)).double(), net[2].weight.double()
    for output in (3, 700):
        for row in (0, 1):
            wanted = p * (1 - p) * float(((weight[output] * hidden[row]) ** 2).sum())
            one = found.find("mean-point-taylor", "variance", input=row, output=output)
            assert one.value == pytest.approx(wanted, rel=1e-5)
            assert wanted > 0


def test_slopes_that_do_not_fit_are_refused_with_what_they_take(seeded, randn):
    net = seeded(lambda: nn.Sequential(nn.Linear(50, 300), nn.ReLU(), nn.Linear(300, 100))).eval()
    space = FaultSpace(net, randn(1, 50), BitFlip(1e-4, format="int8"), "weights")
    small, large = (plan(space, None, 10, None, memory=memory) for memory in (2**16, 2**31))
    assert "bytes, of 65536 that they may (memory=)" in small.skipped["mean-point-taylor"]
    assert "mean-point-taylor" in large.methods
    held = max(cost.memory for name, cost in large.steps.items() if name == "gradients")
    assert held > space.slopes.size * 4
