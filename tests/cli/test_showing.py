"""How much is printed, and where: one screen, verdict alone, details; files to pipes."""

import csv
import io
import json

import numpy as np
import pytest

SCORE = ("score", "4-5-2:tanh", "--inputs", "d.npz", "--p", 0.1, "--samples", 300)
SWEEP = ("sweep", "4-5-2:tanh", "--inputs", "d.npz", "--rates", "0.1,0.2", "--chips", 40)
VULNERABILITY = (
    "vulnerability", "4-5-2:tanh", "--inputs", "d.npz", "--fault", "weight-crash",
)  # fmt: skip
COMPARE = ("compare", "4-5-2:tanh", "4-3-2:relu", "--inputs", "d.npz", "--samples", 200)
PROTECT = (
    "protect", "4-5-2:tanh", "--inputs", "d.npz", "--budget", 0.1,
    "--fault", "weights=bit-flip:p=1e-3,format=int8", "--chips", 40,
)  # fmt: skip
HARDWARE = ("hardware", "4-5-2:relu", "--inputs", "d.npz", "--masks", 6, "--limit", 2,
            "--steps", 20)  # fmt: skip
CRITICALITY = ("criticality", "4-5-2:relu", "--inputs", "d.npz", "--limit", 2, "--steps", 20)
EVERY = {
    line[0]: line for line in (SCORE, SWEEP, VULNERABILITY, COMPARE, PROTECT, HARDWARE, CRITICALITY)
}


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(24, 4)), y=np.arange(24) % 2)


@pytest.mark.parametrize("command", EVERY)
def test_one_screen_or_the_verdict_alone(run, data, command):
    line = EVERY[command]
    code, out, err = run(*line)
    assert code == 0, err
    assert len(out.splitlines()) <= 40
    assert max(map(len, out.splitlines())) <= 80
    code, quiet, err = run(*line, "--quiet")
    assert code == 0, err
    assert len(quiet.splitlines()) == 1  # in a file or a pipe
    said, shown = quiet.split(), " ".join(out.replace("│", " ").split())
    assert " ".join(said[:8]) in shown


def test_details_have_every_method(run, data):
    _, out, _ = run(*SCORE)
    _, details, _ = run(*SCORE, "--details")
    for method in ("mean-point-taylor", "chernoff", "saddlepoint"):
        assert method not in out
        assert method in details
    assert "not computed" in details


def test_verbose_tells_each_step(run, data):
    _, out, err = run(*SCORE, "--verbose")
    assert "not computed" in out
    assert "done" in err
    assert "done" not in run(*SCORE)[2]


@pytest.mark.parametrize("command", ["score", "sweep", "vulnerability", "compare", "hardware"])
def test_json_on_standard_output_alone(run, data, command, tmp_path):
    line = EVERY[command]
    code, out, err = run(*line, "--json", "-")
    assert code == 0, err
    plain = json.loads(out)
    assert "crashsim" in err  # the screen
    run(*line, "--json", "s.json")
    same = json.loads((tmp_path / "s.json").read_text())
    for timed in ("timings", "plan"):
        plain.pop(timed, None), same.pop(timed, None)
    if command == "score":
        assert plain == same
    assert not (tmp_path / "-").exists()


def test_csv_and_a_page_on_standard_output(run, data):
    _, out, _ = run(*SWEEP, "--csv", "-")
    assert [row["rate"] for row in csv.DictReader(io.StringIO(out))] == ["0.0", "0.1", "0.2"]
    _, out, _ = run(*SCORE, "--report", "-")
    assert out.startswith("<!doctype html>")
    assert out.rstrip().endswith("</html>")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--quiet", "--details"), "--details"),
        (("-q", "-v"), "--verbose"),
        (("--json", "-", "--report", "-"), "standard output"),
    ],
)
def test_what_does_not_go_together(run, data, options, told):
    code, _, err = run(*SCORE, *options)
    assert code == 2
    assert told in err


@pytest.mark.parametrize(
    ("environment", "options", "is_plain"),
    [
        ({"FORCE_COLOR": "1"}, (), False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, (), True),
        ({"FORCE_COLOR": "1"}, ("--no-color",), True),
        ({}, (), True),
    ],
)
def test_colours(run, data, monkeypatch, environment, options, is_plain):
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _, out, _ = run(*SWEEP, *options)
    assert ("\x1b" not in out) == is_plain
