"""One sample by name: what it strikes, its outputs, its model and its files."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import (
    AdditiveNoise,
    BitFlip,
    CrashsimError,
    FaultSpace,
    NeuronCrash,
    StuckAt,
    WeightCrash,
)
from crashsim.coordinates.drawing import sample_points, samples_per_block
from crashsim.injection.sample import Sample, Strike
from crashsim.sampling.monte_carlo import monte_carlo


class Loop(nn.Module):
    """A cell and a functional activation, called at every step."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.Linear(7, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), 4)
        for step in range(3):
            h = torch.tanh(self.cell(torch.cat([x[:, step], h], 1)))
        return self.out(h)


def seeded(make):
    """What ``make`` returns, with parameters of a seed of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@pytest.fixture
def net():
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)
        )
    )


@pytest.fixture
def x():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


FAULTS = {
    "neurons": ({"1": NeuronCrash(0.3), "3": StuckAt(0.2, 0.7)}, "hidden"),
    "weights": ({"2.weight": WeightCrash(0.2)}, "hidden"),
    "bits": (BitFlip(0.05), "0.weight"),
    "both": ({"0.weight": WeightCrash(0.1), "3": NeuronCrash(count=2)}, "hidden"),
    "input and noise": ({"input": NeuronCrash(0.3), "1": AdditiveNoise(0.1)}, "hidden"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_sample_is_that_of_monte_carlo(net, x, kind):
    space = FaultSpace(net, x, *FAULTS[kind])
    e = sample_points(space.placements, 5, 40).dense()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few samples
        run = monte_carlo(space, samples=40, seed=5)
    assert np.abs(run.kept).max() > 0.01
    for index in (0, 7, 39):
        sample = space.sample(5, index)
        assert np.allclose(sample.outputs - space.clean(), run.kept[index], atol=1e-6)
        changed = np.zeros(space.N)
        for strike in sample.faults:
            p = next(p for p in space.placements if p.site.name == strike.site)
            shape = p.fault.coordinate_shape(p.shape)
            changed[p.start + np.ravel_multi_index(strike.index, shape)] = strike.value
        assert (changed == e[index]).all()


@pytest.mark.parametrize("kind", FAULTS)
def test_the_faulty_model_gives_the_samples_outputs_for_any_batch(net, x, kind):
    before = {name: p.clone() for name, p in net.state_dict().items()}
    space = FaultSpace(net, x, *FAULTS[kind])
    sample = space.sample(3, 1)
    faulty = sample.model()
    with torch.no_grad():
        assert np.allclose(faulty(x), sample.outputs, atol=1e-6)
        assert np.allclose(faulty(x[2:3]), sample.outputs[2:3], atol=1e-6)
        assert np.allclose(faulty(x), sample.outputs, atol=1e-6)  # the hooks stay
        assert np.allclose(net(x), space.clean(), atol=1e-6)
        for parameter in faulty.parameters():
            parameter.zero_()
    assert np.abs(sample.outputs - space.clean()).max() > 1e-3
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


def test_the_faulty_model_can_be_trained_and_pickled(net, x):
    sample = FaultSpace(net, x, {"1": NeuronCrash(count=2), "2.weight": WeightCrash(0.2)}).sample(
        0, 0
    )
    faulty = sample.model()
    again = pickle.loads(pickle.dumps(faulty))
    leaf = x.clone().requires_grad_()
    faulty(leaf).sum().backward()
    assert leaf.grad.abs().sum() > 0
    dead = [s.index[0] for s in sample.faults if s.site == "1"]
    gradient = faulty.model[0].weight.grad
    assert len(dead) == 2
    assert gradient.abs().sum() > 0
    assert (gradient[dead] == 0).all()
    assert all(p.grad is None for p in net.parameters())
    with torch.no_grad():
        assert np.allclose(again(x), sample.outputs, atol=1e-6)


def test_a_later_block(net, x):
    faults = NeuronCrash(torch.full((8,), 0.3))
    space = FaultSpace(net, x, faults, "1")
    index = samples_per_block(space.placements) + 3
    e = sample_points(space.placements, 2, index + 1).dense()[index]
    assert [s.index[0] for s in space.sample(2, index).faults] == np.flatnonzero(e).tolist()


def test_the_struck_weights_are_told(net, x):
    sample = FaultSpace(net, x, WeightCrash(0.2), "2.weight").sample(0, 0)
    assert len(sample.faults) > 2
    faulty = net[2].weight.detach().clone()
    for strike in sample.faults:
        assert strike.clean == net[2].weight[strike.index].item()
        assert strike.faulty == 0
        faulty[strike.index] = 0
    assert torch.equal(sample.weights["2.weight"], faulty)
    other = copy.deepcopy(net)
    other.load_state_dict(sample.weights, strict=False)
    with torch.no_grad():
        assert np.allclose(other(x), sample.outputs, atol=1e-6)


def test_chosen_faults(net, x):
    space = FaultSpace(net, x, {"1": NeuronCrash(0.1), "2.weight": WeightCrash(0.1)})
    sample = space.at_faults([("1", 2), ("1", (5,)), ("2.weight", (4, 3))])
    hidden = torch.relu(net[0](x))
    hidden[:, [2, 5]] = 0
    weight = net[2].weight.detach().clone()
    weight[4, 3] = 0
    own = net[4](torch.tanh(hidden @ weight.T + net[2].bias)).detach()
    assert np.allclose(sample.outputs, own, atol=1e-6)
    assert np.allclose(sample.model()(x).detach(), own, atol=1e-6)
    assert np.allclose(space.at_faults([]).outputs, space.clean())
    bits = FaultSpace(net, x, BitFlip(0.1, bits=8), "2.weight").at_faults([("2.weight", (0, 1, 7))])
    assert abs(bits.faults[0].faulty - bits.faults[0].clean) > net[2].weight.abs().max()
    noise = FaultSpace(net, x, AdditiveNoise(0.1), "3").at_faults([("3", 0, -0.25)])
    hidden = torch.tanh(net[2](torch.relu(net[0](x))))
    hidden[:, 0] -= 0.25
    assert np.allclose(noise.outputs, net[4](hidden).detach(), atol=1e-6)


def test_groups_and_steps():
    net, x = seeded(Loop), torch.linspace(-1, 1, 18).view(2, 3, 3)
    space = FaultSpace(net, x, NeuronCrash(0.3))
    assert space.N == 4
    sample = space.at_faults([(space.placements[0].site.name, 1)])
    assert [s.index for s in sample.faults] == [(1,)]
    h = torch.zeros(2, 4)
    with torch.no_grad():
        for step in range(3):
            h = torch.tanh(net.cell(torch.cat([x[:, step], h], 1)))
            h[:, 1] = 0
        assert np.allclose(sample.outputs, net.out(h), atol=1e-6)
        assert np.allclose(sample.model()(x), net.out(h), atol=1e-6)
        assert np.allclose(sample.model()(x[:1]), net.out(h)[:1], atol=1e-6)


def test_a_recurrent_layer():
    net, x = seeded(Recurrent), torch.linspace(-1, 1, 30).view(2, 5, 3)
    sample = FaultSpace(net, x, NeuronCrash(0.3)).at_faults([("rnn", 2)])
    h = torch.zeros(2, 4)
    with torch.no_grad():
        for step in range(5):
            h = torch.tanh(
                x[:, step] @ net.rnn.weight_ih_l0.T
                + net.rnn.bias_ih_l0
                + h @ net.rnn.weight_hh_l0.T
                + net.rnn.bias_hh_l0
            )
            h[:, 2] = 0
        assert np.allclose(sample.outputs, net.out(h), atol=1e-6)
        assert np.allclose(sample.model()(x), net.out(h), atol=1e-6)


def test_saved_and_replayed(net, x, tmp_path):
    space = FaultSpace(net, x, {"1": NeuronCrash(0.3), "2.weight": WeightCrash(0.1)})
    sample = space.sample(4, 11)
    tensors, table = sample.save(tmp_path / "worst")
    assert (tensors.name, table.name) == ("worst.safetensors", "worst.json")
    plain = json.loads(table.read_text())
    assert (plain["seed"], plain["index"], len(plain["faults"])) == (4, 11, len(sample.faults))
    read = Sample.load(table)
    assert read.faults == sample.faults
    assert (read.seed, read.index) == (4, 11)
    assert torch.equal(read.weights["2.weight"], sample.weights["2.weight"])
    again = space.at_faults(read.faults)
    assert (again.outputs == sample.outputs).all()
    with pytest.raises(CrashsimError, match="at_faults"):
        read.model()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[2].weight.mul_(1.5)
    with pytest.raises(CrashsimError, match="saved"):
        FaultSpace(other.eval(), x, WeightCrash(0.1), "2.weight").at_faults(
            [s for s in read.faults if s.site == "2.weight"]
        )


@pytest.mark.parametrize(
    "faults",
    [
        *(3, [3], [("1",)], [("nosuch", 0)], [("1", 8)], [("1", -1)], [("1", (0, 0))]),
        *([("1", 0.5)], [("1", 0), ("1", (0,))], [("1", 0, 2.0)], [("3", 0)], [("3", 0, "x")]),
        [Strike("1", (0,), "stuck-at", 1.0)],
    ],
)
def test_wrong_faults_are_told(net, x, faults):
    space = FaultSpace(net, x, {"1": NeuronCrash(0.1), "3": AdditiveNoise(0.1)})
    with pytest.raises(CrashsimError, match="faults"):
        space.at_faults(faults)


@pytest.mark.parametrize("index", [-1, 1.5, None, True, 2**40])
def test_wrong_numbers_are_told(net, x, index):
    with pytest.raises(CrashsimError, match="index"):
        FaultSpace(net, x, NeuronCrash(0.1)).sample(0, index)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"faults": 3}', '{"faults": [{}]}'])
def test_files_that_are_no_samples_are_told(net, x, tmp_path, text):
    sample = FaultSpace(net, x, WeightCrash(0.1), "2.weight").sample(0, 0)
    tensors, table = sample.save(tmp_path / "sample")
    table.write_text(text)
    with pytest.raises(CrashsimError, match="path="):
        Sample.load(table)
    sample.save(tmp_path / "sample")
    tensors.write_bytes(b"\xff" * 20)
    with pytest.raises(CrashsimError, match="path="):
        Sample.load(table)
    with pytest.raises(CrashsimError, match="path="):
        Sample.load(tmp_path / "nothing")


def test_outputs_that_are_not_finite_are_kept(randn):
    """A struck exponent makes a weight infinite: the outputs are those of a plain pass, kept."""
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)))
    x = randn(4, 5) + 0.1
    with torch.no_grad():
        net[0].weight.clamp_(1.01, 1.99)  # bit 30 makes these infinite or no number
    space = FaultSpace(net, x, BitFlip(0.02, format="float32", bits=[30]), "weights")
    lost = 0
    for index in range(20):
        sample = space.sample(0, index)
        with torch.no_grad():
            plain = sample.model()(x).numpy()
        np.testing.assert_allclose(sample.outputs, plain, rtol=1e-5)
        lost += not np.isfinite(sample.outputs).all()
    assert 0 < lost < 20
