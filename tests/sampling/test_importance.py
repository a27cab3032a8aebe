"""Importance sampling against the enumeration of every pattern, and against closed forms."""

import functools
import operator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from crashsim import (
    AdditiveNoise,
    CrashsimWarning,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    StuckAt,
    WeightCrash,
)
from crashsim.analytic import first_order
from crashsim.analytic.first_order import Analysis
from crashsim.campaign.tasks import fold
from crashsim.sampling.enumeration import enumerate_space
from crashsim.sampling.tilted.events import tail_events
from crashsim.sampling.tilted.importance import importance_sampling, sample_union
from crashsim.sampling.tilted.weights import WeightSums


def analysed(space):
    analysis = Analysis()
    wide = first_order.double_precision(space)
    first_order.mean_point_taylor(wide, analysis)
    first_order.mean_point_single(wide, analysis)
    return analysis


def epsilon_for(law, output, tail):
    """The level between two outcomes whose tail is nearest to the one wanted."""
    size = np.abs(law.deltas[:, 0, output])
    outcomes = np.unique(np.round(size, 9))
    middles = (outcomes[1:] + outcomes[:-1]) / 2
    truths = np.array([law.tail(e)[0, output] for e in middles])
    return float(middles[np.abs(np.log(np.maximum(truths, 1e-300) / tail)).argmin()])


def draw(space, epsilon, output, seeds, **options):
    analysis = analysed(space)
    one = first_order.of_pair(analysis.surrogate, 0, output)
    events = tail_events(one, output, space.K, epsilon)
    return [sample_union(space, events, seed, **options) for seed in range(seeds)]


def covered(found, truth):
    return np.mean([f.low <= truth <= f.high for f in found])


@pytest.mark.parametrize(
    ("activation", "tail"), [("relu", 1e-3), ("tanh", 1e-5), ("sigmoid", 1e-8)]
)
def test_tails_are_unbiased_and_covered(activation, tail, make_net, randn):
    net = make_net((3, 6, 5, 2), activation, seed=1, scale=2.0)
    space = FaultSpace(net, randn(1, 3), NeuronCrash(0.01))
    law = enumerate_space(space)
    output = int(law.variance[0].argmax())
    epsilon = epsilon_for(law, output, tail)
    truth = law.tail(epsilon)[0, output]
    assert tail / 10 < truth < 10 * tail
    found = draw(space, epsilon, output, 100, samples=1024)
    values = np.array([f.value for f in found])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - truth) < 4 * error
    assert error < 0.1 * truth
    assert covered(found, truth) >= 0.9


@pytest.mark.parametrize(
    "faults",
    [
        {"act1": NeuronCrash(0.02, group=2), "act2": NeuronCrash(0.01)},
        {"linear3.weight": WeightCrash(0.01), "act2": StuckAt(0.005, 1.0)},
        {"act1": NeuronCrash(1.0), "act2": NeuronCrash(0.02)},
        {"act1": NeuronCrash(0.0), "act2": NeuronCrash(0.02)},
    ],
    ids=["groups", "weights", "certain", "never"],
)
def test_other_faults(faults, make_net, randn):
    space = FaultSpace(make_net((3, 6, 5, 2), "tanh", seed=2, scale=2.0), randn(1, 3), faults)
    law = enumerate_space(space)
    output = int(law.variance[0].argmax())
    epsilon = epsilon_for(law, output, 1e-4)
    truth = law.tail(epsilon)[0, output]
    assert truth > 0
    found = draw(space, epsilon, output, 40, samples=1024)
    values = np.array([f.value for f in found])
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / np.sqrt(40) + 1e-9 * truth
    # They rest on some ten effective hits, and say so: of 400 intervals, 80% hold.
    assert covered(found, truth) >= 0.75


def test_gaussian_noise_in_closed_form(make_net, randn):
    net, x = make_net((4, 1)).double(), randn(1, 4).double()
    w, a = net.linear1.weight.detach().numpy()[0], x.numpy()[0]
    for fault, std in (
        (AdditiveNoise(0.3), 0.3 * np.linalg.norm(w)),
        (GainNoise(0.3), 0.3 * np.linalg.norm(w * a)),
    ):
        space = FaultSpace(net, x, fault, "input")
        for sigmas in (3.0, 6.0):
            truth = 2 * stats.norm.sf(sigmas)
            found = [
                importance_sampling(
                    space, analysed(space), epsilon=sigmas * std, output=0, seed=seed
                )[0]
                for seed in range(20)
            ]
            assert np.mean([f.value for f in found]) == pytest.approx(truth, rel=0.1)
            assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.85


def class_change(space, seed, **options):
    found = importance_sampling(
        space, analysed(space), epsilon=None, output=0, seed=seed, **options
    )
    return {e.input: e for e in found if e.quantity == "class-change"}


@pytest.mark.filterwarnings("ignore:importance-sampling")
def test_class_changes_are_covered(make_net, randn):
    net = make_net((3, 6, 5, 3), "tanh", seed=4, scale=2.0)
    space = FaultSpace(net, randn(3, 3), NeuronCrash(0.005))
    truth = enumerate_space(space).class_change
    assert truth.min() < 1e-3
    assert truth.max() > 0
    found = [class_change(space, seed) for seed in range(30)]
    for b, value in [*enumerate(truth), ("all", truth.mean())]:
        # Of 150 intervals of the rarest, at 6e-12, 85% hold; of the others more than 95%.
        least = 0.8 if 0 < value < 1e-9 else 0.9
        assert np.mean([f[b].low <= value <= f[b].high for f in found]) >= least
        assert np.mean([f[b].value for f in found]) == pytest.approx(value, rel=0.1, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_first_class(dtype):
    """With every neuron dead all outputs are 0.5 (no rounding), so class 0 is named."""
    for top in range(3):
        net = nn.Sequential(nn.Identity(), nn.ReLU(), _readout(top)).to(dtype).eval()
        space = FaultSpace(net, torch.tensor([[0.5, 1.0]], dtype=dtype), NeuronCrash(0.01))
        truth = enumerate_space(space).class_change[0]
        assert truth == pytest.approx(0 if top == 0 else 1e-4)
        found = class_change(space, seed=0)[0]
        assert found.low <= truth <= found.high
        if truth:
            assert found.value == pytest.approx(truth, rel=0.3)
        else:
            assert found.value == 0


def _readout(top):
    with torch.random.fork_rng(devices=[]):
        readout = nn.Linear(2, 3)
    with torch.no_grad():
        readout.bias.fill_(0.5)
        readout.weight.zero_()
        readout.weight[top] = torch.tensor([0.5, 0.25])
    return readout


def test_unreachable_events(make_net, randn):
    space = FaultSpace(make_net((3, 5, 2)), randn(1, 3), NeuronCrash(0.01))
    (found,) = draw(space, 1e6, 0, 1)
    assert found.value == found.low == 0
    assert 0 < found.high < 0.05
    assert not found.is_trusted


def test_without_a_hit_the_upper_end_holds(make_net, randn):
    """Even if the surrogate points nowhere, so that only the untilted law can hit."""
    space = FaultSpace(make_net((3, 5, 2), scale=2.0), randn(1, 3), NeuronCrash(0.002))
    law = enumerate_space(space)
    output = int(law.variance[0].argmax())
    epsilon = epsilon_for(law, output, 1e-3)
    truth = law.tail(epsilon)[0, output]
    one = first_order.of_pair(analysed(space).surrogate, 0, output)
    events = tail_events(one, output, space.K, epsilon)
    blind = [type(e)(e.readout, e.threshold, 0 * e.gains, e.weight) for e in events]
    found = [sample_union(space, blind, seed, samples=6) for seed in range(100)]
    missed = [f for f in found if f.value == 0]
    assert missed
    assert all(f.high >= truth for f in missed)


def test_certain_events(make_net, randn):
    net = make_net((3, 5, 2), scale=2.0)
    space = FaultSpace(net, randn(1, 3), {"act1": NeuronCrash(0.99)})
    for found in draw(space, 1e-6, 0, 10):
        assert found.low <= found.value <= found.high == pytest.approx(1, abs=0.02)


def test_nothing_random_is_nothing_to_sample(make_net, randn):
    space = FaultSpace(make_net((3, 5, 2)), randn(1, 3), NeuronCrash(0.0))
    assert importance_sampling(space, analysed(space), epsilon=0.1, output=0) == []


def test_the_seed_and_the_input_alone_decide(make_net, randn):
    net, x = make_net((3, 6, 2), scale=2.0), randn(3, 3)
    space = FaultSpace(net, x, NeuronCrash(0.05))

    def values(seed):
        found = importance_sampling(space, analysed(space), epsilon=0.5, output=0, seed=seed)
        return [(e.quantity, e.input, e.value, e.low, e.high) for e in found]

    assert values(3) == values(3)
    assert values(3) != values(4)


def test_pooled_intervals(make_net, randn):
    net, x = make_net((3, 6, 1), "tanh", seed=1, scale=2.0), randn(4, 3)
    space = FaultSpace(net, x, NeuronCrash(0.01))
    analysis = analysed(space)
    truth = enumerate_space(space).tail(0.7)[:, 0].mean()
    assert 1e-5 < truth < 0.1
    inside = []
    for seed in range(20):
        found = importance_sampling(space, analysis, epsilon=0.7, output=0, seed=seed, samples=1024)
        tails = {e.input: e for e in found if e.quantity == "tail"}
        pooled = tails["all"]
        assert pooled.value == pytest.approx(np.mean([tails[b].value for b in range(4)]))
        assert 0 <= pooled.low <= pooled.value <= pooled.high <= 1
        assert pooled.kind == "statistical"
        inside.append(pooled.low <= truth <= pooled.high)
    assert np.mean(inside) >= 0.85


def test_few_effective_samples_warn(make_net, randn):
    net = make_net((3, 6, 5, 2), "relu", seed=1, scale=2.0)
    space = FaultSpace(net, randn(1, 3), NeuronCrash(0.001))
    law = enumerate_space(space)
    epsilon = epsilon_for(law, 0, 1e-6)
    with pytest.warns(CrashsimWarning, match="few effective samples"):
        found = importance_sampling(space, analysed(space), epsilon=epsilon, output=0, samples=30)
    assert found[0].value > 0


def test_sums_of_weights_are_those_of_all_at_once():
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=3000) * 10.0 ** rng.uniform(-250, -200, size=3000)
    weights[rng.random(3000) < 0.5] = 0.0
    parts = [weights[:512] * 0, weights[512:1024], weights[1024:2500], weights[2500:]]
    total = functools.reduce(operator.add, map(WeightSums.of, parts))
    kept = np.concatenate(parts)
    found = total.summary(0.05)
    assert found.samples == 3000
    assert found.value == pytest.approx(kept.mean(), rel=1e-12)
    scaled = kept / kept.max()
    assert found.error == pytest.approx(scaled.std() / np.sqrt(3000) / scaled.mean(), rel=1e-9)
    assert found.effective == pytest.approx(scaled.sum() ** 2 / (scaled**2).sum(), rel=1e-12)
    assert found.largest_share == pytest.approx(1 / scaled.sum(), rel=1e-12)
    none = (WeightSums.of(parts[0]) + WeightSums.of(parts[0])).summary(0.05)
    assert (none.value, none.low, none.samples, none.error) == (0, 0, 1024, np.inf)
    assert 0 < none.high < 0.1


@pytest.mark.parametrize(("spread", "least"), [(1.0, 0.92), (2.0, 0.85), (3.0, 0.8)])
def test_few_effective_hits_widen_the_interval(spread, least):
    """Twenty hits of weights over one to many orders of magnitude, of a known mean."""
    rng = np.random.default_rng(0)
    truth = 1e-26 * 0.02 * np.exp(spread**2 / 2)
    held, factors = [], []
    for _ in range(300):
        weights = 1e-26 * np.exp(spread * rng.standard_normal(1000))
        found = WeightSums.of(np.where(rng.random(1000) < 0.02, weights, 0.0)).summary(0.05)
        held.append(found.low <= truth <= found.high)
        factors.append(found.high / found.value)
        assert found.low >= 0.02 * found.value  # below it with a chance of 2% (Markov)
    assert np.mean(held) >= least
    assert (np.median(factors) < 3) == (spread == 1.0)


def test_a_handful_of_heavy_hits_has_an_upper_end():
    """Hits of the faults' own law alone, a tenth of the samples: plain counts with their bound."""
    rng, truth, held = np.random.default_rng(1), 1e-3, []
    for _ in range(300):
        hits = rng.binomial(4096, 0.1 * truth)
        weights = np.r_[np.full(hits, 10.0), np.zeros(4096 - hits)]
        found = WeightSums.of(weights).summary(0.05)
        held.append(found.low <= truth <= found.high)
        assert found.high <= 10 * stats.beta.ppf(0.975, hits + 1, 4096 - hits) * (1 + 1e-9)
    assert np.mean(held) >= 0.94


def test_blocks_of_weighted_samples_are_tasks(make_net, randn, monkeypatch):
    net = make_net((3, 6, 5, 2), "tanh", seed=1, scale=2.0)
    space = FaultSpace(net, randn(1, 3), NeuronCrash(0.01))
    law = enumerate_space(space)
    output = int(law.variance[0].argmax())
    tasks = []

    def watched(task, blocks):
        tasks.append(task)
        return fold(task, blocks)

    monkeypatch.setattr("crashsim.sampling.tilted.importance.fold", watched)
    (found,) = draw(space, epsilon_for(law, output, 1e-4), output, 1, samples=1300, rel_width=1e-9)
    (task,) = tasks
    blocks = {block: task.run(block) for block in (1, 2, 0)}
    assert [blocks[b].n for b in range(3)] == [512, 512, 276]
    assert len({block.total for block in blocks.values()}) == 3  # drawn from streams of their own
    assert found.value == pytest.approx((blocks[0] + blocks[1] + blocks[2]).summary(0.01).value)
    assert found.samples == 1300
