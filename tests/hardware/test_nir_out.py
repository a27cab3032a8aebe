"""Graphs of other libraries, read, written and read again: the same spikes, faults or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from crashsim_hardware import (
    Chip,
    Conv1d,
    HardwareError,
    Linear,
    Physics,
    Projection,
    Spiking,
    SteppedNeuron,
    convert,
    nir_graph,
    read_nir,
    run,
    sample_dead,
    sample_dead_synapses,
    write_nir,
)

nir = pytest.importorskip("nir")

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.stem for path in DATA.glob("*.nir"))


def chip_of(name):
    library, _, kind = name.partition("_")
    reset = kind.split("_")[-1] if library == "snntorch" else None
    with np.load(DATA / f"{name}.npz") as stored:
        steps, x = int(stored["steps"]), stored["x"]
    return read_nir(DATA / f"{name}.nir", steps=steps, exporter=library, reset=reset), x


@pytest.mark.parametrize("name", NAMES)
def test_every_export_comes_back(name, tmp_path):
    chip, x = chip_of(name)
    x = x[:6]
    write_nir(chip, tmp_path / "again.nir")
    again = read_nir(tmp_path / "again.nir", steps=chip.steps)
    assert again.sizes == chip.sizes
    assert len(again.wires) == len(chip.wires)
    faults = sample_dead(chip, 0.2, 2, 1)
    synapses = sample_dead_synapses(chip, 0.1, 2, 1)
    for broken in (None, faults, synapses):
        one = run(chip, x, broken, engine="numpy", record=True)
        two = run(again, x, broken, engine="numpy", record=True)
        assert all(map(np.array_equal, one.counts, two.counts))
        np.testing.assert_allclose(two.outputs, one.outputs, rtol=1e-12, atol=1e-12)
    assert one.counts[-1].any()


def everything(rng):
    """A recurrent chip with a branch, delays, a threshold layer and one of every kind of neuron."""
    n = 6

    def each(low, high):
        return rng.uniform(low, high, n)

    zero, one = np.zeros(n), np.ones(n)
    lif = SteppedNeuron(
        each(0.05, 0.3), each(0.5, 1.0), each(0, 0.05), "zero", floor=each(-0.5, 0.5),
        late=True, strict=True,
    )  # fmt: skip
    cuba = SteppedNeuron(
        each(0.05, 0.3), each(0.5, 1.0), zero, "subtract", synapse=each(0.2, 0.9),
        gain=each(0.3, 0.9), bound=-one, floor=zero,
    )  # fmt: skip
    spike = SteppedNeuron(one, each(0.5, 2.0), zero, "zero", strict=True)

    def linear():
        return (Linear(rng.normal(0.3, 0.8, (n, n))),)

    from crashsim_hardware import Wire

    hidden = (
        Spiking(Projection((Linear(rng.normal(0.5, 1.0, (n, 4))),), each(0, 0.1), (4,)), lif, one),
        Spiking(Projection(linear(), zero, (n,)), cuba, one, delay=2, name="cuba"),
        Spiking(Projection(linear(), zero, (n,)), spike, one, name="spike"),
    )
    wires = (
        Wire(1, 1, Projection(linear(), zero, (n,)), delay=1),
        Wire(0, 2, Projection(linear(), zero, (n,)), delay=3),
        Wire(1, 0, Projection(linear(), zero, (n,)), delay=2),
    )
    readout = Projection((), rng.normal(0, 0.1, n), (n,))
    physics = Physics(dt=1e-3)
    return Chip(hidden, readout, 40, (4,), physics, start="zero", wires=wires)


def test_branches_loops_delays_and_rules(rng, tmp_path):
    chip = everything(rng)
    x = rng.uniform(0.0, 1.5, (4, 4))
    write_nir(chip, tmp_path / "chip.nir")
    again = read_nir(tmp_path / "chip.nir", steps=40)
    one = run(chip, x, engine="numpy", record=True)
    two = run(again, x, engine="numpy", record=True)
    assert all(count.any() for count in one.counts)
    for ours, theirs in zip(one.counts, two.counts, strict=True):
        assert np.array_equal(ours, theirs)
    np.testing.assert_allclose(two.outputs, one.outputs, rtol=1e-12, atol=1e-12)
    told = read_nir(tmp_path / "chip.nir", steps=40, reset="zero", exporter="nir")
    assert not told.hidden[0].neuron.late  # what is asked for overrules what is written


def test_convolutions_in_one_dimension(rng, tmp_path):
    neuron = SteppedNeuron(np.zeros(8), np.ones(8), np.zeros(8), "subtract", many=True)
    conv = Conv1d(rng.normal(0.5, 0.5, (2, 1, 3)))
    bias = np.repeat(rng.uniform(0, 0.2, 2), 4)
    hidden = (Spiking(Projection((conv,), bias, (1, 6)), neuron, np.ones(8)),)
    readout = Projection((), np.zeros(8), (2, 4))
    chip = Chip(hidden, readout, 20, (1, 6), Physics(), start="half")
    write_nir(chip, tmp_path / "chip.nir")
    again = read_nir(tmp_path / "chip.nir", steps=20)
    x = rng.random((3, 1, 6))
    one, two = (run(c, x, engine="numpy", record=True).counts[0] for c in (chip, again))
    assert np.array_equal(one, two)
    assert one.any()


def test_what_nir_has_no_word_for_is_named(tiny, rng):
    chip = everything(rng)
    from dataclasses import replace

    odd = replace(chip.hidden[1].neuron, origin=np.full(6, 0.3))
    wrong = (chip.hidden[0], replace(chip.hidden[1], neuron=odd), chip.hidden[2])
    with pytest.raises(HardwareError, match=r"'cuba'.*start neither at 0"):
        nir_graph(replace(chip, hidden=wrong))
    converted = convert(tiny("relu"), rng.normal(size=(20, 5)), 10)
    with pytest.raises(HardwareError, match="branches, loops and delays"):
        nir_graph(
            replace(converted, hidden=(converted.hidden[0], replace(converted.hidden[1], delay=1)))
        )
