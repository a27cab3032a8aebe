"""Single neurons against their rate curves."""

from __future__ import annotations

import numpy as np
import pytest
from crashsim_hardware import Chip, HardwareError, Linear, Physics, Scale, run
from crashsim_hardware.chip import Projection, Spiking
from crashsim_hardware.neurons.point_neuron import (
    PointNeuron,
    current_based_lif,
    current_to_frequency,
    integrate_and_fire,
    leaky_integrate_and_fire,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def alone(neuron: PointNeuron, steps: int, bits: int | None = None, drives: int = 1) -> Chip:
    """A chip of `drives` neurons, each driven by its own input; outputs are spikes per step."""
    ones = Projection((Scale(np.ones(drives)),), np.zeros(drives), (drives,), bits)
    layer = Spiking(ones, neuron, np.ones(drives))
    readout = Projection((Scale(np.ones(drives)),), np.zeros(drives), (drives,))
    return Chip((layer,), readout, steps, (drives,), Physics())


@settings(max_examples=50, deadline=None)
@given(
    drive=st.floats(-2.0, 1.0), steps=st.integers(1, 300), phase=st.sampled_from(["half", "random"])
)
def test_integrate_and_fire_counts_are_a_floor(drive, steps, phase):
    """Count = floor(v_0 + T u): the closed form of the perfect integrator."""
    chip = alone(integrate_and_fire(), steps, bits=20)
    u = np.round(drive * 2**20) / 2**20
    outputs = run(chip, [[drive]], engine="numpy", phases=phase, record=True).counts[0]
    slack = 0.5 if phase == "half" else None
    if slack is None:
        assert np.floor(max(u, 0) * steps) <= outputs <= np.floor(max(u, 0) * steps) + 1
    else:
        assert outputs == max(np.floor(0.5 + steps * u), 0.0)


def test_random_phases_are_unbiased():
    """E floor(v_0 + T u) = T u for a uniform v_0; half a threshold alone is not."""
    chip = alone(integrate_and_fire(), 10)
    from crashsim_hardware import ChipFaults

    drive = 0.537
    counts = run(
        chip, [[drive]], ChipFaults(masks=4000), engine="numpy", phases="random", record=True
    ).counts[0]
    error = counts.std() / np.sqrt(counts.size)
    assert error > 0.0
    assert abs(counts.mean() - 5.37) < 4 * error
    assert run(chip, [[drive]], engine="numpy", record=True).counts[0] == 5.0


@pytest.mark.parametrize(
    ("neuron", "tolerance"),
    [
        (integrate_and_fire(), 1e-3),
        (integrate_and_fire(refractory=2), 1e-3),
        (integrate_and_fire(reset="zero"), 1e-3),
        (leaky_integrate_and_fire(0.1, 1e-3), 6e-3),
        (leaky_integrate_and_fire(0.02, 1e-3, reset="zero"), 1e-3),
        (current_to_frequency("sigmoid", 0.02, 1e-3), 1e-3),
        (current_to_frequency("tanh", 0.02, 1e-3, refractory=1), 1e-3),
        (current_based_lif(0.01, 0.1, 1e-3), 6e-3),
    ],
)
def test_rates_follow_the_curve(neuron, tolerance):
    drives = np.linspace(-1.0, 1.3, 47) + 1e-4
    measured = run(alone(neuron, 2000, drives=47), drives[None], engine="numpy").outputs[0, 0]
    expected = neuron.rate(drives)
    assert np.ptp(expected) > 0.2
    # a leaky membrane near its rheobase is not spread evenly: the mean field is off there
    settled = (np.abs(drives - neuron.leak) > 3 * neuron.leak) | (neuron.leak == 0.0)
    np.testing.assert_allclose(measured[settled], expected[settled], atol=tolerance)


def test_rheobase():
    """Below drive = leak the leaky neuron is silent, above it fires."""
    neuron = leaky_integrate_and_fire(0.02, 1e-3)
    drives = np.array([0.9 * neuron.leak, 1.1 * neuron.leak])
    counts = run(alone(neuron, 1000, drives=2), drives[None], engine="numpy", record=True).counts[0]
    assert counts[0, 0, 0] == 0.0
    assert counts[0, 0, 1] > 5.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: leaky_integrate_and_fire(0.0, 1e-3), "tau must be a positive time"),
        (lambda: leaky_integrate_and_fire(1e-4, 1e-3), "above one dt"),
        (lambda: current_to_frequency("tanh", 1e-4, 1e-3), "at least one dt"),
        (lambda: integrate_and_fire(refractory=-1), "refractory must be >= 0"),
        (lambda: Physics(threshold=0.0), "threshold must be a positive"),
    ],
)
def test_impossible_neurons(build, message):
    with pytest.raises(HardwareError, match=message):
        build()


def test_dense_weight_of_one_fires_its_target():
    """A weight of 1 is one threshold: every spike of the first layer is one of the second."""
    first = Spiking(
        Projection((Scale(np.ones(1)),), np.zeros(1), (1,), 10), integrate_and_fire(), np.ones(1)
    )
    second = Spiking(
        Projection((Linear(np.ones((1, 1))),), np.zeros(1), (1,), 10),
        integrate_and_fire(),
        np.ones(1),
    )
    readout = Projection((Scale(np.ones(1)),), np.zeros(1), (1,))
    chip = Chip((first, second), readout, 64, (1,), Physics())
    counts = run(chip, [[0.3]], engine="numpy", record=True).counts
    assert counts[0] == counts[1] == 19.0
