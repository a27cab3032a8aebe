"""Without brian2, matplotlib or scikit-learn the rest works, and what needs them says so."""

import subprocess
import sys

import numpy as np
import pytest

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, package=None: (
    None if name in {absent!r} else found(name, package)
)
"""
SLIM = ["brian2", "matplotlib", "sklearn", "pandas", "nir", "pyarrow", "distributed", "ray"]


def slim(code, tmp_path, *arguments):
    """What a Python without these packages does."""
    start = BLOCK.format(absent=SLIM)
    return subprocess.run(
        [sys.executable, "-c", start + code, *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip


CLI = "from crashsim.cli import main; main()"


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(12, 4)), y=np.arange(12) % 2)


def test_what_does_not_need_them_works(data, tmp_path):
    model = ("4-5-2:relu", "--inputs", "d.npz", "--p", "0.1")
    done = slim(CLI, tmp_path, "score", *model, "--samples", "100", "--hardware", "--json", "s")
    assert done.returncode == 0, done.stderr
    assert "accuracy, on average" in done.stdout
    assert (tmp_path / "s").stat().st_size > 1000


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("score", "4-5-2", "--inputs", "digits"), 'pip install "scikit-learn"'),
        (("score", "4-5-2", "--inputs", "d.npz", "--report", "r.html"), 'pip install "matplotlib"'),
        (
            ("hardware", "4-5-2", "--inputs", "d.npz", "--engine", "brian2", "--masks", "3"),
            "pip install brian2",
        ),
        (("sweep", "4-5-2", "--inputs", "d.npz", "--parquet", "p"), "crashsim[parquet]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_needs_one_names_the_command(data, tmp_path, line, told):
    done = slim(CLI, tmp_path, *line)
    assert done.returncode == 2, done.stderr
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.html"))
