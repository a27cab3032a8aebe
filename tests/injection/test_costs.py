"""Faulty weights are added, stacked or patched, whichever costs least; the numbers are the same."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, FaultSpace, NeuronCrash, StuckAt, WeightCrash
from crashsim.coordinates.drawing import sample_block, sample_points
from crashsim.coordinates.points import Points


class Branches(nn.Module):
    """A buffer that the forward replaces, and a weight under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.again, self.head = self.b, nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls = self.calls + 1
        y = torch.relu(self.a(x))
        y = torch.relu(self.again(self.b(y)))
        return self.head(y.mean((2, 3))) * self.calls


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 3),
    )


def spaces(build, fault, counts, sites="weights"):
    """Of the same weights, for these numbers of inputs."""
    found = []
    for inputs in counts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, x = build().double().eval(), torch.randn(max(counts), 1, 8, 8).double()
        found.append(FaultSpace(model, x[:inputs], fault, sites))
    return found


def plainly(space, points):
    return space.faulty_model.outputs(space.examples, points)


FAULTS = [
    WeightCrash(0.01),
    WeightCrash(0.2),
    BitFlip(0.003),
    BitFlip(0.003, format="float32", bits="mantissa"),
    BitFlip(0.01, format="int8", upset="row"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
@pytest.mark.parametrize("build", [convolutional, Branches])
def test_the_same_numbers_for_few_inputs_and_many(build, fault):
    few, many = spaces(build, fault, (1, 200))
    points = sample_points(many.placements, 0, 6)
    found = many.outputs(points)
    wanted = plainly(many, points)
    assert np.abs(wanted - many.clean()).max() > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(few.outputs(points), wanted[:, :1], rtol=0, atol=1e-12)


def test_many_inputs_are_patched_and_few_added():
    few, many = spaces(convolutional, WeightCrash(0.01), (1, 500))
    assert all("added to the layer's output" in line for line in few.plan())
    assert all("patched, one sample at a time" in line for line in many.plan())
    assert "fill a pass by themselves" in many.plan()[0]


def test_patched_around_a_base_and_with_several_faults_on_a_weight():
    faults = {"0.weight": WeightCrash(0.1), "0.*": StuckAt(value=0.5, p=0.1), "1": NeuronCrash(0.1)}
    (space,) = spaces(convolutional, faults, (40,), "hidden")
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(0, 4, 60))
    pairs = np.unique(np.stack([rows, rng.integers(0, space.N, 60)]), axis=1)
    points = Points(4, rng.uniform(0, 0.3, space.N), *pairs, rng.normal(size=pairs.shape[1]))
    wanted = plainly(space, points)
    np.testing.assert_allclose(space.outputs(points), wanted, rtol=0, atol=1e-10)
    # Parts of the samples are those of all.
    np.testing.assert_allclose(space.outputs(points.part(1, 3)), wanted[1:3], rtol=0, atol=1e-10)


def test_what_a_pass_replaces_is_there_again_in_the_next():
    (space,) = spaces(Branches, WeightCrash(0.2), (80,))
    points = sample_points(space.placements, 0, 8)
    space.outputs(points)
    np.testing.assert_allclose(space.outputs(points), plainly(space, points), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fault", [WeightCrash(0.2), NeuronCrash(0.2)], ids=["weights", "neurons"])
def test_large_models_struck_all_over_run_whole(fault, monkeypatch, make_net, randn):
    """Samples of many faults, not those of one; and not where most lies before the first fault."""
    monkeypatch.setattr("crashsim.injection.strategies._LARGE", 0)
    net, x = make_net((6, 20, 20, 20, 3)), randn(3, 6)
    whole = FaultSpace(net, x, fault, "weights" if fault.name == "weight-crash" else "hidden")
    assert all("through the whole model" in line for line in whole.plan()[: len(whole.placements)])
    last = whole.placements[-1].site.name
    late = FaultSpace(net, x, fault, last)
    assert not any("through the whole model" in line for line in late.plan())
    for space in (whole, late):
        for points in (sample_block(space.placements, 1, 0).part(0, n) for n in (1, 5)):
            wanted = space.faulty_model.outputs(space.examples, points)
            assert np.abs(wanted - space.clean()).max() > 1e-3
            np.testing.assert_allclose(space.outcomes(points), wanted, rtol=1e-4, atol=1e-5)
