"""Estimates as arrays, against the list of what they stand for."""

import io
import json

import numpy as np
import pytest

from crashsim.results.estimate import Estimate, Interval, Values
from crashsim.results.estimates import Estimates, deterministic, estimates_of, values_of
from crashsim.results.listing import MOST, as_npz, listed

SINGLE = Estimate("importance-sampling", "tail", 0, 1, 1e-9, 1e-10, 1e-8, "statistical", level=2.0)


def some():
    values = np.arange(6.0).reshape(2, 3)
    found = estimates_of(
        "monte-carlo",
        "variance",
        "statistical",
        per_input=Interval(values, values - 1, values + 1),
        pooled=Interval(values.mean(0), values.min(0), values.max(0)),
        total=Values(np.asarray(9.0)),
        confidence=0.95,
        outputs=np.array([1, 4, 7]),
    )
    return found + Estimates([SINGLE]) + deterministic("taylor", "mean", "estimate", values)


def test_they_are_the_sequence_of_single_estimates():
    found, alone = some(), list(some())
    assert len(found) == len(alone) == 6 + 3 + 1 + 1 + 6 + 3
    assert found == alone
    assert found[-1] == alone[-1]
    assert found[9] == alone[9]
    assert found[8:12] == alone[8:12]
    assert SINGLE in found
    with pytest.raises(IndexError):
        found[len(found)]
    assert Estimates(alone) == found
    single = [SINGLE]
    assert single + found == [SINGLE, *alone]


def test_each_is_found_by_its_names():
    found = some()
    for e in found:
        assert found.find(e.method, e.quantity, e.input, e.output) == e
    for where in (("variance", 0, 2), ("variance", 2, 1), ("mean", "all", "all"), ("tail", 0, 0)):
        assert found.find("monte-carlo", *where) is None


def test_tables_of_arrays_and_of_single_estimates_agree():
    found = some()
    for method, quantity in (("monte-carlo", "variance"), ("taylor", "mean")):
        for field in ("value", "low"):
            one, other = (values_of(e, method, quantity, field) for e in (found, list(found)))
            np.testing.assert_array_equal(one, other)


def test_what_goes_together_can_be_left_out():
    kept = some().without_averages({"variance"})
    assert list(kept) == [e for e in some() if e.quantity != "variance" or e.input != "all"]


def many():
    draws = np.random.Generator(np.random.Philox(1))
    values = draws.normal(size=(3, 9000)) ** 3
    return deterministic("taylor", "mean", "estimate", values) + Estimates([SINGLE]), values


def test_a_file_lists_the_largest_of_very_many():
    found, values = many()
    assert len(found) > MOST
    kept, left_out = listed(found)
    assert SINGLE in kept
    assert len(kept) == 1 + 2 * 100
    each = [e for e in kept if isinstance(e.input, int) and e.method == "taylor"]
    wanted = np.sort(np.abs(values).ravel())[-100:]
    np.testing.assert_array_equal(np.sort([abs(e.value) for e in each]), wanted)
    summary = next(part for part in left_out if not part["averaged"])
    assert (summary["count"], summary["listed"]) == (27000, 100)
    assert summary["min"] == values.min() < summary["median"] == np.median(values)
    assert summary["max"] == values.max()
    assert summary["mean"] == pytest.approx(values.mean())
    assert listed(some()) == (list(some()), [])


def test_an_npz_holds_them_all():
    found, values = many()
    with np.load(io.BytesIO(as_npz(found)), allow_pickle=False) as file:
        index = json.loads(str(file["index"]))
        assert [(a["method"], a["quantity"], a["axes"]) for a in index] == [
            ("taylor", "mean", ["input", "output"]),
            ("taylor", "mean", ["output"]),
        ]
        np.testing.assert_array_equal(file[index[0]["name"] + ".value"], values)
        np.testing.assert_array_equal(file[index[1]["name"] + ".value"], values.mean(0))
    with np.load(io.BytesIO(as_npz(some())), allow_pickle=False) as file:
        name = json.loads(str(file["index"]))[0]["name"]
        np.testing.assert_array_equal(file[f"{name}.outputs"], [1, 4, 7])
        np.testing.assert_array_equal(file[f"{name}.high"], np.arange(6.0).reshape(2, 3) + 1)


def test_a_table_of_a_shape_holds_what_it_can():
    found = deterministic("taylor", "mean", "estimate", np.arange(12.0).reshape(3, 4))
    for e in (found, list(found)):
        table = values_of(e, "taylor", "mean", shape=(2, 3))
        np.testing.assert_array_equal(table, [[0, 1, 2], [4, 5, 6]])
        table = values_of(e, "taylor", "mean", shape=(4, 5))
        np.testing.assert_array_equal(table[:3, :4], np.arange(12.0).reshape(3, 4))
        assert np.isnan(table[3]).all()
        assert np.isnan(table[:, 4]).all()
