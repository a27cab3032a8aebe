"""Estimates as plain data."""

import math

import numpy as np
import pytest

from crashsim.results.estimate import Estimate, Interval, Values
from crashsim.results.estimates import deterministic, estimates_of, values_of


def test_shapes_become_inputs_and_outputs():
    found = estimates_of(
        "monte-carlo",
        "variance",
        "statistical",
        per_input=Interval(np.array([[1.0, 2.0]]), np.array([[0.5, 1.5]]), np.array([[3.0, 4.0]])),
        pooled=Values(np.array([1.0, 2.0])),
        total=Values(np.array(3.0)),
    )
    assert [(e.input, e.output, e.value, e.low, e.high) for e in found] == [
        (0, 0, 1.0, 0.5, 3.0),
        (0, 1, 2.0, 1.5, 4.0),
        ("all", 0, 1.0, None, None),
        ("all", 1, 2.0, None, None),
        ("all", "all", 3.0, None, None),
    ]
    np.testing.assert_array_equal(values_of(found, "monte-carlo", "variance"), [[1, 2]])
    np.testing.assert_array_equal(values_of(found, "monte-carlo", "variance", "low"), [[0.5, 1.5]])
    assert values_of(found, "taylor", "variance") is None


@pytest.mark.parametrize(("quantity", "total"), [("variance", 1.0), ("tail", 0.85), ("mean", None)])
def test_pooling_of_theory(quantity, total):
    values = np.array([[0.1, 0.6], [0.8, 0.5]])
    found = deterministic("taylor", quantity, "estimate", values)
    pooled = {e.output: e.value for e in found if e.input == "all"}
    assert pooled[0] == pytest.approx(0.45)
    assert pooled.get("all") == (None if total is None else pytest.approx(total))


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(None, None, "= 1 ("), (0.5, 2.0, "[0.5, 2]"), (0.5, math.inf, "inf]"), (0.5, None, "inf]")],
)
def test_text(low, high, shown):
    estimate = Estimate("taylor", "mean", "all", 0, 1.0, low, high, "estimate")
    assert shown in str(estimate)
    assert Estimate(**estimate.to_dict()) == estimate
