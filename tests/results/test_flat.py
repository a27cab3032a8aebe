"""Flat dicts of numbers, for trackers of experiments."""

import re

import torch

import crashsim
from crashsim import NeuronCrash


def _given():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
        ).eval()
        return net, torch.randn(9, 4), torch.arange(9) % 3


def test_the_numbers_of_a_score_are_those_of_its_estimates():
    net, x, y = _given()
    score = crashsim.score(net, x, NeuronCrash(p=0.1), targets=y, samples=200)
    numbers = score.metrics()
    accuracy = score.find("monte-carlo", "accuracy")
    assert numbers["monte-carlo/accuracy"] == accuracy.value
    assert numbers["monte-carlo/accuracy.low"] == accuracy.low < accuracy.value
    assert numbers["monte-carlo/accuracy.high"] == accuracy.high
    assert numbers["exact/variance"] == score.find("exact", "variance").value > 0
    assert all(type(value) is float for value in numbers.values())
    assert all(re.fullmatch(r"[\w\-./ ]+", name) for name in numbers)


def test_the_numbers_of_a_curve_are_those_of_its_points():
    net, x, y = _given()
    curve = crashsim.sweep(net, (x, y), NeuronCrash(p=0.1), rates=[0.001, 0.1], chips=50)
    numbers = curve.metrics()
    assert set(numbers) == {"accuracy/clean"} | {
        f"accuracy/{rate}{end}" for rate in ("0.001", "0.1") for end in ("", ".low", ".high")
    }
    for point in curve.points:
        assert numbers[f"accuracy/{point['rate']:g}"] == point["value"]
        assert numbers[f"accuracy/{point['rate']:g}.low"] == point["low"]
    assert numbers["accuracy/clean"] == curve.clean
    predicted = crashsim.sweep(
        net, (x, y), NeuronCrash(p=0.1), rates=[0.001, 0.1], predict=True, check=0
    ).metrics()
    assert "accuracy/0.1" in predicted
    assert "accuracy/0.1.low" not in predicted
