"""Faults of the chip against a loop over single neurons in plain Python, which shares nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import (
    ChipFaults,
    HardwareError,
    Linear,
    SteppedNeuron,
    assemble,
    leaky_integrate_and_fire,
    run,
    to_brian2,
)

MASKS, STEPS, SIZES = 3, 40, (4, 6, 5, 3)
LEAKS = np.array([0.05, 0.1, 0.2, 0.0, 0.3])  # of the second layer
REST = 0.01


@pytest.fixture
def chip(rng):
    """A layer of leaky neurons that pause for a step, and one of neurons that reset to zero."""
    layers = [
        (
            Linear(rng.normal(0.25, 0.3, (6, 4)), rng.uniform(0.0, 0.1, 6)),
            leaky_integrate_and_fire(20.0, 1.0, refractory=1),
        ),
        (
            Linear(rng.normal(0.25, 0.3, (5, 6)), rng.uniform(0.0, 0.1, 5)),
            SteppedNeuron(LEAKS, np.full(5, 0.9), np.full(5, REST), "zero"),
        ),
    ]
    return assemble(layers, Linear(rng.normal(size=(3, 5)), np.ones(3)), 4, steps=STEPS)


def by_neurons(rng, low, high):
    return [rng.uniform(low, high, (MASKS, n)) for n in SIZES[1:3]]


def some(rng, shapes, share=0.4):
    return [rng.random((MASKS, *shape)) < share for shape in shapes]


def synapses(chip):
    return [p.weight.shape for p in chip.projections]


NEURONS = [(6,), (5,)]
FAULTS = {
    "dead": lambda c, r: {"dead": some(r, NEURONS)},
    "stuck": lambda c, r: {"stuck": some(r, NEURONS)},
    "held": lambda c, r: {"held": held(r)},
    "thresholds": lambda c, r: {"thresholds": by_neurons(r, 0.5, 2.0)},
    "leaks": lambda c, r: {"leaks": by_neurons(r, 0.0, 25.0)},
    "refractory": lambda c, r: {"refractory": [r.integers(0, 5, (MASKS, n)) for n in SIZES[1:3]]},
    "gains": lambda c, r: {"gains": by_neurons(r, -0.5, 2.0)},
    "weights": lambda c, r: {"weights": [r.normal(0.2, 0.5, (MASKS, *s)) for s in synapses(c)]},
    "dead synapses": lambda c, r: {"dead_synapses": some(r, synapses(c))},
    "dead inputs": lambda c, r: {"dead_inputs": r.random((MASKS, 4)) < 0.5},
    "dead for some steps": lambda c, r: {"dead": some(r, NEURONS), "window": (7, 25)},
    "held for some steps": lambda c, r: {"held": held(r), "window": (7, 25)},
    "weights for some steps": lambda c, r: {
        "weights": [r.normal(0.2, 0.5, (MASKS, *s)) for s in synapses(c)],
        "synapse_window": (7, 25),
    },
    "synapses dead from the start to some step": lambda c, r: {
        "dead_synapses": some(r, synapses(c), 0.8),
        "synapse_window": (0, 25),
    },
    "several": lambda c, r: {
        "dead": some(r, NEURONS, 0.2),
        "thresholds": by_neurons(r, 0.5, 2.0),
        "leaks": by_neurons(r, 0.0, 3.0),
        "gains": by_neurons(r, 0.5, 2.0),
        "weights": [None, None, r.normal(size=(MASKS, 3, 5))],
        "dead_synapses": some(r, synapses(c)[:2]),
        "dead_inputs": r.random((MASKS, 4)) < 0.3,
        "window": (7, 25),
        "synapse_window": (12, 30),
    },
}


def held(rng):
    return [
        np.where(rng.random((MASKS, n)) < 0.4, rng.uniform(0.05, 0.45, (MASKS, n)), np.nan)
        for n in SIZES[1:3]
    ]


def by_hand(chip, x, fields, mask):
    """Counts of both layers, and outputs, of one input under one mask: neuron by neuron."""

    def value(name, layer, place, healthy):
        arrays = fields.get(name)
        array = None if arrays is None or layer >= len(arrays) else arrays[layer]
        return healthy if array is None else array[mask][place]

    def inside(name, step):
        window = fields.get(name)
        return window is None or window[0] <= step < window[1]

    def weight(layer, target, source, step):
        stored = chip.projections[layer].weight[target, source]
        if not inside("synapse_window", step):
            return stored
        read = value("weights", layer, (target, source), stored)
        return 0.0 if value("dead_synapses", layer, (target, source), False) else read

    cut = fields.get("dead_inputs")
    currents = [0.0 if cut is not None and cut[mask][i] else x[i] for i in range(4)]
    membranes = [[0.0] * n for n in SIZES[1:3]]
    ready = [[0] * n for n in SIZES[1:3]]
    counts = [[0.0] * n for n in SIZES[1:3]]
    received = [0.0] * 3
    for step in range(STEPS):
        sent = currents
        for layer, size in enumerate(SIZES[1:3]):
            worth = [0.0] * size
            for n in range(size):
                arrived = sum(weight(layer, n, i, step) * sent[i] for i in range(len(sent)))
                bias = chip.projections[layer].bias[n]
                factor = value("leaks", layer, n, 1.0)
                v = membranes[layer][n]
                if layer == 0:  # the current is a drive, which does not leak in its own step
                    v = (1 - min(0.05 * factor, 1.0)) * v + arrived + bias
                else:
                    v = (1 - min(LEAKS[n] * factor, 1.0)) * v + 0.9 * (arrived + bias) + REST
                theta = value("thresholds", layer, n, 1.0)
                pause = value("refractory", layer, n, 1 if layer == 0 else 0)
                stays = fields.get("window") is None
                if stays and value("stuck", layer, n, False):
                    theta = -math.inf
                fires = v >= theta and step >= ready[layer][n]
                if fires:
                    ready[layer][n] = step + 1 + pause
                    v = v - theta if layer == 0 else 0.0
                membranes[layer][n] = v
                spike = float(fires)
                rate = value("held", layer, n, math.nan)
                if not math.isnan(rate) and inside("window", step):
                    spike = math.floor((step + 1) * rate + 0.5) - math.floor(step * rate + 0.5)
                if value("dead", layer, n, False) and inside("window", step):
                    spike = 0.0
                counts[layer][n] += spike
                worth[n] = spike * value("gains", layer, n, 1.0)
            sent = worth
        for k in range(3):
            received[k] += sum(weight(2, k, i, step) * sent[i] for i in range(5))
    return counts, [total / STEPS + chip.readout.bias[k] for k, total in enumerate(received)]


@pytest.mark.parametrize("engine", ["numpy", "brian2"])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_what_they_say(chip, rng, name, engine):
    fields = FAULTS[name](chip, rng)
    x = rng.uniform(0.0, 0.7, (2, 4))
    found = run(chip, x, ChipFaults(**fields), engine=engine, record=True)
    for mask in range(MASKS):
        for place, signal in enumerate(x):
            counts, outputs = by_hand(chip, signal, fields, mask)
            assert np.array_equal(found.counts[0][mask, place], counts[0])
            assert np.array_equal(found.counts[1][mask, place], counts[1])
            np.testing.assert_allclose(found.outputs[mask, place], outputs, rtol=1e-12)
    clean = run(chip, x, engine="numpy").outputs
    assert np.abs(found.outputs - clean).max() > 0.01


@pytest.mark.parametrize("engine", ["numpy", "brian2"])
def test_synapses_fail_for_some_steps_of_trains_too(chip, rng, engine):
    """A train of equal entries is the constant current; a window of all steps is no window."""
    fields = FAULTS["weights for some steps"](chip, rng)
    x = rng.uniform(0.0, 0.7, (2, 4))
    train = np.repeat(x[:, None], STEPS, axis=1)
    faults = ChipFaults(**fields)
    one, two = (run(chip, v, faults, engine=engine, record=True) for v in (x, train))
    assert all(map(np.array_equal, one.counts, two.counts))
    assert np.array_equal(one.outputs, two.outputs)
    always = run(chip, x, replace(faults, synapse_window=None), engine=engine, record=True)
    whole = run(chip, x, replace(faults, synapse_window=(0, STEPS)), engine=engine, record=True)
    assert all(map(np.array_equal, always.counts, whole.counts))
    np.testing.assert_allclose(always.outputs, whole.outputs, rtol=1e-12)
    assert not np.allclose(always.outputs, one.outputs)


def test_windows_of_synapses_that_say_nothing(chip):
    weights = [np.zeros((1, 6, 4))]
    with pytest.raises(HardwareError, match=r"synapse_window: .* there are none"):
        ChipFaults(dead=[np.zeros((1, 6), bool)], synapse_window=(0, 3))
    with pytest.raises(HardwareError, match="leave offsets or the window out"):
        ChipFaults(weights=weights, offsets=[np.zeros((1, 6))], synapse_window=(0, 3))
    with pytest.raises(HardwareError, match="stop of the synapse_window"):
        ChipFaults(weights=weights, synapse_window=(3, 3))
    late = ChipFaults(weights=weights, synapse_window=(STEPS, STEPS + 1))
    with pytest.raises(HardwareError, match="begins after the last"):
        run(chip, np.zeros((1, 4)), late)
    faults = ChipFaults(weights=weights, synapse_window=(0, 3))
    with pytest.raises(HardwareError, match="the same weight in all steps"):
        run(chip, np.zeros((1, 4)), faults, engine="brian2-synapses")
    with pytest.raises(HardwareError, match="change from step to step"):
        to_brian2(chip, np.zeros(4), faults)
