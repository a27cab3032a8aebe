"""Means over chips of which each meets few examples, against all 2^9 patterns of faults."""

import itertools
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, FaultSpace, NeuronCrash
from crashsim.errors import ArgumentError, NotApplicableError
from crashsim.sampling.chips.drawn import DrawnChips, chips_per_block, struck
from crashsim.sampling.chips.example_strata import Strata, StratifiedMean
from crashsim.sampling.chips.few_examples import mean_of_few
from crashsim.sampling.chips.run import chip_metrics

NEURONS, EXAMPLES = 9, 200
RATES = (0.02, 0.15)


class Saturated(nn.Module):
    """An activation whose slope is next to nothing: the surrogate sees no change at all."""

    def forward(self, z):
        return (z > 0).to(z.dtype) + 1e-9 * z


def make_case(activation):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Linear(6, NEURONS), nn.Tanh(), nn.Linear(NEURONS, 12), activation, nn.Linear(12, 3)
        ).eval()
        x = torch.randn(EXAMPLES, 6)
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=NEURONS)))
    with torch.no_grad():
        net[4].bias -= net(x).mean(0)
        y = net(x).argmax(-1)
        y[::9] = (y[::9] + 1) % 3
        outputs = net[2:](torch.tanh(net[0](x)) * (1 - patterns)[:, None])
    return net, x, y, patterns.sum(1).numpy(), (outputs.argmax(-1) == y).numpy()


@pytest.fixture(scope="module")
def smooth():
    return make_case(nn.Tanh())


@pytest.fixture(scope="module")
def blind():
    return make_case(Saturated())


def mean_at(case, p):
    return p ** case[3] * (1 - p) ** (NEURONS - case[3]) @ case[4].mean(1)


def found_at(case, p, **options):
    net, x, y = case[:3]
    given = {"metric": "accuracy", "samples": 100, "virtual": 1000} | options
    return mean_of_few(FaultSpace(net, x, NeuronCrash(p), "1"), (x, y), **given)


def covered(case, p, seeds, **options):
    """Share of seeds whose interval holds, and by how many standard errors values are biased."""
    true, hits, values = mean_at(case, p), 0, []
    for seed in seeds:
        found = found_at(case, p, seed=seed, **options).mean
        hits += found.low <= true <= found.high
        values.append(float(found.value))
    return hits / len(values), (np.mean(values) - true) / (np.std(values) / len(values) ** 0.5)


@pytest.mark.parametrize("name", ["smooth", "blind"])
def test_means_are_unbiased_and_intervals_hold(request, name):
    for p in RATES:
        share, bias = covered(request.getfixturevalue(name), p, range(15))
        assert share >= 0.8
        assert abs(bias) < 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth", "blind"])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_coverage_of_400_seeds(request, name, confidence):
    for p in RATES:
        share, bias = covered(
            request.getfixturevalue(name), p, range(400), samples=60, confidence=confidence
        )
        assert share >= confidence - 0.01
        assert abs(bias) < 4


def test_fewer_passes_leave_an_interval_as_narrow(smooth):
    net, x, y = smooth[:3]
    space = FaultSpace(net, x, NeuronCrash(0.15), "1")
    few = found_at(smooth, 0.15, samples=4000, virtual=40_000)
    whole = chip_metrics(space, (x, y), metrics=["accuracy"], samples=4000, one_exact=False)
    plain = whole.found.mean(0, 0.05)
    assert few.passes < 0.35 * few.whole
    assert few.whole == whole.found.sums.struck * EXAMPLES
    assert few.mean.high - few.mean.low < 0.9 * (plain.high - plain.low)
    assert few.clean == pytest.approx(float(whole.found.clean[0]))


def test_each_chip_meets_the_examples_of_its_group(smooth):
    """What a run found, from the points of its chips and plain passes on the examples they meet."""
    net, x, y = smooth[:3]
    p, seed, chips = 0.15, 3, 50
    space = FaultSpace(net, x, NeuronCrash(p), "1")
    size = chips_per_block(EXAMPLES)
    real = DrawnChips(space, seed, chips, size)
    alone = DrawnChips(space, seed, 400, size, are_virtual=True)

    def patterns(source):
        e = [source.points(b).dense() for b in range(source.blocks)]
        which = [struck(source.points(b)) for b in range(source.blocks)]
        return torch.from_numpy(
            np.concatenate([one[w] for one, w in zip(e, which, strict=True)])
        ).double(), which

    hidden, rest = torch.tanh(net[0](x)).double().detach(), net[2:].double()
    mean = torch.full((NEURONS,), p, dtype=torch.float64)

    def outputs(at):
        return rest(hidden * (1 - at))

    slopes = torch.autograd.functional.jacobian(outputs, mean)

    def said(e):
        linear = outputs(mean).detach() + torch.einsum("bki,si->sbk", slopes, e - mean)
        return (linear.argmax(-1) == y).double().numpy()

    of_alone, _ = patterns(alone)
    e, which = patterns(real)
    with torch.no_grad():
        clean = (rest(hidden).argmax(-1) == y).double().numpy()
        truly = (rest(hidden * (1 - e)[:, None]).argmax(-1) == y).double().numpy()
    pilots = len(patterns(DrawnChips(space, seed, 40, size, are_virtual=True))[0])
    strata = Strata.by_risk((said(of_alone[:pilots]) != clean).mean(0), seed)
    members = np.eye(len(strata.sizes))[strata.label]
    groups = np.concatenate([strata.groups(seed, b, size)[w] for b, w in enumerate(which)])
    met = truly @ members
    judged = np.stack([met[:, 0], met[np.arange(len(met)), groups]], 1)
    levels = StratifiedMean.of(strata, said(of_alone[:pilots]) @ members, (0.0, 1.0))
    wanted = levels.mean(said(of_alone[pilots:]) @ members, said(e) @ members, judged, groups, 0.05)
    none = (1 - p) ** NEURONS
    net.float()
    found = found_at(smooth, p, samples=chips, virtual=400, seed=seed)
    for end in ("value", "low", "high"):
        at = none * clean.mean() + (1 - none) * float(getattr(wanted, end))
        assert float(getattr(found.mean, end)) == pytest.approx(at, abs=1e-9)
    assert len(np.unique(groups)) > 3
    sizes = strata.sizes[0] + strata.sizes[groups]
    assert found.passes == sizes.sum()


def test_the_same_numbers_whatever_runs_the_blocks(smooth, tmp_path):
    plain = found_at(smooth, 0.15, samples=3000, virtual=200)
    with ThreadPoolExecutor(2) as threads:
        assert found_at(smooth, 0.15, samples=3000, virtual=200, executor=threads) == plain
    with ProcessPoolExecutor(2) as processes:
        assert found_at(smooth, 0.15, samples=3000, virtual=200, executor=processes) == plain
    for _ in range(2):
        kept = found_at(smooth, 0.15, samples=3000, virtual=200, store=tmp_path / "kept")
        assert kept == plain
    told = []
    found_at(smooth, 0.15, samples=3000, virtual=200, progress=lambda *at: told.append(at))
    assert told[-1] == (3000, 3000)


def test_examples_may_be_read_a_few_at_a_time(smooth, monkeypatch):
    plain = found_at(smooth, 0.15)
    for module in ("virtual", "few_examples"):
        monkeypatch.setattr(f"crashsim.sampling.chips.{module}.pieces_of", lambda space: 7)
    again = found_at(smooth, 0.15)
    assert float(again.mean.low) == pytest.approx(float(plain.mean.low), abs=1e-9)
    assert again.passes == plain.passes


def test_words_and_other_metrics(smooth):
    net, x, y = smooth[:3]
    space = FaultSpace(net, x, BitFlip(1e-3, format="int8"), "weights")
    for metric in ("error-rate", "class-change"):
        few = mean_of_few(space, (x, y), metric=metric, samples=300, virtual=3000)
        whole = chip_metrics(space, (x, y), metrics=[metric], samples=2000, one_exact=False)
        plain = whole.found.mean(0, 0.05)
        assert few.mean.low <= plain.high
        assert plain.low <= few.mean.high


def test_chips_without_a_fault_are_known(smooth):
    found = found_at(smooth, 1e-9, samples=20, virtual=20)
    assert found.mean.value == pytest.approx(found.clean)
    assert found.mean.high - found.mean.low < 1e-7


@pytest.mark.parametrize("metric", ["cross-entropy", "mean-iou", "perplexity"])
def test_what_is_no_bounded_mean_is_refused(smooth, metric):
    with pytest.raises(ArgumentError, match="whole chips"):
        found_at(smooth, 0.1, metric=metric)


def test_wrong_use_is_refused(smooth):
    net, x, y = smooth[:3]
    with pytest.raises(ArgumentError, match="samples"):
        found_at(smooth, 0.1, samples=1)
    with pytest.raises(ArgumentError, match="confidence"):
        found_at(smooth, 0.1, confidence=2)
    with pytest.raises(NotApplicableError, match="count"):
        mean_of_few(FaultSpace(net, x, NeuronCrash(count=2), "1"), (x, y))
