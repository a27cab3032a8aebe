"""Networks of the user's own are hardened: what is said of each way holds, and what it costs."""

import json
import warnings
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crashsim
from crashsim import (
    SECDED,
    BitFlip,
    ClipActivations,
    Copies,
    CrashTrained,
    FaultSpace,
    Hardening,
    Interrupted,
    NarrowWeights,
    NeuronCrash,
    Penalised,
    Protection,
    TrainingLoop,
    WeightCrash,
)
from crashsim.errors import ArgumentError, ModelError
from crashsim.files.architectures import parse_architecture
from crashsim.files.data import Data, load_data
from crashsim.report.hardening import to_html
from crashsim.results.hardening.words import rows, statement
from crashsim.training.classifier import Recipe, accuracy, train_classifier
from crashsim.training.menu.ways import Nothing, Way

TRAIN, TEST = load_data("digits", "train"), load_data("digits", "test")
X, Y = TRAIN.inputs, TRAIN.targets
HELD_OUT = (TEST.inputs, TEST.targets)
FAULT = NeuronCrash(0.1)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))


@contextmanager
def seeded(seed=0):
    """As trainings of crashsim are; the global generator is put back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def plainly_trained(loop=None):
    net = network().train()
    with seeded():
        (loop or train)(net, lambda outputs: 0.0)
    return net.eval()


def train(model, penalty, effort=1.0, shape=(64,), seen=None):
    """A plain loop of torch, with an optimiser and a schedule of its own."""
    optimiser = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, round(3 * effort))
    for _ in range(round(3 * effort)):
        for chosen in torch.randperm(len(X)).split(64):
            optimiser.zero_grad()
            outputs = model(X[chosen].reshape(-1, *shape))
            term = penalty(outputs)
            if seen is not None:
                seen.append(float(term))
            (F.cross_entropy(outputs, Y[chosen]) + term).backward()
            optimiser.step()
        schedule.step()


def accuracy_by_hand(net, p, examples, chips=3000):
    """Mean accuracy of chips on examples, hidden neurons of a 64-30-10 network dropped by hand."""
    first, _, head = net
    x, y = examples
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        h = torch.relu(first(x))
        alive = torch.rand(chips, 1, h.shape[1], generator=draws) >= p
        return float((head(h * alive).argmax(-1) == y).float().mean())


def test_every_way_is_measured_as_it_is():
    given = network()
    before = deepcopy(given.state_dict())
    menu = [Nothing(), Penalised(0.3), Copies(3, "mean"), Protection(ClipActivations())]
    found = crashsim.harden(given, (X, Y), HELD_OUT, FAULT, train=train, menu=menu, chips=400)
    assert all(torch.equal(given.state_dict()[name], value) for name, value in before.items())
    assert [way["name"] for way in found.ways] == ["nothing", "penalty 0.3", "mean of 3", "clip"]
    deciding = TEST.inputs[::2], TEST.targets[::2]
    retrained = {}
    for name, strength in (("nothing", 0.0), ("penalty 0.3", 0.3)):
        net = plainly_trained()
        if strength:
            net = deepcopy(given).train()
            with seeded(), crashsim.CrashVariance(net, FAULT, strength=strength) as penalty:
                train(net, penalty)
        retrained[name] = net.eval()
        true = accuracy_by_hand(net, FAULT.p, deciding)
        way = found.way(name)
        assert way["mean"]["low"] <= true <= way["mean"]["high"]
        assert abs(way["mean"]["value"] - true) < 0.01
        with torch.no_grad():
            clean = float((net(deciding[0]).argmax(1) == deciding[1]).float().mean())
        assert way["clean"] == way["accuracy"] == pytest.approx(clean)
    assert found.way("penalty 0.3")["mean"]["low"] > found.way("nothing")["mean"]["high"]
    # Three copies, each with neurons of its own dead.
    first, _, head = retrained["nothing"]
    x, y = deciding
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        h = torch.relu(first(x))
        votes = sum(head(h * (torch.rand(1500, 1, 30, generator=draws) >= FAULT.p))
                    for _ in range(3))  # fmt: skip
    true = float((votes.argmax(-1) == y).float().mean())
    mean = found.way("mean of 3")["mean"]
    assert mean["low"] <= true <= mean["high"]
    assert mean["value"] > found.way("nothing")["mean"]["value"]


def test_what_is_chosen_is_confirmed_where_no_decision_looked():
    menu = [Penalised(0.1), Penalised(1.0)]
    found = crashsim.harden(network(), None, HELD_OUT, FAULT, train=train, menu=menu, target=0.85)
    assert found.reached
    assert found.statement.startswith("Reached: ")
    (looked,) = found.verified
    assert looked["name"] == found.chosen
    assert looked["examples"] == len(TEST.inputs) // 2
    true = accuracy_by_hand(found.network, FAULT.p, (TEST.inputs[1::2], TEST.targets[1::2]))
    assert looked["mean"]["low"] <= true <= looked["mean"]["high"]
    assert true >= 0.85
    assert not found.network.training
    low = crashsim.harden(network(), None, HELD_OUT, FAULT, train=train, menu=menu, target=0.3)
    assert low.chosen == "nothing"  # the cheapest suffices
    high = crashsim.harden(network(), None, HELD_OUT, FAULT, train=train, menu=menu, target=0.999)
    assert not high.reached
    assert high.chosen is not None
    assert "Not reached" in high.statement
    assert high.network is not None


def test_the_share_of_chips_that_reach_the_target():
    found = crashsim.harden(network(), None, HELD_OUT, FAULT, train=train, menu=[Penalised(0.3)],
                            target=0.8, share=0.9)  # fmt: skip
    x, y = TEST.inputs[::2], TEST.targets[::2]
    net = plainly_trained()
    with torch.no_grad():
        h = torch.relu(net[0](x))
        alive = torch.rand(4000, 1, 30, generator=torch.Generator().manual_seed(2)) >= FAULT.p
        right = (net[2](h * alive).argmax(-1) == y).float().mean(1)
    true = float((right >= 0.8).float().mean())
    share = found.way("nothing")["accepted"]
    assert share["level"] == 0.8
    assert share["low"] <= true <= share["high"]
    assert 0.05 < true < 0.999


def test_movement_in_place_of_a_metric():
    found = crashsim.harden(network(), None, HELD_OUT, NeuronCrash(0.03), train=train,
                            menu=[Penalised(1.0)], epsilon=4.0, delta=0.02)  # fmt: skip
    assert found.metric == "P(|Δ| ≥ 4)"
    net = plainly_trained()
    with torch.no_grad():
        h = torch.relu(net[0](TEST.inputs[::2][:64]))
        alive = torch.rand(20_000, 1, 30, generator=torch.Generator().manual_seed(2)) >= 0.03
        moved = ((net[2](h * alive) - net[2](h)).abs() >= 4).any(-1).float().mean()
    mean = found.way("nothing")["mean"]
    assert 0 < moved < 0.2
    assert mean["low"] * 0.9 <= float(moved) <= mean["high"] * 1.1
    assert found.way("penalty 1")["mean"]["value"] < mean["value"]
    assert found.way("nothing")["accuracy"] > 0.8


def test_equal_cost_is_counted():
    """By hand: 2 m n forward, 2 m n for weights and, beyond the first layer, for inputs."""
    menu = [Penalised(0.1), CrashTrained(2)]
    calls = []

    def longer(model, penalty, *, effort):
        calls.append(effort)
        train(model, penalty, effort)

    found = crashsim.harden(network(), None, HELD_OUT, WeightCrash(0.01), "weights", train=longer,
                            menu=menu, chips=20, equal="operations")  # fmt: skip
    plain = found.way("nothing")["training"]
    each = 2 * (2 * 64 * 30) + 3 * (2 * 30 * 10)
    assert plain["operations"] == plain["examples"] * each
    assert found.way("nothing")["macs"] == 64 * 30 + 30 * 10
    assert found.way("nothing")["bits"] == 32 * (64 * 30 + 30 + 30 * 10 + 10)
    penalised = found.way("penalty 0.1")["training"]
    assert penalised["effort"] == 1
    assert plain["effort"] == calls[0] > 1.5
    assert plain["effort"] == pytest.approx(
        penalised["operations"] / penalised["examples"] / each, rel=1e-6
    )
    assert plain["examples"] == round(3 * plain["effort"]) * len(X)
    steps = crashsim.harden(network(), None, HELD_OUT, FAULT, train=train, menu=menu, chips=20)
    assert {way["training"]["examples"] for way in steps.ways} == {3 * len(X)}
    assert {way["training"]["passes"] for way in steps.ways} == {3 * -(-len(X) // 64)}


def test_protection_and_copies_have_their_price():
    menu = [Protection(SECDED()), Copies(3), (NarrowWeights(0.2), CrashTrained())]
    fault = BitFlip(2e-3, format="int8")
    found = crashsim.harden(network(), (X, Y), HELD_OUT, fault, "weights", train=train, menu=menu,
                            chips=60)  # fmt: skip
    plain, coded = found.way("nothing"), found.way("secded")
    blocks = -(-64 * 30 * 8 // 64) + -(-30 * 10 * 8 // 64)
    assert coded["bits"] - plain["bits"] == 8 * blocks
    assert coded["mean"]["value"] > plain["mean"]["value"]
    voted = found.way("median of 3")
    assert voted["macs"] == 3 * plain["macs"]
    assert voted["bits"] == 3 * plain["bits"]
    together = "weights within 0.2 + crash training"
    assert found.way(together)["refused"] == ""
    net = crashsim.harden(network(), None, HELD_OUT, fault, "weights", train=train,
                          menu=[(NarrowWeights(0.2),)], chips=20, target=0.999).trained  # fmt: skip
    assert net is not None
    if found.chosen == together:
        assert max(float(w.abs().max()) for w in net.parameters() if w.dim() > 1) <= 0.2


def test_a_step_of_the_user_s_makes_a_loop():
    """The same weights as from a loop written out."""

    def step(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def optimiser(model):
        return torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)

    batches = [(X[i : i + 64], Y[i : i + 64]) for i in range(0, 640, 64)]
    loop = TrainingLoop(step, batches, epochs=2, optimiser=optimiser)
    found = crashsim.harden(network, None, HELD_OUT, FAULT, train=loop, chips=20,
                            menu=[Penalised(0.3)], target=1e-9)  # fmt: skip
    assert found.chosen == "nothing"
    by_hand = network().train()
    made = optimiser(by_hand)
    for _ in range(2):
        for x, y in batches:
            made.zero_grad()
            F.cross_entropy(by_hand(x), y).backward()
            made.step()
    for mine, theirs in zip(found.trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(ArgumentError, match="batches="):
        TrainingLoop(step, iter(batches))
    with pytest.raises(ArgumentError, match="step: returned"):
        TrainingLoop(lambda model, batch: model(batch[0]), batches)(network(), lambda out: 0.0)


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (1 + 10 * ctx.saved_tensors[0].abs()) ** 2


class Spiking(nn.Module):
    """Its membranes are left over from a pass, as those of snntorch are."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.v = nn.Linear(64, 24), nn.Linear(24, 10), None
        self.spike = SpikeModule()

    def forward(self, x):
        self.v, out = torch.zeros(len(x), 24), 0.0
        for _ in range(4):
            self.v = 0.9 * self.v + self.first(x)
            spikes = self.spike(self.v - 1)
            self.v = self.v - spikes
            out = out + self.head(spikes)
        return out / 4


class SpikeModule(nn.Module):
    def forward(self, v):
        return Spike.apply(v)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.1), nn.Linear(96, 10),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "shape", "sites"),
    [(Lstm, (8, 8), "hidden"), (convolutional, (1, 8, 8), "hidden"), (Spiking, (64,), "hidden"),
     (convolutional, (1, 8, 8), "2")],
)  # fmt: skip
def test_networks_of_every_kind(model, shape, sites):
    def loop(net, penalty):
        train(net, penalty, 1 / 3, shape)

    held_out = (TEST.inputs.reshape(-1, *shape), TEST.targets)
    found = crashsim.harden(model, None, held_out, NeuronCrash(0.05), sites, train=loop, chips=20,
                            menu=[Penalised(0.1), CrashTrained(), Copies(3)])  # fmt: skip
    assert [way["refused"] for way in found.ways] == [""] * 4
    assert found.network is not None
    clean = [way["clean"] for way in found.ways]
    assert clean[0] == clean[3]


def test_a_quantisation_aware_network_and_its_integers():
    from torch.ao import quantization as q

    def made():
        net = q.QuantWrapper(network())
        net.qconfig = q.get_default_qat_qconfig("fbgemm")
        return q.prepare_qat(net.train())

    def converted(net, penalty):
        train(net, penalty, 1 / 3)
        return q.convert(net.eval())

    def watched(net, penalty):
        train(net, penalty, 1 / 3)
        net.apply(q.disable_observer)

    menu = [Penalised(0.1), CrashTrained()]
    with warnings.catch_warnings():  # torch's own, of its quantisation
        warnings.simplefilter("ignore")
        found = crashsim.harden(made, None, HELD_OUT, FAULT, train=converted, chips=20, menu=menu)
    assert [way["refused"] for way in found.ways] == [""] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = crashsim.harden(made, None, HELD_OUT, BitFlip(1e-3, format="int8"), "weights",
                                train=watched, chips=20, menu=menu)  # fmt: skip
    assert found.ways[0]["refused"] == ""
    assert "computes the weight" in found.ways[1]["refused"]


def test_the_record_is_saved_shown_and_read(tmp_path):
    found = crashsim.harden(network(), (X, Y), HELD_OUT, FAULT, train=train, target=0.8,
                            chips=30, menu=[Penalised(0.1), Copies(3)],
                            names={"model": "<mine>"})  # fmt: skip
    path = tmp_path / "found.json"
    found.save(path)
    read = Hardening.load(path)
    assert read.to_dict() == found.to_dict() == json.loads(path.read_text())
    assert read.network is None
    assert read.to_text(80) == found.to_text(80)
    assert found.chosen in found.to_text()
    page = to_html(read)
    assert "&lt;mine&gt;" in page
    assert "<mine>" not in page
    assert statement(read) == found.statement
    assert len(rows(read)) == 3
    for broken, words in (
        ({"ways": 3}, "ways"),
        ({"chosen": "luck"}, "chosen"),
        ({"schema": 99}, "schema"),
    ):
        path.write_text(json.dumps({**found.to_dict(), **broken}))
        with pytest.raises(crashsim.CrashsimError, match=words):
            Hardening.load(path)


def test_the_same_seed_gives_the_same_numbers():
    def run(seed, chips=40):
        return crashsim.harden(network, (X, Y), HELD_OUT, FAULT, train=train, seed=seed,
                               chips=chips, menu=[CrashTrained()])  # fmt: skip

    before = torch.get_rng_state()
    first = run(0)
    assert torch.equal(before, torch.get_rng_state())
    assert first.to_dict() == run(0).to_dict()
    assert first.to_dict() != run(1).to_dict()


def test_an_interrupt_leaves_the_ways_that_were_finished():
    trainings = []

    def loop(model, penalty):
        trainings.append(1)
        if len(trainings) == 3:
            raise KeyboardInterrupt
        train(model, penalty)

    with pytest.raises(Interrupted) as stop:
        crashsim.harden(network(), None, HELD_OUT, FAULT, train=loop, chips=30, target=0.5,
                        menu=[Penalised(0.1), CrashTrained(), Copies(3)])  # fmt: skip
    partial = stop.value.partial
    assert partial.partial
    assert [way["name"] for way in partial.ways] == ["nothing", "penalty 0.1"]
    assert partial.network is not None
    assert not partial.reached
    assert partial.statement.startswith("Interrupted")


def test_a_way_of_one_s_own():
    class Halved(Way):
        name = "halved"

        def prepared(self, model, clean):
            model = deepcopy(model)
            with torch.no_grad():
                model[2].weight.mul_(0.5)
                model[2].bias.mul_(0.5)
            return model

    class Broken(Way):
        name = "broken"

        def prepared(self, model, clean):
            raise RuntimeError("no")

    found = crashsim.harden(network(), None, HELD_OUT, FAULT, train=train, chips=30,
                            menu=[Halved(), Broken()])  # fmt: skip
    assert found.way("halved")["mean"] == found.way("nothing")["mean"]  # the same classes
    assert "broken fails" in found.way("broken")["refused"]


def test_ways_that_cannot_be_taken_say_why():
    found = crashsim.harden(network(), None, HELD_OUT, FAULT, train=lambda model: train(model, _no),
                            chips=20, menu=[Penalised(0.1), CrashTrained(),
                                            Protection(ClipActivations())])  # fmt: skip
    assert "takes no penalty" in found.way("penalty 0.1")["refused"]
    assert found.way("crash training")["refused"] == ""
    assert "data=None" in found.way("clip")["refused"]
    exact = NeuronCrash(count=2)
    found = crashsim.harden(network(), None, HELD_OUT, exact, train=train, chips=20,
                            menu=[Copies(3), CrashTrained()])  # fmt: skip
    assert found.ways[0]["refused"] == ""
    assert "of all copies together" in found.way("median of 3")["refused"]
    assert "count" in found.way("crash training")["refused"]
    exponents = BitFlip(1e-3, format="float32")
    found = crashsim.harden(network(), None, HELD_OUT, exponents, "weights", train=train,
                            chips=20, menu=[Penalised(0.1)])  # fmt: skip
    assert "do not add up" in found.way("penalty 0.1")["refused"]


def _no(outputs):
    return 0.0


def _steps(model):
    return torch.optim.SGD(model.parameters(), 0.1)


ELSEWHERE = network()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"train": None}, ArgumentError, "train=None"),
        ({"train": lambda model, penalty: None}, ModelError, "left every parameter"),
        ({"train": lambda model, penalty: ELSEWHERE[0].weight.data.add_(1)}, ModelError, "left"),
        ({"train": lambda: None}, ArgumentError, "cannot be called as"),
        ({"train": lambda model, penalty: 1 / 0}, ModelError, "ZeroDivisionError"),
        ({"train": lambda model, penalty: model[0].weight.data.fill_(np.nan)}, ModelError,
         "diverged"),
        ({"held_out": None}, ArgumentError, "held_out=None"),
        ({"held_out": (X[:1], Y[:1])}, ArgumentError, "one example"),
        ({"faults": None}, ArgumentError, "faults=None"),
        ({"menu": [3]}, ArgumentError, "no way to harden"),
        ({"menu": [Copies(3), Copies(3)]}, ArgumentError, "there twice"),
        ({"menu": 5}, ArgumentError, "menu=5"),
        ({"epsilon": 1.0}, ArgumentError, "give both"),
        ({"epsilon": 1.0, "delta": 0.1, "target": 0.5}, ArgumentError, "target=0.5"),
        ({"share": 0.9}, ArgumentError, "share=0.9"),
        ({"equal": "time"}, ArgumentError, "equal="),
        ({"equal": "operations", "train": lambda model, penalty: None}, ArgumentError, "effort"),
        ({"chips": 0}, ArgumentError, "chips=0"),
        ({"metric": ["accuracy"]}, ArgumentError, "one metric"),
    ],
)  # fmt: skip
def test_wrong_arguments(options, error, words):
    given = {"held_out": HELD_OUT, "faults": FAULT, "train": train, "menu": [], **options}
    with pytest.raises(error, match=words):
        crashsim.harden(network(), **given)


def test_a_network_of_one_s_own_asks_for_its_training():
    with pytest.raises(ArgumentError, match="function of yours"):
        crashsim.harden(network(), (X, Y), HELD_OUT, FAULT)
    net = network()

    def wrong(model, penalty):
        with torch.no_grad():
            net[0].weight.add_(0.1)
        train(model, penalty, 1 / 3)

    with pytest.raises(ModelError, match="changed the model that was given"):
        crashsim.harden(net, None, HELD_OUT, FAULT, train=wrong, menu=[])


def test_values_are_struck_before_they_are_clipped():
    """Of a clipped network the same neurons fail, under the same name as before."""
    net, way = network().eval(), Protection(ClipActivations())
    clipped = way.prepared(net, FaultSpace(net, X[:50], FAULT).examples)
    stuck = crashsim.StuckAt(0.2, value=100.0)
    named = way.struck({"1": stuck}, clipped)
    space = FaultSpace(clipped, X[:20], named)
    most = float(torch.relu(net[0](X[:50])).max().detach())
    outputs = space.at_faults([(space.placements[0].site.name, (3,))]).outputs
    with torch.no_grad():
        h = torch.relu(net[0](X[:20]))
        h[:, 3] = 100.0
        expected = net[2](h.clamp(max=most))
    np.testing.assert_allclose(outputs, expected.numpy(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ArgumentError, match="one by one"):
        way.struck({"1*": stuck}, clipped)


def test_an_architecture_is_compared_by_its_recipe():
    recipe = Recipe(epochs=3)
    found = crashsim.harden("64-20-10:relu", TRAIN, TEST, FAULT, target=0.6, chips=20,
                            menu=[Penalised(0.1)], recipe=recipe)  # fmt: skip
    assert isinstance(found, Hardening)
    assert found.reached
    assert found.model["name"] == "64-20-10:relu"
    net = parse_architecture("64-20-10:relu").build(0)
    train_classifier(net, TRAIN, recipe)
    assert found.way("nothing")["clean"] == pytest.approx(
        accuracy(net, Data("half", TEST.inputs[::2], TEST.targets[::2])), abs=1e-6
    )
    with pytest.raises(ArgumentError, match="leave one out"):
        crashsim.harden("64-20-10", TRAIN, TEST, FAULT, recipe=recipe, train=train)
    with pytest.raises(ArgumentError, match="data="):
        crashsim.harden("64-20-10", (X, Y), HELD_OUT, FAULT, target=0.5)


class Frames(nn.Module):
    """Rows of an image as steps, with the batch on a given axis."""

    def __init__(self, batch=0):
        super().__init__()
        self.first, self.act, self.head = nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10)
        self.batch = batch

    def forward(self, x):
        return self.head(self.act(self.first(x))).mean(1 - self.batch)


def test_steps_and_batches_on_axes_of_their_own():
    images, rows_first = TEST.inputs.reshape(-1, 8, 8), TEST.inputs.reshape(-1, 8, 8).movedim(0, 1)

    def loop(model, penalty):
        train(model, penalty, 1 / 3, (8, 8))

    def turned(model, penalty):
        optimiser = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
        for chosen in torch.randperm(len(X)).split(64):
            optimiser.zero_grad()
            outputs = model(X[chosen].reshape(-1, 8, 8).movedim(0, 1))
            (F.cross_entropy(outputs, Y[chosen]) + penalty(outputs)).backward()
            optimiser.step()

    menu = [Penalised(0.1), NarrowWeights(0.5)]
    plain = crashsim.harden(Frames, None, (images, TEST.targets), FAULT, train=loop, menu=menu,
                            chips=40, steps_axis=1)  # fmt: skip
    other = crashsim.harden(lambda: Frames(1), None, (rows_first, TEST.targets), FAULT, menu=menu,
                            train=turned, chips=40, steps_axis=0, batch_axis=1)  # fmt: skip
    assert [way["refused"] == "" for way in plain.ways] == [True, True, True]
    assert [way["refused"] == "" for way in other.ways] == [True, False, True]
    assert "takes the batch first" in other.ways[1]["refused"]
    assert other.ways[0]["clean"] == plain.ways[0]["clean"]
    assert other.ways[0]["mean"]["value"] == pytest.approx(plain.ways[0]["mean"]["value"], abs=0.02)


def test_what_clips_is_no_neuron():
    """Also where it cuts these very values: the same neurons are struck as without it."""
    for seed in range(6):
        with seeded(seed):
            net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
            learned, x = 0.5 * torch.randn(20, 6), torch.randn(40, 6)
        examples = FaultSpace(net, learned, FAULT).examples
        clipped = Protection(ClipActivations()).prepared(net, examples)
        space = FaultSpace(clipped, x, FAULT)
        assert [p.site.name for p in space.placements] == ["1.0"]
        assert space.N == 8
        with torch.no_grad():
            top = torch.relu(net[0](learned)).max()
            assert (torch.relu(net[0](x)) > top).any()
