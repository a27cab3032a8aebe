"""How often the intervals over chips hold, on a network whose law over chips is known exactly."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash
from crashsim.sampling.chips.run import chip_metrics

NEURONS, EXAMPLES = 9, 60


@pytest.fixture(scope="module")
def case():
    """A network, its data, and the accuracy under each of the 2^9 patterns of dead neurons."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, NEURONS), nn.ReLU(), nn.Linear(NEURONS, 3)).eval()
        x = torch.randn(EXAMPLES, 6)
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=NEURONS)))
    with torch.no_grad():
        y = net(x).argmax(-1)
        y[::9] = (y[::9] + 1) % 3  # the network is not always right
        hidden = torch.relu(net[0](x))
        outputs = net[2](hidden * (1 - patterns)[:, None])
    right = (outputs.argmax(-1) == y).double().mean(1).numpy()
    return net, x, y, patterns.sum(1).double().numpy(), right


def law(case, p):
    """(2^9,) probabilities of the patterns, and their accuracies."""
    dead, right = case[3], case[4]
    return p**dead * (1 - p) ** (NEURONS - dead), right


def quantile(weights, values, level):
    order = np.argsort(values)
    at = np.searchsorted(np.cumsum(weights[order]), level - 1e-12)
    return values[order][at]


def covered(case, p, seeds, chips, rel_width=None):
    """Shares of runs whose intervals hold: of the mean, of the accepted share, of a quantile."""
    net, x, y = case[:3]
    space = FaultSpace(net, x, NeuronCrash(p), "1")
    weights, right = law(case, p)
    mean, limit = weights @ right, case[4].max() - 0.15
    accepted, low = weights @ (right >= limit), quantile(weights, right, 0.05)
    hits = np.zeros(3)
    for seed in seeds:
        run = chip_metrics(
            space, (x, y), metrics=["accuracy"], samples=chips, seed=seed, rel_width=rel_width
        )
        found, alpha = run.found.law(0), 1 - run.confidence
        intervals = found.mean(alpha), found.at_least(limit, alpha), found.quantile(0.05, alpha)
        for i, (interval, true) in enumerate(zip(intervals, (mean, accepted, low), strict=True)):
            hits[i] += interval.low - 1e-9 <= true <= interval.high + 1e-9
            assert interval.high > interval.low or i == 2  # a number of few values may be certain
    return hits / len(seeds)


RATES = {"hardly any": 2e-5, "few": 0.004, "many": 0.15}


@pytest.mark.parametrize("rate", RATES)
def test_intervals_over_chips_hold(case, rate):
    assert (covered(case, RATES[rate], range(40), 150) >= 0.85).all()  # 95% less 4 deviations


def test_intervals_hold_where_sampling_stops_by_itself(case):
    found = covered(case, 0.15, range(25), 20_000, {"accuracy": 0.01})
    assert (found >= 0.84).all()


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES)
def test_coverage_of_400_seeds(case, rate):
    found = covered(case, RATES[rate], range(400), 150)
    print(rate, found)
    assert (found >= 0.94).all()
    if rate == "many":
        assert found[0] <= 0.995  # nor much too wide


@pytest.mark.slow
def test_coverage_of_400_seeds_that_stop_by_themselves(case):
    found = covered(case, 0.15, range(400), 20_000, {"accuracy": 0.01})
    print(found)
    assert (found >= 0.94).all()
