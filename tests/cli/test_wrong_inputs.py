"""Wrong inputs of the command line: the argument named, the remedy told, nothing lost."""

import copy
import json
import os
import re

import numpy as np
import pytest
import torch

import crashsim
from crashsim import CrashsimError, NeuronCrash, Score
from crashsim.errors import ArgumentError, FileError
from crashsim.writing import check_writable

MODELS = """
import sys
import torch
from torch import nn

def fine():
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
def fails(): raise ValueError("boom")
def leaves(): sys.exit(3)
def needs(width): return width
def meta():
    with torch.device("meta"):
        return fine()
def lazy(): return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3)).eval()
class Inner(nn.Module):
    def forward(self, x): raise SystemExit(5)
def inner(): return Inner()
"""


@pytest.fixture
def folder(tmp_path):
    """An empty folder with models and data."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4)).astype("f4")
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(12) % 3)
    np.savez(tmp_path / "two.npz", a=x, b=x)
    np.save(tmp_path / "nan.npy", np.full((3, 4), np.nan))
    np.save(tmp_path / "large.npy", np.full((3, 4), 1e300))
    np.save(tmp_path / "none.npy", np.zeros((0, 4)))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "m.py").write_text(MODELS)
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "imports.py").write_text("import no_such_module\n")
    (tmp_path / "stops.py").write_text("import sys\nsys.exit(7)\n")
    (tmp_path / "nulls.py").write_bytes(b"\0")
    (tmp_path / "folder.py").mkdir()
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({}, tmp_path / "nothing.pt")
    (tmp_path / "big.json").write_text('{"format":1,"architecture":"4-30000000000-2:relu"}')
    return tmp_path


SCORE = ("score", "m.py:fine", "--inputs", "d.npz", "--samples", "20")
TRAIN = ("train", "4-3-3", "--data", "d.npz", "--epochs", "1", "--out", "out")
HARDEN = ("harden", "4-3-3", "--data", "d.npz", "--epochs", "1", "--epsilon", "1", "--delta", ".1")
CHIP = (
    *("hardware", "4-3-3", "--inputs", "d.npz", "--engine", "numpy", "--masks", "4"),
    *("--steps", "5"),
)


def model(spec):
    return ("score", spec, "--inputs", "d.npz", "--samples", "20")


# The command line, and words that the message must have.
WRONG = [
    (model(":relu"), "':relu' no module name"),
    (model("..:x"), "'..:x' no module name"),
    (model("4-3-2:"), "activation '' choose among"),
    (model("4-3-2:ReLU"), "'ReLU' choose among"),
    (model("4-99999999999-2"), "4-99999999999-2 GiB memory fewer neurons"),
    (model("big"), "4-30000000000-2 memory"),
    (model("a" * 5000), "model= neither aaa…aaa"),
    (model("m.py:fails"), "ValueError: boom m.py:9"),
    (model("m.py:leaves"), "SystemExit: 3 m.py:10"),
    (model("m.py:needs"), "'width' factory that needs none"),
    (model("m.py:meta"), "0.weight meta load"),
    (model("m.py:lazy"), "no shape yet run"),
    (model("m.py:inner"), "SystemExit: 5 m.py:17"),
    (model("torch.nn:Linear"), "in_features factory that needs none"),
    (model("os:getcwd"), "returned str torch.nn.Module"),
    (model("syntax.py:f"), "SyntaxError syntax.py:2"),
    (model("imports.py:f"), "ModuleNotFoundError no_such_module imports.py:1"),
    (model("stops.py:f"), "SystemExit: 7 stops.py:2"),
    (model("nulls.py:f"), "nulls.py null bytes"),
    (model("folder.py:f"), "is a folder"),
    ((*SCORE, "--weights", "list.pt"), "list.pt does not fit"),
    ((*SCORE, "--weights", "nothing.pt"), "nothing.pt Missing key(s) very network"),
    ((*SCORE, "--weights", ""), "weights '' give a state dict"),
    ((*SCORE, "--reset", "zero"), "reset='zero' .nir"),
    ((*SCORE, "--inputs", "nan.npy"), "nan.npy NaN clean"),
    ((*SCORE, "--inputs", "large.npy"), "large.npy beyond 32 bits scale"),
    ((*SCORE, "--inputs", "none.npy"), "(0, 4) at least one"),
    ((*SCORE, "--inputs", "text.npy"), "<U1 not numbers"),
    ((*SCORE, "--inputs", "a" * 3000 + ".npy"), "aaa…aaa too long"),
    ((*SCORE, "--fault", "x" * 10000), "xxx…xxx choose among"),
    ((*SCORE, "--fault", "stuck-at:p=.1,value=1e300"), "value=1e+300 float32 at most"),
    ((*SCORE, "--fault", "gain-noise:std=1e300"), "std=1e+300 float32 at most"),
    ((*SCORE, "--fault", "neuron-crash:p=.1,p=.2"), "p twice once"),
    ((*SCORE, "--fault", "gain-noise:std=.1", "--p", ".1"), "p=0.1 leave --p out"),
    ((*SCORE, "--fault", "weight-crash", "--group", "4"), "group='4' leave --group out"),
    ((*SCORE, "--fault", "1=neuron-crash", "--sites", "2"), "sites='2' leave --sites out"),
    ((*SCORE, "--methods", ""), "methods choose among"),
    ((*SCORE, "--sites", ""), "sites='' choose among"),
    ((*TRAIN, "--learning-rate", "inf"), "learning_rate=inf positive"),
    ((*TRAIN, "--learning-rate", "1e30", "--epochs", "9"), "learning_rate=1e+30 diverged smaller"),
    ((*TRAIN, "--variance", "nan"), "variance=nan finite"),
    ((*TRAIN, "--sites", "nosuch"), "sites --variance --crash-training"),
    ((*HARDEN, "--max-width", "inf"), "width=inf factor"),
    ((*CHIP, "--chip-fault", "weight-bits=nan"), "weight-bits=nan whole"),
    ((*CHIP, "--chip-fault", "mismatch=inf"), "mismatch inf finite"),
    ((*CHIP, "--device", "loihi", "--set", "bits=nan"), "bits nan finite"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_input_is_told(run, folder, line, words):
    code, out, err = run(*line)
    said = " ".join(err.split())
    assert code == 2, said
    assert not out.strip()
    assert "Traceback" not in said
    assert len(said) < 1500
    told = said.replace(" ", "")  # the terminal may break a line in a word
    for word in words.split():
        head, dots, tail = word.partition("…")
        assert head in told, (word, said)
        assert not dots or re.search(rf"{head}…{tail}", told), (word, said)


PLACES = ["", ".", "/proc/x", "d.npz/x", "/dev/null/x", "a" * 300]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[:10])
@pytest.mark.parametrize(
    ("line", "option"),
    [
        (SCORE, "json"), (SCORE, "report"), (TRAIN, "out"), (HARDEN, "out"), (HARDEN, "json"),
        (CHIP, "nir"), (CHIP, "json"), (("compare", "4-3-3", "4-4-3", "--inputs", "d.npz"), "json"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    run, folder, monkeypatch, line, option, place
):
    def works(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("crashsim.files.data._numpy", works)
    code, out, err = run(*line, f"--{option}", place)
    assert code == 2, err
    assert not out.strip()
    assert f"{option}=" in err


def test_looking_leaves_nothing_behind(tmp_path):
    check_writable("json", tmp_path / "new" / "folder" / "s.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "old").write_text("kept")
    check_writable("json", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "kept"
    (tmp_path / "there").mkdir()
    with pytest.raises(FileError, match="too long"):
        check_writable("json", tmp_path / "there" / "new" / ("a" * 300))
    assert not list((tmp_path / "there").iterdir())


def test_two_outputs_in_one_file(run, folder):
    code, _, err = run(*SCORE, "--json", "same", "--report", "./same")
    assert code == 2
    assert "same file" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_what_can_be_written_is_written(run, folder):
    code, out, err = run(*SCORE, "--json", "/dev/full", "--report", "r.html", "--details")
    assert code == 2
    assert "no space left" in err
    assert "monte-carlo" in out
    assert (folder / "r.html").stat().st_size > 0


def test_the_options_that_training_uses_are_taken(run, folder):
    code, _, err = run(*TRAIN, "--sites", "hidden", "--p", ".1", "--crash-training")
    assert code == 0, err


# Extreme, but right: no warnings from within, no endless search.
EXTREMES = [
    (*SCORE, "--p", "1e-320"),
    (*SCORE, "--p", "1"),
    (*SCORE, "--epsilon", "1e300"),
    (*SCORE, "--epsilon", "1e-9", "--delta", "0.999999"),
    (*HARDEN, "--p", "1", "--out", "h"),
]


@pytest.mark.parametrize("line", EXTREMES, ids=lambda line: " ".join(line[-4:]))
def test_extreme_inputs_are_taken(run, folder, line):
    code, _, err = run(*line)
    assert code == 0, err
    assert "encountered" not in err


@pytest.fixture(scope="module")
def saved():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter)
    result = crashsim.score(
        net, torch.ones(2, 3), NeuronCrash(0.1), epsilon=0.5, samples=200, methods=None
    )
    return result.to_dict()


DAMAGE = [
    (("estimates",), 3, "estimates: should be a valid array, not 3"),
    (("estimates", 0), {}, "estimates[0].method: field required"),
    (("estimates", 0, "value"), "x", 'estimates[0].value: should be a valid number, not "x"'),
    (("estimates", 0, "input"), "b", "estimates[0].input: should be a valid integer"),
    (("estimates", 0, "kind"), "weird", "estimates[0].kind: should be"),
    (("estimates", 0, "input"), 10**9, "of 2 inputs"),
    (("estimates", 0, "output"), -1, "of 2 outputs"),
    (("epsilon",), None, "epsilon is null"),
    (("curves",), {"a": 1}, "curves.input: field required"),
    (("curves", "epsilon"), [], "curves has lists of lengths"),
    (("curves", "methods"), None, "curves.methods: should be an object, not null"),
    (("histogram", "edges"), [1.0], "histogram has lists of lengths"),
    (("histogram", "counts", 0), "x", "histogram.counts[0]: "),
    (("sites",), [], "1 faults at 0 sites"),
    (("sites", 0, "share"), "much", "sites[0].share"),
    (("sites", 0, "share"), 1e308, "sites[0].share is 1e+308"),
    (("faults", 0, "p"), [], "faults[0].p"),
    (("faults", 0), {"fault": "x", "site": "y"}, "neither p nor std"),
    (("model",), "x", 'model: should be an object, not "x"'),
    (("inputs", "count"), True, "inputs.count: should be a valid integer, not true"),
    (("agreement", 0, "worst_at"), [1], "agreement[0].worst_at[1]: field required"),
    (("hardware",), {}, "hardware.engine: field required"),
    (("formulas",), {"taylor": 3}, "formulas.taylor: should be an object, not 3"),
    (("timings",), {"exact": None, "x": "y"}, "timings.x"),
    (("warnings",), 3, "warnings: should be a valid array, not 3"),
    (("methods", 0, "kind"), "weird", "methods[0].kind: should be"),
    (("methods", 0, "rank"), "x", "methods[0].rank: should be a valid integer"),
    (("methods",), [{"name": str(i), "about": "", "kind": "bound"} for i in range(2000)], "of 20"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "told"), DAMAGE, ids=lambda value: str(value)[:40])
def test_a_damaged_score_is_told_by_its_entry(saved, tmp_path, path, value, told):
    damaged = copy.deepcopy(saved)
    place = damaged
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (tmp_path / "s.json").write_text(json.dumps(damaged))
    with pytest.raises(FileError) as raised:
        Score.load(tmp_path / "s.json")
    assert told in str(raised.value)
    assert "s.json" in str(raised.value)


def test_what_is_not_declared_is_left_alone(saved):
    again = Score.from_dict(saved | {"inits": [1], "comment": "mine"})
    assert again.to_dict() == saved
    with pytest.raises(FileError, match="cannot be read"):
        Score.load("[" * 10)


def test_long_messages_keep_both_ends():
    assert str(ArgumentError("x" * 5000)) == "x" * 120 + "…" + "x" * 40
    many = str(CrashsimError("start " + "some words " * 1000 + "end"))
    assert many.startswith("start")
    assert many.endswith("end")
    assert len(many) < 1300
    assert str(FileError("a short one")) == "a short one"
