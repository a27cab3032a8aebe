"""The loss of each example in place of the outputs, against plain loops over all patterns."""

import copy
import csv
import io
import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crashsim import (
    AdditiveNoise,
    BitFlip,
    FaultSpace,
    NeuronCrash,
    Score,
    WeightCrash,
    monte_carlo,
    plan,
    score,
)
from crashsim.coordinates.drawing import sample_block
from crashsim.errors import ArgumentError, CrashsimWarning
from crashsim.results.verdict import headline
from crashsim.sampling.chips.run import chip_metrics


def classifier(hidden=4, classes=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, classes)).eval()


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 2, 1, 1])


def cross_entropy(outputs, targets=Y):
    return F.cross_entropy(outputs, targets, reduction="none").detach().double().numpy()


class Patterns:
    """All 2^n patterns of strikes with their probabilities, and the losses of plain copies."""

    def __init__(self, n, p, loss_at):
        clean = loss_at((0,) * n)
        patterns = list(itertools.product((0, 1), repeat=n))
        self.clean = clean
        self.weights = np.array([p ** sum(s) * (1 - p) ** (n - sum(s)) for s in patterns])
        with np.errstate(invalid="ignore", over="ignore"):
            self.moved = np.nan_to_num(np.array([loss_at(s) - clean for s in patterns]), nan=np.inf)
            self.mean = self.weights @ self.moved
            self.variance = self.weights @ self.moved**2 - self.mean**2

    def tail(self, epsilon):
        return self.weights @ (np.abs(self.moved) >= epsilon)

    def check(self, found, epsilon, method="exact", rel=1e-4):
        assert self.variance.max() > 1e-8
        for b in range(self.moved.shape[1]):
            for quantity, wanted in (("mean", self.mean), ("variance", self.variance),
                                     ("tail", self.tail(epsilon))):  # fmt: skip
                value = found.find(method, quantity, b, "loss").value
                assert value == pytest.approx(wanted[b], rel=rel, abs=1e-7), (quantity, b)


def of_weights(net, name, loss=cross_entropy, x=X, faulty=lambda w, s: w * (1 - s)):
    """The losses of a copy of the network in which some weights are replaced."""

    def at(struck):
        other = copy.deepcopy(net)
        with torch.no_grad():
            weight = other.get_parameter(name)
            weight.copy_(faulty(weight, torch.tensor(struck).view(weight.shape)))
        return loss(other(x))

    return at


def test_weights():
    net = classifier()
    before = copy.deepcopy(net.state_dict())
    truth = Patterns(12, 0.2, of_weights(net, "2.weight"))
    found = score(
        net, X, WeightCrash(0.2), "2.weight", epsilon=0.2, outputs="loss", targets=Y, samples=4000
    )
    truth.check(found, 0.2)
    assert truth.tail(0.2).max() > 0.005
    clean, mean = truth.clean.mean(), truth.clean.mean() + truth.mean.mean()
    (metric,) = found.chips["metrics"]
    assert metric["name"] == "loss"
    assert metric["lower_is_better"]
    assert metric["clean"] == pytest.approx(clean, rel=1e-5)
    assert metric["mean"]["low"] <= mean <= metric["mean"]["high"]
    for method in ("monte-carlo", "chernoff", "chebyshev", "surrogate-law", "mean-point-curvature"):
        assert found.find(method, "tail", output="loss") or found.find(
            method, "mean", output="loss"
        )
    sampled = found.find("monte-carlo", "mean", output="loss")
    assert sampled.low <= truth.mean.mean() <= sampled.high
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_neurons_and_the_rare_tail_by_importance_sampling():
    net = classifier(hidden=10)

    def at(struck):
        hidden = torch.tanh(net[0](X)) * (1 - torch.tensor(struck))
        return cross_entropy(net[2](hidden))

    truth = Patterns(10, 0.02, at)
    epsilon = 0.6 * float(np.abs(truth.moved).max())
    assert 1e-9 < truth.tail(epsilon).mean() < 1e-3
    methods = ["exact", "importance-sampling", "mean-point-single", "pairs"]
    found = score(
        net, X, NeuronCrash(0.02), epsilon=epsilon, outputs="loss", targets=Y, methods=methods
    )
    truth.check(found, epsilon)
    rare = found.find("importance-sampling", "tail", output="loss")
    assert rare.low <= truth.tail(epsilon).mean() <= rare.high
    assert 0 < rare.high < 20 * rare.low


def test_bits_of_stored_words():
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 3)).eval()
    with torch.no_grad():
        net[0].weight.fill_(0.75)
    x, y, bits = torch.tensor([[0.5], [-1.5]]), torch.tensor([0, 2]), range(21, 31)

    def at(struck):
        word = np.array([0.75], np.float32).view(np.uint32)
        for bit, flips in zip(bits, struck, strict=True):
            word = word ^ np.uint32(flips << bit)
        other = copy.deepcopy(net)
        with torch.no_grad():
            other[0].weight.fill_(float(word.view(np.float32)[0]))
        with np.errstate(over="ignore"):
            return F.cross_entropy(other(x).double(), y, reduction="none").detach().numpy()

    truth = Patterns(10, 0.1, at)
    space = FaultSpace(
        net, x, BitFlip(0.1, format="float32", bits=list(bits)), "0.weight",
        outputs="loss", targets=y,
    )  # fmt: skip
    assert space.strikes_words
    assert space.K == 1
    with pytest.warns(CrashsimWarning, match="infinite, NaN or too large"):
        found = score(
            net, x, BitFlip(0.1, format="float32", bits=list(bits)), "0.weight", epsilon=0.5,
            outputs="loss", targets=y, methods=["exact", "monte-carlo"], samples=4000,
        )  # fmt: skip
    assert found.find("monte-carlo", "loss").value == math.inf
    for b in range(2):
        wanted = truth.tail(0.5)[b]
        assert 0.01 < wanted < 0.99
        assert found.find("exact", "tail", b, "loss").value == pytest.approx(wanted, abs=1e-9)
        sampled = found.find("monte-carlo", "tail", b, "loss")
        assert sampled.low <= wanted <= sampled.high


class Spiking(nn.Module):
    """Leaky integrate-and-fire neurons over a few steps, whose spikes are counted."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.into, self.spike, self.out = nn.Linear(3, 6), Threshold(), nn.Linear(6, 3)

    def forward(self, x):
        v, count = torch.zeros(len(x), 6), torch.zeros(len(x), 6)
        for _ in range(5):
            v = 0.8 * v + self.into(x)
            s = self.spike(v)
            v, count = v - s, count + s
        return self.out(count)


class Threshold(nn.Module):
    def forward(self, v):
        return (v > 0.5).to(v.dtype)


def test_spikes():
    net = Spiking().eval()
    truth = Patterns(6, 0.2, lambda s: cross_entropy(_spiking(net, torch.tensor(s))))
    found = score(
        net, X, NeuronCrash(0.2), "spike", epsilon=0.2, outputs="loss", targets=Y,
        methods=["exact", "monte-carlo"], samples=500,
    )  # fmt: skip
    truth.check(found, 0.2)


def _spiking(net, struck):
    v, count = torch.zeros(len(X), 6), torch.zeros(len(X), 6)
    for _ in range(5):
        v = 0.8 * v + net.into(X)
        s = (v > 0.5).float() * (1 - struck)
        v, count = v - s, count + s
    return net.out(count)


def squared(outputs, targets):
    return ((outputs - targets) ** 2).mean(1)


def margin(outputs, targets):
    """A loss of one's own, smooth and of other values."""
    others = outputs.logsumexp(1)
    return others - 2 * outputs.gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize(
    ("loss", "targets", "plain"),
    [
        (None, torch.linspace(-1, 1, 12).view(4, 3).double(), squared),
        ("mse", torch.linspace(-1, 1, 12).view(4, 3), squared),
        (squared, np.linspace(-1, 1, 12).reshape(4, 3), squared),
        (margin, Y, margin),
        ("cross-entropy", Y.double(), None),
    ],
)
def test_other_losses(loss, targets, plain):
    net, given = classifier(), torch.as_tensor(targets)

    def by_hand(outputs):
        return plain(outputs, given).detach().double().numpy()

    of = cross_entropy if plain is None else by_hand
    truth = Patterns(12, 0.1, of_weights(net, "0.weight", of))
    found = score(
        net, X, WeightCrash(0.1), "0.weight", epsilon=0.1, outputs="loss", loss=loss,
        targets=targets, methods=["exact", "taylor"],
    )  # fmt: skip
    truth.check(found, 0.1)


def test_classes_of_positions_leave_out_those_that_do_not_count():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv1d(1, 3, 2, padding=1), nn.Softmax(1)).eval()  # (B, 3, 5)
    x = torch.linspace(-1, 2, 8).view(2, 1, 4)
    y = torch.tensor([[0, 1, -100, 2, 2], [1, -100, -100, 0, 0]])

    def loss(outputs):
        each = F.nll_loss(outputs.log(), y, reduction="none", ignore_index=-100).sum(1)
        return (each / (y != -100).sum(1)).detach().double().numpy()

    truth = Patterns(6, 0.2, of_weights(net, "0.weight", loss, x))
    found = score(
        net, x, WeightCrash(0.2), "0.weight", epsilon=0.2, outputs="loss", targets=y,
        methods=["exact"],
    )  # fmt: skip
    truth.check(found, 0.2)


def test_taylor_is_the_gradient_of_the_loss():
    net = classifier()
    x = X.double()
    net = net.double()
    found = score(
        net, x, WeightCrash(1e-3), "weights", outputs="loss", targets=Y, methods=["taylor"]
    )
    weights = [net[0].weight, net[2].weight]
    for b in range(4):
        loss = F.cross_entropy(net(x[b : b + 1]), Y[b : b + 1])
        slopes = torch.autograd.grad(loss, weights)
        steps = [(-w * g).detach() for w, g in zip(weights, slopes, strict=True)]
        wanted = 1e-3 * (1 - 1e-3) * sum(float((s**2).sum()) for s in steps)
        got = found.find("taylor", "variance", b, "loss").value
        assert got == pytest.approx(wanted, rel=1e-6)
        assert wanted > 0


@pytest.mark.parametrize(
    ("faults", "sites"),
    [
        (NeuronCrash(0.02), "hidden"),
        (WeightCrash(0.02), "weights"),
        (BitFlip(0.001, format="float32"), "weights"),
        (NeuronCrash(0.1), "input"),
    ],
)
def test_the_same_numbers_by_every_way_to_compute_them(faults, sites):
    """Many samples together are those of faulty models, one by one, and of a space that was
    pickled."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    x, y = torch.randn(6, 1, 6, 6, generator=rng), torch.tensor([0, 1, 2, 3, 4, 0])
    space = FaultSpace(net, x, faults, sites, outputs="loss", targets=y)
    again = pickle.loads(pickle.dumps(space))
    together = space.outcomes(sample_block(space.placements, 5, 0).part(0, 30))
    moved = 0
    for index in range(30):
        sample = space.sample(5, index)
        with torch.no_grad():
            wanted = cross_entropy(sample.model()(x), y)
        moved += bool(np.abs(wanted - space.clean()[:, 0]).max() > 1e-4)
        for found in (together[index], sample.outputs, again.sample(5, index).outputs):
            assert found[:, 0] == pytest.approx(wanted, rel=1e-4, abs=1e-5, nan_ok=True)
    assert moved > 5


def test_a_record_calls_it_the_loss(tmp_path):
    net = classifier()
    found = score(
        net, X, NeuronCrash(0.1), epsilon=0.2, delta=0.1, outputs="loss", targets=Y, samples=2000
    )
    assert found.model["loss"] == "cross-entropy"
    shown = found.to_text(120) + found.to_html() + headline(found)
    assert "output 0" not in shown
    assert "the loss" in found.verdict
    assert "Without faults, loss is " in found.verdict
    plain = json.loads(json.dumps(found.to_dict()))
    assert {e["output"] for e in plain["estimates"]} == {"loss", "all"}
    assert "leave outputs='loss' out" in found.skipped["class-change"]
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert {row["output"] for row in rows} == {"loss", "all"}
    found.save(tmp_path / "s.json")
    read = Score.load(tmp_path / "s.json")
    assert read.to_dict() == found.to_dict()
    assert read.to_text() == found.to_text()
    assert read.find("exact", "tail", output="loss") == found.find("exact", "tail", output="loss")


def test_a_loss_that_faults_make_infinite_keeps_the_low_end_of_its_mean(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 3, bias=False))
        x = torch.randn(2, 2)
    flips = BitFlip(p=3e-3, format="float32")
    with pytest.warns(CrashsimWarning, match="infinite"):
        found = score(
            net.eval(), x, flips, "0.weight", outputs="loss", targets=Y[:2],
            samples=4000, methods=["monte-carlo"],
        )  # fmt: skip
    mean = found.chips["metrics"][0]["mean"]
    assert mean["value"] == math.inf
    assert 0 < mean["low"] < math.inf
    found.save(tmp_path / "s.json")
    assert Score.load(tmp_path / "s.json").to_text() == found.to_text()


@pytest.mark.parametrize("asked", [{"outputs": "loss"}, {"metrics": ["cross-entropy"]}])
def test_probabilities_that_faults_raise_above_one_have_a_loss_below_zero(asked):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1)).eval()
        x, y = torch.randn(6, 3), torch.tensor([0, 2, 1, 0, 1, 2])
    found = score(
        net, x, AdditiveNoise(std=1.0), "1", targets=y, samples=500, methods=["monte-carlo"],
        accept={next(iter(asked.get("metrics", ["loss"]))): 1.0}, **asked,
    )  # fmt: skip
    assert found.chips["metrics"][0]["percentiles"][0]["value"] < found.chips["metrics"][0]["clean"]


def test_proofs_and_layer_bounds_are_not_those_of_the_outputs():
    found = score(
        classifier(), X, NeuronCrash(0.1), epsilon=0.2, outputs="loss", targets=Y,
        methods=["norm", "absolute", "certificate", "exact"],
    )  # fmt: skip
    assert {"norm", "absolute", "certificate"} <= found.skipped.keys()
    assert all("its loss" in found.skipped[m] for m in ("norm", "certificate"))


def test_chips_are_judged_by_the_loss_on_all_examples():
    rng = torch.Generator().manual_seed(2)
    net, many = classifier(), torch.randn(40, 3, generator=rng)
    labels = torch.randint(0, 3, (40,), generator=rng)
    space = FaultSpace(net, many[:2], NeuronCrash(0.3), outputs="loss", targets=labels[:2])
    (found,) = chip_metrics(space, many, targets=labels, samples=300).estimates()
    patterns = Patterns(4, 0.3, lambda s: cross_entropy(
        net[2](torch.tanh(net[0](many)) * (1 - torch.tensor(s))), labels))  # fmt: skip
    wanted = (patterns.clean + patterns.mean).mean()
    assert abs(wanted - patterns.clean.mean()) > 1e-3
    assert found.low <= wanted <= found.high


def test_samples_of_the_loss_know_no_metric_of_outputs():
    space = FaultSpace(classifier(), X, NeuronCrash(0.3), outputs="loss", targets=Y)
    with pytest.raises(ArgumentError, match="leave outputs out"):
        monte_carlo(space, samples=50, metrics=["mse"], targets=Y)
    mean = monte_carlo(space, samples=50, metrics=["loss"], targets=Y).estimates
    found = [e for e in mean if e.quantity == "loss" and e.input == "all"]
    moved = [e for e in mean if e.quantity == "mean" and e.input == "all"]
    assert found[0].value == pytest.approx(space.clean().mean() + moved[0].value, rel=1e-6)


def test_plan_takes_what_score_takes():
    net = classifier()
    shown = plan(net, X, WeightCrash(0.1), "weights", 0.1, ["taylor"], outputs="loss", targets=Y)
    assert shown.methods == ("taylor",)
    assert shown.loss == shown.to_dict()["loss"] == "cross-entropy"
    assert "their loss (cross-entropy)" in shown.to_text()
    assert shown.coordinates == 24


def test_what_is_planned_of_the_loss_is_computed():
    options = {"epsilon": 0.1, "outputs": "loss", "targets": Y, "samples": 500}
    planned = plan(classifier(), X, NeuronCrash(0.1), **options)
    found = score(classifier(), X, NeuronCrash(0.1), **options)
    assert {"taylor", "monte-carlo", "exact"} <= set(planned.methods)
    assert not set(planned.methods) & found.skipped.keys()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"outputs": "loss"}, "give targets="),
        ({"outputs": "los", "targets": Y}, "numbers of outputs, or 'loss'"),
        ({"loss": "mse", "targets": Y}, "give outputs='loss'"),
        ({"outputs": "loss", "targets": Y, "loss": "hinge"}, "cross-entropy, mse"),
        ({"outputs": "loss", "targets": Y, "loss": "mse"}, "loss: 'mse' wants a number"),
        ({"outputs": "loss", "targets": Y + 1}, "loss: 'cross-entropy': targets hold the class 3"),
        ({"outputs": "loss", "targets": torch.linspace(0, 1, 4)}, "loss: 'cross-entropy'"),
        ({"outputs": "loss", "targets": Y, "loss": lambda o, t: o.sum()}, "a number for each"),
        ({"outputs": "loss", "targets": Y, "loss": lambda o, t: o[t, 7]}, "raised IndexError"),
        ({"outputs": "loss", "targets": Y, "metrics": ["accuracy"]}, "leave outputs out"),
        ({"outputs": "loss", "targets": Y, "accept": {"accuracy": 0.5}}, "leave outputs out"),
    ],
)
def test_what_is_refused(options, told):
    with pytest.raises(ArgumentError, match=told):
        score(classifier(), X, NeuronCrash(0.1), **options)


def test_one_output_and_whole_numbers_do_not_say_which_loss():
    net = classifier(classes=1)
    with pytest.raises(ArgumentError, match="say what the loss is"):
        FaultSpace(net, X, NeuronCrash(0.1), outputs="loss", targets=Y)
    space = FaultSpace(net, X, NeuronCrash(0.1), outputs="loss", targets=Y, loss="mse")
    wanted = (net(X)[:, 0] - Y) ** 2
    assert space.clean()[:, 0] == pytest.approx(wanted.detach().numpy(), rel=1e-6)
