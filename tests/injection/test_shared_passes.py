"""Passes that samples share: the one without faults, and one of many inputs at a time."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, FaultSpace, NeuronCrash, WeightCrash
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points
from crashsim.model.inputs import read_inputs


def network():
    return nn.Sequential(
        nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)
    )


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval().double()


def inputs(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator, dtype=torch.float64)


def assert_plain(space, points):
    wanted = space.faulty_model.outputs(space.examples, points)
    assert np.abs(wanted - space.clean()).max() > 1e-3
    np.testing.assert_allclose(space.outputs(points), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("faults", [NeuronCrash(0.05), NeuronCrash(0.3), WeightCrash(0.01)])
def test_the_pass_without_faults_is_that_of_the_inputs_at_hand(faults):
    sites = "weights" if isinstance(faults, WeightCrash) else "hidden"
    space = FaultSpace(seeded(network), inputs(4), {sites: faults})
    points = sample_points(space.placements, 0, 60)
    other = space.at_examples(read_inputs(inputs(4, seed=2)))
    base = np.full(space.N, 0.1)
    about = Points(2, base, np.array([0, 1]), np.array([0, 1]), np.array([1.0, 1.0]))
    spaces = [space, other, space.at_input(0), space.at_input(1), other.at_input(0), space]
    for each in spaces:
        assert_plain(each, points)
        assert_plain(each, about)
        assert_plain(each, points)


def test_inputs_that_are_written_to_are_read_anew():
    x = inputs(3)
    space = FaultSpace(seeded(network), x, NeuronCrash(0.1))
    points = sample_points(space.placements, 0, 20)
    before = space.outputs(points)
    space.examples.tensors[0].mul_(-1)
    after = space.outputs(points)
    wanted = space.faulty_model.outputs(space.examples, points)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, wanted, rtol=0, atol=1e-12)


def test_blocks_share_the_pass_without_faults():
    space = FaultSpace(seeded(network), inputs(3), NeuronCrash(0.05))
    program = space.strategies.program()
    first, second = (
        program.reference(space.examples, space.strategies.changes_of(points))
        for points in (sample_points(space.placements, seed, 9) for seed in (0, 1))
    )
    assert first.values is second.values


def test_samples_that_nothing_reached_are_left_out_of_later_blocks_too(monkeypatch):
    monkeypatch.setattr("crashsim.injection.sparse.affected_samples._ACCOUNT", -1e12)
    space = FaultSpace(seeded(network), inputs(3), {"3": NeuronCrash(0.02)})
    for seed in range(3):
        assert_plain(space, sample_points(space.placements, seed, 60))


class Counted(nn.Module):
    """Says how many rows each of its passes had."""

    rows: ClassVar[list[int]] = []

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()] * 8
        self.body, self.head = nn.Sequential(*layers), nn.Linear(8, 3)

    def forward(self, x):
        if type(x) is torch.Tensor:
            self.rows.append(len(x))
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("fault", [WeightCrash(0.05), BitFlip(0.01)], ids=repr)
def test_a_sample_of_weights_of_many_inputs_takes_a_single_pass(fault):
    x = inputs(300 * 24).view(300, 1, 12, 12)
    space = FaultSpace(seeded(Counted), x, {"weights": fault})
    points = sample_points(space.placements, 0, 3)
    space.outputs(points)
    Counted.rows.clear()
    space.outputs(points)
    assert Counted.rows == [300] * 3
