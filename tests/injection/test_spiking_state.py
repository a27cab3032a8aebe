"""Networks of snntorch: state that is reset, spikes that are fed back, surrogate gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash, score
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError, ModelError, NotApplicableError

snn = pytest.importorskip("snntorch")
pytestmark = pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")


class Net(nn.Module):
    """One hidden layer of 12 spiking neurons that keep their state, 7 steps."""

    def __init__(self, layer):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(8, 12), layer(), nn.Linear(12, 3)

    def forward(self, x):
        return sum(self.fc2(self.lif(self.fc1(x))) for _ in range(7))


LAYERS = {
    "leaky": lambda: snn.Leaky(beta=0.9, init_hidden=True),
    "recurrent": lambda: snn.RLeaky(beta=0.9, linear_features=12, init_hidden=True),
    "synaptic": lambda: snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True),
}


def injected(net, x, keep):
    """The output by a hook of its own that masks the spikes in every step, also those kept."""

    def strike(module, args, output):
        struck = output * keep
        if hasattr(module, "spk"):
            module.spk = struck
        return struck

    net.lif.reset_mem()
    handle = net.lif.register_forward_hook(strike)
    with torch.no_grad():
        output = net(x)
    handle.remove()
    return output


@pytest.mark.parametrize("layer", LAYERS)
def test_dead_neurons_are_dead_in_every_step_and_in_their_own_feedback(layer, seeded, randn):
    net, x = seeded(lambda: Net(LAYERS[layer])), 2 * randn(4, 8).abs()
    space = FaultSpace(net, x, NeuronCrash(0.1))
    assert [p.site.name for p in space.placements] == ["lif"]
    dead = np.random.default_rng(0).random((6, 12)) < 0.3
    rows, columns = np.nonzero(dead)
    found = space.outputs(Points(6, np.zeros(12), rows, columns, np.ones(len(rows))))
    for row, got in zip(dead, found, strict=True):
        wanted = injected(net, x, torch.from_numpy(~row).float())
        assert np.allclose(got, wanted, atol=1e-5)
    assert abs(found - space.clean()).max() > 0.1


def test_state_left_over_is_reset_on_the_twin_alone(seeded, randn):
    net, x = seeded(lambda: Net(LAYERS["leaky"])), 2 * randn(4, 8).abs()
    with torch.no_grad():
        clean = net(x)
        left = net.lif.mem.clone()
    space = FaultSpace(net, x, NeuronCrash(0.1))
    assert np.array_equal(space.clean(), clean.numpy())
    assert torch.equal(net.lif.mem, left)
    assert "reset" in " ".join(space.plan())
    assert "lif" in " ".join(space.plan())


class Own(nn.Module):
    """A membrane of one's own."""

    def __init__(self):
        super().__init__()
        self.v = 0.0

    def forward(self, x):
        self.v = 0.9 * self.v + x
        spikes = (self.v > 1).float()
        self.v = self.v - spikes
        return spikes


@pytest.mark.parametrize("left", [2, 3])
def test_state_of_ones_own_is_reset_as_asked(seeded, randn, left):
    net, x = seeded(lambda: Net(Own)), 2 * randn(4, 8).abs()
    with torch.no_grad():
        clean = net(x)
        net.lif.v = 0.0
        net(x[:left])
    kept = net.lif.v
    with pytest.raises(ModelError, match=r"reset=") as caught:
        FaultSpace(net, x, NeuronCrash(0.1))
    assert "statistics" not in str(caught.value)
    space = FaultSpace(net, x, NeuronCrash(0.1), reset=lambda m: setattr(m.lif, "v", 0.0))
    assert np.array_equal(space.clean(), clean.numpy())
    assert net.lif.v is kept


def test_state_of_a_batch_of_the_same_size_is_told(seeded, randn):
    """The twin of two equal examples starts from two different potentials."""
    net, x = seeded(lambda: Net(Own)), 2 * randn(2, 8).abs()
    with torch.no_grad():
        net(x)
    with pytest.raises(ModelError, match="keeps a state") as caught:
        FaultSpace(net, x, NeuronCrash(0.1))
    assert "statistics" not in str(caught.value)


def test_a_reset_that_fails_or_changes_weights_is_refused(seeded, randn):
    net, x = seeded(lambda: Net(Own)), 2 * randn(2, 8).abs()
    before = net.fc1.weight.clone()

    def zero(model):
        with torch.no_grad():
            model.fc1.weight.zero_()

    with pytest.raises(ArgumentError, match=r"fc1\.weight"):
        FaultSpace(net, x, NeuronCrash(0.1), reset=zero)
    assert torch.equal(net.fc1.weight, before)
    with pytest.raises(ArgumentError, match="reset: raised AttributeError"):
        FaultSpace(net, x, NeuronCrash(0.1), reset=lambda m: m.nothing)
    with pytest.raises(ArgumentError, match="reset='zero'"):
        FaultSpace(net, x, NeuronCrash(0.1), reset="zero")


def test_a_surrogate_gradient_is_no_derivative(seeded, randn):
    x = 2 * randn(2, 8).abs()
    net = seeded(lambda: Net(LAYERS["recurrent"]))
    result = score(net, x, NeuronCrash(0.05), samples=100)
    assert "spikes have no derivative" in result.skipped["taylor"]
    assert result.find("single", "variance").value > 0
    space = FaultSpace(net, x, NeuronCrash(0.05))
    with pytest.raises(NotApplicableError, match="surrogate"):
        next(space.gradients(np.zeros(space.N)))


def test_spikes_that_are_only_weighted_have_a_derivative(seeded, randn):
    net, x = seeded(lambda: Net(LAYERS["leaky"])), 2 * randn(2, 8).abs()
    space = FaultSpace(net, x, NeuronCrash(0.05))
    assert space.has_derivatives
    (where, gradient), *_ = space.gradients(np.zeros(space.N))
    singles = np.stack(
        [
            out - space.clean()
            for _, outs in space.single_changes(np.zeros(12), np.ones(12))
            for out in outs
        ],
        -1,
    )
    assert np.allclose(gradient, singles[where], atol=1e-4)
    assert not FaultSpace(net, x, NeuronCrash(0.05), "fc1").has_derivatives


def test_the_verdict_names_what_is_struck_in_how_many_steps(seeded, randn, tmp_path):
    net, x = seeded(lambda: Net(LAYERS["leaky"])), 2 * randn(2, 8).abs()
    result = score(net, x, NeuronCrash(0.05), methods=["exact"])
    assert "(lif in each of 7 steps)" in result.verdict
    assert result.sites[0]["steps"] == 7
    result.save(tmp_path / "score.json")
    assert type(result).load(tmp_path / "score.json").verdict == result.verdict
