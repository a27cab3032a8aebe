"""What chips leave open of a predicted curve, against all 2^9 patterns of faults."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import Curve, FaultSpace, GainNoise, NeuronCrash
from crashsim.model.labelled import read_labelled
from crashsim.sweeping.checked import check_prediction
from crashsim.sweeping.nested import NestedChips

NEURONS = 9
RATES = (0.01, 0.1, 0.4)


def make_case(examples, steepness):
    """A network that is far from linear in its faults, and its accuracy under each pattern."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Linear(6, NEURONS), nn.ReLU(), nn.Linear(NEURONS, 12), nn.Tanh(), nn.Linear(12, 3)
        ).eval()
        x = torch.randn(examples, 6)
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=NEURONS)))
    with torch.no_grad():
        net[2].weight *= steepness
        net[4].bias -= net(x).mean(0)
        y = net(x).argmax(-1)
        y[::7] = (y[::7] + 1) % 3
        outputs = net[2:](torch.relu(net[0](x)) * (1 - patterns)[:, None])
    right = (outputs.argmax(-1) == y).double().mean(1).numpy()
    return net, x, y, patterns.sum(1).numpy(), right


@pytest.fixture(scope="module")
def bent():
    return make_case(40, 8.0)


@pytest.fixture(scope="module")
def many():
    return make_case(400, 8.0)


def truth(case, p):
    return p ** case[3] * (1 - p) ** (NEURONS - case[3]) @ case[4]


def predicted(case, seed, **options):
    net, x, y = case[:3]
    given = {"rates": RATES, "predict": True, "seed": seed} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", crashsim.CrashsimWarning)  # that it is off
        return crashsim.sweep(net, (x, y), NeuronCrash(0.1), "1", **given)


def by_both(case, rate, e):
    """(S, B) whether patterns e are right by the Jacobian at the mean point, and in truth."""
    net, x, y = case[:3]
    hidden, rest = torch.relu(net[0](x)).double().detach(), net[2:].double()

    def outputs(at):
        return rest(hidden * (1 - at))

    mean = torch.full((NEURONS,), rate, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(outputs, mean)
    said = outputs(mean) + torch.einsum("bki,si->sbk", slopes, e - mean)
    real = rest(hidden * (1 - e)[:, None])
    net.float()
    return (said.argmax(-1) == y).double(), (real.argmax(-1) == y).double()


def checked(case, seed, chips=24):
    net, x, y = case[:3]
    pilots = NestedChips.of(
        FaultSpace(net, x, NeuronCrash(0.1), "1"), RATES, seed, chips, chips, True
    )
    examples = read_labelled((x, y), None, net)
    return check_prediction(pilots, examples, lambda part, t: t.reshape(-1), 2**31, 0.05)


def covered(case, seeds):
    """Shares of seeds whose intervals, and whose band, hold what the surrogate gets wrong."""
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=NEURONS))).double()
    true = []
    for rate in RATES:
        said, real = by_both(case, rate, patterns)
        weights = rate ** case[3] * (1 - rate) ** (NEURONS - case[3])
        true.append(weights @ (said - real).mean(1).numpy())
    assert max(np.abs(true)) > 0.02
    hits = np.zeros(2)
    for seed in seeds:
        found = checked(case, seed)
        error = np.abs(found.off - true)
        hits += [(error <= found.half).mean(), (error <= found.shared).all()]
    return hits / len(seeds)


@pytest.mark.parametrize("name", ["bent", "many"])
def test_intervals_hold_what_the_surrogate_gets_wrong(request, name):
    hits = covered(request.getfixturevalue(name), range(40))
    assert (hits >= 0.86).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bent", "many"])
def test_coverage_of_400_seeds(request, name):
    hits = covered(request.getfixturevalue(name), range(400))
    assert (hits >= 0.94).all()


def test_what_is_told_holds_where_the_prediction_is_wrong(bent):
    curve = predicted(bent, 0)
    off = []
    for point in curve.points:
        true = truth(bent, point["rate"])
        off.append(abs(point["value"] - true) / (curve.clean - true))
        assert point["band_low"] <= true <= point["band_high"]
    assert max(off) > 0.15
    assert "24 chips on 40 examples" in curve.prediction


def test_more_chips_leave_less_open(bent):
    few, more = (predicted(bent, 1, check=n).points[1] for n in (10, 400))
    assert more["high"] - more["low"] < 0.7 * (few["high"] - few["low"])
    assert more["low"] <= truth(bent, 0.1) <= more["high"]


def test_a_surrogate_that_is_right_is_left_alone():
    net, x, *_ = make_case(40, 1.0)
    with torch.random.fork_rng():
        linear = nn.Sequential(net[0], net[1], nn.Linear(NEURONS, 3)).eval()
    with torch.no_grad():
        y = linear(x).argmax(-1)
    curve = crashsim.sweep(linear, (x, y), NeuronCrash(0.1), "1", rates=RATES, predict=True)
    assert not curve.warnings
    for p in curve.points:
        # What one more chip may show is left open, no more.
        assert p["band_low"] <= p["low"] < p["value"] < p["high"] <= p["band_high"]


def test_a_wrong_prediction_is_told(bent):
    net, x, y = bent[:3]
    with pytest.warns(crashsim.CrashsimWarning, match="off at rates"):
        crashsim.sweep(net, (x, y), NeuronCrash(0.1), "1", rates=RATES, predict=True, check=300)


def test_both_ways_are_those_of_the_model_and_its_jacobian(bent):
    net, x = bent[:2]
    chips = NestedChips.of(FaultSpace(net, x, NeuronCrash(0.1), "1"), RATES, 5, 30, 30, True)
    found = checked(bent, 5, chips=30)
    for k, rate in enumerate(RATES):
        e = torch.from_numpy(chips.points(0)[k].dense()).double()
        said, real = by_both(bent, rate, e)
        assert found.off[k] == pytest.approx(float((said - real).mean()), abs=1e-9)
    assert np.abs(found.off).max() > 0.01


def test_gains_that_are_not_kept_say_the_same(bent, monkeypatch):
    plain = predicted(bent, 2)
    monkeypatch.setattr("crashsim.analytic.gains.KEPT", 0.0)
    again = predicted(bent, 2)
    for one, other in zip(plain.points, again.points, strict=True):
        assert one["low"] == pytest.approx(other["low"], abs=1e-6)


def test_no_chip_is_asked_for(bent, tmp_path):
    bare = predicted(bent, 0, check=0)
    assert all(np.isnan(p["low"]) for p in bare.points)
    assert "no chip checked it" in bare.prediction
    checked = predicted(bent, 0)
    assert [p["value"] for p in bare.points] == [p["value"] for p in checked.points]
    checked.save(tmp_path / "it.json")
    assert Curve.load(tmp_path / "it.json") == checked
    text = " ".join(str(checked).split())
    assert "intervals by the chips that check it" in text
    assert "band" in text
    assert checked.to_html().count("<svg") == 1


def test_noise_is_checked_too(bent):
    net, x, y = bent[:3]
    curve = crashsim.sweep(net, (x, y), GainNoise(0.1), "1", rates=[0.1, 0.5], predict=True)
    plain = crashsim.sweep(net, (x, y), GainNoise(0.1), "1", rates=[0.1, 0.5], chips=2000)
    for one, other in zip(curve.points, plain.points, strict=True):
        assert one["band_low"] <= other["high"]
        assert other["low"] <= one["band_high"]
