"""What README.md and the pages print runs: commands are taken, Python does what it says."""

import re
import shlex
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import nn

import crashsim
from crashsim.cli.program import app

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/doors").glob("*.md"))]
# Pages whose Python runs here, one after the other; the others have tests of their own.
RUN = [README, *(ROOT / "docs" / f"{name}.md" for name in ("python", "faults", "training"))]
FENCED = re.compile(r"^```(.*)\n((?:(?!```).*\n)*)```$", re.M)
BLOCKS = [
    (page.name, text)
    for page in RUN
    for kind, text in FENCED.findall(page.read_text())
    if kind == "python"
]
COMMANDS = [
    pytest.param(shlex.split(line.split(" | ")[0], comments=True)[1:], id=f"{page.name}: {line}")
    for page in PAGES
    for kind, text in FENCED.findall(page.read_text())
    for line in text.replace("\\\n", " ").splitlines()
    if kind in ("", "bash", "sh") and line.startswith("crashsim ")
]


def test_the_readme_is_a_page_long():
    assert len(README.read_text().splitlines()) <= 125
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    for link in links:
        if not link.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_taken_as_it_is_printed(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in line:
        if Path(name).suffix in {".nir", ".npy", ".npz"} or name == "model":
            Path(name).touch()
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and line[0] in command.commands:
        command, line = command.commands[line[0]], line[1:]
        if not line:
            break
    assert command.make_context("crashsim", list(line)).command is command  # exits on wrong use


class Encoder(nn.Module):
    """Takes ids and a mask, as transformers do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(7, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, input_ids, attention_mask):
        x = (self.embedding(input_ids) * attention_mask[..., None]).mean(1)
        return {"logits": self.out(torch.relu(self.hidden(x)))}


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.out(left - right)


class States(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x):
        h = self.act(self.first(x))
        return OrderedDict(logits=self.second(h), hidden_states=[self.second(h) + 1, h])


def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pandas", reason="a page makes a data frame")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.randn(12, 16), torch.randint(4, (12,))
        namespace = {name: getattr(crashsim, name) for name in crashsim.__all__} | {
            "__name__": "readme", "measured": torch.full((32, 16), 0.01),
            "bert": Encoder().eval(), "ids": torch.randint(7, (3, 5)), "mask": torch.ones(3, 5),
            "siamese": Siamese().eval(), "left": torch.randn(3, 4), "right": torch.randn(3, 4),
            "encoder": States().eval(), "x": torch.randn(3, 4),
            "loader": [(x[:6], y[:6]), (x[6:], y[6:])], "criterion": nn.CrossEntropyLoss(),
        }  # fmt: skip
        assert len(BLOCKS) >= 5
        for page, block in BLOCKS:
            namespace |= {"x": namespace["left"]}
            exec(compile(block, page, "exec"), namespace)
    assert np.isfinite(namespace["loss"].item())
    assert Path("report.html").stat().st_size > 10_000
    assert Path("broken.safetensors").exists()
    assert "variance" in capsys.readouterr().out
