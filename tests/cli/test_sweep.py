"""``crashsim sweep``: files, tables, several curves, exit codes."""

import itertools
import json

import numpy as np
import pytest

from crashsim import Curve


@pytest.fixture
def examples(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(40, 4)), y=np.arange(40) % 2)
    return "d.npz"


FAST = ("--chips", 40, "--rates", "0.01:0.3:3")


def test_a_curve_and_its_files(run, examples, tmp_path):
    code, out, err = run(
        "sweep", "4-5-2:tanh", "--inputs", examples, "--json", "c.json", "--report", "r.html",
        "--csv", "c.csv", "--target", 0.4, *FAST,
    )  # fmt: skip
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "accuracy" in out
    plain = json.loads((tmp_path / "c.json").read_text())
    assert [p["rate"] for p in plain["points"]] == pytest.approx([0.01, 0.0547723, 0.3], rel=1e-5)
    for point in plain["points"]:
        assert point["band_low"] <= point["low"] <= point["value"] <= point["high"]
    assert Curve.load(tmp_path / "c.json").tolerated[0]["target"] == 0.4
    assert (tmp_path / "r.html").read_text().count("<svg") == 2
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 5


def test_models_and_kinds_of_fault_in_one_figure(run, examples, tmp_path):
    code, out, err = run(
        "sweep", "4-5-2:tanh", "4-8-2:tanh", "--inputs", examples, "--fault", "neuron-crash",
        "--fault", "weight-crash", "--json", "c.json", "--csv", "c.csv", *FAST,
    )  # fmt: skip
    assert code == 0, err
    plain = json.loads((tmp_path / "c.json").read_text())
    names = [plain["name"], *(other["name"] for other in plain["others"])]
    assert names == [f"4-{n}-2:tanh {k}" for n in (5, 8) for k in ("neuron-crash", "weight-crash")]
    assert out.count("crashsim sweep") == 4
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 1 + 4 * 4


@pytest.mark.parametrize("asked", [["0.001:0.3"], ["0.001:0.3:12", "--adaptive"]])
def test_rates_that_are_chosen(run, examples, tmp_path, asked):
    code, out, err = run(
        "sweep", "4-5-2:tanh", "--inputs", examples, "--chips", 40, "--json", "c.json", "--rates",
        *asked,
    )  # fmt: skip
    assert code == 0, err
    assert "chosen by 32 other chips" in " ".join(out.split())
    rates = [p["rate"] for p in json.loads((tmp_path / "c.json").read_text())["points"]]
    assert (len(rates), rates[0], rates[-1]) == (12, 0.001, 0.3)
    code, _, err = run("sweep", "4-5-2:tanh", "--inputs", examples, "--rates", "0.3:0.1")
    assert code == 2
    assert "LOW:HIGH" in err


def test_faults_that_strike_together(run, examples, tmp_path):
    code, _, err = run(
        "sweep", "4-5-2:tanh", "--inputs", examples, "--fault", "neuron-crash", "--fault",
        "weight-crash", "--joint", "--json", "c.json", *FAST,
    )  # fmt: skip
    assert code == 0, err
    plain = json.loads((tmp_path / "c.json").read_text())
    assert "others" not in plain
    assert plain["coordinates"] == 5 + 4 * 5 + 5 * 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--rates", "0:1:2"), "rates"),
        (("--rates", "0.1,2"), "rates"),
        (("--metric", "beauty"), "beauty"),
        (("--fault", "neuron-crash:count=2"), "count"),
        (("--fault", "neuron-crash", "--fault", "neuron-crash"), "twice"),
        (("--csv", "d.npz"), "overwrite"),
        (("--json", "c.x", "--report", "c.x"), "same file"),
    ],
)
def test_wrong_use_exits_with_2(run, examples, options, told):
    code, _, err = run("sweep", "4-5-2:tanh", "--inputs", examples, *options)
    assert (code, told in err) == (2, True), err


def test_a_prediction_alone(run, examples, tmp_path):
    options = ("--inputs", examples, "--rates", "0.01:0.3:3", "--predict")
    code, out, err = run("sweep", "4-5-2:tanh", *options, "--json", "c.json", "--report", "r.html")
    assert code == 0, err
    assert "checked by 24 chips on 40 examples" in " ".join(out.split())
    _, out, _ = run("sweep", "4-5-2:tanh", *options, "--check", "0")
    assert "no intervals" in out
    found = Curve.load(tmp_path / "c.json")
    assert not found.is_measured
    assert [point["kind"] for point in found.points] == ["estimate"] * 3
    assert (tmp_path / "r.html").read_text().count("<svg") == 1
    code, _, err = run("sweep", "4-5-2:tanh", *options, "--metric", "cross-entropy")
    assert (code, "cross-entropy" in err) == (2, True), err


def test_a_saved_curve_becomes_a_page(run, examples, tmp_path):
    code, _, err = run("sweep", "4-5-2:tanh", "--inputs", examples, "--json", "c.json", *FAST)
    assert code == 0, err
    code, _, err = run("report", "c.json", "-o", "again.html")
    assert code == 0, err
    assert (tmp_path / "again.html").read_text().count("<svg") == 2


def test_ctrl_c_keeps_the_chips_that_were_finished(run, examples, tmp_path, monkeypatch):
    from crashsim.sweeping.task import ChipsByRate

    judged = ChipsByRate.parts

    def parts(self, block):
        if block == 2:
            raise KeyboardInterrupt
        return judged(self, block)

    monkeypatch.setattr(ChipsByRate, "parts", parts)
    code, out, err = run(
        "sweep", "4-5-2:tanh", "--inputs", examples, "--json", "c.json", "--chips", 5000,
    )  # fmt: skip
    assert code == 130
    assert "Partial" in out
    assert "partial" in err
    found = Curve.load(tmp_path / "c.json")
    assert found.partial
    assert found.chips == 2048


def test_rates_above_a_spike_a_step_are_told(run, tmp_path):
    """A graph of integrators is swept as its network of rates, which goes on where spikes end."""
    nir = pytest.importorskip("nir")
    nodes = {
        "input": nir.Input({"input": np.array([3])}), "a": nir.Linear(np.full((4, 3), 0.5)),
        "hid": nir.IF(np.ones(4), np.ones(4)), "b": nir.Linear(np.full((2, 4), 0.3)),
        "out": nir.IF(np.ones(2), np.ones(2)), "output": nir.Output({"output": np.array([2])}),
    }  # fmt: skip
    nir.write(tmp_path / "if.nir", nir.NIRGraph(nodes, [*itertools.pairwise(nodes)]))
    for scale, told in ((0.1, False), (3.0, True)):
        np.savez(tmp_path / "x.npz", x=np.full((6, 3), scale), y=np.arange(6) % 2)
        code, _, err = run("sweep", "if.nir", "--reset", "subtract", "--inputs", "x.npz", *FAST)
        assert code == 0, err
        assert ("fire no faster" in err) == told
