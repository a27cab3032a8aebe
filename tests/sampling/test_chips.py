"""Metrics over chips, against brute force over patterns and single samples."""

import itertools
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from crashsim import FaultSpace, GainNoise, NeuronCrash, StuckAt, WeightCrash
from crashsim.errors import ArgumentError, Interrupted, ModelError
from crashsim.sampling.chips.drawn import probability_of_none
from crashsim.sampling.chips.law import ChipLaw
from crashsim.sampling.chips.run import chip_metrics


@pytest.fixture
def case():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
        x = torch.randn(70, 5)
    with torch.no_grad():
        y = net(x).argmax(-1)
    y[::7] = (y[::7] + 1) % 4
    return net, x, y


def patterns_of(net, x):
    """Outputs (2^8, B, 4) under every pattern of dead neurons."""
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    with torch.no_grad():
        return patterns, net[2](torch.relu(net[0](x)) * (1 - patterns)[:, None])


def test_each_chip_is_the_sample_of_its_number(case):
    net, x, y = case
    space = FaultSpace(net, x, NeuronCrash(0.1), "1")
    run = chip_metrics(space, (x, y), samples=40, seed=3, one_exact=False)
    wanted, struck = [], 0
    for index in range(40):
        sample = space.sample(3, index)
        if sample.faults:
            struck += 1
            wanted.append(float((sample.outputs.argmax(-1) == y.numpy()).mean()))
    assert run.found.sums.struck == struck < 40
    np.testing.assert_allclose(run.found.values[:, 0], wanted)
    assert len(set(wanted)) > 3


def test_mean_quantiles_and_shares_agree_with_all_patterns(case):
    net, x, y = case
    p = 0.1
    patterns, outputs = patterns_of(net, x)
    right = (outputs.argmax(-1) == y).double().mean(1).numpy()
    dead = patterns.sum(1).double().numpy()
    weights = p**dead * (1 - p) ** (8 - dead)
    assert weights.sum() == pytest.approx(1)
    found = chip_metrics(FaultSpace(net, x, NeuronCrash(p), "1"), (x, y), samples=4000).found
    law = found.law(0)
    assert found.none == pytest.approx(0.9**8)
    assert found.clean[0] == right[0]
    mean = law.mean(0.01)
    assert mean.low < weights @ right < mean.high < mean.low + 0.02
    share = law.at_least(0.7, 0.01)
    assert share.low < weights @ (right >= 0.7) < share.high < share.low + 0.05
    order = np.argsort(right)
    for level in (0.05, 0.5):
        true = right[order][np.searchsorted(np.cumsum(weights[order]), level)]
        quantile = law.quantile(level, 0.01)
        assert quantile.low <= true <= quantile.high


@pytest.mark.parametrize("p", [1e-4, 0.03])
def test_single_faults_are_known_exactly(case, p):
    net, x, y = case
    patterns, outputs = patterns_of(net, x)
    right = (outputs.argmax(-1) == y).double()
    dead = patterns.sum(1).double().numpy()
    weights = p**dead * (1 - p) ** (8 - dead)
    space = FaultSpace(net, x, NeuronCrash(p), "1")
    run, plain = (
        chip_metrics(space, (x, y), samples=300, one_exact=exact) for exact in (None, False)
    )
    one = right.mean(1).numpy()[dead == 1]
    np.testing.assert_allclose(np.sort(run.found.known[1:, 0]), np.sort(one))
    assert run.found.chances.sum() == pytest.approx(weights[dead == 1].sum())
    mean, wide = (each.found.mean(0, 0.01) for each in (run, plain))
    assert mean.low <= weights @ right.mean(1).numpy() <= mean.high
    assert 0 < mean.high - mean.low < (wide.high - wide.low) / 3
    assert (run.chips, run.found.sums.struck) == (300, 292)  # all of them with two faults or more
    assert run.found.of_population(0, 0.05) is not None
    of_examples, _ = run.found.of_examples(0)
    rest = weights[dead > 1].sum()
    wanted = (weights[:, None] * right.numpy()).sum(0)
    np.testing.assert_allclose(of_examples, wanted, atol=4 * rest / np.sqrt(290))
    true = weights[right.mean(1).numpy() >= 0.8].sum()
    share = run.found.law(0).at_least(0.8, 0.01)
    assert share.low <= true <= share.high


def test_examples_have_their_own_means(case):
    net, x, y = case
    p = 0.1
    patterns, outputs = patterns_of(net, x)
    dead = patterns.sum(1).double()
    weights = (p**dead * (1 - p) ** (8 - dead)).double()
    wanted = (weights[:, None] * (outputs.argmax(-1) == y)).sum(0).numpy()
    run = chip_metrics(FaultSpace(net, x, NeuronCrash(p), "1"), (x, y), samples=4000)
    mean, clean = run.found.of_examples(0)
    np.testing.assert_allclose(mean, wanted, atol=0.04)
    assert np.abs(mean - clean).max() > 0.1
    total, change = run.found.of_population(0, 0.05)
    given = run.found.mean(0, 0.05)
    assert total.low < given.low < given.high < total.high
    assert change.low < total.value - run.found.clean[0] < change.high


@pytest.mark.parametrize("sites", ["1", "weights", "*"])
def test_the_same_numbers_however_it_is_run(case, sites):
    net, x, y = case
    fault = {"1": NeuronCrash(0.1), "weights": WeightCrash(0.05), "*": NeuronCrash(0.02)}[sites]
    space = FaultSpace(net, x[:5], fault, "1" if sites == "*" else sites)
    names = ["accuracy", "cross-entropy"]

    def values(data, executor=None):
        run = chip_metrics(space, data, metrics=names, samples=150, executor=executor)
        return run.found.values

    plain = values((x, y))
    with ThreadPoolExecutor(3) as threads, ProcessPoolExecutor(2) as processes:
        for executor in (threads, processes):
            np.testing.assert_array_equal(values((x, y), executor), plain)
    data = TensorDataset(x, y)
    before = torch.get_rng_state()
    for given in (data, DataLoader(data, batch_size=7), DataLoader(data, 16, shuffle=True)):
        np.testing.assert_array_equal(values(given), plain)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(np.unique(plain[:, 0])) > 3


def test_more_chips_begin_with_the_same(case):
    net, x, y = case
    space = FaultSpace(net, x, NeuronCrash(0.1), "1")
    few, many = (chip_metrics(space, (x, y), samples=n).found.values for n in (30, 1500))
    np.testing.assert_array_equal(few, many[: len(few)])


def test_it_stops_when_the_interval_is_narrow_enough(case):
    net, x, y = case
    space = FaultSpace(net, x, NeuronCrash(0.1), "1")
    run = chip_metrics(space, (x, y), rel_width={"accuracy": 0.02, "sdc-1": 0.2})
    assert run.stopped == "relative width"
    assert run.chips < 50_000
    for number, width in ((0, 0.02), (1, 0.2)):
        mean = run.found.mean(number, 1 - run.confidence)
        assert mean.high - mean.low <= 2 * width * mean.value
    assert run.confidence > 0.95
    spent = chip_metrics(space, (x, y), samples=64, rel_width={"accuracy": 0.001})
    assert (spent.stopped, spent.chips) == ("budget", 64)


def test_nothing_happened_is_no_certainty(case):
    net, x, y = case
    space = FaultSpace(net, x, NeuronCrash(1e-9), "1")
    run = chip_metrics(space, (x, y), samples=20, one_exact=False)
    assert run.found.sums.struck == 0
    mean = run.found.mean(0, 0.05)
    assert mean.low < mean.value == run.found.clean[0] < mean.high
    assert mean.high - mean.low == pytest.approx(1 - run.found.none, rel=1e-6)
    lost = run.found.mean(2, 0.05)
    assert lost.low == 0 < lost.high < 1e-8


@pytest.fixture
def overflowing():
    """A network in which a value of 1e38 overflows, and its data."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU())
        net = nn.Sequential(*net, nn.Linear(20, 3)).eval()
        net[2].weight.mul_(20)
        net[4].weight.mul_(20)
        x = torch.randn(30, 6)
        return net, x, net(x).argmax(-1)


def test_outputs_that_are_not_finite_are_outcomes(overflowing):
    net, x, y = overflowing
    space = FaultSpace(net, x, StuckAt(0.01, value=1e38))
    names = ["accuracy", "due", "sdc-1", "class-change", "cross-entropy", "mean-output"]

    def mean_output(outputs, targets):
        return outputs.mean(-1)

    mean_output.__name__ = "mean-output"
    metrics = [*names[:-1], mean_output]
    run = chip_metrics(space, (x, y), metrics=metrics, samples=300, one_exact=False)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a brute-force injector
        first = torch.relu(net[0](x)).expand(4000, 30, 20)
        first = torch.where(torch.rand(4000, 1, 20, generator=rng) < 0.01, 1e38, first)
        second = torch.relu(net[2](first))
        second = torch.where(torch.rand(4000, 1, 20, generator=rng) < 0.01, 1e38, second)
        outputs = net[4](second)
    bad = (~torch.isfinite(outputs)).any(-1)
    wrong = bad | (outputs.argmax(-1) != y)
    for number, own in ((0, 1 - wrong.double().mean()), (1, bad.double().mean())):
        found = run.found.mean(number, 0.01)
        assert found.low - 0.02 < float(own) < found.high + 0.02
        assert found.high - found.low < 0.2
    right, lost, silent, changed = run.found.values[:, :4].T
    np.testing.assert_allclose(right + lost + silent, 1)
    np.testing.assert_allclose(lost + silent, changed)
    assert lost.max() == 1
    assert silent.max() > 0
    loss = run.found.mean(4, 0.05)
    assert np.isinf(loss.value)
    assert np.isinf(loss.high)
    assert np.isfinite(run.found.law(4).quantile(0.05, 0.05).value)
    assert not np.isfinite(run.found.mean(5, 0.05).value)


@pytest.mark.parametrize(
    ("fault", "sites", "wanted"),
    [
        (NeuronCrash(0.1), "1", 0.9**8),
        (WeightCrash(0.02), "weights", 0.98 ** (5 * 8 + 8 * 4)),
        (WeightCrash(count=2), "weights", 0.0),
        (GainNoise(0.1), "1", 0.0),
    ],
)
def test_probability_of_no_fault(case, fault, sites, wanted):
    net, x, _ = case
    placements = FaultSpace(net, x, fault, sites).placements
    assert probability_of_none(placements) == pytest.approx(wanted)


def test_a_law_that_is_known_in_part():
    values = np.r_[np.full(90, 0.9), np.full(10, 0.2)]
    law = ChipLaw(np.array([1.0]), np.array([0.5]), values, 0.0, 1.0)
    assert law.mean(0.05).value == pytest.approx(0.5 + 0.5 * 0.83)
    assert law.quantile(0.7, 0.05).value == 1.0
    low = law.quantile(0.03, 0.05)
    assert (low.value, low.low, low.high) == (0.2, 0.2, 0.9)
    assert law.at_least(0.5, 0.05).value == pytest.approx(0.95)
    assert law.at_most(0.5, 0.05).value == pytest.approx(0.05)
    sure = ChipLaw(np.array([0.7]), np.array([1.0]), np.empty(0), 0.0, 1.0)
    assert sure.mean(0.05).low == sure.mean(0.05).high == 0.7
    assert sure.quantile(0.5, 0.05).high == 0.7


class Restless(torch.utils.data.Dataset):
    """Other examples each time."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.from_numpy(self.rng.normal(size=5)).float(), index % 4


def test_wrong_use(case):
    net, x, y = case
    space = FaultSpace(net, x, NeuronCrash(0.1), "1")
    for told, call in {
        "choose among accuracy": lambda: chip_metrics(space, (x, y), rel_width={"loss": 0.1}),
        "0.02": lambda: chip_metrics(space, (x, y), rel_width={"accuracy": 2}),
        "the model has 4": lambda: chip_metrics(space, (x, y + 1)),
        "give targets=": lambda: chip_metrics(space, x, metrics=["accuracy"]),
        "give one": lambda: chip_metrics(space, x),
        "is not known": lambda: chip_metrics(space, (x, y), metrics=["exactness"]),
        "a row for each": lambda: chip_metrics(space, x, targets=y[:3]),
        "too": lambda: chip_metrics(space, (x, y), targets=y),
        "samples": lambda: chip_metrics(space, (x, y), samples=0),
        "two or more": lambda: chip_metrics(
            FaultSpace(net, x, GainNoise(0.1), "1"), (x, y), one_exact=True
        ),
        "one in two": lambda: chip_metrics(
            FaultSpace(net, x, NeuronCrash(0.9), "1"), (x, y), one_exact=True
        ),
        "confidence": lambda: chip_metrics(space, (x, y), confidence=1),
        "no examples": lambda: chip_metrics(space, TensorDataset(x[:0], y[:0])),
    }.items():
        with pytest.raises(ArgumentError, match=told):
            call()
    with pytest.raises(ModelError, match="other examples when it was read again"):
        chip_metrics(space, Restless(), samples=2000)


def test_an_interrupt_keeps_the_chips_that_are_finished(case):
    net, x, y = case
    space = FaultSpace(net, x, NeuronCrash(0.1), "1")

    def stop(done, most):
        if done >= 1024:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as raised:
        chip_metrics(space, (x, y), samples=5000, progress=stop, one_exact=False)
    found = raised.value.partial
    assert found.stopped == "interrupted"
    assert found.chips == 1024
    whole = chip_metrics(space, (x, y), samples=1024, one_exact=False)
    np.testing.assert_array_equal(found.found.values, whole.found.values)
