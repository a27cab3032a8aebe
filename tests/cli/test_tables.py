"""``--csv`` and ``--parquet`` of the commands."""

import sys

import numpy as np
import pytest

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def examples(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(40, 4)), y=np.arange(40) % 2)
    return "d.npz"


@pytest.mark.parametrize(
    ("command", "column"),
    [
        (("score", "--samples", 50, "--methods", "taylor,monte-carlo"), "method"),
        (("sweep", "--chips", 20, "--rates", "0.01,0.1"), "rate"),
        (("vulnerability", "--by", "layer"), "layer"),
    ],
    ids=lambda c: c[0],
)
def test_rows_are_written(run, examples, tmp_path, command, column):
    name, *options = command
    code, _, err = run(
        name, "4-5-2:tanh", "--inputs", examples, *options, "--parquet", "rows.parquet", "--csv",
        "rows.csv",
    )  # fmt: skip
    assert code == 0, err
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert column in table.column_names
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert table.num_rows == len(lines) - 1 > 0


def test_a_missing_package_is_told_before_the_work(run, examples, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, out, err = run(
        "score", "4-5-2:tanh", "--inputs", examples, "--samples", 50, "--parquet", "no.parquet"
    )
    assert code == 2
    assert "pip install crashsim[parquet]" in " ".join(err.split())
    assert "accuracy" not in out
    assert not (tmp_path / "no.parquet").exists()
