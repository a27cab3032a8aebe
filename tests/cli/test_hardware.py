"""``crashsim hardware`` and ``crashsim devices``: exit codes, messages, files."""

import json

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def examples(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(8, 4)), y=np.arange(8) % 2)


CHIP = ("hardware", "4-6-3:relu", "--inputs", "d.npz", "--engine", "numpy")
FAST = (*CHIP, "--masks", 10, "--steps", 20)


def test_a_chip_and_its_json(run, tmp_path):
    code, out, err = run(*FAST, "--p", 0.1, "--json", "h.json")
    assert code == 0, err
    assert "slope of E" in out
    plain = json.loads((tmp_path / "h.json").read_text())
    assert plain["schema"] == 2
    assert plain["hardware"]["masks"] == 10
    assert {e["method"] for e in plain["estimates"]} == {"hardware"}


def test_a_device(run):
    code, out, err = run(*FAST, "--device", "truenorth-core-death", "--set", "rate=0.1")
    assert code == 0, err
    assert "core" in out


def test_a_chip_as_nir(run, tmp_path):
    pytest.importorskip("nir")
    code, _, err = run(*FAST, "--nir", "chip.nir")
    assert code == 0, err
    assert (tmp_path / "chip.nir").exists()
    code, out, err = run(
        "score", "chip.nir", "--inputs", "d.npz", "--methods", "taylor,hardware", "--p", 0.1
    )
    assert code == 0, err
    assert "hardware" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--masks", 1], "masks=1"),
        (["--steps", 1], "steps=1"),
        (["--device", "abacus"], "abacus"),
        (["--device", "low-voltage-sram"], "rate"),
        (["--device", "low-voltage-sram", "--set", "rate"], "NAME=VALUE"),
        (["--device", "low-voltage-sram", "--set", "rate=x"], "rate=x"),
        (["--device", "low-voltage-sram", "--set", "tare=0.1"], "tare"),
        (["--device", "low-voltage-sram", "--set", "rate=2"], "rate"),
        (["--set", "rate=0.1"], "--device"),
        (["--fault", "input=stuck-at:p=0.1,value=1"], "cannot have"),
    ],
    ids=str,
)
def test_wrong_use(arguments, told, run):
    code, out, err = run(*CHIP, *arguments)
    assert code == 2, (code, out, err)
    assert told in err.replace("\n", " ")
    assert "Traceback" not in out + err


def test_a_net_without_spiking_neurons(run):
    code, out, err = run("hardware", "4-6-3:gelu", "--inputs", "d.npz")
    assert code == 2
    assert "gelu" in err
    assert "Traceback" not in out + err


def test_devices_are_listed_with_their_sources(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run("devices")
    assert code == 0, err
    for name in ("memristor-crossbar", "low-voltage-sram", "truenorth-core-death", "loihi"):
        assert name in out
    assert "?" in out  # a rate that nobody published


@pytest.fixture
def graph(tmp_path):
    nir = pytest.importorskip("nir")
    rng, one = np.random.default_rng(1), np.ones(5)
    nodes = {
        "input": nir.Input({"input": np.array([4])}),
        "in": nir.Linear(rng.normal(1.0, 1.0, (5, 4))),
        "cell": nir.LIF(5e-4 * one, 5 * one, 0 * one, one),
        "back": nir.Linear(rng.normal(-0.2, 0.5, (5, 5))),
        "output": nir.Output({"output": np.array([5])}),
    }
    edges = [("input", "in"), ("in", "cell"), ("cell", "back"), ("back", "cell"),
             ("cell", "output")]  # fmt: skip
    nir.write(tmp_path / "g.nir", nir.NIRGraph(nodes, edges, type_check=False))


GRAPH = ("hardware", "g.nir", "--inputs", "d.npz", "--masks", 40, "--steps", 20)


@pytest.mark.usefixtures("graph")
@pytest.mark.parametrize("engine", ["numpy", "brian2"])
def test_a_recurrent_graph_says_how_it_was_run(run, tmp_path, engine):
    code, out, err = run(
        *GRAPH, "--reset", "zero", "--p", 0.1, "--engine", engine, "--json", "h.json"
    )
    assert code == 0, err
    told = " ".join(out.split())
    assert "dt = 0.0001 (in seconds; the file does not say); reset zero" in told
    assert "membranes start at zero" in told
    plain = json.loads((tmp_path / "h.json").read_text())
    assert plain["hardware"]["steps"] == 20
    assert any(e["quantity"] == "variance" and e["value"] > 0 for e in plain["estimates"])


@pytest.mark.usefixtures("graph")
def test_a_silent_graph_is_told_first(run):
    code, out, err = run(*GRAPH, "--reset", "zero", "--dt", 1e-9, "--engine", "numpy")
    assert code == 0, err
    assert " ".join(out.split()).startswith("warning: layer 'cell' never fires")


@pytest.mark.usefixtures("graph")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "pass reset"),
        (["--reset", "zero", "--dt", 0], "dt must be a positive time"),
        (["--reset", "zero", "--dt", 1], "node 'cell': dt / tau"),
        (["--exporter", "sinabs", "--dt", 1e-4, "--engine", "brian2"], "engine='numpy'"),
        (["--reset", "zero", "--train", "digits"], "weights already"),
        (["--reset", "zero", "--fault", "nowhere=neuron-crash"], "no layer of neurons"),
    ],
)
def test_wrong_use_of_a_graph(run, arguments, told):
    code, out, err = run(*GRAPH, *arguments)
    assert code == 2, (code, out, err)
    assert told in " ".join(err.split())


def test_options_of_graphs_are_for_graphs(run):
    for option in (("--dt", 1), ("--exporter", "norse"), ("--start", "half")):
        code, _, err = run(*FAST, *option)
        assert code == 2
        assert "only for a .nir file" in " ".join(err.split())
