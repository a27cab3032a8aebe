"""``crashsim hardware`` and ``crashsim devices``: exit codes, messages, files."""

import itertools
import json

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def examples(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(8, 4)), y=np.arange(8) % 2)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


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
        "score",
        "chip.nir",
        "--inputs",
        "d.npz",
        "--methods",
        "taylor,hardware",
        "--p",
        0.1,
        "--details",
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
    assert len(out.splitlines()) <= 60
    code, out, err = run("devices", "--details")
    assert code == 0, err
    assert "?" in out  # a rate that nobody published
    code, out, err = run("devices", "drift")
    assert code == 0, err
    assert "--chip-fault drift=TIME" in out
    assert "nu=0.05" in out


def test_one_device_with_all_that_is_known(run):
    code, out, err = run("devices", "sram-28nm-kc705")
    assert code == 0, err
    told = " ".join(out.split())
    assert "rate 4.73e-05 (measured) at voltage 0.54" in told
    assert "bits = 8 (assumed)" in told
    assert "Salami" in told
    assert "https://github.com/behzadsalami" in told
    code, out, err = run("devices", "abacus")
    assert code == 2
    assert "no device 'abacus'" in " ".join(err.split())


def test_a_report_and_the_same_from_the_json(run, tmp_path):
    code, out, err = run(
        *FAST, "--p", 0.1, "--json", "h.json", "--report", "h.html", "--pj-per-operation", 23.6
    )
    assert code == 0, err
    assert "energy of synapses, nJ" in out
    page = (tmp_path / "h.html").read_text()
    for told in ("monte-carlo", "network", "hardware", "synaptic operations", "23.6 pJ", "<svg",
                 "neuron-crash p=0.1 at hidden"):  # fmt: skip
        assert told in page, told
    for loads in ("<script", "src=", "<link", "url(http"):  # it loads nothing
        assert loads not in page, loads
    code, out, err = run("report", "h.json", "--out", "again.html")
    assert code == 0, err
    assert (tmp_path / "again.html").read_text() == page


def test_a_report_of_what_the_first_version_wrote(run, tmp_path):
    code, _, err = run(*FAST, "--p", 0.1, "--json", "h.json")
    assert code == 0, err
    plain = json.loads((tmp_path / "h.json").read_text())
    old = {k: plain[k] for k in ("seed", "model", "hardware", "estimates")} | {"schema": 1}
    for name in ("inputs", "activity", "calibration"):
        del old["hardware"][name]
    (tmp_path / "old.json").write_text(json.dumps(old))
    code, _, err = run("report", "old.json", "--out", "old.html")
    assert code == 0, err
    assert "slope of E" in (tmp_path / "old.html").read_text()
    for spoilt in ({"schema": 9}, {"estimates": 3}, {"hardware": {}}):
        (tmp_path / "bad.json").write_text(json.dumps(old | spoilt))
        code, _, err = run("report", "bad.json", "--out", "bad.html")
        assert code == 2, err
        assert "bad.json" in err
        assert not (tmp_path / "bad.html").exists()


def test_names_are_escaped_in_the_report(run, tmp_path):
    code, _, err = run(*FAST, "--p", 0.1, "--json", "h.json")
    assert code == 0, err
    plain = json.loads((tmp_path / "h.json").read_text())
    plain["model"] = "<script>alert(1)</script>"
    (tmp_path / "h.json").write_text(json.dumps(plain))
    code, _, err = run("report", "h.json", "--out", "h.html")
    assert code == 0, err
    assert "<script" not in (tmp_path / "h.html").read_text()


def test_scales_from_other_inputs(run, tmp_path, rng):
    np.savez(tmp_path / "other.npz", x=3 * rng.normal(size=(30, 4)))
    found = []
    for more in ([], ["--calibrate", "other.npz"]):
        code, _, err = run(*FAST, "--p", 0.1, "--json", "h.json", *more)
        assert code == 0, err
        found.append(json.loads((tmp_path / "h.json").read_text())["hardware"])
    assert found[0]["calibration"] == "the inputs themselves"
    assert found[1]["calibration"] == "30 other inputs"
    # larger scales: a spike is worth more
    assert found[1]["activity"]["spikes"] < found[0]["activity"]["spikes"]


def test_masks_end_at_a_width(run, tmp_path):
    code, _, err = run(
        *CHIP, "--masks", 3000, "--steps", 20, "--p", 0.2, "--rel-width", 0.4, "--json", "h.json"
    )
    assert code == 0, err
    assert json.loads((tmp_path / "h.json").read_text())["hardware"]["masks"] < 3000


def test_a_plan_says_what_is_run(run, tmp_path):
    code, out, err = run(*FAST, "--plan")
    assert code == 0, err
    told = " ".join(out.split())
    assert "10 fault patterns on 8 inputs, 20 steps of 6 neurons:" in told
    # three reads, in each step of which each of 6 neurons takes 10 operations
    assert f"{3 * 10 * 8 * 20 * 6 * 10:.2g} synaptic operations" in told
    assert "under 1 s" in told
    code, _, err = run(*FAST, "--plan", "--json", "h.json")
    assert code == 2
    assert "--plan runs nothing" in err
    code, out, err = run("score", *CHIP[1:-2], "--hardware", "--plan", "--json", "h.json")
    assert code == 0, err
    steps = {s["name"]: s for s in json.loads((tmp_path / "h.json").read_text())["steps"]}
    # 400 patterns, and a window of 100 steps
    assert steps["hardware"]["operations"] == 3 * 400 * 8 * 100 * 6 * 10


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


@pytest.fixture
def events(tmp_path, rng):
    """Three recordings of events on four lines, in microseconds, as files of several kinds."""
    t, x = rng.integers(0, 20_000, 400), rng.integers(0, 4, 400)
    which = rng.integers(0, 3, 400)
    np.savez(tmp_path / "flat.npz", times=t, addresses=x, examples=which)
    table = np.zeros(400, [("t", "<i8"), ("x", "<i4"), ("p", "?")])
    table["t"], table["x"] = t, x
    np.savez(tmp_path / "tonic.npz", events=table, examples=which)
    np.save(tmp_path / "one.npy", table[which == 0])
    train = np.zeros((3, 20, 4))
    np.add.at(train, (which, t // 1000, x), 1)
    np.save(tmp_path / "train.npy", train)


EVENTS = ("hardware", "g.nir", "--masks", 40, "--reset", "zero", "--p", 0.1)


@pytest.mark.usefixtures("graph", "events")
def test_events_and_trains(run, tmp_path):
    found = {}
    for name in ("train.npy", "flat.npz", "tonic.npz", "one.npy"):
        step = () if name == "train.npy" else ("--event-step", 1000)
        code, _, err = run(*EVENTS, "--inputs", name, *step, "--json", "h.json")
        assert code == 0, (name, err)
        found[name] = json.loads((tmp_path / "h.json").read_text())
        assert found[name]["hardware"]["steps"] == 20
    for name in ("flat.npz", "tonic.npz"):
        assert found[name]["estimates"] == found["train.npy"]["estimates"]
    assert found["train.npy"]["hardware"]["inputs"] == 3
    assert found["one.npy"]["hardware"]["inputs"] == 1
    first = [e for e in found["train.npy"]["estimates"] if e["input"] == 0]
    alone = [e for e in found["one.npy"]["estimates"] if e["input"] == 0]
    assert [e["value"] for e in alone] == [e["value"] for e in first]
    assert any(e["value"] > 0 for e in first if e["quantity"] == "variance")


@pytest.mark.usefixtures("events")
def test_trains_and_events_on_the_chip_of_a_model(run, tmp_path):
    pytest.importorskip("nir")
    code, _, err = run(*FAST, "--nir", "own.nir")
    assert code == 0, err
    found = []
    for inputs in (("train.npy",), ("flat.npz", "--event-step", 1000)):
        code, _, err = run("hardware", "own.nir", "--masks", 40, "--p", 0.2, "--json", "h.json",
                           "--inputs", *inputs)  # fmt: skip
        assert code == 0, err
        found.append(json.loads((tmp_path / "h.json").read_text()))
    assert found[0]["estimates"] == found[1]["estimates"]
    assert found[0]["hardware"]["steps"] == 20


@pytest.mark.usefixtures("graph", "events")
@pytest.mark.parametrize("readout", ["first-spike", "membrane"])
def test_other_readouts_and_windows(run, readout, tmp_path):
    code, out, err = run(
        *EVENTS[:-2], "--fault", "neuron-crash:p=0.3,window=3-9", "--inputs", "train.npy",
        "--readout", readout, "--json", "h.json", "--report", "h.html",
    )  # fmt: skip
    assert code == 0, err
    told = {"first-spike": "how early", "membrane": "membranes after the last step"}[readout]
    assert told in " ".join(out.split())
    assert f"read by {readout}" in " ".join((tmp_path / "h.html").read_text().split())
    assert "window" in (tmp_path / "h.html").read_text()


@pytest.mark.usefixtures("graph")
@pytest.mark.parametrize("spec", ["stuck-neuron=0.5,rate=0.5", "perturbed-synapse=0.5"])
def test_faults_of_the_chip_for_some_steps(run, tmp_path, spec):
    """Those of all steps are the same faults; those of the last few move outputs less."""
    moved = {}
    for window in ("", ",window=0-20", ",window=17-20"):
        code, _out, err = run(
            *GRAPH, "--reset", "zero", "--chip-fault", f"{spec}{window}",
            "--json", "h.json",
        )  # fmt: skip
        assert code == 0, err
        estimates = json.loads((tmp_path / "h.json").read_text())["estimates"]
        moved[window] = [e["value"] for e in estimates if e["quantity"] == "variance"]
    assert np.allclose(moved[""], moved[",window=0-20"])
    assert 0 < sum(moved[",window=17-20"]) < 0.5 * sum(moved[""])


@pytest.mark.usefixtures("graph", "events")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*EVENTS, "--inputs", "flat.npz"], "give --event-step"),
        ([*EVENTS, "--inputs", "flat.npz", "--steps", 10], "end at 10; give more steps"),
        ([*EVENTS, "--inputs", "flat.npz", "--event-step", 0], "event_step=0.0"),
        ([*EVENTS, "--inputs", "train.npy", "--event-step", 5], "holds no events"),
        ([*EVENTS, "--inputs", "train.npy", "--steps", 10], "or trains of (10, 4)"),
        ([*EVENTS, "--inputs", "d.npz", "--calibrate", "d.npz"], "has weights already"),
        ([*CHIP[:2], "--inputs", "flat.npz"], "a network without time"),
        ([*FAST, "--readout", "membrane"], "only for a .nir file"),
        ([*FAST, "--pj-per-operation", 0], "picojoules above 0"),
        ([*FAST, "--rel-width", 0], "rel_width=0"),
        ([*FAST, "--json", "d.npz"], "d.npz"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_wrong_use_of_time(arguments, told, run):
    code, out, err = run(*arguments)
    assert code == 2, (code, out, err)
    assert told in " ".join(err.split())
    assert "Traceback" not in out + err


def test_options_of_graphs_are_for_graphs(run):
    options = (("--dt", 1), ("--exporter", "norse"), ("--start", "half"))
    plain = ("score", "4-6-3:relu", "--inputs", "d.npz")
    calls = [(*FAST, *option) for option in options]
    for call in [*calls, *((*plain, *option) for option in (*options, ("--steps", 20)))]:
        code, _, err = run(*call)
        assert code == 2
        assert "only for a .nir file" in " ".join(err.split())


def test_the_score_of_a_leaky_graph_is_run_as_the_chip_is(run, tmp_path, rng):
    nir = pytest.importorskip("nir")
    nodes = {"input": nir.Input({"input": np.array([4])})}
    for name, fan_in, fan_out in (("1", 4, 12), ("2", 12, 3)):
        one = np.ones(fan_out)
        nodes["w" + name] = nir.Linear(rng.normal(0.1, 0.5, (fan_out, fan_in)))
        nodes["s" + name] = nir.LIF(5e-4 * one, 5 * one, 0 * one, one)
    nodes["output"] = nir.Output({"output": np.array([3])})
    nir.write(tmp_path / "leaky.nir", nir.NIRGraph(nodes, [*itertools.pairwise(nodes)]))
    variances = {}
    for steps, start in ((7, "zero"), (40, "half")):
        options = ("--reset", "subtract", "--exporter", "snntorch", "--start", start,
                   "--steps", steps, "--inputs", "d.npz", "--p", 0.2)  # fmt: skip
        for command in (("hardware", "--masks", 3000), ("score", "--methods", "monte-carlo")):
            code, _, err = run(command[0], "leaky.nir", *command[1:], *options, "--json", "h.json")
            assert code == 0, err
            estimates = json.loads((tmp_path / "h.json").read_text())["estimates"]
            variances[steps, command[0]] = next(
                e["value"] for e in estimates
                if (e["quantity"], e["input"], e["output"]) == ("variance", "all", "all")
            )  # fmt: skip
        chip, model = variances[steps, "hardware"], variances[steps, "score"]
        assert chip == pytest.approx(model, rel=0.15)
    assert variances[7, "score"] != pytest.approx(variances[40, "score"], rel=0.05)


def test_the_catalogue_is_listed(run):
    from crashsim.chip.chip_faults import CHIP_FAULTS

    code, out, err = run("devices")
    assert code == 0, err
    words = out.split()
    for name, fault in CHIP_FAULTS.items():
        assert f"{name}={fault.first.upper()}" in words
    code, out, err = run("hardware", "--help-all")
    assert all(name in out.replace("\n", " ") for name in ("drift", "pcm", "ir-drop"))


@pytest.mark.parametrize(
    "spec", ["drift=3600,nu=0.1", "stuck-neuron=0.2,rate=0.25", "read-noise=0.1", "adc-bits=4"]
)
def test_faults_of_the_chip(run, tmp_path, spec):
    code, _out, err = run(*FAST, "--chip-fault", spec, "--json", "h.json")
    assert code == 0, err
    variance = next(
        e
        for e in json.loads((tmp_path / "h.json").read_text())["estimates"]
        if (e["quantity"], e["input"], e["output"]) == ("mean", 0, 0)
    )
    assert variance["value"] != 0


@pytest.mark.parametrize(
    "fault", ["gain-noise:std=0.2", "weights=bit-flip:p=0.01", "sign-flip:p=0.1"]
)
def test_every_kind_of_fault_runs(run, fault):
    code, out, err = run(*FAST, "--fault", fault)
    assert code == 0, err
    assert "slope of E" in out


def test_a_map_of_single_faults(run, tmp_path):
    code, out, err = run(
        "criticality", "4-6-3:relu", "--inputs", "d.npz", "--steps", 20, "--single-fault",
        "dead-neuron", "--single-fault", "dead-synapse", "--top", 3, "--json", "map.json",
    )  # fmt: skip
    assert code == 0, err
    assert len([line for line in out.split("\n") if line.startswith("dead-")]) == 3
    maps = json.loads((tmp_path / "map.json").read_text())["maps"]
    assert [np.shape(m["moved"]) for m in maps] == [(6,), (6, 4), (3, 6)]
    code, _, err = run("criticality", "4-6-3:relu", "--inputs", "d.npz", "--single-fault", "melted")
    assert code == 2
    assert "faults must be some of" in err


@pytest.mark.usefixtures("graph")
def test_a_map_of_a_graph(run):
    code, out, err = run("criticality", *GRAPH[1:4], "--reset", "zero", "--steps", 20, "--top", 2)
    assert code == 0, (out, err)
    assert "neuron" in out
