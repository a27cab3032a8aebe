"""Faults of words whose bits do not add up, in strata and reweighted, against all single faults."""

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import BitFlip, FaultSpace, NeuronCrash
from crashsim.analytic.sampled_singles import sampled_singles
from crashsim.errors import NotApplicableError
from crashsim.results.verdict import best
from crashsim.sampling.enumeration import enumerate_space
from crashsim.sampling.words.importance import word_importance
from crashsim.sampling.words.strata import word_strata

SPOILED = pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")


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


def test_importance_sampling_of_words_where_a_layer_has_no_faults(space):
    """A rate of 0 in one layer: the other's single faults are all there is."""
    rates = {"0.weight": 0.0, "2.weight": 1e-9}
    faults = [BitFlip(rates[p.site.name], format="float32") for p in space.placements]
    own = [p.stop - p.start for p in space.placements]
    wanted = 1e-9 * alone(space)[own[0] :].sum(0).mean()
    found = word_importance(space.with_faults(faults), 0, 0.999)
    pooled = next(e for e in found if (e.quantity, e.input) == ("class-change", "all"))
    assert 0 < pooled.low <= wanted <= pooled.high < 1.5 * pooled.low


def test_a_sample_of_single_faults_says_nothing_of_moments(space):
    with pytest.raises(NotApplicableError, match="word-strata"):
        sampled_singles(space, "single")
    mantissas = BitFlip(1e-5, format="float32", bits="mantissa")
    assert sampled_singles(FaultSpace(space.model, space.inputs, mantissas, "weights"), "single")


@SPOILED
def test_squares_that_overflow_leave_no_first_order(seeded, watch, randn):
    """An exponent's bit of double precision makes 1e300, finite, whose square is not."""

    def made():
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
        with torch.no_grad():
            net[0].weight.mul_(1e-10)
        return net

    net = watch(seeded(made))
    found = crashsim.score(
        net, randn(2, 3, dtype=torch.float64), BitFlip(1e-3, bits=[62]), "weights",
        samples=300, methods=["single", "word-strata", "monte-carlo"],
    )  # fmt: skip
    assert "can square" in found.skipped["single"]
    assert all(np.isfinite(e.value) for e in found.estimates)
    assert found.find("word-strata", "class-change").value > 0


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


def test_strata_of_words_are_for_words(space):
    crashes = FaultSpace(space.model, space.inputs, NeuronCrash(0.1))
    with pytest.raises(NotApplicableError, match="do not add up"):
        word_strata(crashes, seed=0)
    mixed = {"0.weight": BitFlip(0.01, format="float32"), "1": NeuronCrash(0.1)}
    with pytest.raises(NotApplicableError, match="words alone"):
        word_strata(FaultSpace(space.model, space.inputs, mixed), seed=0)
