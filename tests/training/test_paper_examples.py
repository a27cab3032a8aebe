"""Every experiment of examples/paper runs, writes its table and its figure."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "paper"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("[a-j]_*.py"))


def test_all_are_there():
    assert [name[0] for name in SCRIPTS] == list("abcdefghij")


@pytest.mark.filterwarnings("ignore:samples=:crashsim.CrashsimWarning")  # quick ones are few
@pytest.mark.parametrize("name", SCRIPTS)
def test_experiment(name, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    try:
        rows = importlib.import_module(name).main(["--quick", "--out", str(tmp_path)])
    finally:
        for module in (name, "shared"):
            sys.modules.pop(module, None)
    assert rows
    assert (tmp_path / f"{name}.csv").read_text().count("\n") == len(rows) + 1
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert name in capsys.readouterr().out


def test_the_housing_data_is_read_by_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("j_boston")
    sys.modules.pop("j_boston")
    lines = [",".join(["medv", *(f"f{i}" for i in range(13))])]
    lines += [",".join(str((i * j) % 7) for j in range(1, 15)) for i in range(30)]
    (tmp_path / "housing.csv").write_text("\n".join(lines))
    x, y = module.read(tmp_path / "housing.csv")
    assert x.shape == (30, 13)
    raw = torch.arange(30.0) % 7  # the column medv comes first in this file
    assert torch.allclose(y[:, 0], (raw - raw.mean()) / raw.std())


def test_training_cost_benchmark(capsys):
    path = FOLDER.parents[1] / "benchmarks" / "training_cost.py"
    spec = importlib.util.spec_from_file_location("training_cost", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--steps", "2", "--batch", "8"])
    assert "crash training" in capsys.readouterr().out
