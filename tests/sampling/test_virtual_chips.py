"""Two-level estimates over chips, against all 2^9 patterns of faults and a surrogate by hand."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import FaultSpace, NeuronCrash
from crashsim.errors import ArgumentError, NotApplicableError
from crashsim.sampling.chips.law import ChipLaw
from crashsim.sampling.chips.run import chip_metrics
from crashsim.sampling.chips.two_levels import TwoLevelLaw

NEURONS, EXAMPLES = 9, 60
P = 0.15


class Saturated(nn.Module):
    """An activation whose slope is next to nothing: the surrogate sees no change at all."""

    def forward(self, z):
        return (z > 0).to(z.dtype) + 1e-9 * z


def network(activation, steepness):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Linear(6, NEURONS), nn.Tanh(), nn.Linear(NEURONS, 12), activation, nn.Linear(12, 3)
        ).eval()
        x = torch.randn(EXAMPLES, 6)
    with torch.no_grad():
        net[2].weight *= steepness
        net[4].bias -= net(x).mean(0)  # so that no class has them all
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=NEURONS)))
    with torch.no_grad():
        y = net(x).argmax(-1)
        y[::9] = (y[::9] + 1) % 3  # the network is not always right
        outputs = net[2:](torch.tanh(net[0](x)) * (1 - patterns)[:, None])
    right = (outputs.argmax(-1) == y).double().mean(1).numpy()
    dead = patterns.sum(1).double().numpy()
    return net, x, y, P**dead * (1 - P) ** (NEURONS - dead), right, patterns


@pytest.fixture(scope="module")
def smooth():
    return network(nn.Tanh(), 1.0)


@pytest.fixture(scope="module")
def saturated():
    return network(Saturated(), 1.0)


def by_hand(case):
    """(2^9,) accuracies by the outputs at the mean point and their Jacobian there."""
    net, x, y, _, _, patterns = case
    hidden = torch.tanh(net[0](x)).double().detach()
    rest = net[2:].double()

    def outputs(e):
        return rest(hidden * (1 - e))

    mean = torch.full((NEURONS,), P, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(outputs, mean)
    linear = outputs(mean).detach() + torch.einsum("bki,si->sbk", slopes, patterns.double() - P)
    net.float()
    return (linear.argmax(-1) == y).double().mean(1).numpy()


def run(case, virtual, **options):
    net, x, y = case[:3]
    options = {"metrics": ["accuracy"], "one_exact": False, "samples": 200} | options
    return chip_metrics(FaultSpace(net, x, NeuronCrash(P), "1"), (x, y), virtual=virtual, **options)


def test_the_surrogate_is_the_jacobian_at_the_mean_point(smooth):
    net, x, _, weights, _, patterns = smooth
    linear = by_hand(smooth)
    space = FaultSpace(net, x, NeuronCrash(P), "1")
    law = run(smooth, 3000, samples=50, seed=4).found.law(0)
    sites = [space.sample(4, index).faults for index in range(50)]
    struck = [[fault.index for fault in faults] for faults in sites if faults]
    wanted = []
    for numbers in struck:
        pattern = torch.zeros(NEURONS)
        pattern[[int(np.ravel(n)[0]) for n in numbers]] = 1
        wanted.append(linear[int((patterns == pattern).all(1).nonzero())])
    np.testing.assert_allclose(law.paired, wanted, atol=1e-9)
    # Those that it judges alone have its law, given that they are struck.
    given = weights[1:] / weights[1:].sum()
    expected, spread = (
        given @ linear[1:],
        np.sqrt(given @ linear[1:] ** 2 - (given @ linear[1:]) ** 2),
    )
    assert spread > 0.01
    assert abs(law.virtual.mean() - expected) < 4 * spread / np.sqrt(len(law.virtual))
    assert (law.paired != law.sampled).any()


def test_real_chips_are_those_without_virtual_ones(smooth):
    plain, both = run(smooth, None), run(smooth, 500)
    np.testing.assert_array_equal(plain.found.values, both.found.values)
    law = both.found.law(0)
    assert len(law.virtual) != len(law.paired) or (law.virtual != law.paired).any()
    again = run(smooth, 500).found.law(0)
    np.testing.assert_array_equal(law.virtual, again.virtual)


def test_examples_may_be_read_a_few_at_a_time(smooth, monkeypatch):
    whole = run(smooth, 300).found.law(0)
    monkeypatch.setattr("crashsim.sampling.chips.virtual.pieces_of", lambda space: 7)
    monkeypatch.setattr("crashsim.sampling.chips.virtual._PRODUCTS", 1000)
    parts = run(smooth, 300).found.law(0)
    np.testing.assert_allclose(parts.virtual, whole.virtual, atol=1e-12)
    np.testing.assert_allclose(parts.paired, whole.paired, atol=1e-12)


@pytest.mark.parametrize("is_asked", [False, True])
def test_shares_are_narrower_and_true(smooth, is_asked):
    weights, right = smooth[3:5]
    limit = 0.7
    plain, both = (
        run(smooth, n, samples=600, one_exact=is_asked).found.law(0) for n in (None, 20_000)
    )
    true = weights @ (right >= limit)
    assert 0.1 < true < 0.9
    first, second = plain.at_least(limit, 0.05), both.at_least(limit, 0.05)
    assert second.low <= true <= second.high
    assert second.high - second.low < 0.8 * (first.high - first.low)
    assert both.worth() > 5 * len(both.sampled)
    assert both.worth_at(limit) > 2 * len(both.sampled)


def test_a_blind_surrogate_costs_width_not_truth(saturated):
    weights, right = saturated[3:5]
    plain, both = (run(saturated, n, samples=1000).found.law(0) for n in (None, 5000))
    assert len(np.unique(both.virtual)) == 1 < len(np.unique(both.sampled))
    for alpha in (0.05, 0.5):
        assert both.mean(alpha).low <= weights @ right <= both.mean(alpha).high or alpha == 0.5
        assert both.mean(alpha).value == pytest.approx(plain.mean(alpha).value, abs=1e-12)
    first, second = plain.mean(0.05), both.mean(0.05)
    assert 0.9 < (second.high - second.low) / (first.high - first.low) < 2
    assert both.worth() == pytest.approx(len(both.sampled), rel=0.01)


def surrogates(right, rng):
    """Of each pattern, by someone who knows it, guesses, is blind, or says the contrary."""
    noisy = np.clip(right + rng.normal(0, 0.05, len(right)), 0, 1)
    return {
        "right": right,
        "about right": noisy,
        "blind": np.full(len(right), right[0]),
        "shuffled": rng.permutation(right),
        "contrary": 1 - right,
        "lost": np.where(rng.random(len(right)) < 0.3, np.nan, noisy),
    }


def covered(weights, right, said, seeds, real, virtual):
    """Shares of runs whose intervals hold: of the mean, two shares of chips, two percentiles."""
    given = weights[1:] / weights[1:].sum()
    mean, order = weights @ right, np.argsort(right)
    limits = [right[0] - 0.1, right[0] - 0.3]
    true = [mean, *(weights @ (right >= limit) for limit in limits)]
    cumulative = np.cumsum(weights[order])
    levels = (0.05, 0.5)
    true += [right[order][np.searchsorted(cumulative, level - 1e-12)] for level in levels]
    hits, values = np.zeros(5), []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        struck = 1 + rng.choice(len(given), real, p=given)
        others = 1 + rng.choice(len(given), virtual, p=given)
        plain = ChipLaw(right[:1], weights[:1], right[struck], 0.0, 1.0)
        law = TwoLevelLaw(plain, said[struck], said[others])
        found = [law.mean(0.05), *(law.at_least(limit, 0.05) for limit in limits)]
        found += [law.quantile(level, 0.05) for level in levels]
        values.append(float(found[0].value))
        hits += [f.low - 1e-9 <= t <= f.high + 1e-9 for f, t in zip(found, true, strict=True)]
    return hits / len(seeds), np.array(values), mean


KINDS = ["right", "about right", "blind", "shuffled", "contrary", "lost"]


@pytest.mark.parametrize("kind", ["about right", "contrary"])
def test_intervals_hold_whatever_the_surrogate(smooth, kind):
    said = surrogates(smooth[4], np.random.default_rng(0))[kind]
    hits, values, mean = covered(*smooth[3:5], said, range(60), 60, 600)
    assert (hits >= 0.87).all()
    assert abs(values.mean() - mean) < 4 * values.std() / np.sqrt(len(values))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_coverage_of_400_seeds(smooth, kind):
    said = surrogates(smooth[4], np.random.default_rng(0))[kind]
    hits, values, mean = covered(*smooth[3:5], said, range(400), 60, 600)
    print(kind, hits)
    assert (hits >= 0.94).all()
    assert abs(values.mean() - mean) < 4 * values.std() / np.sqrt(len(values)) + 1e-4


@pytest.mark.parametrize("seeds", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_intervals_of_runs_hold(smooth, seeds):
    weights, right = smooth[3:5]
    hits = 0
    for seed in range(seeds):
        found = run(smooth, 500, samples=80, seed=seed).found.mean(0, 0.05)
        hits += found.low <= weights @ right <= found.high
    assert hits / seeds >= (0.94 if seeds == 400 else 0.88)


def test_sampling_stops_at_a_width(smooth):
    weights, right = smooth[3:5]
    found = run(smooth, 20_000, samples=None, rel_width={"accuracy": 0.02})
    mean = found.found.mean(0, 1 - found.confidence)
    assert found.stopped == "relative width"
    assert found.confidence > 0.95
    assert mean.high - mean.low <= 0.04 * mean.value
    assert mean.low <= weights @ right <= mean.high
    assert found.chips < 20_000


def test_wrong_use_is_refused(smooth, monkeypatch):
    net, x, y = smooth[:3]
    with pytest.raises(ArgumentError, match="virtual"):
        run(smooth, 1)
    with pytest.raises(NotApplicableError, match="count"):
        chip_metrics(FaultSpace(net, x, NeuronCrash(count=2), "1"), (x, y), virtual=100)

    monkeypatch.setattr("crashsim.sampling.chips.virtual.MEMORY", 1)
    with pytest.raises(NotApplicableError, match="do not fit"):
        run(smooth, 100)


def test_infinite_values_leave_shares_and_percentiles(smooth):
    right = smooth[4]
    lost = right.copy()
    lost[5] = -np.inf
    rng = np.random.default_rng(1)
    struck, others = rng.integers(1, 20, 300), rng.integers(1, 20, 3000)
    plain = ChipLaw(right[:1], np.array([0.3]), lost[struck], -np.inf, np.inf)
    law = TwoLevelLaw(plain, right[struck], right[others])
    assert law.mean(0.05).value == -np.inf
    share = law.at_least(0.0, 0.05)
    true = 1 - 0.7 / 19
    assert share.low <= true <= share.high < 1


def test_a_score_has_them(smooth):
    net, x, y = smooth[:3]
    score = crashsim.score(
        net, (x, y), NeuronCrash(P), "1", metrics=["accuracy"], samples=300, virtual=5000, seed=2
    )
    found = score.find("monte-carlo", "accuracy")
    run_alone = run(smooth, 5000, samples=300, seed=2, one_exact=None)
    mean = run_alone.found.mean(0, 0.05)
    assert (found.value, found.low, found.high) == (mean.value, mean.low, mean.high)
    assert found.worth == pytest.approx(
        run_alone.found.law(0).worth() / run_alone.found.law(0).plain.rest
    )
    assert found.worth > 900
    assert crashsim.Score.from_dict(score.to_dict()).find("monte-carlo", "accuracy") == found
    with pytest.raises(ArgumentError, match="targets"):
        crashsim.score(net, x, NeuronCrash(P), "1", virtual=5000)
    with pytest.raises(ArgumentError, match="count"):
        crashsim.score(net, (x, y), NeuronCrash(count=2), "1", virtual=5000)
