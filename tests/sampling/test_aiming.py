"""What importance sampling aims at, against plain samples and Chernoff's bound."""

import numpy as np
import pytest
import torch
from crashsim_theory import TiltedCoordinates
from scipy.special import logsumexp
from torch import nn

from crashsim import FaultSpace, NeuronCrash, WeightCrash, monte_carlo
from crashsim.analytic import first_order
from crashsim.analytic.first_order import Analysis
from crashsim.sampling.tilted.aiming import proposal
from crashsim.sampling.tilted.events import tail_events
from crashsim.sampling.tilted.importance import importance_sampling


class Attention(nn.Module):
    """Two heads over other keys and values: some two to five of its 248 weights decide."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(5, 8)
        self.m = nn.MultiheadAttention(8, 2, kdim=4, vdim=3, batch_first=True)
        self.h = nn.Linear(8, 3)

    def forward(self, a, b, c):
        y, _ = self.m(self.q(a), b, c)
        return self.h(torch.tanh(y).mean(1))


def attention():
    net = Attention().eval()
    inputs = [torch.randn(3, *shape)[:1] for shape in ((4, 5), (6, 4), (6, 3))]
    return net, tuple(inputs), 0.01


def pooled():
    """A maximum passes on what a slope at one point does not see."""
    layers = (
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
    )
    net = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)).eval()
    return net, torch.randn(1, 1, 8, 8), 1e-3


@pytest.mark.filterwarnings("ignore:importance-sampling")
@pytest.mark.parametrize(
    ("make", "seed", "epsilon", "rare"),
    [(attention, 310, 0.05, 2e-3), (pooled, 3, 0.0508, 2e-4)],
)
def test_ways_to_fail_of_few_faults_are_found(make, seed, epsilon, rare):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, inputs, p = make()
    space = FaultSpace(net, inputs, WeightCrash(p), "weights")
    truth = monte_carlo(space, samples=200_000, epsilon=epsilon, seed=1).estimates.find(
        "monte-carlo", "tail", 0, 0
    )
    assert rare / 3 < truth.value < 3 * rare
    analysis = Analysis()
    first_order.mean_point_taylor(first_order.double_precision(space), analysis)
    found = [
        importance_sampling(
            space, analysis, epsilon=epsilon, output=0, class_changes=False, seed=seed
        )[0]
        for seed in range(6)
    ]
    held = [f.low <= truth.high and f.high >= truth.low for f in found]
    assert sum(held) >= 5
    assert np.median([f.value for f in found]) == pytest.approx(truth.value, rel=0.35)
    assert np.median([f.high for f in found]) < 3 * truth.value


def test_what_the_surrogate_foresees_has_a_bounded_weight(make_net, randn):
    """On a linear network no sample that hits weighs more than Chernoff's bound over a share."""
    space = FaultSpace(make_net((30, 1)), randn(1, 30), NeuronCrash(0.02), "input")
    analysis = Analysis()
    first_order.mean_point_taylor(first_order.double_precision(space), analysis)
    one = first_order.of_pair(analysis.surrogate, 0, 0)
    epsilon = float(one.quantile(1e-6))
    events = tail_events(one, 0, 1, epsilon)
    law = TiltedCoordinates.of(first_order.coordinates_of(space))
    tilts, shares = proposal(space, law, events)
    assert shares.sum() == pytest.approx(1)
    patterns = np.random.default_rng(0).random((200_000, space.N)) < 0.3
    hits = patterns[patterns @ one.gains + one.shift >= epsilon].astype(float)
    assert len(hits) > 100
    ratios = hits @ tilts.T - law.log_mean_exp(tilts) + np.log(shares)
    heaviest = float(np.exp(-logsumexp(ratios, axis=1)).max())
    bound = float(one.chernoff(epsilon, "upper"))
    assert bound < 1e-4
    assert heaviest < 20 * bound
