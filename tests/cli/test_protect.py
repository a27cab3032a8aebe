"""``crashsim protect``: files, tables, schemes as they are written, exit codes."""

import json

import numpy as np
import pytest

from crashsim import Plan
from crashsim.cli.protection.scheme_specs import read_schemes
from crashsim.errors import ArgumentError
from crashsim.protection.schemes import SECDED, TMR, Parity, Scrubbing


@pytest.fixture
def examples(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4))
    np.savez(tmp_path / "d.npz", x=x, y=(x[:, 0] > 0).astype(int))
    return "d.npz"


FAST = ("--chips", 20, "--fault", "weights=bit-flip:p=0.01,format=int8")


def test_a_plan_and_its_files(run, examples, tmp_path):
    code, out, err = run(
        "protect", "4-5-2:tanh", "--inputs", examples, "--budget", 0.3, "--schemes",
        "secded:data=32,tmr:of=words", "--json", "p.json", "--report", "p.html", *FAST,
    )  # fmt: skip
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    plan = Plan.load(tmp_path / "p.json")
    assert plan.overhead <= 0.3
    assert plan.chosen
    assert plan.metric == "accuracy"
    for row in plan.chosen:
        assert row["site"] in out
    assert "<svg" in (tmp_path / "p.html").read_text()
    code, _, err = run("report", "p.json", "--out", "again.html")
    assert code == 0, err
    assert (tmp_path / "again.html").read_text().count("<svg") == 1


def test_a_target_of_answers_that_change(run, examples, tmp_path):
    code, _, err = run(
        "protect", "4-5-2:tanh", "--inputs", examples, "--class-change", 0.5, "--yield", 0.5,
        "--by", "layer", "--json", "p.json", *FAST,
    )  # fmt: skip
    assert code == 0, err
    plain = json.loads((tmp_path / "p.json").read_text())
    assert (plain["metric"], plain["target"], plain["share"]) == ("class-change", 0.5, 0.5)
    assert plain["reached"] is True
    assert plain["chosen"] == []  # so much changes seldom


def test_workers_give_the_same_plan(run, examples, tmp_path):
    for name, more in (("one", ()), ("two", ("--workers", 2))):
        code, _, err = run(
            "protect", "4-5-2:tanh", "--inputs", examples, "--budget", 0.3, "--by", "layer",
            "--schemes", "secded", "--json", f"{name}.json", *FAST, *more,
        )  # fmt: skip
        assert code == 0, err
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert one == two


def test_schemes_as_they_are_written():
    found = read_schemes(["secded:data=32;on_detection=last,tmr:of=words,bits=6-7", "parity"])
    assert found == [
        SECDED(data=32, on_detection="last"), TMR(of="words", bits=[6, 7]), Parity(),
    ]  # fmt: skip
    assert read_schemes(["scrubbing:interval=24;rate_per_hour=1e-6"]) == [Scrubbing(24, 1e-6)]
    assert read_schemes(["tmr:of=words;sites=0.*;bits=sign"]) == [
        TMR(of="words", sites="0.*", bits="sign")
    ]
    assert read_schemes(None) is None


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("shield", "not known"),
        ("secded:size=3", "OPTION=VALUE"),
        ("secded:data=many", "number"),
        ("scrubbing:interval=24", "rate_per_hour"),
        ("tmr:of=wires", "wires"),
        ("tmr:of=words;bits=wing", "wing"),
        ("parity:on_detection=weep", "weep"),
    ],
)
def test_schemes_that_make_no_sense(spec, told):
    with pytest.raises(ArgumentError, match=told):
        read_schemes([spec])


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("--budget", -1),
        ("--accuracy", 0.9, "--class-change", 0.1),
        ("--accuracy", 2),
        ("--budget", 0.1, "--schemes", "shield"),
        ("--budget", 0.1, "--yield", 0.9),
        ("--budget", 0.1, "--by", "wing"),
        ("--budget", 0.1, "--json", "d.npz"),
    ],
)
def test_wrong_use_ends_with_2(run, examples, wrong):
    code, _, err = run("protect", "4-5-2:tanh", "--inputs", examples, *FAST, *wrong)
    assert code == 2, err
    assert "Traceback" not in err
