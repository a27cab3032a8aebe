"""While a model trains, faults strike weights that are parameters, and no tensors behind them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from crashsim import CrashTraining, CrashVariance, GainNoise, NeuronCrash, WeightCrash
from crashsim.errors import SiteError


class Rounded(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight + (4 * self.weight).round() / 4 - self.weight.detach())


def net(way):
    model = nn.Sequential(
        Rounded(4, 5) if way == "forward" else nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)
    )
    if way == "weight_norm":
        parametrizations.weight_norm(model[0])
    if way == "pruned":
        prune.random_unstructured(model[0], "weight", 0.3)
    return model


NAMES = {
    "weight_norm": ["0.weight", "0.parametrizations.weight.original1"],
    "pruned": ["0.weight", "0.weight_orig"],
    "forward": ["0.weight"],
}


@pytest.mark.parametrize("way", NAMES)
@pytest.mark.parametrize("kind", [CrashVariance, CrashTraining])
def test_faults_of_such_weights_are_refused(way, kind):
    for sites in ("weights", "0.*", *NAMES[way]):
        model = net(way).train()
        with (
            kind(model, WeightCrash(0.1), sites),
            pytest.raises(SiteError, match=r"computes the weight '0\.weight'"),
        ):
            model(torch.randn(3, 4))
    model = net(way).train()
    with (
        kind(model, GainNoise(0.1), "0.weight"),
        pytest.raises(SiteError, match=r"computes the weight '0\.weight'"),
    ):
        model(torch.randn(3, 4))


@pytest.mark.parametrize("way", NAMES)
def test_other_weights_and_neurons_train_as_ever(way):
    for faults in ({"2.weight": WeightCrash(0.1)}, {"hidden": NeuronCrash(0.1)}):
        model = net(way).train()
        with CrashVariance(model, faults) as penalty:
            output = model(torch.randn(3, 4))
            penalty(output).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert sum(float(g.abs().sum()) for g in gradients) > 0
