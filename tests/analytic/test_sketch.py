"""First order from random sums of outputs, against the gradient of every output."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, FaultSpace, NeuronCrash, WeightCrash, score
from crashsim.analytic.first_order import Analysis, double_precision, mean_point_taylor
from crashsim.analytic.gains import MEMORY, Gains
from crashsim.analytic.sketch import PROBES, sketched_mean_point_taylor

SEEDS = 60


@pytest.fixture(scope="module")
def space():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 80))
    return FaultSpace(
        net.eval(), torch.randn(3, 4), {"1": NeuronCrash(0.05), "2.weight": WeightCrash(0.02)}
    )


@pytest.fixture(scope="module")
def every(space):
    """With a gradient for each output."""
    found = Analysis()
    mean_point_taylor(double_precision(space), found)
    return found


def sketched(space, seed, confidence=0.95):
    found = Analysis()
    sketched_mean_point_taylor(space, found, memory=MEMORY, seed=seed, confidence=confidence)
    return found


def test_means_are_those_of_every_output(space, every):
    found = sketched(space, 0).estimates
    size = 0.0
    for row in (0, 1, 2, "all"):
        for output in range(space.K):
            wanted = every.estimates.find("mean-point-taylor", "mean", row, output).value
            one = found.find("mean-point-taylor", "mean", row, output)
            assert one.value == pytest.approx(wanted, abs=1e-6)
            size = max(size, abs(wanted))
    assert size > 1e-3


def test_total_variance_is_unbiased_and_its_interval_covers(space, every):
    """Student's interval over sixteen sums falls some points short of 95%, as its law is skewed."""
    for row in (1, "all"):
        if row == "all":
            wanted = every.estimates.find("mean-point-taylor", "variance").value
        else:
            each = [every.estimates.find("mean-point-taylor", "variance", row, k).value
                    for k in range(space.K)]  # fmt: skip
            wanted = sum(each)
        values, covered = [], 0
        for seed in range(SEEDS):
            one = sketched(space, seed).estimates.find("mean-point-taylor", "variance", row)
            assert one.kind == "estimate"
            values.append(one.value)
            covered += one.low <= wanted <= one.high
        error = np.std(values) / np.sqrt(SEEDS)
        assert 0 < error < 0.1 * wanted
        assert np.mean(values) == pytest.approx(wanted, abs=4 * error)
        assert covered >= 0.8 * SEEDS


def test_shares_are_those_of_every_output(space, every):
    wanted = [every.shares[p.start : p.stop].sum() for p in space.placements]
    found = np.mean([sketched(space, seed).by_value.by_placement for seed in range(SEEDS)], 0)
    assert 0.05 < min(wanted) < 0.5
    np.testing.assert_allclose(found, wanted, rtol=0.1)


def test_a_score_of_very_many_outputs_has_its_variance_and_ranks_its_layers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1500)).eval()
        x = torch.randn(2, 4)
    found = score(net, x, NeuronCrash(0.2), samples=300)
    exact = found.find("exact", "variance")
    one = found.find("mean-point-taylor", "variance")
    assert 0.3 * exact.value < one.low < one.value < one.high < 3 * exact.value
    assert found.find("mean-point-taylor", "mean", output=1499) is not None
    assert found.find("mean-point-taylor", "variance", output=1499) is None
    assert "random sums" in found.skipped["taylor"]
    assert "random sums" in found.skipped["saddlepoint"]
    assert found.top
    named = score(net, x, NeuronCrash(0.2), methods=["taylor"])
    assert named.find("taylor", "variance", output=1499).value > 0


def test_as_many_backward_passes_as_sums(space, monkeypatch):
    rows = []
    run = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: rows.append(1) or run(*a, **k))
    sketched(space, 0)
    assert 0 < len(rows) <= PROBES * space.B


def test_named_outputs_have_variances_of_their_own(space, every):
    found = Analysis()
    sketched_mean_point_taylor(
        space, found, memory=MEMORY, seed=0, confidence=0.95, named=(71, 3, 40)
    )
    for output in (3, 40, 71):
        for row in (0, 1, 2, "all"):
            one = found.estimates.find("mean-point-taylor", "variance", row, output)
            wanted = every.estimates.find("mean-point-taylor", "variance", row, output).value
            assert one.value == pytest.approx(wanted, rel=1e-4)
            assert wanted > 0
    assert found.estimates.find("mean-point-taylor", "variance", 0, 4) is None
    assert found.estimates.find("mean-point-taylor", "variance").low is not None


@pytest.mark.parametrize("memory", [1, 2**14])
def test_a_few_sums_at_a_time_say_the_same(space, memory):
    """However little memory there is."""
    whole, parts = sketched(space, 1), Analysis()
    sketched_mean_point_taylor(space, parts, memory=memory, seed=1, confidence=0.95)
    for row in (0, 2, "all"):
        one, wanted = (
            a.estimates.find("mean-point-taylor", "variance", row) for a in (parts, whole)
        )
        assert one.value == pytest.approx(wanted.value, rel=1e-6)
        assert one.high == pytest.approx(wanted.high, rel=1e-6)
    np.testing.assert_allclose(parts.by_value.by_placement, whole.by_value.by_placement, rtol=1e-6)


def test_very_many_weights_are_weighed_a_block_at_a_time(space, monkeypatch):
    """In single precision, and nothing held but what is summed."""
    whole = sketched(space, 1)
    monkeypatch.setattr("crashsim.analytic.weighing._HELD", 0)
    blocks = sketched(space, 1)
    assert blocks.by_value.squares[0].dtype == np.float32
    one, wanted = (a.estimates.find("mean-point-taylor", "variance") for a in (blocks, whole))
    assert one.value == pytest.approx(wanted.value, rel=1e-6)
    assert wanted.value > 0
    np.testing.assert_allclose(blocks.by_value.by_placement, whole.by_value.by_placement, rtol=1e-5)


def test_words_that_are_looked_up_weigh_what_their_bits_do(monkeypatch, seeded, randn):
    """Moments of all bits of a word at once, against each bit's displacement written out."""
    net, x = (
        seeded(lambda: nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 5))),
        randn(3, 4),
    )
    found = []
    for looked_up in (0, 2**20):
        monkeypatch.setattr("crashsim.injection.site_changes.LOOKED_UP", looked_up)
        space = FaultSpace(net, x, BitFlip(1e-3, format="int8", scale="channel"), "weights")
        assert (space.slopes.values[0].listed() is None) == (looked_up > 0)
        sums = Gains.of(space, "mean", MEMORY).sums
        found.append((sums.mean, sums.variance, sums.spread, sums.fourth, sums.squares))
    for looked, written in zip(*found, strict=True):
        assert np.abs(written).max() > 0
        np.testing.assert_allclose(looked, written, rtol=1e-5, atol=1e-6 * np.abs(written).max())
