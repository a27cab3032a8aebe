"""Single faults of a sample of coordinates against all of them."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, FaultSpace, NeuronCrash
from crashsim.analytic.first_order import Analysis, double_precision, mean_point_single, single
from crashsim.analytic.gains import MEMORY, Gains
from crashsim.analytic.sampled_singles import sampled_singles
from crashsim.analytic.shares import SharesByValue
from crashsim.analytic.single_sample import choose
from crashsim.errors import NotApplicableError


class Steps(nn.Module):
    """Outputs that jump: no derivatives."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.no_grad():
            return self.net(x).clone()


@pytest.fixture
def space(make_net, randn):
    return FaultSpace(make_net((4, 6, 3)), randn(2, 4), BitFlip(0.01, bits=4), "weights")


@pytest.mark.parametrize("method", ["single", "mean-point-single"])
@pytest.mark.parametrize("has_derivatives", [True, False])
def test_intervals_cover_the_sums_over_all_coordinates(method, has_derivatives, make_net, randn):
    net = make_net((4, 6, 3), scale=2.0)
    if not has_derivatives:
        net = Steps(net).eval()
    space = FaultSpace(net, randn(2, 4), BitFlip(0.01, bits=4), "weights")
    assert space.has_derivatives == has_derivatives
    analysis = Analysis()
    {"single": single, "mean-point-single": mean_point_single}[method](
        double_precision(space), analysis
    )
    wanted = {(e.quantity, e.input, e.output): e.value for e in analysis.estimates}
    inside, widths, seeds = [], [], 25
    for seed in range(seeds):
        found = sampled_singles(space, method, count=64, seed=seed)
        assert {(e.quantity, e.input, e.output) for e in found} == set(wanted)
        assert all(e.kind == "statistical" for e in found)
        for e in found:
            value = wanted[e.quantity, e.input, e.output]
            inside.append(e.low - 1e-7 <= value <= e.high + 1e-7)
            if e.quantity == "variance":
                widths.append((e.high - e.low) / value)
    assert np.mean(inside) > 0.9
    assert np.median(widths) < (0.7 if has_derivatives else 2.0)


def test_chances_are_those_of_the_choice(space):
    shares = SharesByValue.of(Gains.of(space, "zero", MEMORY))
    for known in (shares, None):
        counts, chances = np.zeros(space.N), np.full(space.N, np.nan)
        for seed in range(400):
            chosen = choose(space, known, 50, seed)
            np.add.at(counts, chosen.columns, 1)
            chances[chosen.columns] = chosen.chances
        met = counts > 0
        assert chances[met].sum() == pytest.approx(1, abs=0.02)
        expected = 400 * 50 * chances[met]
        often = expected > 30
        z = (counts[met] - expected)[often] / np.sqrt(expected[often])
        assert np.sqrt((z**2).mean()) < 1.3


def test_faults_that_do_not_just_strike_are_refused(make_net, randn):
    space = FaultSpace(make_net((3, 4, 2)), randn(1, 3), NeuronCrash(count=2))
    with pytest.raises(NotApplicableError, match="strike or do not"):
        sampled_singles(space, "single")
