"""Inputs that change with time, faults of some steps, and what is read: against a plain loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from crashsim_hardware import (
    ChipFaults,
    HardwareError,
    Linear,
    Network,
    NeuronLayer,
    convert,
    raster,
    read_nir,
    reference,
    run,
    sample_dead,
    sample_dead_inputs,
    sample_dead_synapses,
    sample_stuck,
)

ENGINES = ("numpy", "brian2", "brian2-synapses")
STEPS = 30


@pytest.fixture
def graph(rng):
    """Two layers of LIF neurons with time constants of their own, and an input that comes late."""
    nir = pytest.importorskip("nir")
    first, late, last = (rng.normal(0.3, 0.5, shape) for shape in ((7, 4), (7, 4), (3, 7)))
    decays = rng.uniform(0.05, 0.4, 7), rng.uniform(0.05, 0.4, 3)

    def lif(decay):
        one = np.ones(len(decay))
        return nir.LIF(1e-4 / decay, 1 / decay, 0 * one, one)

    nodes = {
        "input": nir.Input({"input": np.array([4])}),
        "a": nir.Linear(first), "wait": nir.Delay(np.full(4, 3e-4)), "b": nir.Linear(late),
        "hid": lif(decays[0]), "c": nir.Linear(last), "out": lif(decays[1]),
        "output": nir.Output({"output": np.array([3])}),
    }  # fmt: skip
    edges = [("input", "a"), ("a", "hid"), ("input", "wait"), ("wait", "b"), ("b", "hid"),
             ("hid", "c"), ("c", "out"), ("out", "output")]  # fmt: skip
    chip = read_nir(nir.NIRGraph(nodes, edges), steps=STEPS, reset="subtract")
    return chip, (first, late, last), decays


def by_hand(weights, decays, train, alive=None, struck=None):
    """Spikes (T, B, 3), membranes and first spikes; alive (T, 7) silences hidden neurons.

    struck: the steps of other weights, and those.
    """
    v, w = np.zeros((len(train), 7)), np.zeros((len(train), 3))
    sent = []
    for t in range(STEPS):
        first, late, last = struck[1] if struck is not None and t in struck[0] else weights
        v = (1 - decays[0]) * v + train[:, t] @ first.T
        if t >= 3:
            v = v + train[:, t - 3] @ late.T
        spikes = (v >= 1).astype(float)
        v = v - spikes
        if alive is not None:
            spikes = spikes * alive[t]
        w = (1 - decays[1]) * w + spikes @ last.T
        out = (w >= 1).astype(float)
        w = w - out
        sent.append(out)
    return np.stack(sent), w


@pytest.mark.parametrize("engine", ENGINES)
def test_trains_are_seen_step_by_step(graph, rng, engine):
    chip, weights, decays = graph
    train = rng.integers(0, 2, (5, STEPS, 4)) * rng.uniform(0.2, 0.8, (5, STEPS, 4))
    sent, membrane = by_hand(weights, decays, train)
    assert 0.05 < sent.mean() < 0.95
    found = run(chip, train, engine=engine)
    assert np.array_equal(found.outputs[0], sent.mean(0))
    read = run(chip, train, engine=engine, readout="membrane").outputs[0]
    np.testing.assert_allclose(read, membrane, rtol=0, atol=1e-12)
    first = np.where(sent.any(0), 1 - sent.argmax(0) / STEPS, 0.0)
    assert len(np.unique(first)) > 3
    assert np.array_equal(run(chip, train, engine=engine, readout="first-spike").outputs[0], first)


@pytest.mark.parametrize("engine", ["numpy", "brian2"])
def test_dead_in_some_steps(graph, rng, engine):
    chip, weights, decays = graph
    train = rng.uniform(0.0, 0.6, (3, STEPS, 4))
    dead = rng.random((6, 7)) < 0.4
    faults = ChipFaults(dead=[dead], window=(5, 17))
    found = run(chip, train, faults, engine=engine).outputs
    for mask, struck in zip(found, dead, strict=True):
        alive = np.ones((STEPS, 7))
        alive[5:17] = ~struck
        assert np.array_equal(mask, by_hand(weights, decays, train, alive)[0].mean(0))
    always = run(chip, train, ChipFaults(dead=[dead]), engine=engine).outputs
    assert not np.array_equal(found, always)
    whole = run(chip, train, ChipFaults(dead=[dead], window=(0, 10**6)), engine=engine).outputs
    assert np.array_equal(whole, always)
    stuck = ChipFaults(stuck=[dead], window=(5, 17))
    counts = run(chip, train, stuck, engine=engine, record=True).counts[0]
    clean = raster(chip, train[0], stuck).clean[0]
    for neuron in range(7):
        outside = clean.times[clean.neurons == neuron] / chip.physics.dt
        outside = np.rint(outside).astype(int)
        beside = ((outside < 5) | (outside >= 17)).sum()
        assert (counts[dead[:, neuron], 0, neuron] == beside + 12).all()


@pytest.mark.parametrize("engine", ["numpy", "brian2"])
def test_synapses_fail_in_some_steps(graph, rng, engine):
    """Those of inputs that come late too: the steps are those in which the charge arrives."""
    chip, weights, decays = graph
    train = rng.uniform(0.0, 0.6, (3, STEPS, 4))
    other = [[w * rng.uniform(0.0, 2.0, w.shape) for w in weights] for _ in range(2)]
    read = [np.stack([one[place] for one in other]) for place in range(3)]
    by_place = [read[0], read[2], None, read[1]]  # the two layers, the readout, the wire
    shapes = [p.weight.shape for p in chip.projections if p.weight is not None]
    assert shapes == [w.shape[1:] for w in by_place if w is not None]
    faults = ChipFaults(weights=by_place, synapse_window=(5, 17))
    found = run(chip, train, faults, engine=engine).outputs
    for mask, changed in zip(found, other, strict=True):
        sent = by_hand(weights, decays, train, struck=(range(5, 17), changed))[0]
        assert np.array_equal(mask, sent.mean(0))
        assert not np.array_equal(mask, by_hand(weights, decays, train)[0].mean(0))


OPTIONS = [
    ("relu", {}),
    ("relu", {"neuron": "lif", "refractory": 1e-3}),
    ("sigmoid", {"tau_syn": 0.005}),
    ("tanh", {"tau_syn": 0.005}),
]


@pytest.mark.parametrize("reset", ["subtract", "zero", "late-subtract", "late-zero"])
def test_membranes_of_held_neurons_go_on(rng, reset):
    """What is held is the output: the membrane is that of the neuron if it were not."""
    nir = pytest.importorskip("nir")
    one = np.ones(6)
    nodes = {
        "input": nir.Input({"input": np.array([4])}), "a": nir.Linear(rng.normal(0.3, 0.5, (6, 4))),
        "out": nir.LIF(1e-3 * one, 10 * one, 0 * one, one),
        "output": nir.Output({"output": np.array([6])}),
    }  # fmt: skip
    chip = read_nir(nir.NIRGraph(nodes, [*pairwise(nodes)]), steps=STEPS, reset=reset)
    train = 2 * rng.random((2, STEPS, 4))
    pauses = ChipFaults(refractory=[rng.integers(0, 4, (3, 6))])
    clean = run(chip, train, pauses, readout="membrane", record=True)
    for window in (None, (5, 20)):
        held = replace(pauses, held=[np.full((3, 6), 0.45)], window=window)
        for engine in ("numpy", "brian2"):
            found = run(chip, train, held, engine=engine, readout="membrane", record=True)
            np.testing.assert_allclose(found.outputs, clean.outputs, atol=1e-12)
            assert not np.array_equal(found.counts[0], clean.counts[0])
    with pytest.raises(HardwareError, match="their membranes are others"):
        run(chip, train, held, engine="brian2-synapses", readout="membrane")


@pytest.mark.parametrize(("activation", "options"), OPTIONS)
def test_a_constant_train_is_the_constant(tiny, rng, activation, options):
    chip = convert(tiny(activation), rng.normal(0.3, 1.0, (50, 5)), 40, **options)
    x = rng.normal(0.3, 1.0, (2, 5))
    constant = np.repeat(x[:, None], chip.total_steps, axis=1)
    faults = replace(
        sample_dead(chip, 0.1, 4, 0),
        dead_inputs=sample_dead_inputs(chip, 0.2, 4, 1).dead_inputs,
        dead_synapses=sample_dead_synapses(chip, 0.1, 4, 2).dead_synapses,
        release_failure=0.1,
    )
    right = run(chip, x, faults).outputs
    for engine in ENGINES:
        found = run(chip, constant, faults, engine=engine).outputs
        np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("activation", "options"), OPTIONS)
def test_engines_agree_on_trains(tiny, rng, activation, options):
    chip = convert(tiny(activation), rng.normal(0.3, 1.0, (50, 5)), 40, **options)
    train = rng.normal(0.3, 2.0, (3, chip.total_steps, 5))
    faults = replace(
        sample_dead(chip, 0.2, 4, 0),
        stuck=sample_stuck(chip, 0.1, 4, 5).stuck,
        dead_inputs=sample_dead_inputs(chip, 0.2, 4, 1).dead_inputs,
        dead_synapses=sample_dead_synapses(chip, 0.1, 4, 2).dead_synapses,
    )
    steady = run(chip, train.mean(1), faults, record=True)
    passing = ChipFaults(dead=faults.dead, stuck=faults.stuck, window=(7, 19))
    for struck in (faults, passing):
        oracle = run(chip, train, struck, record=True)
        assert not np.array_equal(oracle.counts[0], steady.counts[0])
        for engine in ENGINES[1:2] if struck.window else ENGINES[1:]:
            found = run(chip, train, struck, engine=engine, record=True)
            for ours, theirs in zip(found.counts, oracle.counts, strict=True):
                assert np.array_equal(ours, theirs), engine
        alone = run(chip, train, struck, copies=1, record=True)
        assert all(map(np.array_equal, alone.counts, oracle.counts))


def test_wrong_use_of_time(tiny, rng):
    chip = convert(tiny("relu"), rng.random((20, 5)), 40)
    x, dead = rng.random((1, 5)), [np.ones((1, 8), dtype=bool)]
    with pytest.raises(HardwareError, match="for each of the 40 steps"):
        run(chip, np.ones((1, 39, 5)))
    with pytest.raises(HardwareError, match="NaN"):
        run(chip, np.full((1, 40, 5), np.nan))
    with pytest.raises(HardwareError, match='use readout="count"'):
        run(chip, x, readout="membrane")
    with pytest.raises(HardwareError, match="readout must be one of count"):
        run(chip, x, readout="sum")
    for window in (5, (3, 3), (-1, 2), (0, 1, 2), ("a", 2)):
        with pytest.raises(HardwareError, match="window"):
            ChipFaults(dead=dead, window=window)
    with pytest.raises(HardwareError, match="begins after the last of the 40 steps"):
        run(chip, x, ChipFaults(dead=dead, window=(40, 50)))
    with pytest.raises(HardwareError, match="engine='brian2' or 'numpy'"):
        run(chip, x, ChipFaults(dead=dead, window=(0, 9)), engine="brian2-synapses")
    with pytest.raises(HardwareError, match="a network without time"):
        reference(chip, x, ChipFaults(dead=dead, window=(0, 9)))


@pytest.mark.parametrize("engine", ENGINES)
def test_progress_is_told_to_the_end(tiny, rng, engine):
    chip = convert(tiny("relu"), rng.random((20, 5)), 10)
    for masks in (1, 200):
        calls = []
        run(chip, rng.random((3, 5)), sample_dead(chip, 0.1, masks, 0), engine=engine,
            progress=lambda *step, calls=calls: calls.append(step))  # fmt: skip
        assert len(calls) >= 10
        assert calls[-1] == (masks * 3 * 10, masks * 3 * 10)
        assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_trains_of_pictures(conv, rng):
    chip = convert(conv("relu"), rng.random((10, 1, 8, 8)), 20)
    x = rng.random((2, 1, 8, 8))
    right = run(chip, x).outputs
    assert np.array_equal(run(chip, np.repeat(x[:, None], 20, axis=1)).outputs, right)


def test_a_linear_first_layer_needs_no_weights(rng):
    net = Network(
        [NeuronLayer(Linear(np.eye(3)), "relu"), NeuronLayer(Linear(np.ones((1, 3))), "linear")],
        (3,),
    )
    chip = convert(net, np.ones((2, 3)), steps=200, headroom=1.0)
    train = rng.integers(0, 2, (4, 200, 3)).astype(float)
    found = run(chip, train).outputs[0, :, 0]
    np.testing.assert_allclose(found, train.mean(1).sum(-1), atol=3 / 200)
