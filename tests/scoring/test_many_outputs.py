"""Scores of many outputs: named ones, small files, all numbers beside them."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import NeuronCrash, Score, score
from crashsim.errors import ArgumentError
from crashsim.results.listing import MOST


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5)).eval(), torch.randn(2, 3)


@pytest.fixture(scope="module")
def named(small):
    net, x = small
    methods = ["exact", "saddlepoint", "importance-sampling", "certificate", "linear-exact"]
    return score(
        net, x, NeuronCrash(0.1), epsilon=0.15, delta=0.1, outputs=[4, 1], methods=methods, seed=1
    )


def test_named_outputs_are_those_that_rare_events_and_certificates_take(named):
    assert named.named_outputs == [4, 1]
    for method in ("importance-sampling", "certificate", "linear-exact"):
        tails = [e for e in named.estimates if e.method == method and e.quantity == "tail"]
        assert {e.output for e in tails} == {1, 4}
        for e in tails:
            exact = named.find("exact", "tail", e.input, e.output).value
            assert exact > 0
            slack = 1e-6 if method != "importance-sampling" else 0.1 * exact
            assert e.low - slack <= exact <= e.high + slack
    changes = [e for e in named.estimates if e.method == "importance-sampling"]
    changes = [(e.input, e.output) for e in changes if e.quantity == "class-change"]
    assert len(changes) == len(set(changes)) == 3
    assert {f"output {k}" in answer.question for answer in named.answers for k in (1, 4)} == {
        True,
        False,
    }
    for k in (1, 4):
        assert any(f"output {k}|" in answer.question for answer in named.answers)


def test_one_that_varies_most_without_names(small):
    net, x = small
    found = score(net, x, NeuronCrash(0.1), epsilon=0.4, methods=["importance-sampling", "exact"])
    variances = [found.find("exact", "variance", output=k).value for k in range(5)]
    tails = {e.output for e in found.estimates
             if e.quantity == "tail" and e.method == "importance-sampling"}  # fmt: skip
    assert tails == {int(np.argmax(variances))}
    assert found.named_outputs == []


@pytest.mark.parametrize("outputs", [[5], [0, 0], [], "a", [0.5], [True]])
def test_outputs_that_are_none(small, outputs):
    with pytest.raises(ArgumentError, match="outputs="):
        score(*small, NeuronCrash(0.1), outputs=outputs)


@pytest.fixture(scope="module")
def large():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1200)).eval()
    return score(
        net, torch.randn(12, 3), NeuronCrash(0.1), samples=300, outputs=[7],
        methods=["monte-carlo", "mean-point-taylor"],
    )  # fmt: skip


def test_files_of_many_outputs_are_small_and_load(large, tmp_path):
    assert len(large.estimates) > MOST
    large.save(tmp_path / "s.json", arrays=tmp_path / "s.npz")
    assert (tmp_path / "s.json").stat().st_size < 1e6
    plain = json.loads((tmp_path / "s.json").read_text())
    loaded = Score.load(tmp_path / "s.json")
    assert plain["left_out"]
    assert loaded.left_out == large.to_dict()["left_out"]
    assert loaded.find("monte-carlo", "variance") == large.find("monte-carlo", "variance")
    assert loaded.to_dict() == {**large.to_dict(), "left_out": loaded.left_out}
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        index = json.loads(str(file["index"]))
        (name,) = (
            a["name"] for a in index
            if (a["method"], a["quantity"], a["axes"])
            == ("monte-carlo", "variance", ["input", "output"])
        )  # fmt: skip
        value = file[f"{name}.value"]
        assert value.shape == (12, 1200)
        for row, output in ((0, 0), (11, 1199), (5, 7)):
            assert large.find("monte-carlo", "variance", row, output).value == value[row, output]


@pytest.mark.parametrize("render", ["to_text", "to_html"])
def test_reports_of_many_outputs_are_short(large, render, tmp_path):
    large.save(tmp_path / "s.json")
    for one in (large, Score.load(tmp_path / "s.json")):
        told = getattr(one, render)()
        assert "nan" not in told.lower().replace("nano", "")
        assert len(told) < 500_000
    assert math.isfinite(large.find("monte-carlo", "variance").value)


def test_theory_of_every_output_beside_samples_of_some(monkeypatch):
    """Very many outputs: Monte Carlo has the numbers of each input for those that vary most."""
    from crashsim.sampling import monte_carlo as sampling
    from crashsim.scoring import variance_reduction

    for module in (sampling, variance_reduction):
        monkeypatch.setattr(module, "DENSE", 100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 150)).eval()
        x = torch.randn(4, 3)
    # The last outputs hardly vary, so that they are not among those.
    with torch.no_grad():
        net[2].weight[100:] *= 1e-3
    found = score(net, x, NeuronCrash(0.02), samples=2000,
                  methods=["monte-carlo", "mean-point-taylor"])  # fmt: skip
    of_mean = next(a for a in found.agreement if a.quantity == "mean")
    assert found.find("monte-carlo", "mean", 0, 149) is None
    assert found.find("mean-point-taylor", "mean", 0, 149) is not None
    assert of_mean.inside > 0.7
    assert found.to_html()
    assert found.to_text()
