"""Help is one screen; completion knows the names there are; a score without a model is a demo."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from crashsim.chip.chip_faults import CHIP_FAULTS
from crashsim.cli.front import completion
from crashsim.cli.front.pages import PAGES
from crashsim.cli.front.panels import PANELS
from crashsim.cli.program import app
from crashsim.faults import FAULTS
from crashsim.files.architectures import ACTIVATIONS
from crashsim.metrics.named import NAMES
from crashsim.protection.schemes import SCHEMES
from crashsim.scoring.methods import METHODS

GROUP = typer.main.get_command(app)
COMMANDS = sorted(name for name in GROUP.commands if name != "campaign")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_one_screen_with_every_option_named(run, command):
    code, out, err = run(command, "--help")
    assert code == 0, err
    lines = out.rstrip().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    for param in GROUP.commands[command].params:
        if param.param_type_name == "option" and param.name != "help":
            assert max(param.opts, key=len) in out
    code, full, err = run(command, "--help-all")
    assert code == 0, err
    flat = full.replace("│", " ").split()
    for param in GROUP.commands[command].params:
        if param.param_type_name == "option" and param.help:
            assert param.help.split()[0] in flat


def test_groups_hold_each_option_once():
    names = [name for group in PANELS.values() for name in group]
    assert len(names) == len(set(names))
    known = {p.name for command in COMMANDS for p in GROUP.commands[command].params}
    assert set(names) <= known
    assert set(PAGES) == set(COMMANDS)
    for command, page in PAGES.items():
        assert set(page.first) <= {p.name for p in GROUP.commands[command].params}


@pytest.mark.parametrize("line", [e for page in PAGES.values() for e in page.examples])
def test_examples_are_taken_as_they_are_shown(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(line)
    command = GROUP.commands[name]
    assert command.make_context(name, list(arguments)).command is command


def test_exit_codes_are_told(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "0 fine, 1 failure, 2 wrong use, 130 Ctrl-C" in " ".join(out.split())


def test_what_is_completed_is_what_there_is():
    assert set(completion.FAULTS) == set(FAULTS)
    assert set(completion.METRICS) == set(NAMES)
    assert set(completion.ACTIVATIONS) == set(ACTIVATIONS)
    assert set(completion.SCHEMES) == set(SCHEMES)
    assert set(completion.METHODS) == {method.name for method in METHODS}
    assert set(completion.CHIP_FAULTS) == set(CHIP_FAULTS)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("score 64-10:s", "64-10:sigmoid"),
        ("score model --fault weights=bit-s", "weights=bit-stuck"),
        ("score model --metric acc", "accuracy"),
        ("score model --methods taylor,sad", "taylor,saddlepoint"),
        ("hardware model --device memr", "memristor-crossbar"),
        ("protect model --schemes secded,tm", "secded,tmr"),
        ("score --inputs dig", "digits"),
        ("score ne", "net.nir"),
        ("score model --no-c", "--no-color"),
    ],
)
def test_the_shell_completes(typed, completed, tmp_path):
    (tmp_path / "net.nir").touch()
    words = f"crashsim {typed}"
    code = (
        "import atexit, sys; from crashsim.cli import main; sys.argv = ['crashsim']; "
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); main()"
    )
    environment = os.environ | {
        "_CRASHSIM_COMPLETE": "complete_bash", "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert completed in done.stdout.split(), done
    assert done.stderr.split() == ["False"]  # nothing heavy is loaded for it


def test_a_score_without_a_model_is_a_demo_that_says_so(run):
    code, out, err = run("score", "--samples", 200)
    assert code == 0, err
    assert "the demo" in err
    assert "crashsim score --help" in err
    assert len(out.splitlines()) <= 40
    for more in (("--inputs", "x.npz"), ("--train", "digits"), ("--weights", "w.pt")):
        code, _, err = run("score", *more)
        assert code == 2
        assert "model: missing" in err
    assert not list(Path().iterdir())
