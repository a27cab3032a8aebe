"""Sums as bytes and back: the same bits and types, and nothing but data."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashsim.campaign.packing import pack, unpack
from crashsim.errors import ArgumentError, FileError


@dataclass(frozen=True)
class Point:
    x: float
    rest: tuple = ()


def same(one, other):
    if isinstance(one, np.ndarray):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    if type(one) in (tuple, list):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if type(one) is dict:
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if type(one) is Point:
        return type(other) is Point and same(one.x, other.x) and same(one.rest, other.rest)
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other and str(one) == str(other)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
arrays = st.builds(
    lambda kind, values: np.array(values).astype(kind),
    st.sampled_from(["f8", "f4", "i8", "?", "c16"]),
    st.lists(st.floats(0, 9), max_size=5),
)
values = st.recursive(
    plain | arrays | arrays.map(lambda a: a.sum()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.builds(Point, st.floats(), st.lists(inner, max_size=2).map(tuple))
    ),
    max_leaves=8,
)


@given(values)
def test_what_is_packed_comes_back_bit_for_bit(value):
    assert same(value, unpack(*pack(value), [Point]))


@pytest.mark.parametrize("value", [object(), {1: 2}, np.array([None]), {1, 2}, b"x"])
def test_what_is_no_data_is_not_packed(value):
    with pytest.raises(ArgumentError, match="cannot be stored"):
        pack((1, [value]))


@pytest.mark.parametrize(
    "structure",
    [
        "{",
        '{"of": "system", "fields": {"command": "true"}}',
        '{"of": "Point", "fields": {"y": 1}}',
        '{"array": "|O", "shape": [1], "at": 0, "scalar": false}',
        '{"array": "<f8", "shape": [99], "at": 0, "scalar": false}',
        '{"array": "<f8", "shape": [-1], "at": 0, "scalar": false}',
        '{"something": 1}',
        "[" * 5000,
    ],
)
def test_what_is_no_sums_of_the_task_is_refused(structure):
    with pytest.raises(FileError, match="not sums of this task"):
        unpack(structure, bytes(8), [Point])


def test_arrays_may_be_written_to():
    found = unpack(*pack(np.arange(3.0)), [])
    found[0] = 5
    assert json.loads(pack(found)[0])["shape"] == [3]
