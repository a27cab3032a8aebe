"""Samples against faults injected by hand, one sample at a time, in models that are hard to take
apart: they sort or choose among their examples, or keep their weights in another layout."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import AdditiveNoise, FaultSpace, GainNoise, NeuronCrash, WeightCrash
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points
from crashsim.errors import ModelError
from crashsim.injection.sparse import affected_samples


class Images(nn.Module):
    def __init__(self, layout=torch.channels_last):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.head = nn.Linear(4, 2)
        self.to(memory_format=layout)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


class Sorted(nn.Module):
    """Sorts its batch, as recurrent networks of padded sequences do."""

    def __init__(self):
        super().__init__()
        self.linear, self.relu, self.head = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)

    def forward(self, x):
        order = x[:, 0].argsort(stable=True)
        return self.head(self.relu(self.linear(x[order])))[order.argsort()]


class Chooses(nn.Module):
    """Runs those of its examples through a layer that the values before it decide on."""

    def __init__(self):
        super().__init__()
        self.gate, self.relu = nn.Linear(4, 4), nn.ReLU()
        self.expert, self.act = nn.Linear(4, 2), nn.Tanh()
        with torch.no_grad():
            self.gate.bias[0] = 10.0  # without faults, all

    def forward(self, x):
        x = self.relu(self.gate(x))
        chosen = torch.nonzero(x[:, 0] > 1)[:, 0]
        out = x.new_zeros(x.shape[0], 2)
        return out.index_add(0, chosen, self.act(self.expert(x[chosen])))


def assert_by_hand(space, points, wanted):
    """Samples are what was injected by hand, and so are the plain passes."""
    plain = space.faulty_model.outputs(space.examples, points)
    np.testing.assert_allclose(plain, wanted, atol=1e-12)
    np.testing.assert_allclose(space.outputs(points), wanted, atol=1e-12)


def by_hand(model, inputs, space, points):
    """Crashes and noise by multiplication and addition at modules' outputs and weights."""
    outputs = []
    for e in points.dense():
        handles, kept = [], {}
        for p in space.placements:
            own = torch.from_numpy(e[p.start : p.stop]).view(p.site.shape)

            def strike(value, own=own, fault=p.fault):
                if isinstance(fault, AdditiveNoise):
                    return value + own
                return value * (1 + own if isinstance(fault, GainNoise) else 1 - own)

            if p.site.kind == "parameter":
                parameter = model.get_parameter(p.site.module)
                kept[parameter] = parameter.data
                parameter.data = strike(parameter.data)
            else:
                module = model.get_submodule(p.site.module)
                handles.append(module.register_forward_hook(lambda m, i, out, s=strike: s(out)))
        with torch.no_grad():
            outputs.append(model(inputs).numpy())
        for handle in handles:
            handle.remove()
        for parameter, data in kept.items():
            parameter.data = data
    return np.stack(outputs)


@pytest.mark.parametrize("p", [0.001, 0.02, 0.3])
def test_weights_in_another_layout(seeded, randn, p):
    model, x = seeded(Images).double(), randn(2, 3, 6, 6, dtype=torch.float64)
    space = FaultSpace(model, x, {"conv.weight": WeightCrash(p), "relu": NeuronCrash(p)})
    points = sample_points(space.placements, 0, 20)
    wanted = by_hand(model, x, space, points)
    assert np.abs(wanted - space.clean()).max() > 1e-3
    assert_by_hand(space, points, wanted)
    alone = FaultSpace(model, x, WeightCrash(p), "conv.weight")
    one = Points.one_at_a_time(np.zeros(alone.N), np.array([5]), np.ones(1))
    np.testing.assert_allclose(alone.outputs(one), by_hand(model, x, alone, one), atol=1e-12)


@pytest.mark.parametrize("p", [0.02, 0.3])
@pytest.mark.parametrize("examples", [1, 5])
def test_a_model_that_sorts_its_batch(seeded, randn, p, examples):
    model, x = seeded(Sorted).double(), randn(examples, 4, dtype=torch.float64)
    space = FaultSpace(model, x, {"linear": NeuronCrash(p), "relu": AdditiveNoise(0.1)})
    points = sample_points(space.placements, 0, 20)
    wanted = by_hand(model, x, space, points)
    assert_by_hand(space, points, wanted)
    if examples > 1:  # alone, an example has none to change places with
        assert all("the model reorders its batch" in line for line in space.plan())


def test_gradients_of_a_model_that_sorts_its_batch(seeded, randn):
    model, x = seeded(Sorted).double(), randn(5, 4, dtype=torch.float64)
    space = FaultSpace(model, x, AdditiveNoise(0.1), "linear")
    found = np.concatenate([g for _, g in space.gradients(np.zeros(space.N))])
    with torch.no_grad():
        wanted = model.head.weight * (model.linear(x) > 0)[:, None]
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-12)


def test_a_model_that_chooses_among_its_examples(seeded, randn):
    model, x = seeded(Chooses).double(), randn(4, 4, dtype=torch.float64)
    space = FaultSpace(model, x, NeuronCrash(0.3), "relu")
    points = sample_points(space.placements, 0, 40)
    wanted = by_hand(model, x, space, points)
    assert_by_hand(space, points, wanted)
    assert "as many rows as the values say" in space.plan()[0]
    # The expert's own neurons are not there for all examples once faults decide who gets there.
    space = FaultSpace(model, x, {"relu": NeuronCrash(0.3), "act": NeuronCrash(0.3)})
    with pytest.raises(ModelError, match="decides which examples run through 'act'"):
        space.outputs(sample_points(space.placements, 0, 40))


@pytest.mark.parametrize("spared", [-1e12, 1e12])
def test_weights_that_all_fail_a_little_behind_rare_faults(seeded, randn, spared, monkeypatch):
    """A layer's base point counts for the samples that no fault has affected before it."""
    monkeypatch.setattr(affected_samples, "_ACCOUNT", spared)
    model, x = seeded(Images).double(), randn(2, 3, 6, 6, dtype=torch.float64)
    faults = {"conv": GainNoise(0.3), "head.weight": WeightCrash(0.02)}
    space = FaultSpace(model, x, faults)
    columns = np.arange(space.N - 24, space.N)  # eight of them weights
    points = Points.one_at_a_time(space.mean_point, columns, np.ones(len(columns)))
    wanted = by_hand(model, x, space, points)
    assert_by_hand(space, points, wanted)


class Folded(nn.Module):
    def __init__(self):
        super().__init__()
        self.frame, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.relu(self.frame(x.flatten(0, 1)))
        return self.head(h.view(*x.shape[:2], -1).mean(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sites_do_not_depend_on_the_number_type(seeded, randn, dtype):
    model, x = seeded(Folded), 2 + 0.3 * randn(3, 6, 4)
    wide = FaultSpace(model, x, NeuronCrash(0.1))
    narrow = FaultSpace(model, x, NeuronCrash(0.1), dtype=dtype)
    assert [s.name for s in narrow.available_sites] == [s.name for s in wide.available_sites]
    assert narrow.placements == wide.placements
