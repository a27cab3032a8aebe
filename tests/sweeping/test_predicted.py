"""The predicted curve against all patterns of faults of networks whose output is linear in them."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import BitFlip, NeuronCrash, WeightCrash
from crashsim.errors import ArgumentError, NotApplicableError

NEURONS, EXAMPLES = 9, 30
RATES = (0.002, 0.05, 0.3)


def make_case(classes):
    """Crashes before the last layer, which is linear: outputs under each of the 2^9 patterns."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(nn.Linear(6, NEURONS), nn.ReLU(), nn.Linear(NEURONS, classes)).eval()
        x = torch.randn(EXAMPLES, 6)
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=NEURONS))).double()
    with torch.no_grad():
        y = net(x).argmax(-1)
        y[::5] = (y[::5] + 1) % classes  # faults may mend these
        hidden = torch.relu(net[0](x)).double() * (1 - patterns)[:, None]
        outputs = hidden @ net[2].weight.T.double() + net[2].bias.double()
    return net, x, y, patterns.sum(1).numpy(), outputs.argmax(-1).numpy()


@pytest.mark.parametrize(
    ("classes", "room", "metric"),
    [
        (2, 0.011, "accuracy"),
        (5, 0.06, "accuracy"),
        (3, 0.05, "error-rate"),
        (2, 0.011, "class-change"),
    ],
)
def test_the_prediction_is_the_exact_mean_of_a_linear_output(classes, room, metric):
    net, x, y, dead, predicted = make_case(classes)
    wanted = {
        "accuracy": predicted == y.numpy(),
        "error-rate": predicted != y.numpy(),
        "class-change": predicted != predicted[0],
    }[metric].mean(1)
    curve = crashsim.sweep(
        net, (x, y), NeuronCrash(0.1), "1", rates=RATES, metric=metric, predict=True
    )
    assert not curve.is_measured
    assert curve.clean == pytest.approx(wanted[0])
    moved = 0.0
    for point in curve.points:
        true = point["rate"] ** dead * (1 - point["rate"]) ** (NEURONS - dead) @ wanted
        assert point["kind"] == "estimate"
        change = abs(true - curve.clean)
        # Examples that hardly count are left out, to a percent of what all add up to.
        assert point["value"] == pytest.approx(true, abs=room * change + 1e-9)
        moved = max(moved, change)
    assert moved > 0.03


def test_several_rivals_are_told_to_some_percent_of_the_change():
    net, x, y, dead, predicted = make_case(5)
    curve = crashsim.sweep(net, (x, y), NeuronCrash(0.1), "1", rates=[0.01], predict=True)
    wanted = (predicted == y.numpy()).mean(1)
    true = 0.01**dead * 0.99 ** (NEURONS - dead) @ wanted
    assert curve.points[0]["value"] - curve.clean == pytest.approx(true - curve.clean, rel=0.06)


def test_targets_of_every_shape_and_in_every_piece(monkeypatch):
    net, x, y, *_ = make_case(3)
    options = {"rates": [0.1], "metric": "accuracy", "predict": True}
    plain = crashsim.sweep(net, (x, y), NeuronCrash(0.1), "1", **options)
    for same in (y[:, None], y.double(), y[:, None].float()):
        found = crashsim.sweep(net, (x, same), NeuronCrash(0.1), "1", **options)
        assert (found.points, found.clean) == (plain.points, plain.clean)
    monkeypatch.setattr("crashsim.sweeping.predicted._DENSE", 1)  # pieces of 16 examples
    for wrong in (9, -1, -100):
        late = y.clone()
        late[-3:] = wrong
        with pytest.raises(ArgumentError, match=str(wrong)):
            crashsim.sweep(net, (x, late), NeuronCrash(0.1), "1", **options)


def test_beside_what_is_measured():
    net, x, y, *_ = make_case(3)
    options = {"rates": RATES, "chips": 400, "seed": 1}
    curve = crashsim.sweep(net, (x, y), NeuronCrash(0.1), "1", predict="beside", **options)
    plain = crashsim.sweep(net, (x, y), NeuronCrash(0.1), "1", **options)
    for point, other in zip(curve.points, plain.points, strict=True):
        assert point["band_low"] <= point["predicted"] <= point["band_high"]
        assert {**point, "predicted": None} == other
    assert not curve.warnings
    assert "predicted" in curve.to_text(80)


def test_a_prediction_that_does_not_hold_is_told():
    """A saturated network whose single faults do nothing: the surrogate is blind."""
    with torch.random.fork_rng(), torch.no_grad():
        net = nn.Sequential(nn.Linear(1, 6), nn.Sigmoid(), nn.Linear(6, 1), nn.Hardtanh(),
                            nn.Linear(1, 2)).eval()  # fmt: skip
        for layer, weight, bias in ((0, 0.0, 40.0), (2, 2.0, -5.0), (4, 0.0, 0.0)):
            net[layer].weight.fill_(weight)
            net[layer].bias.fill_(bias)
        net[4].weight[0] = 1.0
    x, y = torch.ones(4, 1), torch.zeros(4, dtype=torch.long)
    with pytest.warns(crashsim.CrashsimWarning, match="outside the measured band"):
        curve = crashsim.sweep(
            net, (x, y), NeuronCrash(0.1), "1", rates=[0.05, 0.3], chips=600, predict="beside"
        )
    assert curve.points[1]["value"] < 0.97


@pytest.mark.parametrize(
    ("fault", "metric", "told"),
    [(WeightCrash(0.1), "cross-entropy", "cross-entropy"), (BitFlip(0.1), "mse", "mse")],
)
def test_what_theory_does_not_predict_is_refused(fault, metric, told):
    net, x, y, *_ = make_case(3)
    targets = torch.zeros(EXAMPLES, 3) if metric == "mse" else y
    with pytest.raises(NotApplicableError, match=told):
        crashsim.sweep(
            net, (x, targets), fault, "weights", rates=RATES, metric=metric, predict=True
        )


def test_words_of_weights_and_many_faults():
    """Bits of words that add up: about what is measured."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 4)).eval()
        x = torch.randn(60, 20)
    y = net(x).argmax(-1)
    fault = BitFlip(1e-3, bits=8)
    curve = crashsim.sweep(
        net, (x, y), fault, "weights", rates=[1e-4, 1e-3], chips=800, predict="beside"
    )
    for point in curve.points:
        lost = 1 - point["value"]
        assert 1 - point["predicted"] == pytest.approx(lost, rel=0.3)
    assert np.all([p["predicted"] < 1 for p in curve.points])
