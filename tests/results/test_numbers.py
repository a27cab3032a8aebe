"""Numbers as people read them: nothing that is possible is called impossible or sure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashsim.results import chips
from crashsim.results.numbers import percent, share


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0%"), (1.0, "100%"), (0.9996, "99.96%"), (0.99951, "99.95%"), (0.999901, ">99.99%"),
        (0.99995, ">99.99%"), (1 - 1e-12, ">99.99%"), (0.0004, "0.04%"), (2e-5, "2e-05"),
        (0.5, "50%"), (0.9949, "99.5%"),
    ],
)  # fmt: skip
def test_percent(value, shown):
    assert percent(value) == shown


@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(0, 2))
def test_what_is_neither_is_never_none_or_all(value, digits):
    for text in (percent(value), share(value, digits)):
        assert text not in ("0%", "100%", "0.0%", "100.0%", "0.00%", "100.00%")


def test_shares_are_rounded_where_that_hides_nothing():
    assert [share(v) for v in (0.0, 0.41249, 1.0, 0.997)] == ["0%", "41%", "100%", "99.7%"]
    assert share(0.41249, 1) == "41.2%"
    assert share(0.9999, 1) == "99.99%"


def facts(clean, level, mean=None, width=0.0, name="accuracy"):
    mean = clean if mean is None else mean
    end = {"low": mean - width, "high": mean + width}
    metric = {
        "name": name, "clean": clean, "mean": {"value": mean, **end},
        "change": {"value": 0.0, "low": 0.0, "high": 0.0}, "population": None,
        "population_change": None, "percentiles": [],
        "accepted": {"level": level, "value": 1.0, "low": 0.99, "high": 1.0},
        "lower_is_better": name != "accuracy", "not_finite": 0,
    }  # fmt: skip
    return {
        "chips": 100, "struck": 50, "without_fault": 0.5, "examples": 32, "confidence": 0.95,
        "stopped": "samples", "rows": 1, "metrics": [metric],
    }  # fmt: skip


def test_a_level_that_no_chip_can_miss_is_no_verdict():
    assert chips.headline(facts(0.9, 0.89), "faults").startswith("Tolerated: 100%")
    assert "Tolerated" not in chips.headline(facts(0.9, 0.0), "faults")
    assert "Tolerated" not in chips.headline(facts(0.1, 1.0, name="error-rate"), "faults")
    assert "Tolerated" in chips.headline(facts(0.1, 0.2, name="error-rate"), "faults")


def test_percentages_of_chips_have_few_decimals_and_are_not_rounded_to_all():
    ((_, clean, mean, *_),) = chips.rows(facts(0.99999, 0.9, mean=0.9687500123, width=2e-9))
    assert clean == ">99.99%"
    assert mean.split()[0] == "96.875%"
