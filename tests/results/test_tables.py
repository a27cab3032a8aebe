"""Results as CSV and Parquet, read back by pyarrow and the csv module."""

import csv
import io

import numpy as np
import pytest
import torch
from torch import nn

import crashsim
from crashsim import BitFlip, NeuronCrash
from crashsim.errors import MissingExtraError
from crashsim.results.tables import Table, of_curves, of_scores

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def case():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
        x = torch.randn(30, 4)
        return net, x, net(x).argmax(-1)


def test_every_estimate_of_a_score_has_a_row(case, tmp_path):
    net, x, y = case
    score = crashsim.score(net, (x, y), NeuronCrash(0.1), samples=200, epsilon=0.5)
    score.to_parquet(tmp_path / "score.parquet")
    rows = parquet.read_table(tmp_path / "score.parquet").to_pylist()
    wanted = list(score.estimates)
    assert len(rows) == len(wanted) > 100
    assert len({row["method"] for row in rows}) > 5
    for row, estimate in zip(rows, wanted, strict=True):
        assert (row["method"], row["quantity"]) == (estimate.method, estimate.quantity)
        assert (row["input"], row["output"]) == (str(estimate.input), str(estimate.output))
        for end in ("value", "low", "high"):
            np.testing.assert_equal(row[end], getattr(estimate, end))
    found = score.find("monte-carlo", "accuracy")
    (accuracy,) = [
        row
        for row in rows
        if (row["method"], row["quantity"], row["input"]) == ("monte-carlo", "accuracy", "all")
    ]
    assert (accuracy["value"], accuracy["kind"]) == (found.value, "statistical")
    text = score.to_csv(tmp_path / "score.csv")
    assert (tmp_path / "score.csv").read_text() == text
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == len(rows)
    assert [float(line["value"]) for line in lines] == [row["value"] for row in rows]


def test_curves_and_maps_have_rows(case, tmp_path):
    net, x, y = case
    curve = crashsim.sweep(net, (x, y), NeuronCrash(0.1), rates=[0.01, 0.2], chips=40)
    curve.to_parquet(tmp_path / "curve.parquet")
    rows = parquet.read_table(tmp_path / "curve.parquet").to_pylist()
    assert [row["rate"] for row in rows] == [0.0, 0.01, 0.2]
    for row, point in zip(rows[1:], curve.points, strict=True):
        assert row["band_low"] == point["band_low"]
        assert row["accepted"] == point["accepted"]["value"]
        assert row["predicted"] is None
    told = crashsim.sweep(net, (x, y), NeuronCrash(0.1), rates=[0.01, 0.2], predict=True)
    assert [row["chips"] for row in _read(of_curves([curve, told]), tmp_path)] == [40] * 3 + [0] * 3
    table = crashsim.vulnerability(
        net, (x, y), BitFlip(0.01, format="float32"), sites="weights", by=("layer", "bit")
    )
    table.to_parquet(tmp_path / "parts.parquet")
    parts = parquet.read_table(tmp_path / "parts.parquet").to_pylist()
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [str(row["bit"]) for row in parts] == [line["bit"] for line in lines]
    assert [row["value"] for row in parts] == [row.value for row in table.rows]


def _read(table, folder):
    table.to_parquet(folder / "it.parquet")
    return parquet.read_table(folder / "it.parquet").to_pylist()


def test_columns_of_several_types(tmp_path):
    table = Table({"a": [1, "all", None], "b": [1, 2.5, np.float32(0.5)], "c": [None] * 3,
                   "d": [float("nan"), float("inf"), 1], "e": [True, None, False]})  # fmt: skip
    rows = _read(table, tmp_path)
    assert [row["a"] for row in rows] == ["1", "all", None]
    assert [row["b"] for row in rows] == [1.0, 2.5, 0.5]
    assert np.isnan(rows[0]["d"])
    assert [row["e"] for row in rows] == [True, None, False]
    assert table.csv().splitlines()[1] == "1,1,,nan,True"


def test_without_pyarrow_the_command_is_named(case, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install crashsim\[parquet\]"):
        of_scores([]).to_parquet(tmp_path / "no.parquet")
    assert not (tmp_path / "no.parquet").exists()
