"""Faults as they are written on a command line: built-in kinds, and classes of one's own."""

import json

import numpy as np
import pytest

from crashsim import Score
from crashsim.cli.fault_specs import fault_files, parse_fault
from crashsim.errors import ArgumentError, CrashsimError
from crashsim.faults import BitFlip, BitStuck, GainNoise, NeuronCrash, SignFlip, StuckAt


@pytest.mark.parametrize(
    ("spec", "options", "wanted"),
    [
        ("neuron-crash:p=0.02", {}, (None, NeuronCrash(0.02))),
        ("neuron-crash", {"default_p": 0.3}, (None, NeuronCrash(0.3))),
        ("conv*=neuron-crash:p=0.01,group=4", {}, ("conv*", NeuronCrash(0.01, group=4))),
        ("neuron-crash:p=1", {"group": "channel"}, (None, NeuronCrash(1.0, group="channel"))),
        ("a.b#1=bit-flip:p=1e-4,bits=4", {}, ("a.b#1", BitFlip(1e-4, bits=4))),
        ("stuck-at:p=0.1,value=-2", {}, (None, StuckAt(0.1, -2.0))),
        ("w=gain-noise:std=0.5", {"default_p": 0.1}, ("w", GainNoise(0.5))),
        ("layer:relu=sign-flip:p=0.1", {}, ("layer:relu", SignFlip(0.1))),
        (
            "bit-flip:p=1e-6,format=float32,bits=exponent",
            {},
            (None, BitFlip(1e-6, format="float32", bits="exponent")),
        ),
        (
            "weights=bit-flip:count=2,bits=[0-2,30],format=float32",
            {},
            ("weights", BitFlip(count=2, bits=[0, 1, 2, 30], format="float32")),
        ),
        (
            "bit-flip:p=0.1,format=int4,scale=0.5,upset=2",
            {},
            (None, BitFlip(0.1, format="int4", scale=0.5, upset=2)),
        ),
        (
            "bit-stuck:p=0.1,to=1,format=int8,scale=channel,upset=row",
            {"group": "channel"},
            (None, BitStuck(0.1, to=1, format="int8", scale="channel", upset="row")),
        ),
    ],
)
def test_specs(spec, options, wanted):
    assert parse_fault(spec, **options) == wanted


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "crash",
        "neuron-crash",
        "neuron-crash:p",
        "neuron-crash:p=",
        "neuron-crash:p=x",
        "neuron-crash:p=2",
        "neuron-crash:q=0.1",
        "=neuron-crash:p=0.1",
        "neuron-crashes:p=0.1",
        "neuron-crash:p=0.1,group=rows",
        "neuron-crash:p=0.1,group=-2",
        "gain-noise",
        "gain-noise:p=0.1",
        "bit-flip:p=0.1,bits=8.5",
        "bit-flip:p=0.1,bits=99",
        "bit-flip:p=0.1,bits=[x]",
        "bit-flip:p=0.1,bits=[1-]",
        "bit-flip:p=0.1,bits=30,format=float32",
        "bit-flip:p=0.1,format=float12",
        "bit-flip:p=0.1,stored=1",
        "bit-stuck:p=0.1,to=2",
        "stuck-at:p=0.1,value=inf",
    ],
)
def test_bad_specs(spec):
    with pytest.raises(ArgumentError):
        parse_fault(spec)


OWN = """
from dataclasses import dataclass
from typing import ClassVar

import sympy
import torch
from crashsim_theory import law_from_cgf
from crashsim_theory.laws import t

from crashsim import Fault

w = sympy.Symbol("w", positive=True)
uniform = law_from_cgf(
    "uniform",
    sympy.log(sympy.sinh(w * t) / (w * t)),
    draw=lambda rng, shape, w: rng.uniform(-w, w, shape),
    support=(-w, w),
)


@dataclass(frozen=True)
class UniformNoise(Fault):
    law: ClassVar = uniform
    parameter: ClassVar[str] = "width"
    name: ClassVar[str] = "uniform-noise"
    reported: ClassVar = ("label", "times")
    width: float
    times: int = 1
    label: str = "none"

    def __post_init__(self):
        assert self.width >= 0, "width is negative"

    def displacement(self, value):
        return self.times * torch.ones_like(value)


class Draft(Fault):
    law = uniform
    parameter = "width"
    name = "draft"


LAW = uniform
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    return tmp_path / "noise.py"


def test_a_class_of_ones_own(own):
    where, fault = parse_fault("noise.py:UniformNoise:width=0.2,times=3,label=two words")
    assert where is None
    assert (fault.width, fault.times, fault.label) == (0.2, 3, "two words")
    assert fault.variance == pytest.approx(0.2**2 / 3)
    where, fault = parse_fault(f"layer:relu#2={own}:UniformNoise:width=1", default_p=0.5)
    assert where == "layer:relu#2"
    assert fault.width == 1.0
    specs = ["neuron-crash:p=0.1", "a=noise.py:UniformNoise:width=1", "other.py:X"]
    assert fault_files(specs) == [("fault", "noise.py"), ("fault", "other.py")]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("none.py:UniformNoise:width=1", "'none.py' does not exist"),
        ("noise.py:Missing:width=1", "'noise.py' has no 'Missing'"),
        ("noise.py:LAW:width=1", "'LAW' is no subclass of crashsim.Fault"),
        ("noise.py:UniformNoise", "say how strong, as noise.py:UniformNoise:width=0.1"),
        (
            "noise.py:UniformNoise:p=1",
            "give NAME=VALUE with duration or label or times or width or window",
        ),
        ("noise.py:UniformNoise:width=x", "width='x'; give a number"),
        ("noise.py:UniformNoise:width=1,times=1.5", "times='1.5'; give a number"),
        ("noise.py:UniformNoise:width=-1", "AssertionError: width is negative"),
        ("noise.py:Draft", "abstract"),
        ("noise.py", "'noise.py' is not known"),
        ("broken.py:X:p=1", "ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_class_is_told(own, spec, told):
    with pytest.raises(CrashsimError, match="fault=") as caught:
        parse_fault(spec)
    assert told in str(caught.value)


def test_a_score_of_it_loads_without_its_code(own, run, tmp_path):
    np.save("x.npy", np.random.default_rng(0).normal(size=(5, 4)))
    code, out, err = run(
        "score", "4-5-2:tanh", "--inputs", "x.npy", "--fault",
        "hidden=noise.py:UniformNoise:width=0.3", "--epsilon", 0.1, "--samples", 400,
        "--json", "s.json", "--report", "r.html",
    )  # fmt: skip
    assert code == 0, err
    assert "Traceback" not in out + err
    facts = json.loads((tmp_path / "s.json").read_text())["faults"]
    (found,) = facts
    assert found.pop("site")
    assert found == {
        "fault": "uniform-noise", "parameter": "width", "rate": 0.3, "label": "none", "times": 1,
    }  # fmt: skip
    own.unlink()
    found = Score.load(tmp_path / "s.json")
    assert "width 0.3 uniform-noise" in found.verdict
    assert found.to_html()
    code, _, err = run("report", "s.json", "-o", "again.html")
    assert code == 0, err
    for method in ("chernoff", "saddlepoint", "monte-carlo", "importance-sampling"):
        assert any(e.method == method and e.quantity == "tail" for e in found.estimates), method


def test_a_score_of_float_words(own, run, tmp_path):
    """Weights, unless sites are named; what its record says of the words."""
    np.save("x.npy", np.random.default_rng(0).normal(size=(5, 4)))
    code, _, err = run(
        "score", "4-5-2:relu", "--inputs", "x.npy", "--samples", 300, "--json", "s.json",
        "--fault", "bit-flip:p=1e-4,format=float32,bits=exponent",
    )  # fmt: skip
    assert code == 0, err
    score = Score.load(tmp_path / "s.json")
    assert [site["name"] for site in score.sites] == ["linear1.weight", "linear2.weight"]
    assert score.faults[0]["bits"] == "exponent"
    assert score.faults[0]["format"] == "float32"
    assert score.find("word-strata", "class-change") is not None
    assert score.verdict.index("class changes") < score.verdict.index("utputs")


def test_every_command_takes_it(own, run):
    code, out, err = run("derive", "--fault", "noise.py:UniformNoise")
    assert code == 0, err
    assert "w**2" in out or "w^2" in out or "w²" in out
    code, _, err = run(
        "train", "64-4-10", "--data", "digits", "--epochs", 1, "--crash-training",
        "--fault", "noise.py:UniformNoise:width=0.1", "--out", "net",
    )  # fmt: skip
    assert code == 0, err
    code, _, err = run("score", "net", "--fault", "none.py:X:p=1", "--inputs", "digits")
    assert code == 2
    assert "does not exist" in err


def test_its_code_is_not_overwritten(own, run):
    code, _, _ = run(
        "score", "4-5-2", "--inputs", "digits", "--fault", "noise.py:UniformNoise:width=1",
        "--json", "noise.py",
    )  # fmt: skip
    assert code == 2
    assert own.read_text() == OWN
