"""The commands that pages print are taken by the program as they stand."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from crashsim.cli.program import app

DOCS = Path(__file__).parents[2] / "docs"
MADE = ("_build", "gallery", "generated")  # when the site is built
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if not set(MADE) & set(p.relative_to(DOCS).parts)]
FILES = {".nir", ".npy", ".npz", ".csv", ".json", ".jsonl", ".toml", ".safetensors", ".py"}


def commands(page):
    """Lines of code that begin with the program's name, with those that go on after a backslash."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"^    (crashsim .*)$", text, re.M)
    lines = [line for block in blocks for line in block.splitlines()] + indented
    return [line.split(" > ")[0] for line in lines if re.match(r"crashsim [a-z]+( |$)", line)]


COMMANDS = [(page, line) for page in PAGES for line in dict.fromkeys(commands(page))]


@pytest.mark.parametrize(
    ("page", "line"), COMMANDS, ids=[f"{page.stem}: {line[:60]}" for page, line in COMMANDS]
)
def test_a_command_is_taken_as_it_is_printed(page, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.split(" | ")[0], comments=True)[1:]
    for word in words:
        if Path(word).suffix in FILES:
            Path(word).touch()
        elif word in {"model", "other", "network", "runs", "runs-of-the-other-machine"}:
            Path(word).mkdir(exist_ok=True) if word.startswith("runs") else Path(word).touch()
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    assert command.make_context(command.name, words).command is command  # exits on a wrong option


def test_there_are_commands_on_the_pages():
    assert len(COMMANDS) > 30
    assert len({page for page, _ in COMMANDS}) > 10
