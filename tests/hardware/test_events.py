"""Events as trains, against a loop over the events."""

from __future__ import annotations

import numpy as np
import pytest
from crashsim_hardware import HardwareError, addresses_of, event_trains


@pytest.fixture
def events(rng):
    return {
        "t": rng.integers(0, 5000, 300), "x": rng.integers(0, 6, 300),
        "y": rng.integers(0, 4, 300), "p": rng.integers(0, 2, 300),
    }  # fmt: skip


def by_hand(events, shape, index, steps, step):
    train = np.zeros((steps, *shape))
    for place in range(len(events["t"])):
        where = tuple(int(events[name][place]) for name in index)
        train[(int(events["t"][place]) // step, *where)] += 1
    return train


def test_every_event_counts_once(events):
    shape = (2, 4, 6)
    right = by_hand(events, shape, "pyx", 50, 100)
    found = event_trains(events["t"], addresses_of(events, shape), shape, 50, step=100)
    assert np.array_equal(found[0], right)
    assert right.max() > 1  # two in a step add up
    axes = np.stack([events[name] for name in "pyx"], axis=1)
    assert np.array_equal(event_trains(events["t"], axes, shape, 50, step=100), found)
    signed = {**events, "p": 2 * events["p"] - 1}
    assert np.array_equal(addresses_of(signed, shape), addresses_of(events, shape))


@pytest.mark.parametrize(
    ("shape", "index", "given"),
    [((6,), "x", "txp"), ((2, 6), "px", "txp"), ((4, 6), "yx", "txyp"), ((4, 6), "yx", "txy")],
)
def test_other_shapes(events, shape, index, given):
    kept = {name: events[name] for name in given}
    found = event_trains(kept["t"], addresses_of(kept, shape), shape, 5, step=1000)
    assert np.array_equal(found[0], by_hand(events, shape, index, 5, 1000))


def test_one_channel_takes_both_polarities(events):
    found = event_trains(events["t"], addresses_of(events, (1, 4, 6)), (1, 4, 6), 5, step=1000)
    assert np.array_equal(found[0, :, 0], by_hand(events, (4, 6), "yx", 5, 1000))


def test_several_examples(events, rng):
    which = rng.integers(0, 3, 300)
    where = addresses_of(events, (2, 4, 6))
    found = event_trains(events["t"], where, (2, 4, 6), 5, step=1000, examples=which)
    assert found.shape == (3, 5, 2, 4, 6)
    for example in range(3):
        own = {name: column[which == example] for name, column in events.items()}
        assert np.array_equal(found[example], by_hand(own, (2, 4, 6), "pyx", 5, 1000))
    two = event_trains(events["t"], where, (2, 4, 6), 5, step=1000, examples=which, count=2)
    assert np.array_equal(two, found[:2])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": 4}, "end at 4000; give more steps"),
        ({"step": 0}, "step must be a positive time"),
        ({"times": [0.5, np.nan]}, "times must be finite"),
        ({"times": [-1.0, 0.0]}, "from -1 to 0"),
        ({"addresses": [0, 6]}, "outside of inputs of"),
        ({"addresses": [0, 0.5]}, "whole numbers"),
        ({"addresses": [[0, 0], [0, 0]]}, "of 2 axes do not fit"),
        ({"addresses": [0]}, "for 2 times"),
        ({"examples": [0, -1]}, "from 0"),
    ],
)
def test_wrong_events(change, told):
    given = {"times": [0.0, 4500.0], "addresses": [0, 5], "shape": (6,), "steps": 5, "step": 1000}
    with pytest.raises(HardwareError, match=told):
        event_trains(**(given | change))


def test_events_that_cannot_be_placed(events):
    with pytest.raises(HardwareError, match="do not say a place in inputs of shape"):
        addresses_of(events, (6,))
    without = {name: events[name] for name in "txy"}
    with pytest.raises(HardwareError, match="no polarity"):
        addresses_of(without, (2, 4, 6))
    with pytest.raises(HardwareError, match="p must be 0 or 1"):
        addresses_of({**events, "p": events["p"] + 1}, (2, 4, 6))


@pytest.mark.parametrize(("step", "dtype"), [(0.1, "f8"), (1e-3, "f8"), (1e-4, "f8"), (0.1, "f4")])
def test_a_time_that_begins_a_step_is_in_it(step, dtype):
    every = np.arange(900)
    times = np.array([round(k * step, 6) for k in every], dtype)  # 0.3 is below 3 times 0.1
    assert (np.floor(times.astype(float) / step) != every).any()
    found = event_trains(times, np.zeros(900, int), (1,), 900, step=step)
    assert np.array_equal(found, np.ones((1, 900, 1)))
    before = event_trains(times[1:] - step / 100, np.zeros(899, int), (1,), 900, step=step)
    assert np.array_equal(before[0, :, 0], every < 899)
    with pytest.raises(HardwareError, match="900 steps"):
        event_trains([900 * step], [0], (1,), 900, step=step)
