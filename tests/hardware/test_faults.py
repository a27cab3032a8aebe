"""Faults against the network under the same masks, and the laws of the samplers."""

from __future__ import annotations

import numpy as np
import pytest
from crashsim_hardware import (
    ChipFaults,
    HardwareError,
    convert,
    device,
    devices,
    quantise,
    reference,
    run,
    sample_bit_errors,
    sample_core_deaths,
    sample_dead,
    sample_dead_synapses,
    sample_mismatch,
    sample_stuck,
    sample_stuck_cells,
)


@pytest.fixture
def chip(tiny, rng):
    return convert(tiny("sigmoid"), rng.normal(size=(200, 5)), 600, tau_syn=0.02)


FAULTS = {
    "dead": lambda chip: sample_dead(chip, 0.2, 12, 1),
    "stuck": lambda chip: sample_stuck(chip, 0.2, 12, 1),
    "mismatch": lambda chip: sample_mismatch(chip, 0.1, 12, 1),
    "synapses": lambda chip: sample_dead_synapses(chip, 0.1, 12, 1),
    "cells": lambda chip: sample_stuck_cells(chip, 0.05, 0.05, 12, 1),
    "bits": lambda chip: sample_bit_errors(chip, 0.02, 12, 1),
    "quantised": lambda chip: ChipFaults(weight_bits=4),
    "inputs": lambda chip: ChipFaults(
        dead_inputs=np.random.Generator(np.random.Philox(key=8)).random((12, 5)) < 0.3
    ),
    "cores": lambda chip: sample_core_deaths(chip, 0.3, 12, 1, core_size=3),
}


@pytest.mark.parametrize("name", FAULTS)
def test_long_windows_approach_the_network(chip, rng, name):
    """Every deterministic fault means on the chip what `reference` says it means."""
    x = rng.normal(size=(3, 5))
    faults = FAULTS[name](chip)
    spiking = run(chip, x, faults, engine="numpy").outputs
    exact = reference(chip, x, faults).outputs
    clean = reference(chip, x).outputs
    effect = np.abs(exact - clean).max()
    assert effect > 0.05
    assert np.abs(spiking - exact).max() < 0.1 * effect + 0.01


def test_stuck_relu_neurons_fire_at_their_scale(tiny, rng):
    chip = convert(tiny("relu"), rng.normal(size=(200, 5)), 50, refractory=1e-3)
    stuck = [np.ones((1, size), bool) for size in chip.sizes]
    result = run(
        chip, rng.normal(size=(2, 5)), ChipFaults(stuck=stuck), engine="numpy", record=True
    )
    for layer, rates in zip(chip.hidden, result.rates, strict=True):
        np.testing.assert_allclose(rates, np.broadcast_to(layer.stuck_value, rates.shape))
        assert layer.neuron.max_rate == 0.5


def test_a_neuron_dead_and_stuck_is_dead(tiny, rng):
    chip = convert(tiny("relu"), rng.normal(size=(200, 5)), 50)
    everything = [np.ones((1, size), bool) for size in chip.sizes]
    faults = ChipFaults(dead=everything, stuck=everything)
    result = run(chip, rng.normal(size=(2, 5)), faults, engine="numpy", record=True)
    assert not any(count.any() for count in result.counts)
    exact = reference(chip, np.zeros((2, 5)), faults)
    np.testing.assert_allclose(result.outputs, exact.outputs)


def test_samplers_follow_their_laws(digits):
    net = digits("relu")
    chip = convert(net.network, net.train, 10)
    dead = np.concatenate(sample_dead(chip, 0.1, 2000, 5).dead, axis=1)
    assert dead.mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / dead.size))
    cores = sample_core_deaths(chip, 0.1, 500, 5, core_size=30).dead
    assert [d.shape for d in cores] == [(500, 100), (500, 50)]
    for start in (0, 30, 60):
        block = cores[0][:, start : start + 30]
        assert np.array_equal(block.all(axis=1), block.any(axis=1))
    assert not np.array_equal(cores[0][:, 0], cores[0][:, 30])
    mismatch = np.concatenate(sample_mismatch(chip, 0.1, 500, 5).thresholds, axis=1)
    assert mismatch.std() == pytest.approx(0.1, rel=0.02)
    one_layer = sample_dead(chip, 0.1, 3, 0, layers=[1]).dead
    assert one_layer[0] is None
    assert one_layer[1].shape == (3, 50)


def test_bit_errors_flip_bits_of_the_stored_integer(digits):
    net = digits("relu")
    chip = convert(net.network, net.train, 10)
    stored = chip.readout.weight
    step = np.abs(stored).max() / 127
    clean = sample_bit_errors(chip, 0.0, 1, 0).weights[-1][0]
    np.testing.assert_allclose(clean, quantise(chip, 8).readout.weight)
    read = sample_bit_errors(chip, 0.01, 200, 0).weights[-1]
    flips = (np.round(read / step).astype(int) ^ np.round(clean / step).astype(int)) & 255
    rate = np.unpackbits(flips.astype(np.uint8)[..., None], axis=-1).mean()
    assert rate == pytest.approx(0.01, rel=0.1)
    assert np.abs(read).max() <= 128.001 * step


def test_bits_that_only_fall(digits):
    """Stored ones fail at the rate, zeros never: against the words' own bits."""
    net = digits("relu")
    chip = convert(net.network, net.train, 10)
    stored = chip.readout.weight
    step = np.abs(stored).max() / 127

    def bits(weights):
        words = (np.round(weights / step).astype(int) & 255).astype(np.uint8)
        return np.unpackbits(words[..., None], axis=-1)

    written = bits(stored)
    read = bits(sample_bit_errors(chip, 0.02, 200, 0, only_ones=True).weights[-1])
    failed = read != written
    assert not failed[:, written == 0].any()
    assert failed[:, written == 1].mean() == pytest.approx(0.02, rel=0.1)


PUBLISHED = {  # faults at voltages from the lowest on, memories of 16 Kibit
    "sram-28nm-vc707": (0.54, (23706, 7520, 2732, 772, 146, 24, 4), 2060),
    "sram-28nm-kc705": (0.53, (2274, 690, 252, 62, 26, 8, 2), 890),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rates_at_a_voltage_are_the_published_counts(digits, name):
    lowest, counts, memories = PUBLISHED[name]
    profile = devices()[name]
    for place, count in enumerate(counts):
        rate = count / (memories * 16384)
        assert profile.on_curve(round(lowest + 0.01 * place, 2)) == pytest.approx(rate, rel=1e-4)
    net = digits("relu")
    chip = convert(net.network, net.train, 10)
    found = profile.sample(chip, 50, 3)
    expected = sample_bit_errors(chip, profile.on_curve(lowest), 50, 3, only_ones=True)
    both = sample_bit_errors(chip, profile.on_curve(lowest), 50, 3)
    assert all(map(np.array_equal, found.weights, expected.weights))
    assert not all(map(np.array_equal, found.weights, both.weights))


def test_stuck_cells_of_a_differential_pair(digits):
    net = digits("relu")
    chip = convert(net.network, net.train, 10)
    stored, largest = chip.readout.weight, np.abs(chip.readout.weight).max()
    always_high = sample_stuck_cells(chip, 0.0, 1.0, 1, 0).weights[-1]
    always_low = sample_stuck_cells(chip, 1.0, 0.0, 1, 0).weights[-1]
    assert not always_high.any()
    assert not always_low.any()  # both cells of the pair at the same conductance
    some = sample_stuck_cells(chip, 0.1, 0.1, 300, 0).weights[-1]
    assert np.abs(some).max() <= largest * (1 + 1e-12)
    untouched = np.isclose(some, stored).mean()
    assert untouched == pytest.approx(0.8 * 0.9, abs=0.02)  # high resistance hides in the idle cell


OWN = {"rate": 0.1, "core_size": 100}  # what nobody has published


def test_every_device_has_its_sources(digits):
    net = digits("relu")
    chip = convert(net.network, net.train, 10)
    asked = 0
    for name, profile in devices().items():
        assert profile.citation
        names = {parameter.name for parameter in profile.parameters}
        assert profile.url.startswith("https://")
        for parameter in profile.parameters:
            assert parameter.note
            assert (parameter.value is None) == (parameter.status == "ask")
            if parameter.status == "ask":
                asked += 1
                given = {n: v for n, v in OWN.items() if n in names and n != parameter.name}
                with pytest.raises(HardwareError, match=f"no published {parameter.name}.*give one"):
                    profile.given(**given).sample(chip, 2, 0)
        missing = {p.name: OWN[p.name] for p in profile.parameters if p.value is None}
        complete = device(name, **missing)
        faults = complete.sample(chip, 5, 0)
        faults.check(chip)
        assert faults.count == 5
        assert all(p.status == "given" for p in complete.parameters if p.name in missing)
    assert asked >= 3
    sram = devices()["sram-65nm"]
    assert sram.on_curve(0.5) == pytest.approx(0.0156)
    assert sram.on_curve(0.525) == pytest.approx((0.0156 * 0.0023) ** 0.5)
    with pytest.raises(HardwareError, match=r"measured from 0.5 to 0.55, and 0.6 is not"):
        device("sram-65nm", voltage=0.6).sample(chip, 2, 0)
    with pytest.raises(HardwareError, match="no device 'abacus'"):
        device("abacus")
    with pytest.raises(HardwareError, match="no parameter 'colour'"):
        device("loihi", colour=3)
    for parts in ({"name": "loihi", "bits": 3.9}, {"name": "loihi-2-core-death", "core_size": 1.5}):
        needed = {"rate": 0.1} if "core_size" in parts else {}
        with pytest.raises(HardwareError, match=r"(3.9|1.5): give a whole number"):
            device(**parts, **needed).sample(chip, 2, 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ChipFaults(dead=[np.zeros((2, 3))], stuck=[np.zeros((4, 3))]),
            "same number of masks",
        ),
        (lambda: ChipFaults(masks=0), "masks must be an integer of at least 1"),
        (lambda: ChipFaults(release_failure=1.0), "release_failure"),
        (lambda: ChipFaults(thresholds=[np.zeros((2, 3))]), "positive factors"),
    ],
)
def test_impossible_faults(build, message):
    with pytest.raises(HardwareError, match=message):
        build()


def test_impossible_rates(chip):
    with pytest.raises(HardwareError, match=r"\[0, 1\]"):
        sample_dead(chip, 1.5, 2, 0)
    with pytest.raises(HardwareError, match="dead_inputs must have shape"):
        run(chip, np.zeros((1, 5)), ChipFaults(dead_inputs=np.zeros((2, 4))), engine="numpy")
    with pytest.raises(HardwareError, match="from 2 to 64"):
        quantise(chip, 1)
    with pytest.raises(HardwareError, match="stuck twice"):
        sample_stuck_cells(chip, 0.7, 0.7, 2, 0)
    with pytest.raises(HardwareError, match="core_size"):
        sample_core_deaths(chip, 0.1, 2, 0, core_size=0)
