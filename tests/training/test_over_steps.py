"""Training under faults of neurons that act in many steps: a dead one is dead in all of them.

The reference shares nothing with crashsim: the same network written out with a vector ``alive`` in
it, one factor for each neuron and example, and torch's derivatives by that vector.
"""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from crashsim import CrashTraining, CrashVariance, GainNoise, NeuronCrash
from crashsim.errors import ModelError

P = 0.1


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (v,) = ctx.saved_tensors
        return gradient / (1 + 4 * v.abs()) ** 2


class Lif(nn.Module):
    """A leaky integrate-and-fire layer that is called in every step: spikes and membrane."""

    def forward(self, current, v):
        v = 0.8 * v + current
        spikes = Spike.apply(v - 1)
        return spikes, v - spikes


class LoopOfLif(nn.Module):
    """A spiking network whose time loop is outside of its layers."""

    def __init__(self, checkpointing=None):
        super().__init__()
        self.first, self.lif, self.head = nn.Linear(4, 6), Lif(), nn.Linear(6, 3)
        self.checkpointing = checkpointing

    def step(self, x, v, alive):
        spikes, v = self.lif(self.first(x), v)
        return self.head(spikes * alive), v

    def forward(self, x, alive=1.0):
        v, out = x.new_zeros(len(x), 6), x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            if self.checkpointing is None:
                more, v = self.step(x[:, t], v, alive)
            else:
                more, v = checkpoint(self.step, x[:, t], v, alive, **self.checkpointing)
            out = out + more
        return out


class LoopOfCells(nn.Module):
    def __init__(self, kind=nn.RNNCell):
        super().__init__()
        self.cell, self.head = kind(4, 6), nn.Linear(6, 3)

    def forward(self, x, alive=1.0):
        h = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h) * alive
        return self.head(h)


class Lstm(nn.Module):
    """Of two layers, with dropout between them."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True, dropout=dropout)
        self.head = nn.Linear(6, 3)

    def forward(self, x, alive=None):
        if alive is None:
            return self.head(self.lstm(x)[0][:, -1])
        rows = self.lstm.num_layers
        h, c = [x.new_zeros(len(x), 6)] * rows, [x.new_zeros(len(x), 6)] * rows
        for t in range(x.shape[1]):
            of_layer = x[:, t]
            for k in range(rows):
                w = [getattr(self.lstm, f"{n}_l{k}") for n in ("weight_ih", "weight_hh")]
                b = [getattr(self.lstm, f"{n}_l{k}") for n in ("bias_ih", "bias_hh")]
                gates = F.linear(of_layer, w[0], b[0]) + F.linear(h[k], w[1], b[1])
                i, f, g, o = gates.chunk(4, 1)
                c[k] = f.sigmoid() * c[k] + i.sigmoid() * g.tanh()
                h[k] = o.sigmoid() * c[k].tanh()
                if k == rows - 1:
                    h[k] = h[k] * alive
                of_layer = h[k]
        return self.head(h[-1])


class ReluTwice(nn.Module):
    """A ReLU in a loop over the same weights."""

    def __init__(self):
        super().__init__()
        self.layer, self.relu = nn.Linear(4, 4), nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x, alive=1.0):
        h = x[:, 0]
        for _ in range(3):
            h = self.relu(self.layer(h)) * alive
        return self.head(h)


class MultiStep(nn.Module):
    """A spiking layer that is called once, with all steps: (B, T, N) or, time first, (T, B, N)."""

    class Layer(nn.Module):
        def __init__(self, axis):
            super().__init__()
            self.axis = axis

        def forward(self, currents):
            v, all_spikes = 0.0, []
            for current in currents.unbind(self.axis):
                v = 0.8 * v + current
                spikes = Spike.apply(v - 1)
                v = v - spikes
                all_spikes.append(spikes)
            return torch.stack(all_spikes, self.axis), v

    def __init__(self, time_first=False):
        super().__init__()
        self.time_first = time_first
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.lif, self.head = self.Layer(0 if time_first else 1), nn.Linear(6, 3)
        nn.init.normal_(self.second.weight)

    def forward(self, x, alive=1.0):
        x = x.transpose(0, 1) if self.time_first else x
        spikes = self.lif(self.first(x))[0] * alive
        return self.head(torch.sigmoid(self.second(spikes)).sum(0 if self.time_first else 1))


NETS = {
    "lif": LoopOfLif,
    "cell": LoopOfCells,
    "gru cell": partial(LoopOfCells, nn.GRUCell),
    "lstm": Lstm,
    "relu": ReluTwice,
    "multi-step": MultiStep,
    "multi-step, time first": partial(MultiStep, time_first=True),
}


def made(name, **options):
    torch.manual_seed(3)
    return NETS[name](**options).double()


def batch(rows=5, steps=7, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(rows, steps, 4, generator=draws, dtype=torch.double) * 1.5


def number(tensor):
    return float(tensor.detach())


def by_hand(net, x, at=0.0):
    """Mean over examples of sum_k sum_i p (1 - p) (dF_k / d alive_i)^2, with a graph."""
    neurons = net.head.in_features
    total = x.new_zeros(())
    for row in x.unbind():
        alive = torch.full((1, neurons), 1 - at, dtype=x.dtype, requires_grad=True)
        for output in net(row[None], alive)[0].unbind():
            (g,) = torch.autograd.grad(output, alive, create_graph=True)
            total = total + P * (1 - P) * g.square().sum()
    return total / len(x)


def struck_in(net):
    """The sites of its neurons, where ``hidden`` means more."""
    return "lif" if isinstance(net, MultiStep) else "hidden"


def gradients(net, loss):
    net.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def assert_equal(found, wanted):
    assert any(g.abs().max() > 1e-4 for g in wanted.values())
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-12), name


@pytest.mark.parametrize("trains", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("at", ["zero", "mean"])
@pytest.mark.parametrize("name", NETS)
def test_crash_variance_is_the_sum_over_units_written_out(name, at, trains):
    net, x = made(name).train(trains), batch()
    wanted = by_hand(net, x, P if at == "mean" else 0.0)
    assert number(wanted) > 1e-4
    with CrashVariance(net, NeuronCrash(P), struck_in(net), exact=True, at=at) as penalty:
        found = penalty(net(x))
        assert number(found) == pytest.approx(number(wanted), rel=1e-9)
        assert_equal(gradients(net, found), gradients(net, by_hand(net, x, P * (at == "mean"))))


@pytest.mark.parametrize("name", NETS)
def test_transient_faults_have_another_variance(name):
    net, x = made(name), batch()
    fault = NeuronCrash(P, duration="transient")
    with CrashVariance(net, fault, struck_in(net), exact=True) as penalty:
        found = number(penalty(net(x)))
    assert found != pytest.approx(number(by_hand(net, x)), rel=0.05)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    """Segments that run again, one for each step, meet coordinates that another one made."""
    x = batch().requires_grad_()
    plain = made("lif")
    other = LoopOfLif({"use_reentrant": reentrant}).double()
    other.load_state_dict(plain.state_dict())
    for make in (
        lambda net: CrashVariance(net, NeuronCrash(P), exact=True),
        lambda net: CrashTraining(net, NeuronCrash(0.4), seed=2),
    ):
        found = []
        for net in (plain, other):
            with make(net.train()) as attached:
                first, second = net(x), net(x)  # backward meets the other pass's draws last
                loss = first.square().sum() + 2 * second.square().sum()
                if isinstance(attached, CrashVariance):
                    loss = loss + attached(first)
                found.append(gradients(net, loss))
        assert_equal(found[1], found[0])


def seen(net):
    """A list that grows by what the head reads in each of its calls."""
    values = []
    net.head.register_forward_pre_hook(lambda _, args: values.append(args[0].detach().clone()))
    return values


@pytest.mark.parametrize("inverse", [True, False])
def test_crash_training_strikes_the_same_neurons_in_every_step(inverse):
    net, x = made("lif").train(), batch(rows=40, steps=12)
    with torch.no_grad():
        net.first.bias.fill_(2.0)  # every living neuron spikes soon
    values = seen(net)
    with CrashTraining(net, NeuronCrash(0.3), inverse_scaling=inverse, seed=1):
        for _ in range(2):
            net(x)
    first, second = torch.stack(values[-24:-12]), torch.stack(values[-12:])
    scale = 1 / 0.7 if inverse else 1.0
    masks = []
    for spikes in (first, second):
        dead = (spikes == 0).all(0)  # (B, N)
        assert spikes.unique().tolist() == pytest.approx([0.0, scale], rel=1e-6)
        assert float(dead.double().mean()) == pytest.approx(0.3, abs=0.1)
        assert len({tuple(row.tolist()) for row in dead}) > 20  # examples differ
        masks.append(dead)
    assert not torch.equal(*masks)  # and so do passes


class Dead(nn.Module):
    """Has an LSTM whose whole sequence is seen."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def test_crash_training_strikes_inside_recurrent_layers():
    torch.manual_seed(0)
    net, x = Dead().double().train(), batch(rows=30, steps=6)
    values = seen(net)
    with CrashTraining(net, NeuronCrash(0.3), seed=1):
        net(x)
        net(x)
    one, two = values[-2] == 0, values[-1] == 0  # (B, T, 12)
    for dead in (one, two):
        assert torch.equal(dead.all(1), dead.any(1))  # the same neurons in all steps
        assert 0.2 < float(dead.double().mean()) < 0.4
        assert len({tuple(row.tolist()) for row in dead[:, 0]}) > 20
    assert not torch.equal(one, two)
    # What is fed back is struck as well: the living neurons of one example move.
    clean = net.eval().lstm(x)[0]
    assert not torch.allclose(clean[~two], values[-1][~two])


def test_a_window_of_steps_alone_is_struck():
    net, x = made("lif").train(), batch(rows=30, steps=8)
    with torch.no_grad():
        net.first.bias.fill_(2.0)
    values = seen(net)
    fault = NeuronCrash(0.5, window=(2, 5))
    with CrashTraining(net, fault, inverse_scaling=True, seed=1):
        net(x)
    steps = torch.stack(values[-8:])
    in_window = torch.zeros(8, dtype=torch.bool)
    in_window[2:5] = True
    assert set(steps[~in_window].unique().tolist()) <= {0.0, 1.0}
    assert set(steps[in_window].unique().tolist()) == {0.0, 2.0}

    torch.manual_seed(0)
    lstm = Dead().double().train()
    values = seen(lstm)
    with CrashTraining(lstm, fault, inverse_scaling=True, seed=1):
        lstm(x)
    dead = values[-1] == 0
    assert not dead[:, ~in_window].any()
    assert torch.equal(dead[:, in_window].all(1), dead[:, in_window].any(1))
    assert dead.any()


@pytest.mark.parametrize("at", ["zero", "mean"])
@pytest.mark.parametrize("name", ["lif", "lstm", "multi-step", "multi-step, time first"])
def test_more_steps_than_in_the_first_pass_are_struck_too(name, at):
    net = made(name).train()
    plain = copy.deepcopy(net)
    with CrashVariance(net, NeuronCrash(P), struck_in(net), exact=True, at=at) as penalty:
        for steps in (4, 9, 2):
            x = batch(steps=steps) + 0.5
            wanted = number(by_hand(plain, x, P * (at == "mean")))
            assert number(penalty(net(x))) == pytest.approx(wanted, rel=1e-9)


def test_more_steps_of_a_compiled_model_are_refused():
    net = made("cell").train()
    plain = copy.deepcopy(net)
    compiled = torch.compile(net, backend="eager")
    with CrashVariance(compiled, NeuronCrash(P), exact=True) as penalty:
        x = batch(steps=3) + 0.5
        found = number(penalty(compiled(x)))
        assert found == pytest.approx(number(by_hand(plain, x)), rel=1e-9)
        longer = compiled(batch(steps=4))
        with pytest.raises(ModelError, match="more steps than in the first pass"):
            penalty(longer)


def test_steps_that_nobody_knows_are_refused():
    net = made("lif").train()
    with CrashTraining(net, NeuronCrash(P, duration="transient")):
        net(batch(steps=4))
        with pytest.raises(ModelError, match="more often than in the first pass"):
            net(batch(steps=5))
    lstm = made("lstm").train()
    with CrashTraining(lstm, NeuronCrash(P, duration="transient")):
        lstm(batch(steps=4))
        with pytest.raises(ModelError, match="longest sequence first"):
            lstm(batch(steps=5))
        lstm(batch(steps=4))  # nothing is left behind


def test_recurrent_layers_in_training_mode_keep_their_dropout():
    """A fault that never strikes: computed by steps, the layer is what torch computes."""
    net, x = made("lstm", dropout=0.5).train(), batch()
    torch.manual_seed(7)
    wanted = net(x)
    with CrashTraining(net, GainNoise(1e-300)):
        torch.manual_seed(7)
        found = net(x)
    assert torch.allclose(found, wanted, rtol=1e-12)
    assert not torch.allclose(found, copy.deepcopy(net).eval()(x))


class Stateful(nn.Module):
    """Two spiking layers that keep their membranes on themselves from pass to pass."""

    class Kept(nn.Module):
        v = None

        def forward(self, current):
            v = current if self.v is None else 0.8 * self.v + current
            spikes = Spike.apply(v - 1)
            self.v = v - spikes
            return spikes

    def __init__(self, checkpointing=None):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.one, self.two = self.Kept(), self.Kept()
        self.checkpointing = checkpointing

    def set(self, states):
        self.one.v, self.two.v = states

    def states(self):
        return self.one.v.detach(), self.two.v.detach()

    def segment(self, x):
        return self.head(self.two(self.second(self.one(self.first(x)))))

    def forward(self, x):
        out = 0.0
        for t in range(x.shape[1]):
            if self.checkpointing is None:
                out = out + self.segment(x[:, t])
            else:
                out = out + checkpoint(self.segment, x[:, t], **self.checkpointing)
        return out

    def written_out(self, x, alive, states):
        """The same with a factor for each neuron of both layers, from these membranes."""
        v, w, out = *states, 0.0
        for t in range(x.shape[1]):
            v = 0.8 * v + self.first(x[:, t])
            a = Spike.apply(v - 1)
            v = v - a
            w = 0.8 * w + self.second(a * alive[:, :6])
            b = Spike.apply(w - 1)
            w = w - b
            out = out + self.head(b * alive[:, 6:])
        return out


@pytest.mark.parametrize("at", ["zero", "mean"])
def test_membranes_that_a_model_keeps_are_left_as_they_are(at):
    torch.manual_seed(1)
    net, x = Stateful().double().train(), batch(seed=4)
    plain = copy.deepcopy(net)
    with CrashVariance(net, NeuronCrash(P), exact=True, at=at) as penalty:
        states = (x.new_zeros(5, 6), x.new_zeros(5, 6))
        for passes in range(3):  # each goes on from where the one before stopped
            output = net(x)
            assert torch.allclose(output, plain(x))
            found = penalty(output)
            wanted = 0.0
            for i in range(len(x)):
                alive = torch.full((1, 12), 1 - P * (at == "mean"), dtype=x.dtype)
                alive.requires_grad_()
                mine = [state[i : i + 1] for state in states]
                for one in net.written_out(x[i : i + 1], alive, mine)[0].unbind():
                    (g,) = torch.autograd.grad(one, alive, retain_graph=True)
                    wanted += P * (1 - P) * number(g.square().sum()) / len(x)
            assert number(found) == pytest.approx(wanted, rel=1e-9), passes
            states = net.states()
            net.set(states)
            plain.set(plain.states())
            assert all(map(torch.equal, net.states(), plain.states()))


def test_kept_membranes_under_reentrant_checkpointing_are_refused():
    net, x = Stateful({"use_reentrant": True}).train(), batch().float().requires_grad_()
    with CrashVariance(net, NeuronCrash(P)) as penalty:
        output = net(x)
        with pytest.raises(ModelError, match="use_reentrant=False"):
            penalty(output)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)
        self.packs = False

    def forward(self, x):
        if not self.packs:
            return self.head(self.lstm(x)[0])
        lengths = torch.full((len(x),), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], True)[0])


def test_a_layer_that_cannot_go_by_steps_is_refused():
    net, x = Packed().train(), batch().float()
    with CrashTraining(net, NeuronCrash(P)):
        net(x)
        net.packs = True
        with pytest.raises(ModelError, match="packed sequence"):
            net(x)
        net.packs = False
        net(x)


def test_a_batch_that_comes_in_parts_is_refused():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.relu, self.whole = nn.Linear(4, 4), nn.ReLU(), True

        def forward(self, x):
            h = self.relu(self.layer(x))
            if self.whole:
                return self.layer(self.relu(self.layer(h)))
            return torch.cat([self.layer(self.relu(self.layer(part))) for part in h.split(2)])

    net, x = Parts(), torch.randn(4, 4)
    with CrashVariance(net, NeuronCrash(P)) as penalty:
        penalty(net(x))
        net.whole = False
        with pytest.raises(ModelError, match="which examples run through"):
            net(x)


def test_one_call_that_is_asked_for_is_struck_alone():
    net, x = made("lif").train(), batch(steps=5)
    with CrashVariance(net, {"lif#1": NeuronCrash(P)}, exact=True) as one:
        first = number(one(net(x)))
        assert 0 < first != pytest.approx(number(by_hand(net, x)), rel=0.05)
        net(batch(steps=9))
    assert one.sites == ["lif#1"]


@pytest.mark.parametrize("name", ["lif", "cell"])
def test_the_penalty_lowers_the_measured_variance(name):
    """Dead neurons drawn by ourselves, in the network written out; the task is learned as well."""
    x = batch(rows=64, seed=1)
    targets = (x[:, :, 0].sum(1) > 0).long() + (x[:, :, 1].sum(1) > 0).long()
    draws = torch.Generator().manual_seed(5)
    alive = (torch.rand(400, 1, 6, generator=draws) >= P).double()
    measured, right = [], []
    for strength in (0.0, 0.1):
        net = made(name).train()
        optimiser = torch.optim.Adam(net.parameters(), 0.03)
        with CrashVariance(net, NeuronCrash(P), strength=strength) as penalty:
            for _ in range(60):
                optimiser.zero_grad()
                output = net(x)
                (F.cross_entropy(output, targets) + penalty(output)).backward()
                optimiser.step()
        with torch.no_grad():
            clean = net(x)
            faulty = torch.stack([net(x, mask) for mask in alive])
        measured.append(number((faulty - clean).var(0).sum(-1).mean()))
        right.append(number((clean.argmax(1) == targets).double().mean()))
    assert measured[1] < 0.5 * measured[0]
    assert right[1] > right[0] - 0.05
    assert right[0] > 0.9


@pytest.mark.parametrize("name", ["multi-step", "multi-step, time first"])
def test_a_window_of_a_layer_that_is_called_once(name):
    net, x = made(name).train(), batch(rows=30, steps=8)
    with torch.no_grad():
        net.first.bias.fill_(4.0)  # every living neuron spikes in every step
    values = []
    net.second.register_forward_pre_hook(lambda _, args: values.append(args[0].detach().clone()))
    fault = NeuronCrash(0.5, window=(2, 5))
    with CrashTraining(net, fault, "lif", inverse_scaling=True, seed=1):
        net(x)
    steps = values[-1].movedim(0 if net.time_first else 1, 0)  # (T, B, N)
    assert steps.shape == (8, 30, 6)
    assert set(steps[:2].unique().tolist()) | set(steps[5:].unique().tolist()) <= {0.0, 1.0}
    assert set(steps[2:5].unique().tolist()) == {0.0, 2.0}
    dead = (steps[2:5] == 0).all(0)
    assert 0.35 < number(dead.double().mean()) < 0.65


class Frames(nn.Module):
    """Dense layers over frames (B, T, F), each neuron of which computes all steps in turn."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.head = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, x, alive=None):
        h = self.act(self.first(x))
        return self.head(h if alive is None else h * alive[:, None]).mean(1)


@pytest.mark.parametrize(("group", "options"), [("unit", {"steps_axis": 1}), ("feature", {})])
def test_time_is_where_it_is_said_to_be(group, options):
    """A neuron is one for all steps: the variance is that by one factor for all of them."""
    torch.manual_seed(0)
    net, x = Frames(), torch.randn(5, 7, 4)
    with CrashVariance(net, NeuronCrash(P, group=group), exact=True, **options) as penalty:
        penalty(net(x))
        found = float(penalty.variance)
    alive = torch.ones(5, 6, requires_grad=True)
    outputs = net(x, alive)
    squares = sum(
        torch.autograd.grad(outputs[:, k].sum(), alive, retain_graph=True)[0].square().sum()
        for k in range(3)
    )
    assert found == pytest.approx(float(P * (1 - P) * squares / 5), rel=1e-5)
    with CrashVariance(net, NeuronCrash(P), exact=True) as penalty:
        penalty(net(x))
        assert abs(float(penalty.variance) - found) > 0.1 * found  # a neuron for each position
    seen = []
    handle = net.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with CrashTraining(net, NeuronCrash(0.4, group=group), seed=3, **options):
        net(x)
        net(x[:2, :4])  # shorter ones, too
    handle.remove()
    assert [tuple(h.shape) for h in seen[-2:]] == [(5, 7, 6), (2, 4, 6)]
    for h in seen[-2:]:
        dead = h == 0
        assert 0 < dead.float().mean() < 1
        assert (dead == dead[:, :1]).all()  # in all steps or in none
