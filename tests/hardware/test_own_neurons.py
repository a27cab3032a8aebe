"""Neurons in equations, against recursions by hand and the chip's own neurons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import (
    ChipFaults,
    Conv2d,
    Flatten,
    HardwareError,
    Linear,
    OwnNeuron,
    SteppedNeuron,
    assemble,
    integrate_and_fire,
    leaky_integrate_and_fire,
    nir_graph,
    run,
    sample_dead,
    sample_held,
    sample_mismatch,
    sample_refractory_variation,
    sample_stuck,
)
from crashsim_hardware.engines.brian2_loading import brian2_at_rest


def adapting(**changes):
    given = {
        "equations": "dv/dt = charge + drive - leak * v - w\ndw/dt = -w / tau",
        "threshold": "v >= theta",
        "reset": "v -= 1; w += jump",
        "parameters": {"leak": 0.1, "tau": 20.0, "jump": 0.05},
        "initial": {"w": 0.1},
    }
    return OwnNeuron(**{**given, **changes})


def chip_of(rng, neuron, steps=60, start="zero"):
    return assemble(
        [
            (Linear(rng.normal(0.3, 0.4, (9, 4)), rng.uniform(0.0, 0.1, 9)), neuron),
            (Linear(rng.normal(0.2, 0.3, (7, 9))), neuron),
        ],
        Linear(rng.normal(size=(3, 7)), np.ones(3)),
        4,
        steps=steps,
        start=start,
    )


def by_hand(chip, x, steps):
    """The adapting neuron written out in numpy."""
    one, two = chip.projections[:2]
    v = [np.zeros((len(x), n)) for n in chip.sizes]
    w = [np.full((len(x), n), 0.1) for n in chip.sizes]
    counts = [np.zeros((len(x), n)) for n in chip.sizes]
    spikes = [None, None]
    for _ in range(steps):
        for layer, (projection, drive) in enumerate(
            ((one, x @ one.weight.T + one.bias), (two, two.bias))
        ):
            charge = 0.0 if layer == 0 else spikes[0] @ projection.weight.T
            before = v[layer].copy()
            v[layer] = v[layer] + charge + drive - 0.1 * v[layer] - w[layer]
            w[layer] = w[layer] - w[layer] / 20.0
            assert before.shape == v[layer].shape
            fires = v[layer] >= 1 - 1e-9
            v[layer] = v[layer] - fires
            w[layer] = w[layer] + 0.05 * fires
            spikes[layer] = fires.astype(float)
            counts[layer] += fires
    return counts


def test_it_is_the_recursion(rng):
    chip = chip_of(rng, adapting())
    x = rng.uniform(0.0, 1.5, (6, 4))
    found = run(chip, x, engine="numpy", record=True)
    for ours, expected in zip(found.counts, by_hand(chip, x, 60), strict=True):
        assert np.array_equal(ours[0], expected)
        assert expected.any()
    rates = found.counts[1][0] / 60
    np.testing.assert_allclose(found.outputs[0], rates @ chip.readout.weight.T + 1.0)


@pytest.mark.parametrize(
    ("own", "built_in"),
    [
        ("dv/dt = charge + drive", integrate_and_fire()),
        ("dv/dt = charge + drive", integrate_and_fire(refractory=2)),
        (
            "dv/dt = 0.9 * charge + drive - 0.1 * v",
            leaky_integrate_and_fire(tau=10e-3, dt=1e-3),
        ),
    ],
)
def test_the_chips_own_neurons_in_equations(rng, own, built_in):
    neuron = OwnNeuron(own, "v >= theta", "v -= 1", refractory=built_in.refractory)
    one, two = (chip_of(np.random.default_rng(1), n, start="half") for n in (neuron, built_in))
    x = rng.uniform(0.0, 1.5, (6, 4))
    ours, theirs = (run(c, x, engine="numpy", record=True).counts for c in (one, two))
    assert all(map(np.array_equal, ours, theirs))
    assert ours[1].any()


FAULTS = {
    "none": lambda chip, rng: ChipFaults(masks=3),
    "dead": lambda chip, rng: sample_dead(chip, 0.3, 3, 0),
    "stuck": lambda chip, rng: sample_stuck(chip, 0.3, 3, 0),
    "held": lambda chip, rng: sample_held(chip, 0.3, 3, 0, rate=0.2),
    "mismatch": lambda chip, rng: sample_mismatch(chip, 0.2, 3, 0),
    "refractory": lambda chip, rng: sample_refractory_variation(chip, 2.0, 3, 0),
    "gains": lambda chip, rng: ChipFaults(gains=[rng.normal(1, 0.3, (3, n)) for n in chip.sizes]),
    "releases": lambda chip, rng: ChipFaults(release_failure=0.3, masks=3),
    "dead for some steps": lambda chip, rng: replace(sample_dead(chip, 0.5, 3, 0), window=(9, 30)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_engines_agree_under_faults(rng, name):
    chip = chip_of(rng, adapting(refractory=1 if name == "stuck" else 0))
    faults = FAULTS[name](chip, rng)
    x = rng.uniform(0.0, 1.5, (2, 4))
    oracle = run(chip, x, faults, engine="numpy", record=True)
    engines = ("brian2",) if faults.window else ("brian2", "brian2-synapses")
    for engine in engines:
        found = run(chip, x, faults, engine=engine, record=True)
        for ours, theirs in zip(found.counts, oracle.counts, strict=True):
            assert np.array_equal(ours, theirs), engine
    if name not in ("none", "releases"):
        clean = run(chip, x, engine="numpy", record=True).counts
        assert any((a != b).any() for a, b in zip(clean, oracle.counts, strict=True))


def test_trains_drive_it(rng):
    chip = chip_of(rng, adapting())
    trains = rng.uniform(0.0, 2.0, (2, chip.total_steps, 4))
    one, two = (run(chip, trains, engine=e, record=True).counts for e in ("numpy", "brian2"))
    assert all(map(np.array_equal, one, two))


def test_functions_logic_and_resets_in_order(rng, tmp_path):
    """Everything that the text may say, in both engines and in a script of its own."""
    neuron = OwnNeuron(
        """
        dv/dt = clip(charge + drive, -2, 2) + 0.1 * tanh(u) - 0.05 * abs(v)   # a comment
        du/dt = -0.2 * u + 0.1 * int(v > 0.5) * exp(-v ** 2) + sqrt(abs(v)) / 50
        """,
        "(v >= theta and u < 5) or not (v < 3 * theta)",
        "u = u + v - 1; v = 0.5 * u",
    )
    chip = chip_of(rng, neuron)
    x = rng.uniform(0.0, 1.5, (2, 4))
    one, two = (run(chip, x, engine=e, record=True).counts for e in ("numpy", "brian2"))
    assert all(map(np.array_equal, one, two))
    assert one[1].any()
    with brian2_at_rest():
        spikes = chip.to_brian2(x[1]).run()
    assert all(np.array_equal(a, b[0, 1]) for a, b in zip(spikes, one, strict=True))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"equations": "dw/dt = 1"}, "need a membrane"),
        ({"equations": "v = 3"}, "one line dX/dt"),
        ({"equations": "dv/dt = 1; dv/dt = 2"}, "one line dX/dt"),
        ({"equations": "dv/dt = (1"}, "no expression"),
        ({"equations": "dv/dt = charge + other"}, "names other"),
        ({"equations": "dv/dt = theta"}, "names theta"),
        ({"equations": "dv/dt = __import__('os').system('true')"}, "functions are"),
        ({"equations": "dv/dt = [1]"}, "more than arithmetic"),
        ({"equations": "dv/dt = open('x')"}, "functions are"),
        ({"equations": "dv/dt = v.real"}, "more than arithmetic"),
        ({"equations": "dv/dt = 'a' * 3"}, "no number"),
        ({"threshold": "v >= 1"}, "must name theta"),
        ({"threshold": "0 < v < theta"}, "join comparisons with and"),
        ({"threshold": "charge > theta"}, "names charge"),
        ({"reset": "z = 0"}, "of the states"),
        ({"reset": "v == 0"}, "of the states"),
        ({"reset": "v = drive"}, "names drive"),
        ({"parameters": {"leak": float("nan")}}, "finite number"),
        ({"parameters": {"drive": 1.0}}, "taken"),
        ({"initial": {"z": 1.0}}, "which no equation does"),
        ({"refractory": -1}, "refractory"),
        ({"equations": 3}, "described by text"),
    ],
)
def test_other_text_is_refused(changes, told):
    base = {"equations": "dv/dt = charge", "threshold": "v >= theta", "reset": "v -= 1"}
    with pytest.raises(HardwareError, match=told):
        OwnNeuron(**{**base, **changes})


def test_assemblies_that_do_not_fit(rng):
    neuron = adapting()
    with pytest.raises(HardwareError, match="layer 1: Linear expects"):
        assemble([(Linear(np.eye(4)), neuron), (Linear(np.eye(3)), neuron)], Linear(np.eye(3)), 4)
    with pytest.raises(HardwareError, match="needs a neuron"):
        assemble([(Linear(np.eye(4)), "lif")], Linear(np.eye(4)), 4)
    with pytest.raises(HardwareError, match="pair"):
        assemble([Linear(np.eye(4))], Linear(np.eye(4)), 4)
    with pytest.raises(HardwareError, match="two maps have weights"):
        assemble([([Linear(np.eye(4)), Linear(np.eye(4))], neuron)], Linear(np.eye(4)), 4)
    stepped = SteppedNeuron(np.zeros(3), np.ones(3), np.zeros(3), "subtract")
    with pytest.raises(HardwareError, match="4 neurons, and parameters of 3"):
        assemble([(Linear(np.eye(4)), stepped)], Linear(np.eye(4)), 4)
    chip = assemble([(Linear(np.eye(4)), neuron)], Linear(np.eye(4)), 4)
    with pytest.raises(HardwareError, match="no leak that a fault could vary"):
        run(chip, np.zeros((1, 4)), ChipFaults(leaks=[np.ones((1, 4))]), engine="numpy")


def test_neurons_of_ones_own_are_no_nir():
    pytest.importorskip("nir")
    chip = assemble([(Linear(np.eye(4)), adapting())], Linear(np.eye(4)), 4)
    with pytest.raises(HardwareError, match="no node for a OwnNeuron"):
        nir_graph(chip)


def test_pictures_too(rng):
    chip = assemble(
        [([Conv2d(rng.normal(0.3, 0.5, (2, 1, 3, 3)), np.full(2, 0.1), padding=1)], adapting())],
        [Flatten(), Linear(rng.normal(size=(3, 32)))],
        (1, 4, 4),
    )
    x = rng.random((2, 1, 4, 4))
    one, two = (run(chip, x, engine=e, record=True).counts[0] for e in ("numpy", "brian2"))
    assert np.array_equal(one, two)
    assert one.any()
