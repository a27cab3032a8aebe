"""On a GPU: samples are drawn on the CPU, so a score there is the CPU's but for rounding."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import AdditiveNoise, BitFlip, FaultSpace, GainNoise, NeuronCrash, WeightCrash
from crashsim.analytic.sampled_singles import sampled_singles
from crashsim.coordinates.drawing import sample_points

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def mlp(*sizes, act=nn.ReLU):
    layers = [
        layer
        for before, after in itertools.pairwise(sizes)
        for layer in (nn.Linear(before, after), act())
    ]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU()

    def forward(self, x):
        return self.act(x + self.b(self.act(self.a(x))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Branching(nn.Module):
    """Not to be traced: it runs as a whole."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)

    def forward(self, x):
        h = self.act(self.a(x))
        return self.b(h) if float(x.sum()) < 1e9 else self.b(-h)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3))


WORDS = BitFlip(1e-2, format="float32", bits=[20, 23, 31])
CASES = {
    "rare neurons": (lambda: mlp(6, 40, 30, 3), (4, 6), NeuronCrash(0.01), "hidden"),
    "many neurons": (lambda: mlp(6, 40, 30, 3), (4, 6), NeuronCrash(0.3), "hidden"),
    "smooth": (lambda: mlp(6, 20, 3, act=nn.Tanh), (4, 6), NeuronCrash(0.02), "hidden"),
    "rare weights": (lambda: mlp(6, 40, 3), (3, 6), WeightCrash(0.01), "weights"),
    "many weights": (lambda: mlp(6, 10, 3), (3, 6), WeightCrash(0.3), "weights"),
    "bits": (lambda: mlp(6, 8, 3), (3, 6), BitFlip(1e-2, bits=4), "weights"),
    "words": (lambda: mlp(6, 8, 3), (3, 6), WORDS, "weights"),
    "words of neurons": (lambda: mlp(6, 8, 3), (3, 6), WORDS, "hidden"),
    "gain": (lambda: mlp(6, 12, 3), (3, 6), GainNoise(0.1), "hidden"),
    "additive": (lambda: mlp(6, 12, 3), (3, 6), AdditiveNoise(0.1), "input"),
    "residual": (Residual, (3, 6), NeuronCrash(0.05), "act*"),
    "convolution": (convolutional, (2, 1, 12, 12), NeuronCrash(0.01), "hidden"),
    "channels": (convolutional, (2, 1, 12, 12), NeuronCrash(0.1, group="channel"), "hidden"),
    "filters": (convolutional, (2, 1, 12, 12), WeightCrash(0.01), "weights"),
    "recurrent": (Recurrent, (3, 4, 5), NeuronCrash(0.05), "hidden"),
    "recurrent weights": (Recurrent, (3, 4, 5), WeightCrash(0.05), "weights"),
    "encoder": (encoder, (2, 3, 8), NeuronCrash(0.02), "hidden"),
    "untraceable": (Branching, (3, 6), NeuronCrash(0.1), "hidden"),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def on_both(case, dtype=torch.float64):
    """The model and its inputs on the CPU and on the GPU, and the faults."""
    build, shape, faults, sites = case
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, other = build().to(dtype).eval(), build().to(dtype).eval()
        inputs = torch.randn(*shape, dtype=dtype)
    other.load_state_dict(model.state_dict())
    return (model, inputs), (other.cuda(), inputs.cuda()), faults, sites


@cases
def test_samples_agree(case):
    here, there, faults, sites = on_both(case)
    spaces = [FaultSpace(*pair, faults, sites) for pair in (here, there)]
    points = sample_points(spaces[0].placements, 5, 300)
    one, other = (space.outputs(points) for space in spaces)
    assert np.abs(one - spaces[0].clean()).max() > 1e-3
    np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-9)
    assert [line.partition(":")[0] for line in spaces[0].plan()] == [
        line.partition(":")[0] for line in spaces[1].plan()
    ]


@pytest.mark.filterwarnings("ignore::crashsim.CrashsimWarning")
@cases
def test_scores_agree(case):
    here, there, faults, sites = on_both(case)
    more = {"epsilon": 0.2, "samples": 1000, "seed": 11}
    one, other = (crashsim.score(*pair, faults, sites, **more) for pair in (here, there))
    assert [(e.method, e.quantity, e.input, e.output) for e in one.estimates] == [
        (e.method, e.quantity, e.input, e.output) for e in other.estimates
    ]
    for a, b in zip(one.estimates, other.estimates, strict=True):
        assert b.value == pytest.approx(a.value, rel=1e-5, abs=1e-7), a
    assert one.skipped == other.skipped
    assert next(there[0].parameters()).device.type == "cuda"


@pytest.mark.parametrize("name", ["smooth", "many weights", "convolution"])
def test_penalties_and_their_gradients_agree(name):
    here, there, faults, sites = on_both(CASES[name])
    found = []
    for model, inputs in (here, there):
        penalty = crashsim.CrashVariance(model, faults, sites)
        value = penalty(model(inputs))
        value.backward()
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        found.append((float(value), gradients))
        penalty.remove()
    assert found[0][0] > 0
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-8)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["many neurons", "many weights"])
def test_crash_training_takes_a_step(name):
    _, (model, inputs), faults, sites = on_both(CASES[name])
    with crashsim.CrashTraining(model, faults, sites, seed=1):
        model.train()
        outputs = model(inputs)
        outputs.square().sum().backward()
    assert outputs.device.type == "cuda"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    assert not torch.equal(model(inputs), outputs)


def test_half_precision_runs_there():
    _, (model, inputs), faults, sites = on_both(CASES["many neurons"], torch.float16)
    score = crashsim.score(model, inputs, faults, sites, samples=500, methods=["monte-carlo"])
    assert score.find("monte-carlo", "variance").value > 0


def test_many_single_faults_around_the_mean_point_do_not_add_up_rounding():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(16, 1, 8, 8)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(288, 32),
            nn.ReLU(),
            nn.Linear(32, 5),
        ).eval()
    fault = BitFlip(p=1e-3, format="int8")
    found = {}
    for device in ("cpu", "cuda"):
        space = FaultSpace(net.to(device), x.to(device), fault, "weights")
        estimates = sampled_singles(space, "mean-point-single")
        found[device] = np.array([e.value for e in estimates if e.quantity == "mean"])
    size = np.abs(found["cpu"]).max()
    assert size > 1e-3
    np.testing.assert_allclose(found["cuda"], found["cpu"], atol=0.1 * size)
