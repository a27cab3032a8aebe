"""``crashsim harden --train``: a network of the user's, from the command line."""

import json

import pytest
import torch

CODE = """
import torch
import torch.nn.functional as F
from torch import nn
from crashsim.files.data import load_data
from crashsim.training.menu.ways import Nothing

def factory():
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))

calls = []

def train(model, penalty):
    data = load_data("digits", "train")
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(3):
        for chosen in torch.randperm(len(data.inputs)).split(64):
            optimiser.zero_grad()
            outputs = model(data.inputs[chosen])
            (F.cross_entropy(outputs, data.targets[chosen]) + penalty(outputs)).backward()
            optimiser.step()

def stopped(model, penalty):
    calls.append(1)
    if len(calls) == 2:
        raise KeyboardInterrupt
    train(model, penalty)

def broken(model, penalty):
    return model.missing

class Own(Nothing):
    name = "my own"

OWN = Own()
NUMBER = 3
"""


@pytest.fixture
def harden(run, tmp_path, monkeypatch):
    """Runs the command; returns its exit code, and all that it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text(CODE)

    def call(*arguments):
        code, out, err = run("harden", *arguments)
        return code, " ".join((out + err).split())

    return call


FACTORY = ("code.py:factory", "--chips", "30", "--p", "0.1")


def test_a_factory_and_its_training(harden, run, tmp_path):
    code, told = harden(
        *FACTORY,
        "--train",
        "code.py:train",
        "--target",
        "0.6",
        "--way",
        "penalty=0.1",
        "--way",
        "median=3",
        "--way",
        "narrow-weights=0.4+crash-training",
        "--way",
        "clip",
        "--way",
        "code.py:OWN",
        "--json",
        "h.json",
        "--report",
        "h.html",
        "--out",
        "net",
    )
    assert code == 0, told
    plain = json.loads((tmp_path / "h.json").read_text())
    assert plain["reached"]
    assert [way["name"] for way in plain["ways"]] == [
        "nothing",
        "penalty 0.1",
        "median of 3",
        "weights within 0.4 + crash training",
        "clip",
        "my own",
    ]
    assert all(way["refused"] == "" for way in plain["ways"])
    assert plain["chosen"] in told
    assert "Ways to harden code.py:factory" in (tmp_path / "h.html").read_text()
    assert run("report", "h.json", "--out", "again.html")[0] == 0
    assert (tmp_path / "again.html").read_text() == (tmp_path / "h.html").read_text()
    with torch.random.fork_rng(devices=[]):  # from which the factory draws
        code, _, err = run(
            "score",
            "code.py:factory",
            "--weights",
            "net.safetensors",
            "--samples",
            "50",
            "--methods",
            "monte-carlo",
            "--json",
            "s.json",
        )
    assert code == 0, err
    clean = next(
        m
        for m in json.loads((tmp_path / "s.json").read_text())["chips"]["metrics"]
        if m["name"] == "accuracy"
    )["clean"]
    assert clean > 0.7  # trained weights, not those that the factory starts from


def test_what_is_not_reached_fails(harden, tmp_path):
    code, _ = harden(
        *FACTORY,
        "--train",
        "code.py:train",
        "--target",
        "0.9999",
        "--way",
        "penalty",
        "--json",
        "h.json",
    )
    assert code == 1
    assert not json.loads((tmp_path / "h.json").read_text())["reached"]


def test_an_architecture_is_trained_by_its_recipe(harden, tmp_path):
    code, told = harden(
        "64-20-10:relu",
        "--epochs",
        "3",
        "--way",
        "penalty=0.1",
        "--chips",
        "20",
        "--equal",
        "operations",
        "--epsilon",
        "6",
        "--delta",
        "0.2",
        "--p",
        "0.05",
        "--json",
        "h.json",
    )
    assert code == 0, told
    plain = json.loads((tmp_path / "h.json").read_text())
    assert plain["metric"] == "P(|Δ| ≥ 6)"
    assert plain["equal"] == "operations"
    assert plain["ways"][0]["training"]["examples"] >= plain["ways"][1]["training"]["examples"]


def test_ctrl_c_keeps_the_best_so_far(harden, tmp_path):
    code, told = harden(
        *FACTORY,
        "--train",
        "code.py:stopped",
        "--target",
        "0.6",
        "--way",
        "penalty",
        "--json",
        "h.json",
        "--out",
        "net",
    )
    assert code == 130
    plain = json.loads((tmp_path / "h.json").read_text())
    assert plain["partial"]
    assert not plain["reached"]
    assert [way["name"] for way in plain["ways"]] == ["nothing"]
    assert (tmp_path / "net.safetensors").exists()
    assert "interrupted" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*FACTORY, "--target", "0.9"), "train: missing"),
        ((*FACTORY, "--train", "code.py:nothing"), "no such name"),
        ((*FACTORY, "--train", "code.py:NUMBER"), "NUMBER' is int"),
        ((*FACTORY, "--train", "nowhere.py:train"), "does not exist"),
        ((*FACTORY, "--train", "train"), "path.py:train"),
        ((*FACTORY, "--train", "code.py:broken"), "AttributeError"),
        ((*FACTORY, "--train", "code.py:train", "--way", "luck"), "not known"),
        ((*FACTORY, "--train", "code.py:train", "--way", "penalty=much"), "no number"),
        ((*FACTORY, "--train", "code.py:train", "--way", "secded=3"), "not known"),
        ((*FACTORY, "--train", "code.py:train", "--way", "code.py:NUMBER"), "not a crashsim.Way"),
        ((*FACTORY, "--train", "code.py:train", "--json", "code.py"), "overwrite"),
        (
            (*FACTORY, "--train", "code.py:train", "--max-width", "4"),
            "max-width=4.0: has no effect",
        ),
        ((*FACTORY, "--train", "code.py:train", "--epochs", "4"), "epochs=4: has no effect"),
        ((*FACTORY[:1], "--train", "code.py:train", "--chips", "0"), "chips=0"),
        (("64-20-10", "--chips", "9", "--method", "paper"), "method='paper': has no effect"),
        (("64-20-10",), "give both, or --target"),
        (("64-20-10", "--share", "0.9"), "share=0.9"),
    ],
)
def test_wrong_use(harden, arguments, words):
    code, told = harden(*arguments)
    assert code == 2, told
    assert words in told
    assert "Traceback" not in told


def test_rates_of_a_nir_graph_that_pass_a_spike_a_step_are_told(harden, tmp_path):
    import numpy as np

    nir = pytest.importorskip("nir")
    weight = np.full((3, 4), 2.0)
    graph = nir.NIRGraph(
        nodes={
            "input": nir.Input(np.array([4])),
            "affine": nir.Affine(weight, np.zeros(3)),
            "if": nir.IF(r=np.ones(3), v_threshold=np.ones(3), v_reset=np.zeros(3)),
            "output": nir.Output(np.array([3])),
        },
        edges=[("input", "affine"), ("affine", "if"), ("if", "output")],
    )
    nir.write(tmp_path / "net.nir", graph)
    np.savez(tmp_path / "d.npz", inputs=np.ones((6, 4), np.float32), targets=np.arange(6) % 3)
    (tmp_path / "more.py").write_text(
        "def train(model, penalty):\n"
        "    import torch\n"
        "    with torch.no_grad():\n"
        "        [p.mul_(1.01) for p in model.parameters()]\n"
    )
    _, told = harden(
        "net.nir",
        "--train",
        "more.py:train",
        "--data",
        "d.npz",
        "--chips",
        "10",
        "--way",
        "median=3",
        "--p",
        "0.1",
        "--exporter",
        "nir",
        "--reset",
        "subtract",
    )
    assert "above 1 spike a step" in told, told


def test_torch_s_generator_is_put_back(harden):
    before = torch.get_rng_state()
    harden(*FACTORY, "--train", "code.py:train", "--way", "penalty")
    assert torch.equal(before, torch.get_rng_state())
