"""A chip handed over to brian2, or as a script of its own, fires as every engine does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import (
    ChipFaults,
    HardwareError,
    convert,
    read_nir,
    run,
    sample_bit_errors,
    sample_dead,
    sample_held,
    sample_mismatch,
)
from crashsim_hardware.engines.brian2_loading import brian2_at_rest

KINDS = {
    "relu": ("relu", {"refractory": 2e-3}),
    "lif": ("relu", {"neuron": "lif"}),
    "sigmoid": ("sigmoid", {"tau_syn": 0.005}),
    "tanh": ("tanh", {"tau_syn": 0.005}),
}


def broken_chip(tiny, rng, kind):
    activation, options = KINDS[kind]
    chip = convert(tiny(activation), rng.normal(0.3, 1.0, (50, 5)), 40, **options)
    faults = replace(
        sample_mismatch(chip, 0.1, 3, 3),
        dead=sample_dead(chip, 0.15, 3, 1).dead,
        held=sample_held(chip, 0.2, 3, 1, rate=0.3).held,
        weights=sample_bit_errors(chip, 0.02, 3, 1).weights,
        leaks=[rng.uniform(0.5, 2.0, (3, n)) for n in chip.sizes],
        refractory=[rng.integers(0, 4, (3, n)) for n in chip.sizes],
        gains=[rng.normal(1.0, 0.3, (3, n)) for n in chip.sizes],
        offsets=[rng.normal(0.0, 0.1, (3, n)) for n in chip.sizes],
        dead_inputs=np.eye(3, 5, dtype=bool),
    )
    return chip, faults


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_fires_as_the_engine(tiny, rng, kind):
    chip, faults = broken_chip(tiny, rng, kind)
    x = rng.normal(0.3, 1.0, 5)
    for broken, mask in ((None, 0), (faults, 1)):
        expected = run(chip, x[None], broken, engine="numpy", record=True)
        with brian2_at_rest():
            handed = chip.to_brian2(x, broken, mask=mask)
            found = handed.run()
        for ours, theirs in zip(found, expected.counts, strict=True):
            assert np.array_equal(ours, theirs[mask, 0])
            assert ours.any()
        np.testing.assert_allclose(handed.outputs, expected.outputs[mask, 0], rtol=1e-12)


@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_the_script_runs_alone(tiny, rng, kind, tmp_path):
    """In a process that cannot import crashsim, with the very spikes."""
    chip, faults = broken_chip(tiny, rng, kind)
    x = rng.normal(0.3, 1.0, 5)
    path = tmp_path / "chip.py"
    chip.to_script(path, x, faults, mask=2)
    assert "crashsim_hardware" not in path.read_text().split('"""', 2)[2]
    done = subprocess.run(
        [sys.executable, "-I", str(path)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    expected = run(chip, x[None], faults, engine="numpy", record=True)
    lines = done.stdout.strip().split("\n")
    for line, count in zip(lines, expected.counts, strict=False):
        assert [int(word) for word in line.split()[1:]] == count[2, 0].astype(int).tolist()
    read = [float(word.rstrip(",")) for word in lines[-1].replace("np.float64", "").split()[1:]]
    np.testing.assert_allclose(read, expected.outputs[2, 0], rtol=1e-9)


def test_a_graph_of_another_library_too(rng, tmp_path):
    nir = pytest.importorskip("nir")
    one = np.ones(6)
    nodes = {
        "in": nir.Input({"input": np.array([4])}),
        "w": nir.Affine(rng.normal(0.5, 1.0, (6, 4)), np.zeros(6)),
        "lif": nir.LIF(
            tau=5e-3 * one, r=one, v_leak=0 * one, v_threshold=0.4 * one, v_reset=0 * one
        ),
        "back": nir.Linear(rng.normal(0.0, 0.5, (6, 6))),
        "out": nir.Output({"output": np.array([6])}),
    }
    edges = [("in", "w"), ("w", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "out")]
    graph = nir.NIRGraph(nodes, edges)
    chip = read_nir(graph, steps=60, dt=1e-3, exporter="snntorch", reset="subtract")
    x = rng.uniform(0.5, 2.0, 4)
    faults = sample_dead(chip, 0.2, 2, 0)
    expected = run(chip, x[None], faults, engine="numpy", record=True)
    with brian2_at_rest():
        found = chip.to_brian2(x, faults, mask=1).run()
    assert np.array_equal(found[0], expected.counts[0][1, 0])
    assert found[0].any()


def test_what_synapses_cannot_carry_is_refused(tiny, rng, tmp_path):
    chip, _ = broken_chip(tiny, rng, "relu")
    x = np.zeros(5)
    for faults in (
        ChipFaults(release_failure=0.1),
        ChipFaults(read_noise=0.1),
        ChipFaults(adc_bits=4),
        replace(sample_dead(chip, 0.5, 1, 0), window=(1, 3)),
    ):
        with pytest.raises(HardwareError, match="change from step to step"):
            chip.to_brian2(x, faults)
    with pytest.raises(HardwareError, match="mask must be from 0 to 0"):
        chip.to_script(tmp_path / "chip.py", x, mask=3)
    with pytest.raises(HardwareError, match="one constant input"):
        chip.to_brian2(np.zeros((chip.total_steps, 5)))
    with pytest.raises(HardwareError, match="path must be"):
        chip.to_script("", x)
