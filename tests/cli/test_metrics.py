"""Metrics on the command line: targets, names, widths, accepted chips."""

import json
from pathlib import Path

import numpy as np
import pytest

from crashsim.cli.metrics import read_numbers, read_widths
from crashsim.errors import ArgumentError

NET = """
import torch
from torch import nn
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return made()
def made():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
"""
SCORE = ("score", "m.py:net", "--fault", "1=neuron-crash:p=0.2", "--methods", "monte-carlo")


@pytest.fixture
def folder(tmp_path):
    """A network, examples without labels and with them, and labels alone."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("f4"), rng.integers(0, 3, 60)
    (tmp_path / "m.py").write_text(NET)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    for name in ("y", "labels", "targets"):
        np.savez(tmp_path / f"{name}.npz", x=x, **{name: y})
    np.savez(tmp_path / "none.npz", x=x)
    np.savez(tmp_path / "wide.npz", x=x, y=rng.normal(size=(60, 3)))
    return tmp_path


def scored(run, *line):
    code, out, err = run(*SCORE, *line, "--samples", 60, "--json", "s.json")
    assert code == 0, err
    return out, json.loads(Path("s.json").read_text(encoding="utf-8"))


def test_targets_come_with_the_data_or_beside_them(run, folder):
    texts, found = [], []
    for data in ("y.npz", "labels.npz", "targets.npz", "x.npy", "none.npz"):
        beside = ("--targets", "y.npy") if data in ("x.npy", "none.npz") else ()
        out, plain = scored(run, "--inputs", data, *beside)
        texts.append(out)
        found.append(plain["chips"])
    assert all(chips == found[0] for chips in found)
    assert found[0]["examples"] == 60
    assert [m["name"] for m in found[0]["metrics"]] == ["accuracy", "sdc-1", "due"]
    first = found[0]["metrics"][0]
    assert first["mean"]["low"] < first["mean"]["value"] < first["mean"]["high"]
    # Accuracy comes first, then movement.
    words = texts[0].replace("│", " ").split()
    told = " ".join(words)
    assert told.index("accuracy goes from") < told.index("std of all")


def test_virtual_chips_say_what_they_were_worth(run, folder):
    _, plain = scored(run, "--inputs", "y.npz", "--metric", "accuracy", "--virtual", "4000")
    found = [
        e for e in plain["estimates"] if (e["method"], e["quantity"]) == ("monte-carlo", "accuracy")
    ]
    assert found[0]["worth"] > 0
    assert found[0]["low"] <= found[0]["value"] <= found[0]["high"]
    code, _, err = run(*SCORE, "--inputs", "y.npz", "--virtual", "1")
    assert code == 2, err


def test_metrics_by_name_with_widths_and_accepted_chips(run, folder):
    line = ("--inputs", "y.npz", "--metric", "accuracy", "--metric", "top-2", "--metric", "sdc-1")
    out, plain = scored(run, *line, "--accept", "top-2=0.5", "--accept", "sdc-1=0.3")
    metrics = {m["name"]: m for m in plain["chips"]["metrics"]}
    assert list(metrics) == ["accuracy", "top-2", "sdc-1"]
    assert metrics["top-2"]["accepted"]["level"] == 0.5
    assert metrics["sdc-1"]["accepted"]["level"] == 0.3
    assert metrics["sdc-1"]["lower_is_better"]
    assert "top-2" in out
    code, _, err = run(
        *SCORE, "--inputs", "y.npz", "--rel-width", "accuracy=0.05", "--json", "w.json"
    )
    assert code == 0, err
    mean = json.loads(Path("w.json").read_text(encoding="utf-8"))["chips"]
    assert mean["stopped"] == "relative width"
    accuracy = mean["metrics"][0]["mean"]
    assert accuracy["high"] - accuracy["low"] <= 0.1 * accuracy["value"]


def test_real_numbers_are_compared_by_their_squares(run, folder):
    _, plain = scored(run, "--inputs", "wide.npz")
    assert [m["name"] for m in plain["chips"]["metrics"]] == ["mse"]


def test_targets_that_do_not_fit_the_outputs_are_left_out_unless_asked_for(run, folder):
    rng = np.random.default_rng(0)
    np.savez("odd.npz", x=rng.normal(size=(20, 4)), y=rng.integers(0, 9, 20))
    _, plain = scored(run, "--inputs", "odd.npz")
    assert plain["chips"] is None
    code, out, err = run(*SCORE, "--inputs", "odd.npz", "--json", "-")
    assert code == 0
    assert json.loads(out)["chips"] is None
    told = " ".join(err.split())
    assert "targets of the data are left out, and no accuracy" in told
    assert "model has 3" in told
    np.save("odd.npy", rng.integers(0, 9, 60))
    for line in (
        ("--inputs", "odd.npz", "--metric", "accuracy"),
        ("--inputs", "x.npy", "--targets", "odd.npy"),
    ):
        code, _, err = run(*SCORE, *line)
        assert code == 2
        assert "the model has 3" in err


def test_a_report_tells_of_chips_first(run, folder):
    code, _, err = run(*SCORE, "--inputs", "y.npz", "--samples", 60, "--report", "r.html")
    assert code == 0, err
    page = (folder / "r.html").read_text(encoding="utf-8")
    assert page.index("the network is right on") < page.index("together move")
    assert "worst 5% of chips" in page
    scored(run, "--inputs", "y.npz")
    assert run("report", "s.json", "--out", "again.html")[0] == 0
    assert "worst 5% of chips" in (folder / "again.html").read_text(encoding="utf-8")


def test_the_plan_takes_targets_too(run, folder):
    code, out, err = run(*SCORE, "--inputs", "y.npz", "--metric", "accuracy", "--plan")
    assert code == 0, err
    assert "monte-carlo" in out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("--inputs", "x.npy", "--metric", "accuracy"), "targets="),
        (("--inputs", "y.npz", "--metric", "acuracy"), "choose among accuracy"),
        (("--inputs", "y.npz", "--accept", "0.9"), "NAME=NUMBER"),
        (("--inputs", "y.npz", "--accept", "accuracy=x"), "NAME=NUMBER"),
        (("--inputs", "y.npz", "--rel-width", "accuracy=7"), "between 0 and 1"),
        (("--inputs", "x.npy", "--targets", "nothing.npy"), "nothing.npy"),
        (("--inputs", "x.npy", "--targets", "m.py"), "npz"),
    ],
)
def test_wrong_use(run, folder, line, told):
    code, _, err = run(*SCORE, *line)
    assert code == 2
    assert told in " ".join(err.split())
    assert "Traceback" not in err


def test_numbers_by_name():
    assert read_numbers("accept", ["accuracy=0.9", "a=b=2"]) == {"accuracy": 0.9, "a=b": 2.0}
    assert read_widths(None) is None
    assert read_widths(["0.05"]) == 0.05
    assert read_widths(["0.05", "accuracy=0.1"]) == {"variance": 0.05, "accuracy": 0.1}
    for wrong in (["accuracy=0.9", "accuracy=0.8"], ["=1"], ["accuracy=nan"]):
        with pytest.raises(ArgumentError, match="accept"):
            read_numbers("accept", wrong)


def test_the_loss_in_place_of_the_outputs(run, folder):
    own = "def worst(outputs, targets):\n    return -outputs.gather(1, targets[:, None])[:, 0]\n"
    (folder / "own.py").write_text(own)
    found = {}
    for given in ((), ("--loss", "cross-entropy"), ("--loss", "own.py:worst")):
        out, plain = scored(run, "--inputs", "y.npz", "--outputs", "loss", *given)
        assert "the loss" in out
        assert {e["output"] for e in plain["estimates"]} == {"loss", "all"}
        name = plain["model"]["loss"]
        assert plain["chips"]["metrics"][0]["name"] == "loss"
        found[name] = plain["chips"]["metrics"][0]["clean"]
    assert found.keys() == {"cross-entropy", "worst"}
    assert found["cross-entropy"] != found["worst"]
    out, plain = scored(run, "--inputs", "wide.npz", "--outputs", "loss")
    assert plain["model"]["loss"] == "mse"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("--inputs", "none.npz", "--outputs", "loss"), "give targets="),
        (("--inputs", "y.npz", "--loss", "mse"), "give outputs='loss'"),
        (("--inputs", "y.npz", "--outputs", "loss", "--loss", "hinge"), "cross-entropy, mse"),
        (
            ("--inputs", "wide.npz", "--outputs", "loss", "--loss", "cross-entropy"),
            "they do not fit",
        ),
        (("--inputs", "y.npz", "--outputs", "loss", "--loss", "m.py:torch"), "not a function"),
        (("--inputs", "y.npz", "--outputs", "losses"), "whole numbers"),
    ],
)
def test_losses_that_make_no_sense(run, folder, line, told):
    code, _, err = run(*SCORE, *line)
    assert code == 2
    assert told in " ".join(err.split())


def test_a_plan_of_the_demo(run):
    code, out, err = run("score", "--plan", "--outputs", "loss")
    assert code == 0, err
    assert "their loss (cross-entropy)" in " ".join(out.split())
