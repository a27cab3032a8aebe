"""A neuron that dies is dead in every step: against networks that are written with masks."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash, StuckAt, WeightCrash, enumerate_exact, score
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points
from crashsim.errors import ArgumentError, SiteError
from crashsim.model.recurrence import Stepwise

STEPS = 5


class LIF(nn.Module):
    """A membrane that leaks, fires above 1 and is reset by subtraction."""

    def forward(self, current, v):
        v = 0.9 * v + current
        spikes = (v > 1).to(v.dtype)
        return spikes, v - spikes


class Spiking(nn.Module):
    """A spiking network that can be told which neurons live in which step."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(4, 6), LIF(), nn.Linear(6, 2)

    def forward(self, x, alive=lambda step: 1.0):
        v, total = x.new_zeros(len(x), 6), 0
        for step in range(STEPS):
            spikes, v = self.lif(self.fc1(x), v)
            total = total + self.fc2(spikes * alive(step))
        return total / STEPS


class Cells(nn.Module):
    """A recurrent cell in a loop: what is dead does not feed back either."""

    def __init__(self, kind=nn.RNNCell):
        super().__init__()
        self.cell, self.fc = kind(3, 6), nn.Linear(6, 2)

    def forward(self, x, alive=lambda step: 1.0):
        h = c = x.new_zeros(len(x), 6)
        for step in range(STEPS):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(x[:, step], (h, c))
            else:
                h = self.cell(x[:, step], h)
            h = h * alive(step)
        return self.fc(h)


class Layer(nn.Module):
    """A recurrent layer of torch; with masks, the same steps written out by a cell."""

    def __init__(self, kind=nn.LSTM, batch_first=True):
        super().__init__()
        self.rnn, self.fc = kind(3, 6, batch_first=batch_first), nn.Linear(6, 2)
        self.first = batch_first

    def forward(self, x, alive=None):
        if alive is None:
            out = self.rnn(x if self.first else x.transpose(0, 1))[0]
            return self.fc(out if self.first else out.transpose(0, 1)).sum(1)
        kinds = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
        cell = nn.utils.skip_init(kinds[type(self.rnn)], 3, 6).to(x.dtype)
        cell.load_state_dict({k.removesuffix("_l0"): v for k, v in self.rnn.state_dict().items()})
        h = c = x.new_zeros(len(x), 6)
        total = 0
        for step in range(STEPS):
            if isinstance(cell, nn.LSTMCell):
                h, c = cell(x[:, step], (h, c))
            else:
                h = cell(x[:, step], h)
            h = h * alive(step)
            total = total + self.fc(h)
        return total


NETS = {
    "spiking": (Spiking, (4,), "lif"),
    "RNN cell": (Cells, (STEPS, 3), "cell"),
    "GRU cell": (lambda: Cells(nn.GRUCell), (STEPS, 3), "cell"),
    "LSTM cell": (lambda: Cells(nn.LSTMCell), (STEPS, 3), "cell"),
    "RNN": (lambda: Layer(nn.RNN), (STEPS, 3), "rnn"),
    "GRU": (lambda: Layer(nn.GRU, False), (STEPS, 3), "rnn"),
    "LSTM": (Layer, (STEPS, 3), "rnn"),
    "LSTM, batch second": (lambda: Layer(nn.LSTM, False), (STEPS, 3), "rnn"),
}
nets = pytest.mark.parametrize("case", NETS.values(), ids=NETS)


def make(case, seeded, randn, fault, sites="hidden"):
    build, shape, _ = case
    net, x = seeded(build).double(), randn(3, *shape, dtype=torch.float64)
    return net, x * 2, FaultSpace(net, x * 2, fault, sites)


def by_masks(net, x, alive):
    with torch.no_grad():
        return net(x, alive).numpy()


@nets
def test_a_dead_neuron_is_dead_in_every_step(case, seeded, randn):
    net, x, space = make(case, seeded, randn, NeuronCrash(0.3))
    assert [(p.site.name, p.size, p.shape) for p in space.placements] == [(case[2], 6, (6,))]
    points = sample_points(space.placements, 1, 30)
    found = space.outputs(points)
    dead = torch.from_numpy(points.dense())
    wanted = np.stack([by_masks(net, x, lambda step, e=e: 1 - e) for e in dead])
    assert np.abs(wanted - space.clean()).max() > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-10)
    np.testing.assert_allclose(
        space.faulty_model.outputs(space.examples, points), wanted, atol=1e-10
    )


@nets
def test_a_transient_fault_strikes_each_step_by_itself(case, seeded, randn):
    net, x, space = make(case, seeded, randn, NeuronCrash(0.3, duration="transient"))
    assert space.N == 6 * STEPS
    points = sample_points(space.placements, 1, 30)
    dead = torch.from_numpy(points.dense()).view(-1, STEPS, 6)
    wanted = np.stack([by_masks(net, x, lambda step, e=e: 1 - e[step]) for e in dead])
    assert np.abs(wanted - space.clean()).max() > 0.01
    np.testing.assert_allclose(space.outputs(points), wanted, atol=1e-10)


@nets
def test_a_window_of_steps(case, seeded, randn):
    net, x, space = make(case, seeded, randn, NeuronCrash(0.4, window=(1, 3)))
    assert space.N == 6
    points = sample_points(space.placements, 1, 30)
    dead = torch.from_numpy(points.dense())
    wanted = np.stack(
        [by_masks(net, x, lambda step, e=e: 1 - e if 1 <= step < 3 else 1.0) for e in dead]
    )
    assert np.abs(wanted - space.clean()).max() > 1e-3
    np.testing.assert_allclose(space.outputs(points), wanted, atol=1e-10)
    always = FaultSpace(net, x, NeuronCrash(0.4)).outputs(points)
    assert np.abs(always - wanted).max() > 0.01


@nets
def test_the_exact_law_sums_over_the_neurons(case, seeded, randn):
    net, x, _ = make(case, seeded, randn, NeuronCrash(0.2))
    patterns = [torch.tensor([n >> i & 1 for i in range(6)], dtype=x.dtype) for n in range(64)]
    weights = np.array([0.2 ** e.sum() * 0.8 ** (6 - e.sum()) for e in patterns])
    outputs = np.stack([by_masks(net, x, lambda step, e=e: 1 - e) for e in patterns])
    outputs -= outputs[0]
    mean = np.tensordot(weights, outputs, 1)
    variance = np.tensordot(weights, outputs**2, 1) - mean**2
    exact = enumerate_exact(net, x, NeuronCrash(0.2))
    np.testing.assert_allclose(exact.mean, mean, atol=1e-12)
    np.testing.assert_allclose(exact.variance, variance, atol=1e-12)
    assert variance.max() > 1e-4
    measured = score(net, x, NeuronCrash(0.2), samples=4000, methods=["monte-carlo"])
    found = measured.find("monte-carlo", "variance")
    assert found.low <= variance.sum(1).mean() <= found.high


@pytest.mark.parametrize("case", list(NETS.values())[1:], ids=list(NETS)[1:])
def test_single_faults_are_exact_to_first_order(case, seeded, randn):
    """Halving p quarters what the sum over single faults leaves of the mean."""
    net, x, _ = make(case, seeded, randn, NeuronCrash(0.1))
    left = []
    for p in (0.02, 0.01, 0.005):
        truth = enumerate_exact(net, x, NeuronCrash(p)).mean
        found = score(net, x, NeuronCrash(p), methods=["single"]).estimates
        value = np.array([e.value for e in found if e.quantity == "mean" and e.input != "all"])
        left.append(np.abs(value - truth.reshape(-1)).max())
    slopes = np.log2(np.array(left[:-1]) / np.array(left[1:]))
    assert left[0] > 1e-9
    np.testing.assert_allclose(slopes, 2, atol=0.1)


def test_units_of_both_directions_and_of_the_last_layer(seeded, randn):
    model = seeded(lambda: nn.Sequential(Sequence(), nn.Linear(8, 2))).double()
    x = randn(2, STEPS, 3, dtype=torch.float64)
    space = FaultSpace(model, x, StuckAt(0.5, value=0.7), "0.rnn")
    assert (space.N, space.placements[0].shape) == (8, (8,))
    states = []
    for unit in (1, 6):
        e = np.zeros(8)
        e[unit] = 1.0
        states.append(space.outputs(Points.at(e))[0])
        with torch.no_grad():
            forced = layer_by_hand(model[0].rnn, x, unit, 0.7)
            wanted = model[1](forced).flatten(1).numpy()
        np.testing.assert_allclose(states[-1], wanted, atol=1e-10)
    assert np.abs(states[0] - states[1]).max() > 1e-3


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def layer_by_hand(rnn, x, stuck, value):
    """Two layers of an LSTM in both directions; a unit of the last one is stuck in each step."""
    for layer in range(2):
        ways = []
        for way, suffix in enumerate((f"_l{layer}", f"_l{layer}_reverse")):
            cell = nn.utils.skip_init(nn.LSTMCell, x.shape[-1], 4).double()
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            cell.load_state_dict({name: getattr(rnn, name + suffix) for name in names})
            h = c = x.new_zeros(len(x), 4)
            found = [None] * STEPS
            for step in range(STEPS) if way == 0 else reversed(range(STEPS)):
                h, c = cell(x[:, step], (h, c))
                if layer == 1 and stuck // 4 == way:
                    h = h.clone()
                    h[:, stuck % 4] = value
                found[step] = h
            ways.append(torch.stack(found, 1))
        x = torch.cat(ways, -1)
    return x


def test_whichever_mode_computes_the_steps_the_units_are_struck(seeded, randn):
    _, _, space = make(NETS["LSTM"], seeded, randn, NeuronCrash(0.3))
    points = sample_points(space.placements, 1, 10)
    wanted = space.outputs(points)
    assert np.abs(wanted - space.clean()).max() > 0.01
    with Stepwise():
        np.testing.assert_allclose(space.outputs(points), wanted, atol=1e-12)


class Block(nn.Module):
    """One ReLU behind two layers: two sets of neurons."""

    def __init__(self):
        super().__init__()
        self.a, self.relu, self.b, self.c = (
            nn.Linear(4, 5),
            nn.ReLU(),
            nn.Linear(5, 5),
            nn.Linear(5, 2),
        )

    def forward(self, x):
        h = self.relu(self.a(x))
        return self.c(self.relu(h + self.b(h)))


def test_one_function_behind_two_layers_is_two_sets_of_neurons(seeded, randn):
    net, x = seeded(Block), randn(3, 4)
    space = FaultSpace(net, x, NeuronCrash(0.1), "relu")
    assert [(p.site.name, p.size) for p in space.placements] == [("relu", 5), ("relu#1", 5)]
    one = FaultSpace(net, x, NeuronCrash(0.1), "relu#0")
    assert [(p.site.name, p.size) for p in one.placements] == [("relu", 5)]


def test_durations_that_make_no_sense(seeded, randn):
    net, x = seeded(Spiking), randn(3, 4)
    for fault, told in (
        (NeuronCrash(0.1, duration="forever"), "duration='forever' is not known"),
        (NeuronCrash(0.1, window=(3, 1)), r"window=\(3, 1\): give two whole numbers"),
        (NeuronCrash(0.1, window=(0, 1), duration="transient"), "says when a permanent fault acts"),
    ):
        with pytest.raises(ArgumentError, match=told):
            FaultSpace(net, x, fault)
    with pytest.raises(SiteError, match=r"window=\(7, 9\): 'lif' run in no such steps"):
        FaultSpace(net, x, NeuronCrash(0.1, window=(7, 9)))
    with pytest.raises(ArgumentError, match="weights fail for the whole pass"):
        FaultSpace(net, x, WeightCrash(0.1, window=(0, 1)))


class Gated(nn.Module):
    """A recurrent cell by hand, whose two gates are slices of one product."""

    def __init__(self):
        super().__init__()
        self.x, self.h, self.fc = nn.Linear(3, 12), nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x, alive=(1.0, 1.0)):
        h = x.new_zeros(len(x), 4)
        for step in range(STEPS):
            a, b, c = self.x(x[:, step]).chunk(3, -1)
            d, e, f = self.h(h).chunk(3, -1)
            reset, update = torch.sigmoid(a + d) * alive[0], torch.sigmoid(b + e) * alive[1]
            h = (1 - update) * torch.tanh(c + reset * f) + update * h
        return self.fc(h)


def test_gates_of_one_step_are_other_neurons(seeded, randn):
    net, x = seeded(Gated), 2 * randn(3, STEPS, 3)
    space = FaultSpace(net, x, NeuronCrash(0.1))
    calls = {p.site.name: len(p.sites) for p in space.placements}
    assert calls == {":sigmoid": STEPS, ":sigmoid#1": STEPS, ":tanh": STEPS}
    alive = torch.tensor([1.0, 0, 1, 1]), torch.tensor([0.0, 1, 1, 1])
    with torch.no_grad():
        expected = net(x, alive).numpy()
    struck = space.at_faults([(":sigmoid", (1,)), (":sigmoid#1", (0,))])
    assert np.abs(expected - space.clean()).max() > 0.01
    assert struck.outputs == pytest.approx(expected, abs=1e-5)


class OneModule(nn.Module):
    """Two layers whose neurons are computed by one module, each with a state of its own."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.lif = LIF()

    def forward(self, x, alive=(1.0, 1.0)):
        v, u, total = x.new_zeros(len(x), 6), x.new_zeros(len(x), 6), 0
        for _ in range(STEPS):
            spikes, v = self.lif(self.fc1(x), v)
            spikes, u = self.lif(2 * self.fc2(spikes * alive[0]), u)
            total = total + self.fc3(spikes * alive[1])
        return total


def test_one_spiking_module_with_two_states_is_two_layers(seeded, randn):
    net, x = seeded(OneModule), 2 * randn(3, 4)
    space = FaultSpace(net, x, NeuronCrash(0.1))
    calls = {p.site.name: len(p.sites) for p in space.placements}
    assert calls == {"lif": STEPS, "lif#1": STEPS}
    dead = torch.tensor([0.0, 1, 1, 0, 1, 0])
    for layer, name in enumerate(calls):
        with torch.no_grad():
            expected = net(x, [dead if layer == i else 1.0 for i in range(2)]).numpy()
        struck = space.at_faults([(name, (i,)) for i in (0, 3, 5)])
        assert struck.outputs == pytest.approx(expected, abs=1e-5)
        assert layer or np.abs(expected - space.clean()).max() > 0.01
