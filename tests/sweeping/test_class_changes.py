"""Examples looked at by risk: their weights, and the curves of many examples and coordinates."""

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import AdditiveNoise, BitFlip, NeuronCrash
from crashsim.sweeping.examples_looked_at import LookedAt


def test_the_total_has_no_bias_and_its_error_is_told():
    rng = np.random.default_rng(0)
    true = rng.random((2, 300)) ** 8
    rough = true * np.exp(rng.normal(0, 0.7, true.shape))
    rough[:, ::7] = 0.0  # of some nothing is expected
    costs = rng.integers(1, 4, 300).astype(float)
    totals, errors, spent = [], [], []
    for _ in range(400):
        looked = LookedAt.by_risk(rough, costs, 150.0, rng)
        total, error = looked.total(rough, true[:, looked.which])
        totals.append(total)
        errors.append(error)
        spent.append(costs[looked.which].sum())
    off = np.mean(totals, 0) - true.sum(1)
    assert np.all(np.abs(off) < 4 * np.std(totals, 0) / 20)
    assert np.mean(spent) == pytest.approx(150.0, rel=0.03)
    # Spread over their risks, they are no farther off than examples chosen one by one.
    assert np.all(np.std(totals, 0) < 1.2 * np.sqrt(np.mean(np.square(errors), 0)))
    assert np.all(np.std(totals, 0) > 0)


def make_case():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(),
                            nn.Linear(48, 6)).eval()  # fmt: skip
        x = torch.randn(50, 32)
        with torch.no_grad():
            y = net(x).argmax(-1)
        y[::10] = (y[::10] + 1) % 6
    return net, x, y


@pytest.mark.parametrize("fault", [BitFlip(1e-4, format="int8"), NeuronCrash(1e-3)])
def test_looking_at_some_examples_tells_what_looking_at_all_does(fault, monkeypatch):
    net, x, y = make_case()
    sites = "weights" if isinstance(fault, BitFlip) else "hidden"
    options = {"rates": "1e-4:1e-2:3", "predict": True}
    monkeypatch.setattr("crashsim.sweeping.class_changes._SECONDS", 1e9)
    whole = crashsim.sweep(net, (x, y), fault, sites, **options)
    assert "looked at" not in whole.prediction
    monkeypatch.setattr("crashsim.sweeping.class_changes._SECONDS", 0.5)
    some = crashsim.sweep(net, (x, y), fault, sites, **options)
    assert "of 50 examples looked at" in some.prediction
    for point, other in zip(some.points, whole.points, strict=True):
        change = whole.clean - other["value"]
        assert whole.clean - point["value"] == pytest.approx(change, rel=0.3, abs=1e-9)
        assert change > 0
    again = crashsim.sweep(net, (x, y), fault, sites, **options)
    assert again.points == some.points


def flipped(net, p, rng):
    """The network with int8 words of all weights, of which each bit flips with p."""
    other = nn.Sequential(*(type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear)
                            else type(m)() for m in net)).eval()  # fmt: skip
    other.load_state_dict(net.state_dict())
    for layer in (m for m in other if isinstance(m, nn.Linear)):
        w = layer.weight.detach().numpy()
        scale = np.abs(w).max() / 127
        word = np.rint(w / scale).astype(np.int8).view(np.uint8)
        struck = np.packbits(rng.random((*w.shape, 8)) < p, axis=-1)[..., 0]
        moved = (word ^ struck).view(np.int8).astype(float) - word.view(np.int8)
        layer.weight.data += torch.from_numpy(moved * scale).float()
    return other


def test_int8_words_as_an_injector_of_xor_measures_them():
    net, x, y = make_case()
    rng, rates = np.random.default_rng(2), [1e-4, 1e-3]
    curve = crashsim.sweep(
        net, (x, y), BitFlip(1e-4, format="int8"), "weights", rates=rates, predict=True
    )
    with torch.no_grad(), torch.random.fork_rng():
        clean = float((net(x).argmax(-1) == y).double().mean())
        for point, chips in zip(curve.points, (600, 300), strict=True):
            rate = point["rate"]
            right = [
                float((flipped(net, rate, rng)(x).argmax(-1) == y).double().mean())
                for _ in range(chips)
            ]
            change, error = clean - np.mean(right), np.std(right) / np.sqrt(chips)
            assert change > 5 * error  # enough is seen
            assert clean - point["value"] == pytest.approx(change, abs=0.1 * change + 3 * error)


def test_noise_of_outputs_against_what_is_measured():
    net, x, y = make_case()
    curve = crashsim.sweep(
        net, (x, y), AdditiveNoise(0.01), "hidden", rates=[0.05, 0.2], chips=400, predict="beside"
    )
    for point in curve.points:
        change = curve.clean - point["value"]
        assert curve.clean - point["predicted"] == pytest.approx(change, rel=0.2)
        assert change > 0
