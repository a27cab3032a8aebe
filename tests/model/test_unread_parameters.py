"""Parameters that the output does not depend on are told by name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import (
    BitFlip,
    CrashsimWarning,
    CrashTraining,
    CrashVariance,
    FaultSpace,
    NeuronCrash,
    WeightCrash,
    score,
)
from crashsim.errors import SiteError


class Copied(nn.Module):
    """Computes with a copy of its weight, or with the weight."""

    def __init__(self, copies):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.copy = self.weight.detach().clone()
        self.copies = copies

    def forward(self, x):
        return F.linear(x, self.copy if self.copies else self.weight)


class Stepped(nn.Module):
    """Without derivatives, of which nothing tells that its weight is read but its output."""

    def __init__(self):
        super().__init__()
        self.weight, self.spare = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(3, 3))

    @torch.no_grad()
    def forward(self, x):
        return torch.sign(F.linear(x, self.weight))


class Routed(nn.Module):
    """Examples of a positive sum run through the second layer, of which there are none."""

    def __init__(self):
        super().__init__()
        self.gate, self.one, self.two = nn.Linear(4, 1, False), nn.Linear(4, 2), nn.Linear(4, 2)
        nn.init.constant_(self.gate.weight, -1.0)

    def forward(self, x):
        return torch.where(self.gate(x) > 0, self.two(x), self.one(x)) if (
            self.gate(x) > 0
        ).any() else self.one(x)  # fmt: skip


def net(first):
    return nn.Sequential(first, nn.ReLU(), nn.Linear(5, 3)).eval()


@pytest.mark.filterwarnings("ignore:.*trust Monte Carlo:crashsim.CrashsimWarning")
def test_faults_that_reach_nothing_are_refused(seeded, randn):
    model, x = seeded(lambda: net(Copied(True))), randn(3, 4)
    for fault in (WeightCrash(0.1), BitFlip(0.01)):
        with pytest.raises(SiteError, match=r"'0.weight' can reach the output"):
            score(model, x, fault, "0.weight", samples=100)
    for attach in (CrashTraining, CrashVariance):
        attached = attach(model, WeightCrash(0.1), "0.weight")
        with pytest.raises(SiteError, match=r"'0.weight' can reach the output"):
            model.train()(x)
        attached.remove()
    model.eval()
    # With its copy changed too it would: the guard that the refusal has to do with the copy.
    model[0].copies = False
    found = score(model, x, WeightCrash(0.1), "0.weight", samples=400)
    assert found.find("monte-carlo", "variance").value > 0.01
    assert not any("reach" in warning for warning in found.warnings)


def test_some_that_reach_nothing_are_warned_of(seeded, randn):
    model, x = seeded(lambda: net(Copied(True))), randn(3, 4)
    for faults in (
        {"weights": WeightCrash(0.1)},
        {"0.weight": WeightCrash(0.1), "1": NeuronCrash(0.1)},
    ):
        with pytest.warns(CrashsimWarning, match=r"no fault in '0\.weight' can reach"):
            found = score(model, x, faults, samples=200)
        assert found.find("monte-carlo", "variance").value > 0
    with pytest.warns(CrashsimWarning, match=r"'0.weight'"):
        space = FaultSpace(model, x, WeightCrash(0.1), "weights")
    assert [p.site.name for p in space.placements] == ["0.copy", "0.weight", "2.weight"]


def test_a_layer_without_derivatives_is_found_to_read(seeded, randn):
    model, x = seeded(Stepped).eval(), randn(3, 4)
    assert FaultSpace(model, x, WeightCrash(0.1), "weight").N == 20
    with pytest.raises(SiteError, match=r"'spare'"):
        FaultSpace(model, x, WeightCrash(0.1), "spare")
    with pytest.warns(CrashsimWarning, match=r"'spare'"):
        FaultSpace(model, x, WeightCrash(0.1), "weights")


def test_what_faults_elsewhere_may_bring_in_is_read(seeded, randn):
    """No example runs through the second layer; with a struck gate some do."""
    model, x = seeded(Routed).eval(), torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    space = FaultSpace(model, x, WeightCrash(0.2), "weights")
    assert "two.weight" in [p.site.name for p in space.placements]
    with pytest.raises(SiteError, match=r"'two.weight'"):
        FaultSpace(model, x, WeightCrash(0.2), "two.weight")


def test_looking_leaves_the_model_as_it_was(seeded, randn):
    model, x = seeded(lambda: net(Copied(False))), randn(3, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FaultSpace(model, x, WeightCrash(0.1), "weights")
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(before[name], tensor)
        assert model.get_parameter(name).grad is None
