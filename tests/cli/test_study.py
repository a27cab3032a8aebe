"""``crashsim campaign run`` and ``compare``."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crashsim.cli.program import app
from crashsim.errors import ArgumentError, FileError

EXAMPLE = Path(__file__).parents[2] / "examples" / "campaign" / "study.toml"


def call(*arguments):
    result = CliRunner().invoke(app, ["campaign", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def study(tmp_path):
    """The example with less to do."""
    text = EXAMPLE.read_text().replace('\ntrain = "digits"', "")
    text = text.replace("width = 0.005", "width = 0.03").replace(
        'inputs = "digits"', 'inputs = "digits"\nlimit = 40'
    )
    file = tmp_path / "study.toml"
    file.write_text(text.replace("[0.001, 0.01, 0.05]", "[0.01, 0.05]"))
    return file


def test_the_example_is_a_study_of_twelve_cases():
    told = call("run", EXAMPLE, "--dry-run")
    assert "12 cases on 12 sets of chips" in told
    assert "1e10 operations a second" in told


def test_a_study_runs_goes_on_and_is_compared(study, tmp_path):
    files = {f"--{kind}": tmp_path / f"new.{kind}" for kind in ("json", "csv", "report")}
    options = [part for pair in files.items() for part in pair]
    told = call("run", study, "--store", tmp_path / "runs", *options)
    assert "8 cases, 8 of 8 as narrow as was asked for" in told
    lines = files["--json"].read_text()
    cases = [json.loads(line) for line in lines.splitlines()]
    assert len(cases) == 8
    assert {case["model"] for case in cases} == {"narrow", "wide"}
    assert all(case["low"] <= case["value"] <= case["high"] for case in cases)
    assert len(files["--csv"].read_text().splitlines()) == 9
    page = files["--report"].read_text()
    assert page.count("<svg") == 2
    assert "behind the next better model" in page
    assert call("run", study, "--store", tmp_path / "runs", "--json", "-") == lines

    old = tmp_path / "old.json"
    case = {**cases[0], "case": "another"}
    worse = {**cases[1]}
    for end in ("value", "low", "high", "wide_low", "wide_high"):
        worse[end] -= 0.5
    old.write_text("".join(f"{json.dumps(each)}\n" for each in (*cases[2:], worse, case)))
    told = call("compare", old, files["--json"], "--json", tmp_path / "changes.json")
    assert "7 cases in both: 1 better, 0 worse, 6 within" in told
    assert f"new: {cases[0]['case']}" in told.replace("\n", " ")
    assert "gone: another" in told
    changes = json.loads((tmp_path / "changes.json").read_text())
    (better,) = [change for change in changes["cases"] if change["is_better"]]
    assert better["difference"] == pytest.approx(0.5)
    assert better["low"] < 0.5 < better["high"]


def test_wrong_use_says_why(study, tmp_path):
    with pytest.raises(ArgumentError, match=r"overwrite|read"):
        call("run", study, "--json", study)
    with pytest.raises(ArgumentError, match="budget='soon'"):
        call("run", study, "--budget", "soon", "--dry-run")
    with pytest.raises(ArgumentError, match="first chips of every case"):
        call("run", study, "--budget", "0.001s")
    shutil.copy(study, tmp_path / "lines.json")
    with pytest.raises(FileError, match="line 1"):
        call("compare", tmp_path / "lines.json", study)
