"""Three engines, the same spikes; and nothing left behind in the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import (
    ChipFaults,
    HardwareError,
    Linear,
    Network,
    NeuronLayer,
    Physics,
    convert,
    run,
    sample_dead,
    sample_dead_synapses,
    sample_mismatch,
    sample_stuck,
)

BRIAN = ("brian2", "brian2-synapses")


def every_fault(chip, masks, release=0.0):
    faults = sample_dead(chip, 0.1, masks, 1)
    return replace(
        faults,
        stuck=sample_stuck(chip, 0.05, masks, 2).stuck,
        thresholds=sample_mismatch(chip, 0.1, masks, 3).thresholds,
        dead_synapses=sample_dead_synapses(chip, 0.1, masks, 4).dead_synapses,
        dead_inputs=np.eye(masks, 5, dtype=bool),
        release_failure=release,
    )


def assert_identical(chip, x, faults, **options):
    oracle = run(chip, x, faults, engine="numpy", record=True, **options)
    for engine in BRIAN:
        result = run(chip, x, faults, engine=engine, record=True, **options)
        for layer, (ours, theirs) in enumerate(zip(result.counts, oracle.counts, strict=True)):
            assert np.array_equal(ours, theirs), (engine, layer)
        np.testing.assert_allclose(result.outputs, oracle.outputs, rtol=1e-12, atol=1e-12)
    return oracle


@pytest.mark.parametrize("phases", ["half", "random"])
@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("relu", {}),
        ("relu", {"refractory": 2e-3}),
        ("relu", {"neuron": "lif"}),
        ("sigmoid", {"tau_syn": 0.005}),
        ("tanh", {"tau_syn": 0.005, "refractory": 1e-3}),
    ],
)
def test_engines_agree_to_the_spike(tiny, rng, activation, options, phases):
    network = tiny(activation)
    x = rng.normal(0.3, 1.0, (2, 5))
    chip = convert(network, rng.normal(0.3, 1.0, (50, 5)), 40, **options)
    clean = assert_identical(chip, x, None, phases=phases)
    faults = every_fault(chip, 4)
    broken = assert_identical(chip, x, faults, phases=phases, seed=3)
    leaky = assert_identical(chip, x, replace(faults, release_failure=0.2), phases=phases)
    assert all(count.any() for count in clean.counts)
    assert not np.array_equal(broken.counts[1], np.broadcast_to(clean.counts[1], (4, 2, 6)))
    assert not np.array_equal(broken.counts[1], leaky.counts[1])


def test_engines_agree_on_digits(digits):
    """Full size, T = 100, random phases: 9,600 neuron counts, none differs."""
    net = digits("relu")
    chip = convert(net.network, net.train)
    assert_identical(chip, net.test[:4], sample_dead(chip, 0.05, 16, 0), phases="random")


def test_engines_agree_on_convolutions(conv, rng):
    network = conv("relu")
    chip = convert(network, rng.random((40, 1, 8, 8)), 30)
    faults = replace(
        sample_dead(chip, 0.1, 2, 1),
        dead_synapses=sample_dead_synapses(chip, 0.1, 2, 1).dead_synapses,
    )
    assert_identical(chip, rng.random((2, 1, 8, 8)), faults)


def test_physical_units_change_no_spike(tiny, rng):
    """Capacitance, threshold and time step that no binary fraction can hold."""
    calibration, x = rng.normal(size=(50, 5)), rng.normal(size=(2, 5))
    physics = Physics(capacitance=37e-12, threshold=13e-3, dt=0.7e-3)
    odd = convert(tiny("relu"), calibration, 60, physics=physics)
    plain = convert(tiny("relu"), calibration, 60)
    faults = sample_dead(odd, 0.1, 5, 1)
    one = assert_identical(odd, x, faults)
    two = assert_identical(plain, x, faults)
    assert all(map(np.array_equal, one.counts, two.counts))
    assert odd.f_max == pytest.approx(1 / 0.7e-3)


def test_ties_fire():
    """Currents of exactly half a threshold: v reaches it without a remainder, in every engine."""
    network = Network(
        [
            NeuronLayer(Linear(np.eye(2))),
            NeuronLayer(Linear(np.eye(2))),
            NeuronLayer(Linear(np.eye(2)), "linear"),
        ],
        (2,),
    )
    chip = convert(network, np.ones((1, 2)), 16, headroom=1.0)
    result = assert_identical(chip, np.array([[0.5, 0.25]]), None)
    assert result.counts[1].tolist() == [[[8.0, 4.0]]]


def test_too_many_synapses_are_refused(monkeypatch, tiny, rng):
    from crashsim_hardware.engines import block

    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 5)
    monkeypatch.setattr(block, "LISTED", 10)
    with pytest.raises(HardwareError, match="too many to simulate one by one"):
        run(chip, np.zeros((1, 5)), engine="brian2-synapses")


def test_single_precision_is_exact(digits, monkeypatch):
    """Fixed-point layers run in float32 give the spikes of float64."""
    from crashsim_hardware.engines import numpy_engine

    net = digits("relu")
    chip = convert(net.network, net.train)
    faults = sample_dead(chip, 0.05, 32, 0)
    used = []
    choose = numpy_engine.exact_precision
    monkeypatch.setattr(
        numpy_engine, "exact_precision", lambda *a: used.append(choose(*a)) or used[-1]
    )
    single = run(chip, net.test[:3], faults, engine="numpy", phases="random", record=True)
    assert set(used) == {np.float32}
    monkeypatch.setattr(numpy_engine, "exact_precision", lambda *a: np.float64)
    double = run(chip, net.test[:3], faults, engine="numpy", phases="random", record=True)
    for one, two in zip(single.counts, double.counts, strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("release", [0.0, 0.2])
def test_spikes_do_not_depend_on_how_the_work_is_cut(tiny, rng, release):
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 20)
    x = rng.normal(size=(5, 5))
    faults = replace(sample_dead(chip, 0.2, 150, 1), release_failure=release)

    def result(x=x, faults=faults, copies=256):
        return run(chip, x, faults, engine="numpy", phases="random", copies=copies, record=True)

    whole = result()
    for copies in (1, 64, 10_000):
        cut = result(copies=copies)
        assert all(map(np.array_equal, cut.counts, whole.counts))
        np.testing.assert_allclose(cut.outputs, whole.outputs, rtol=1e-12)
    fewer = replace(faults, dead=[dead[:70] for dead in faults.dead], masks=None)
    head = result(x[:2], fewer)
    for ours, all_of_them in zip(head.counts, whole.counts, strict=True):
        assert np.array_equal(ours, all_of_them[:70, :2])


def test_seeds_and_replicas_differ(tiny, rng):
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 20)
    x = rng.normal(size=(3, 5))

    def outputs(**options):
        return run(chip, x, engine="numpy", phases="random", **options).outputs

    assert np.array_equal(outputs(seed=1), outputs(seed=1))
    assert not np.array_equal(outputs(seed=1), outputs(seed=2))
    assert not np.array_equal(outputs(seed=1), outputs(seed=1, replica=1))


@pytest.mark.parametrize("noise", [{"release_failure": 0.3}, {"read_noise": 0.2}])
def test_replicas_draw_releases_and_reads_anew(tiny, rng, noise):
    """Two reads of a mask from the same start are two draws of what is random in every run."""
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 20)
    x, faults = rng.normal(size=(3, 5)), ChipFaults(masks=200, **noise)
    first, again, other = (
        run(chip, x, faults, engine="numpy", phases="half", replica=replica).outputs
        for replica in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    first, other = first - first.mean(0), other - other.mean(0)
    correlation = (first * other).sum() / np.sqrt((first**2).sum() * (other**2).sum())
    assert abs(correlation) < 0.2
    assert first.std() > 0


def test_nothing_is_left_behind(tiny, rng, tmp_path, monkeypatch):
    """brian2's preferences, interrupt handler, numpy's global generator, the working folder."""
    monkeypatch.chdir(tmp_path)
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 5)
    x = rng.normal(size=(1, 5))
    run(chip, x, engine="brian2")
    import brian2

    state = np.random.get_state()[1].copy()
    before = brian2.prefs["codegen.target"]
    hook, handler = sys.excepthook, signal.getsignal(signal.SIGINT)
    for engine in BRIAN:
        run(chip, x, sample_dead(chip, 0.1, 2, 0), engine=engine, phases="random")
    assert brian2.prefs["codegen.target"] == before
    assert np.array_equal(np.random.get_state()[1], state)
    assert (sys.excepthook, signal.getsignal(signal.SIGINT)) == (hook, handler)
    assert list(tmp_path.iterdir()) == []


def test_brian2_loads_on_the_first_run_that_needs_it():
    code = """
import signal, sys
handler, hook = signal.getsignal(signal.SIGINT), sys.excepthook
import numpy as np, crashsim_hardware as h
same = h.Linear(np.eye(2))
net = h.Network([h.NeuronLayer(same), h.NeuronLayer(same, "linear")], (2,))
chip = h.convert(net, np.ones((1, 2)), 5)
h.run(chip, np.ones((1, 2)), engine="numpy")
assert "brian2" not in sys.modules and "torch" not in sys.modules and "sympy" not in sys.modules
h.run(chip, np.ones((1, 2)), engine="brian2")
assert "brian2" in sys.modules
assert signal.getsignal(signal.SIGINT) is handler and sys.excepthook is hook
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "nest"}, "'nest'"),
        ({"phases": "quarter"}, "'quarter'"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"faults": [np.zeros((2, 7), bool)]}, r"dead\[0\] must have shape"),
        ({"faults": [None] * 3}, "dead has 3 entries"),
    ],
)
def test_wrong_use(tiny, rng, options, message):
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 5)
    arguments = {"engine": "numpy"} | options
    with pytest.raises(HardwareError, match=message):
        run(chip, np.zeros((1, 5)), **arguments)


def test_standalone_devices_are_refused(tiny, rng):
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 5)
    import brian2

    brian2.set_device("cpp_standalone", build_on_run=False)
    try:
        with pytest.raises(HardwareError, match="set_device"):
            run(chip, np.zeros((1, 5)), ChipFaults(masks=1), engine="brian2")
    finally:
        brian2.set_device("runtime")
