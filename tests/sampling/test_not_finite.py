"""Outputs that are infinite or NaN under faults are counted, and leave no mean and no variance."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import Event, NeuronCrash, Score, StuckAt, enumerate_exact

SPOILED = pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")


@pytest.fixture
def steep(seeded, watch):
    """Two layers, in which stuck values of 1e38 overflow, or cancel to NaN."""

    def made():
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            net[2].weight.mul_(20)
            net[4].weight.mul_(20)
        return net

    return watch(seeded(made))


def struck_by_hand(net, x, p, samples):
    """Shares of not finite outputs, and of changed classes or those, of an injector's chips."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        clean = net(x).argmax(-1)
        h = torch.relu(net[0](x)).expand(samples, *x.shape[:1], 8)
        h = torch.where(torch.rand(samples, 1, 8, generator=draws) < p, 1e38, h)
        h = torch.relu(net[2](h))
        h = torch.where(torch.rand(samples, 1, 8, generator=draws) < p, 1e38, h)
        out = net[4](h)
        lost = ~torch.isfinite(out).all(-1)
        changed = lost | (out.argmax(-1) != clean)
    return lost.float().mean(1).numpy(), changed.float().mean(1).numpy()


@SPOILED
@pytest.mark.parametrize("p", [0.003, 0.03])  # strata of few faults, and plain samples
def test_stuck_values_that_overflow(p, steep, randn, tmp_path):
    x = randn(4, 4)
    score = crashsim.score(steep, x, StuckAt(p, value=1e38), samples=3000, methods="monte-carlo")
    for quantity, shares in zip(
        ("not-finite", "class-change"), struck_by_hand(steep, x, p, 20_000), strict=True
    ):
        found = score.find("monte-carlo", quantity)
        error = 4 * shares.std() / math.sqrt(len(shares))
        assert found.low - error <= shares.mean() <= found.high + error
        assert shares.mean() > 5 * error > 0
    assert score.find("monte-carlo", "variance", output="all") is None
    assert "infinite or NaN" in score.verdict
    assert "no mean and no variance" in score.verdict
    assert any("no variance" in warning for warning in score.warnings)
    assert "P(not finite)" in score.to_text()
    assert "not-finite" in score.to_html()
    score.save(tmp_path / "score.json")
    assert Score.load(tmp_path / "score.json").to_dict() == score.to_dict()


@SPOILED
def test_most_chips_overflow(steep, randn):
    """The median of |Delta| is infinite, and left out; what is finite is told."""
    x = randn(4, 4)
    score = crashsim.score(steep, x, StuckAt(0.5, value=1e38), samples=500, methods="monte-carlo")
    assert score.find("monte-carlo", "not-finite").value > 0.5
    assert all(math.isfinite(e.value) for e in score.estimates)


@SPOILED
@pytest.mark.parametrize("value", [1e39, 1e60])
def test_numbers_that_single_precision_does_not_hold(value, steep, randn):
    """Samples are kept in single precision: they show events and no moments, which the sum has."""
    net, x = copy.deepcopy(steep).double(), randn(3, 4, dtype=torch.float64)
    methods = ["monte-carlo", "exact"]
    score = crashsim.score(net, x, StuckAt(0.02, value), "1", samples=500, methods=methods)
    assert score.find("monte-carlo", "variance", output="all") is None
    assert score.find("exact", "variance", output="all").value > value
    assert all(math.isfinite(e.value) for e in score.estimates)
    found = score.find("monte-carlo", "class-change")
    assert found.low <= score.find("exact", "class-change").value <= found.high


@SPOILED
def test_the_exact_sum_of_outcomes_that_are_not_finite(steep, randn):
    x, p = randn(3, 4), 0.1
    exact = enumerate_exact(steep, x, StuckAt(p, value=1e38), "1")
    with torch.no_grad():
        first, clean = torch.relu(steep[0](x)), steep(x).argmax(-1)
    lost, changed = np.zeros((2, 3))
    for pattern in range(2**8):
        struck = torch.tensor([pattern >> i & 1 for i in range(8)], dtype=torch.bool)
        with torch.no_grad():
            out = steep[2:](torch.where(struck, 1e38, first))
        chance = p ** int(struck.sum()) * (1 - p) ** int((~struck).sum())
        bad = ~torch.isfinite(out).all(-1)
        lost += chance * bad.numpy()
        changed += chance * (bad | (out.argmax(-1) != clean)).numpy()
    np.testing.assert_allclose(exact.not_finite, lost, rtol=1e-9)
    np.testing.assert_allclose(exact.class_change, changed, rtol=1e-9)
    assert lost.min() > 0.1
    assert not any(e.quantity == "variance" for e in exact.estimates())


@SPOILED
def test_events_of_ones_own_see_them(steep, randn):
    lost = Event("lost", lambda outputs, clean, targets: ~np.isfinite(outputs).all(-1))
    score = crashsim.score(
        steep, randn(4, 4), StuckAt(0.03, 1e38), samples=1000, metrics=[lost], methods="monte-carlo"
    )
    found, own = (score.find("monte-carlo", name) for name in ("not-finite", "lost"))
    assert found.value == pytest.approx(own.value)
    assert (found.low, found.high) == pytest.approx((own.low, own.high), rel=0.05)
    assert found.value > 0


@SPOILED
def test_other_methods_say_why_they_are_skipped(steep, randn):
    faults = {"1": StuckAt(0.03, value=3e38), "0.weight": StuckAt(0.003, value=3e38)}
    methods = ["monte-carlo", "importance-sampling"]
    score = crashsim.score(steep, randn(2, 4), faults, samples=500, methods=methods)
    assert "not finite" in score.skipped["importance-sampling"]
    assert score.find("monte-carlo", "not-finite").value > 0


def test_nothing_is_told_where_nothing_overflows(steep, randn):
    score = crashsim.score(
        steep, randn(2, 4), NeuronCrash(0.05), samples=500, methods="monte-carlo"
    )
    assert score.find("monte-carlo", "not-finite") is None
    assert not any(e.quantity == "not-finite" for e in score.estimates)
