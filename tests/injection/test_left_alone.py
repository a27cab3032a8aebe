"""The user's model after an analysis: its tensors, their layout and its counts are its own."""

import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash, WeightCrash, find_sites, score
from crashsim.coordinates.drawing import sample_points
from crashsim.errors import ModelError
from crashsim.training.crash_variance import CrashVariance


class UnderTwoNames(nn.Module):
    """A layer, with a norm inside, that runs twice and bears two names."""

    def __init__(self):
        super().__init__()
        block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.blocks = nn.ModuleList([block, block])
        self.head = nn.Linear(4, 4)
        self.head.weight = block[0].weight  # one more holder of the weight

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def shared(seeded):
    return seeded(UnderTwoNames)


def held(model):
    """Every tensor of the model, by the module that holds it."""
    return {
        (path, name): (id(tensor), type(tensor), tensor.requires_grad, tensor.dtype)
        for path, module in model.named_modules(remove_duplicate=False)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


@pytest.mark.parametrize("faults", [NeuronCrash(0.1), WeightCrash(0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_under_two_names_keeps_its_tensors(shared, randn, faults, dtype):
    before = held(shared)
    space = FaultSpace(shared, randn(3, 4), faults, dtype=dtype)
    space.outputs(sample_points(space.placements, 0, 5))
    assert held(shared) == before


def test_a_score_leaves_a_layer_under_two_names_fit_for_training(shared, randn):
    before = held(shared)
    score(shared, randn(3, 4), NeuronCrash(0.1), samples=50)
    find_sites(shared, randn(3, 4))
    assert held(shared) == before
    shared.train()
    with CrashVariance(shared, NeuronCrash(0.1)) as penalty:
        output = shared(randn(3, 4))
        (output.sum() + penalty(output)).backward()
    assert held(shared) == before
    assert all(p.grad is not None for p in shared.parameters())


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return torch.relu(self.linear(x))


def test_looking_for_sites_counts_as_no_call(seeded, randn):
    model = seeded(Counts)
    assert {site.name for site in find_sites(model, randn(2, 4))} >= {"input", "linear", ":relu"}
    assert model.calls == 0


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # compiling meets it inside
def test_sites_bear_the_names_that_faults_take_of_compiled_models(seeded, randn):
    model = torch.compile(seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU())))
    names = [site.name for site in find_sites(model, randn(2, 3))]
    space = FaultSpace(model, randn(2, 3), NeuronCrash(0.1))
    assert names == [site.name for site in space.available_sites]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_part_in_torchscript_is_refused_by_name(seeded, randn):
    first, second = (seeded(lambda: nn.Linear(3, 3)) for _ in range(2))
    model = nn.Sequential(first, torch.jit.trace(second, randn(2, 3))).eval()
    with pytest.raises(ModelError, match="'1' is of TorchScript"):
        FaultSpace(model, randn(2, 3), NeuronCrash(0.1))
    with pytest.raises(ModelError, match="'1' is of TorchScript"):
        find_sites(model, randn(2, 3))


class Overwrites(nn.Module):
    """Changes in place what a derivative would need."""

    def __init__(self):
        super().__init__()
        self.linear, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.sigmoid(self.linear(x))
        return self.head(h.mul_(0.9))


def test_a_model_that_overwrites_what_derivatives_need_is_sampled(seeded, randn):
    model = seeded(Overwrites)
    result = score(model, randn(3, 4), WeightCrash(0.05), samples=200)
    assert result.find("monte-carlo", "variance").value > 0
    space = FaultSpace(model, randn(3, 4), WeightCrash(0.05))
    assert not space.has_derivatives
