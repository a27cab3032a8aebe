"""Outputs that are infinite or NaN under faults are counted, and leave no mean and no variance."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import BitFlip, Event, FaultSpace, NeuronCrash, Score, StuckAt, enumerate_exact
from crashsim.analytic.sampled_singles import sampled_singles
from crashsim.errors import NotApplicableError
from crashsim.results.verdict import best
from crashsim.sampling.enumeration import enumerate_space
from crashsim.sampling.word_importance import word_importance
from crashsim.sampling.word_strata import word_strata

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


@pytest.fixture
def space(seeded, watch, randn):
    net = watch(seeded(lambda: nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))))
    return FaultSpace(net, randn(5, 6), BitFlip(1e-5, format="float32"), "weights")


def alone(space):
    """(N, B) which single faults change the class, all of them struck."""
    harm = np.zeros((space.N, space.B), dtype=bool)
    for columns, outputs in space.single_outcomes(np.zeros(space.N), np.ones(space.N)):
        bad = ~np.isfinite(outputs).all(-1)
        harm[columns] = bad | (outputs.argmax(-1) != space.clean().argmax(-1))
    return harm


def test_strata_of_words_against_every_single_fault(space):
    harm = alone(space)
    wanted = -np.expm1(np.log1p(-1e-5) * harm.sum(0)).mean()
    found = {e.quantity: e for e in word_strata(space, seed=0) if e.input == "all"}
    assert found["class-change"].value == pytest.approx(wanted, rel=0.1)  # of 3% standard error
    assert "predicted by the gradient" in found["class-change"].note
    per_bit = harm.reshape(-1, 32, space.B).sum((0, 2))
    assert per_bit[:15].sum() == 0  # low bits of the mantissa
    assert per_bit[30] > 0
    few = next(e for e in word_strata(space, seed=0, samples=100) if e.input == "all")
    assert few.value == pytest.approx(wanted, rel=1.0)
    assert "standard error" in few.note
    every = {e.quantity: e for e in word_strata(space, seed=0, samples=10**6) if e.input == "all"}
    assert every["class-change"].value == pytest.approx(wanted, rel=0.02)  # but for the gradient's


def test_importance_sampling_of_words_against_every_single_fault(space):
    """So rare that single faults are all there is: 1e-9, where plain samples show nothing."""
    rare = space.with_faults([BitFlip(1e-9, format="float32")] * 2)
    wanted = 1e-9 * alone(space).sum(0)
    for seed in range(3):
        found = [e for e in word_importance(rare, seed, 0.999) if e.quantity == "class-change"]
        pooled = next(e for e in found if e.input == "all")
        assert pooled.low <= wanted.mean() <= pooled.high
        assert pooled.high < 1.5 * pooled.low
        for e in found:
            if e.input != "all":
                assert e.low <= wanted[e.input] <= e.high


def test_a_sample_of_single_faults_says_nothing_of_moments(space):
    with pytest.raises(NotApplicableError, match="word-strata"):
        sampled_singles(space, "single")
    mantissas = BitFlip(1e-5, format="float32", bits="mantissa")
    assert sampled_singles(FaultSpace(space.model, space.inputs, mantissas, "weights"), "single")


@SPOILED
def test_the_verdict_quotes_what_saw_most(space):
    """Plain samples saw next to nothing; it does not say that moments are spoiled, either."""
    rare = space.with_faults([BitFlip(1e-8, format="float32")] * 2)
    methods = ["word-importance", "monte-carlo"]
    found = crashsim.score(
        rare.model, rare.inputs, BitFlip(1e-8, format="float32"), "weights",
        samples=300, methods=methods,
    )  # fmt: skip
    wanted = 1e-8 * alone(space).sum(0).mean()
    assert best(found, "class-change").method == "word-importance"
    assert best(found, "class-change").value == pytest.approx(wanted, rel=0.3)
    assert "class changes with probability" in found.verdict
    assert "(word-importance, 95% interval" in found.verdict
    assert "no variance" not in found.verdict


@SPOILED
def test_importance_sampling_of_words_against_the_exact_sum(seeded, randn):
    """All 2^12 patterns of flips that are not rare."""
    net = seeded(lambda: nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 3)))
    space = FaultSpace(
        net, randn(3, 2), BitFlip(0.05, format="float32", bits=[23, 26, 28, 29, 30, 31]), "0.weight"
    )
    exact = enumerate_space(space)
    found = word_importance(space, 0, 0.999)
    for quantity, wanted in (
        ("class-change", exact.class_change),
        ("not-finite", exact.not_finite),
    ):
        pooled = next(e for e in found if (e.quantity, e.input) == (quantity, "all"))
        assert pooled.low <= wanted.mean() <= pooled.high
    assert exact.class_change.mean() > 0.01


def test_strata_of_words_are_for_words(steep, randn):
    with pytest.raises(NotApplicableError, match="do not add up"):
        word_strata(FaultSpace(steep, randn(2, 4), NeuronCrash(0.1)), seed=0)
    mixed = {"0.weight": BitFlip(0.01, format="float32"), "1": NeuronCrash(0.1)}
    with pytest.raises(NotApplicableError, match="words alone"):
        word_strata(FaultSpace(steep, randn(2, 4), mixed), seed=0)
