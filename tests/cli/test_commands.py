"""The command line, in process: exit codes, messages, files."""

import json

import numpy as np
import pytest
import torch

from crashsim import FaultSpace, Score, WeightCrash
from crashsim.files.architectures import parse_architecture
from crashsim.files.models import save_model
from crashsim.injection.sample import Sample


@pytest.fixture
def examples(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(40, 4)), y=np.arange(40) % 2)
    return "d.npz"


FAST = ("--samples", 300, "--methods", "exact,taylor,mean-point-single,monte-carlo")


def test_score(run, examples, tmp_path):
    code, out, err = run(
        "score", "4-5-2:tanh", "--inputs", examples, "--p", 0.1, "--epsilon", 0.1,
        "--json", "deep/s.json", "--report", "r.html", "--details", *FAST,
    )  # fmt: skip
    assert code == 0, err
    assert "monte-carlo" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "Traceback" not in out + err
    plain = json.loads((tmp_path / "deep/s.json").read_text())
    assert plain["schema"] == 3
    assert plain["model"]["name"] == "4-5-2:tanh"
    assert (tmp_path / "r.html").read_text().lower().startswith("<!doctype html")
    code, _, err = run("report", "deep/s.json", "-o", "again.html")
    assert code == 0, err
    assert (
        Score.load(tmp_path / "deep/s.json").verdict.split(" (")[0]
        in (tmp_path / "again.html").read_text()
    )


def test_a_plan_is_printed_and_nothing_runs(run, examples, tmp_path, monkeypatch):
    monkeypatch.setattr("crashsim.scoring.score.compute", lambda *_: pytest.fail("it ran"))
    options = ("--inputs", examples, "--p", 0.1, "--plan", "--budget", "30s", "--json", "plan.json")
    code, out, err = run("score", "4-5-2:tanh", *options)
    assert code == 0, err
    assert "monte-carlo" in out
    assert "1e10 operations a second" in out
    plain = json.loads((tmp_path / "plan.json").read_text())
    assert plain["samples"] > 10_000
    assert plain["operations"] <= 3e11


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--plan", "--report", "r.html"), "report"),
        (("--plan", "--train", "digits"), "train"),
        (("--budget", "2 weeks"), "'2m'"),
        (("--budget", "0s"), "'2m'"),
        (("--memory", "much"), "8GiB"),
        (("--memory", "10"), "memory"),
    ],
)
def test_a_plan_or_budget_that_makes_no_sense(run, examples, options, told):
    code, _, err = run("score", "4-5-2:tanh", "--inputs", examples, *options)
    assert code == 2
    assert told in err


def test_inits_report_the_spread(run, examples, tmp_path):
    code, out, err = run(
        "score", "4-5-2", "--inputs", examples, "--inits", 3, "--json", "s.json", *FAST
    )
    assert code == 0, err
    assert "3 initialisations" in out


def test_sample(run, examples, tmp_path):
    """The same faults as Monte Carlo's sample, in files that are whole."""
    architecture = parse_architecture("4-6-2:relu")
    save_model("net", architecture.build(0), architecture, {})
    options = ("--inputs", examples, "--fault", "weight-crash:count=3", "--seed", 5)
    code, out, err = run("sample", "net", *options, "--index", 7, "--out", "kept/one")
    assert code == 0, err
    assert "3 of 36 coordinates struck" in out
    kept = Sample.load(tmp_path / "kept/one.json")
    model = architecture.build(0).eval()
    x = torch.from_numpy(np.load(tmp_path / examples)["x"]).float()
    space = FaultSpace(model, x, WeightCrash(count=3), "weights")
    assert kept.faults == space.sample(5, 7).faults
    assert len(kept.faults) == 3
    for words in (("--index", -1), ("--out", "net"), ("--fault", "weight-crash:count=37")):
        code, _, err = run("sample", "net", "--inputs", examples, *words)
        assert code == 2, words
        assert "Traceback" not in err


def test_a_list_of_faults(run, examples, tmp_path):
    """Those that another tool drew strike, and no others; what they make infinite is told."""
    architecture = parse_architecture("4-6-2:relu")
    save_model("net", architecture.build(0), architecture, {})
    lines = "layer,index,bit", "linear2.weight,1;3,30", "linear2.weight,0;0,31", ""
    (tmp_path / "faults.csv").write_text("\n".join(lines))
    options = ("--inputs", examples, "--fault", "weights=bit-flip:format=float32,p=0.01")
    listed = ("--fault-list", "faults.csv")
    code, out, err = run("sample", "net", *options, *listed, "--out", "kept")
    assert code == 0, err
    assert "2 of 1152 coordinates struck" in out
    model = architecture.build(0)
    kept = Sample.load(tmp_path / "kept.json")
    assert kept.weights["linear2.weight"][0, 0] == -model.linear2.weight[0, 0]
    word = model.linear2.weight.detach().numpy()[1, 3].view(np.uint32) ^ np.uint32(1 << 30)
    assert kept.weights["linear2.weight"][1, 3] == word.view(np.float32)
    code, _, err = run("sample", "net", *options, *listed, "--index", 3, "--out", "other")
    assert code == 2
    assert "fault_list" in err
    (tmp_path / "faults.csv").write_text("layer,index,bit\nlinear2.weight,1;99,30\n")
    code, _, err = run("sample", "net", *options, *listed, "--out", "other")
    assert code == 2, err


def test_train_then_score_then_compare(run, examples, tmp_path):
    for name, sizes in (("a", "4-6-2:relu"), ("b", "4-3-2:tanh")):
        code, out, err = run("train", sizes, "--data", examples, "--epochs", 2, "--out", name)
        assert code == 0, err
        assert "accuracy" in out
        assert (tmp_path / f"{name}.safetensors").exists()
    code, out, err = run("score", "a", "--inputs", examples, *FAST)
    assert code == 0, err
    code, out, err = run(
        "compare",
        "a",
        "b.json",
        "--inputs",
        examples,
        "--samples",
        500,
        "--p",
        0.1,
        "--json",
        "c.json",
    )
    assert code == 0, err
    assert json.loads((tmp_path / "c.json").read_text())["contenders"]


def test_derive(run):
    for arguments, part in (
        (("--order", 1, "--fault", "neuron-crash", "--latex"), "\\"),
        (("--order", 2), "Var"),
    ):
        code, out, err = run("derive", *arguments)
        assert code == 0, err
        assert part in out


@pytest.mark.parametrize("command", ["score", "compare", "sweep", "train", "derive", "report"])
def test_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Usage" in out


BAD = {
    "no such command": ("scores",),
    "no model": ("score", "--inputs", "d.npz"),
    "unknown model": ("score", "nothing"),
    "unknown activation": ("score", "4-5-2:swish"),
    "no neurons": ("score", "4-0-2"),
    "missing pt2": ("score", "none.pt2"),
    "missing factory": ("score", "none.py:build"),
    "no such module": ("score", "no_such_module_here:build"),
    "unknown data": ("score", "4-5-2", "--inputs", "digit"),
    "missing data": ("score", "4-5-2", "--inputs", "none.npz"),
    "inputs that do not fit": ("score", "5-4-2", "--inputs", "d.npz"),
    "bad p": ("score", "4-5-2", "--inputs", "d.npz", "--p", "2"),
    "p is no number": ("score", "4-5-2", "--inputs", "d.npz", "--p", "x"),
    "nan p": ("score", "4-5-2", "--inputs", "d.npz", "--p", "nan"),
    "unknown fault": ("score", "4-5-2", "--inputs", "d.npz", "--fault", "meteor"),
    "bad fault value": ("score", "4-5-2", "--inputs", "d.npz", "--fault", "neuron-crash:p=7"),
    "two faults at once": (
        "score", "4-5-2", "--inputs", "d.npz", "--fault", "neuron-crash", "--fault", "neuron-crash",
    ),
    "unknown site": ("score", "4-5-2", "--inputs", "d.npz", "--sites", "relu9"),
    "bad group": ("score", "4-5-2", "--inputs", "d.npz", "--group", "rows"),
    "bad epsilon": ("score", "4-5-2", "--inputs", "d.npz", "--epsilon", "-1"),
    "bad samples": ("score", "4-5-2", "--inputs", "d.npz", "--samples", "1"),
    "bad width": ("score", "4-5-2", "--inputs", "d.npz", "--rel-width", "3"),
    "bad method": ("score", "4-5-2", "--inputs", "d.npz", "--methods", "tailor"),
    "bad limit": ("score", "4-5-2", "--inputs", "d.npz", "--limit", "0"),
    "outputs that are no numbers": ("score", "4-5-2", "--inputs", "d.npz", "--outputs", "a,b"),
    "an output that is none": ("score", "4-5-2", "--inputs", "d.npz", "--outputs", "2"),
    "arrays of a plan": ("score", "4-5-2", "--inputs", "d.npz", "--plan", "--arrays", "a.npz"),
    "negative seed": ("score", "4-5-2", "--inputs", "d.npz", "--seed", "-1"),
    "huge seed": ("score", "4-5-2", "--inputs", "d.npz", "--seed", str(2**64)),
    "unknown training data": ("score", "4-5-2", "--inputs", "d.npz", "--train", "x"),
    "missing weights": ("score", "4-5-2", "--inputs", "d.npz", "--weights", "none.pt"),
    "json to a folder": ("score", "4-5-2", "--inputs", "d.npz", "--json", "."),
    "compare one": ("compare", "4-5-2", "--inputs", "d.npz", "--samples", "20"),
    "compare the same": ("compare", "4-5-2", "4-5-2", "--inputs", "d.npz"),
    "train nothing": ("train", "model"),
    "train for no epochs": ("train", "4-5-2", "--data", "d.npz", "--epochs", "0"),
    "train too few outputs": ("train", "4-5-1", "--data", "d.npz"),
    "bad order": ("derive", "--order", "9"),
    "bad law": ("derive", "--fault", "meteor"),
    "missing score": ("report", "none.json"),
    "no score": ("report", "d.npz"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_use_exits_with_2(run, examples, name):
    code, out, err = run(*BAD[name])
    assert code == 2, (out, err)
    assert err.strip()
    assert "Traceback" not in err
    assert not out.strip()


OVER_INPUTS = {
    "the description": "score m --inputs d.npz --json m.json",
    "the description, by its own name": "score m.json --inputs d.npz --report ./m.json",
    "the weights": "score m.safetensors --inputs d.npz --json m.safetensors",
    "weights beside": "score 4-5-2 --weights w.safetensors --inputs d.npz --json w.safetensors",
    "the examples": "score 4-5-2 --inputs d.npz --json d.npz",
    "examples to train on": "score 4-5-2 --inputs d.npz --train t.npz --json t.npz",
    "images": "score 4-5-2 --inputs mnist:images --json images/train-images-idx3-ubyte",
    "code": "score net.py:make --inputs d.npz --json net.py",
    "a module": "score pack.net:make --inputs d.npz --json pack/net.py",
    "a link": "score m --inputs d.npz --json link",
    "compare, a model": "compare 4-5-2 m --inputs d.npz --json m.json",
    "compare, the examples": "compare 4-5-2 4-6-2 --inputs d.npz --json d.npz",
    "train, the data": "train 4-5-2 --data m.npz --out m.npz",
    "harden, the data": "harden 4-5-2 --data d.npz --epsilon 1 --delta 0.1 --json d.npz --out h",
    "hardware, the model": "hardware m --inputs d.npz --json m.json",
    "hardware, a graph": "hardware g.nir --inputs d.npz --nir g.nir",
    "report, the score": "report s.json --out s.json",
    "report, a link to it": "report s.json --out score",
    "arrays over the examples": "score 4-5-2 --inputs d.npz --arrays d.npz",
    "arrays and a report in one": "score 4-5-2 --inputs d.npz --arrays new --report new",
    "one for two": "score 4-5-2 --inputs d.npz --json new --report new",
    "harden, its description": (
        "harden 4-5-2 --data d.npz --epsilon 1 --delta 0.1 --out new --json new.json"
    ),
    "harden, its weights": (
        "harden 4-5-2 --data d.npz --epsilon 1 --delta 0.1 --out new --json ./new.safetensors"
    ),
    "hardware, two": "hardware 4-5-2 --inputs d.npz --nir new --json new",
}


@pytest.mark.parametrize("line", OVER_INPUTS.values(), ids=OVER_INPUTS)
def test_nothing_that_is_read_is_overwritten(run, examples, tmp_path, monkeypatch, line):
    built = parse_architecture("4-5-2")
    save_model("m", built.build(), built, {})
    for name in ("t.npz", "w.safetensors", "net.py", "pack/net.py", "g.nir", "s.json",
                 "images/train-images-idx3-ubyte", "m.npz.json", "m.npz.safetensors"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"this is {name}")
    (tmp_path / "m.npz").hardlink_to(tmp_path / "m.npz.json")
    (tmp_path / "link").symlink_to("m.json")
    (tmp_path / "score").symlink_to("s.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def works(*_, **__):
        raise AssertionError("the work has begun")

    for module in (
        "crashsim.files.data.load_data",
        "crashsim.files.data._numpy",
        "crashsim.files.models.load_model",
    ):
        monkeypatch.setattr(module, works)
    code, out, err = run(*line.split())
    assert code == 2, (out, err)
    assert not out
    assert "give another name" in err or "give each its own" in err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_named_outputs_and_a_file_of_all_numbers(run, examples, tmp_path):
    line = ("score", "4-5-2", "--inputs", examples, *FAST, "--epsilon", "0.01", "--outputs", "0")
    code, _, err = run(*line, "--json", "s.json", "--arrays", "s.npz")
    assert code == 0, err
    plain = json.loads((tmp_path / "s.json").read_text())
    assert plain["named_outputs"] == [0]
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        index = json.loads(str(file["index"]))
        held = {(a["method"], a["quantity"], *a["axes"]): file[f"{a['name']}.value"] for a in index}
    each = held["monte-carlo", "variance", "input", "output"]
    told = [e for e in plain["estimates"]
            if (e["method"], e["quantity"]) == ("monte-carlo", "variance")]  # fmt: skip
    pairs = [(e, each[e["input"], e["output"]]) for e in told if isinstance(e["input"], int)]
    assert len(pairs) == each.size > 0
    assert all(e["value"] == value for e, value in pairs)


def test_outputs_that_only_look_like_inputs(run, examples, tmp_path):
    (tmp_path / "4-5-2.json").write_text("an older score")
    code, _, err = run("score", "4-5-2", "--inputs", examples, *FAST, "--json", "4-5-2.json")
    assert code == 0, err
    assert Score.load(tmp_path / "4-5-2.json").model["name"] == "4-5-2"


def test_a_failure_exits_with_1(run, examples, monkeypatch):
    def fails(*_, **__):
        raise KeyError("oops")

    monkeypatch.setattr("crashsim.scoring.score.compute", fails)
    code, _, err = run("score", "4-5-2", "--inputs", examples)
    assert code == 1
    assert "oops" in err
    assert "Traceback" not in err


OWN = """
from crashsim import Estimate, Method

def run(given):
    epsilon = given.asked.epsilon
    return [Estimate("sure", "tail", "all", 0, 1.0, None, None, "bound", level=epsilon)]

SURE = Method("sure", "no probability is larger", run, "bound")
LATE = Method("late", "fails", lambda given: 1 / 0, "bound")
OTHER = 7
"""


def test_methods_of_ones_own_code(run, examples, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    model = ("score", "4-5-2:tanh", "--inputs", examples, "--p", 0.1, "--epsilon", 0.1)
    code, out, err = run(*model, "--methods", "+pairs, own.py:SURE", "--json", "s.json", "-v")
    assert code == 0, err
    assert "sure" in out
    plain = json.loads((tmp_path / "s.json").read_text())
    methods = {e["method"] for e in plain["estimates"]}
    assert {"sure", "pairs", "monte-carlo"} <= methods
    code, _, err = run(*model, "--methods", "taylor,+own.py:SURE", "--json", "s.json")
    assert code == 0, err
    plain = json.loads((tmp_path / "s.json").read_text())
    assert {e["method"] for e in plain["estimates"]} == {"sure", "taylor"}
    for spec, told in (
        ("none.py:SURE", "does not exist"),
        ("own.py:NONE", "has no 'NONE'"),
        ("own.py:OTHER", "int, not a crashsim.Method"),
        ("own.py:LATE", "late raised ZeroDivisionError"),
        ("own.SURE", "choose among"),
    ):
        code, out, err = run(*model, "--methods", f"taylor,{spec}")
        assert code == 2, spec
        assert told in " ".join(err.split()), err
        assert "Traceback" not in out + err
    code, _, err = run(*model, "--methods", "own.py:SURE", "--json", "own.py")
    assert code == 2
    assert (tmp_path / "own.py").read_text() == OWN
