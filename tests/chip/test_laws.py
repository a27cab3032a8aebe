"""Faults of every kind on the chip: the arrays that it is broken with, and what they mean."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from crashsim_hardware import Chip, convert, reference

from crashsim import (
    AdditiveNoise,
    BitFlip,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    SignFlip,
    StuckAt,
    WeightCrash,
)
from crashsim.chip.chip_faults import CHIP_FAULTS, parse_chip_fault
from crashsim.chip.graph_runs import graph_faults
from crashsim.chip.laws import line_of
from crashsim.chip.nir import read_graph
from crashsim.chip.spiking import chip_faults, chip_of, run_chip
from crashsim.coordinates.drawing import sample_points
from crashsim.errors import ArgumentError

NEURONS = {
    "crash": NeuronCrash(0.3),
    "stuck low": StuckAt(0.3, value=0.02),
    "stuck beyond": StuckAt(0.3, value=50.0),
    "sign": SignFlip(0.3),
    "gain": GainNoise(0.3),
    "additive": AdditiveNoise(0.3),
}
WEIGHTS = {
    "crash": WeightCrash(0.2),
    "stuck": StuckAt(0.2, value=0.1),
    "sign": SignFlip(0.2),
    "gain": GainNoise(0.2),
    "additive": AdditiveNoise(0.2),
    "bits": BitFlip(0.02, bits=6),
}


GRID = 2e-3  # of an effect: the chip stores weights in fixed point


def struck_network(space, masks):
    """The network's outputs under the very samples, by FaultSpace: (M, B, K)."""
    return space.outputs(sample_points(space.placements, 0, masks))


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_are_struck_as_in_the_network(name, make_net, randn):
    space = FaultSpace(make_net((4, 6, 5, 3), "relu"), randn(4, 4), NEURONS[name], "hidden")
    chip, found = chip_of(space, 20)
    broken = chip_faults(space, chip, found, 12, 0)
    exact = struck_network(space, 12)
    told = reference(chip, space.inputs.double().numpy(), broken).outputs
    np.testing.assert_allclose(told, exact, rtol=1e-5, atol=1e-5)
    assert np.abs(exact - space.clean()).max() > 0.05
    fields = {
        field
        for field in ("dead", "held", "gains", "offsets")
        if getattr(broken, field) is not None
    }
    expected = {
        "crash": {"dead"},
        "stuck low": {"held"},
        "stuck beyond": {"gains", "offsets"},
        "sign": {"gains"},
        "gain": {"gains"},
        "additive": {"offsets"},
    }
    assert fields == expected[name]


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_struck_as_in_the_network(name, make_net, randn):
    space = FaultSpace(make_net((4, 6, 5, 3), "relu"), randn(4, 4), WEIGHTS[name], "weights")
    chip, found = chip_of(space, 20)
    broken = chip_faults(space, chip, found, 12, 0)
    exact = struck_network(space, 12)
    told = reference(chip, space.inputs.double().numpy(), broken).outputs
    effect = np.abs(exact - space.clean()).max()
    assert effect > 0.05
    assert np.abs(told - exact).max() < GRID * effect


def test_weights_behind_a_batch_normalisation(seeded, randn):
    """The change of a weight is multiplied by what the normalisation makes of its row."""

    def build():
        norm = torch.nn.BatchNorm1d(6)
        norm.running_var.uniform_(0.5, 3.0)
        norm.weight.data.uniform_(-2.0, 2.0)
        return torch.nn.Sequential(
            torch.nn.Linear(4, 6), norm, torch.nn.ReLU(), torch.nn.Linear(6, 3)
        ).eval()

    space = FaultSpace(seeded(build), randn(4, 4), GainNoise(0.3), "0.weight")
    chip, found = chip_of(space, 20)
    broken = chip_faults(space, chip, found, 12, 0)
    told = reference(chip, space.inputs.double().numpy(), broken).outputs
    exact = struck_network(space, 12)
    effect = np.abs(exact - space.clean()).max()
    assert effect > 0.05
    assert np.abs(told - exact).max() < GRID * effect


def test_several_faults_at_the_same_neurons(make_net, randn):
    faults = {"act1": GainNoise(0.2), "act*": StuckAt(0.2, value=0.3)}
    space = FaultSpace(make_net((4, 6, 5, 3), "relu"), randn(4, 4), faults)
    chip, found = chip_of(space, 20)
    broken = chip_faults(space, chip, found, 12, 0)
    told = reference(chip, space.inputs.double().numpy(), broken).outputs
    np.testing.assert_allclose(told, struck_network(space, 12), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fault", [GainNoise(0.2), StuckAt(0.2, value=0.3)], ids=str)
def test_the_chip_moves_as_its_network(fault, make_net, randn):
    space = FaultSpace(make_net((4, 20, 3), "relu"), randn(4, 4), fault, "hidden")
    facts = run_chip(space, masks=100, steps=300).facts
    assert facts["variance_ratio"] == pytest.approx(1.0, abs=0.15)
    assert facts["mask_correlation"] > 0.95


def test_lines(make_net):
    assert line_of(SignFlip(0.1)) == (0.0, -2.0)
    assert line_of(StuckAt(0.1, value=0.7)) == (0.7, -1.0)
    assert line_of(BitFlip(0.1)) is None


@pytest.fixture
def graph(tmp_path):
    nir = pytest.importorskip("nir")
    rng = np.random.Generator(np.random.Philox(key=9))
    one = np.ones(8)

    def lif():
        return nir.LIF(1e-2 * one, one, 0 * one, 0.2 * one)

    nodes = {
        "in": nir.Input({"input": np.array([4])}),
        "w1": nir.Affine(rng.normal(0.3, 0.5, (8, 4)), np.zeros(8)),
        "a": lif(),
        "w2": nir.Linear(rng.normal(0.3, 0.5, (8, 8))),
        "b": lif(),
        "out": nir.Output({"output": np.array([8])}),
    }
    names = list(nodes)
    nir.write(str(tmp_path / "g.nir"), nir.NIRGraph(nodes, list(itertools.pairwise(names))))
    return read_graph(tmp_path / "g.nir", "zero", steps=20, dt=1e-3)


def test_neurons_of_a_graph(graph):
    masks = 4000
    noise = graph_faults(graph, {"a": GainNoise(0.2)}, masks, 0)
    assert noise.gains[1] is None
    assert noise.gains[0].std() == pytest.approx(0.2, rel=0.05)
    assert noise.gains[0].mean() == pytest.approx(1.0, abs=0.01)
    stuck = graph_faults(graph, {"a": StuckAt(0.25, value=0.5)}, masks, 0).held[0]
    assert np.isfinite(stuck).mean() == pytest.approx(0.25, abs=0.02)
    assert set(stuck[np.isfinite(stuck)]) == {0.5}
    flips = graph_faults(graph, {"hidden": SignFlip(0.25)}, masks, 0).gains[0]
    assert set(np.unique(flips)) == {-1.0, 1.0}
    groups = graph_faults(graph, {"a": NeuronCrash(0.25, group=4)}, masks, 0).dead[0]
    assert np.array_equal(groups[:, 0], groups[:, 3])
    assert not np.array_equal(groups[:, 0], groups[:, 4])
    each = graph_faults(graph, {"a": NeuronCrash(np.linspace(0, 0.7, 8))}, masks, 0).dead[0]
    np.testing.assert_allclose(each.mean(0), np.linspace(0, 0.7, 8), atol=0.03)


@pytest.mark.parametrize("fault", [GainNoise(0.2), BitFlip(0.05, bits=4), SignFlip(0.1)], ids=str)
def test_weights_of_a_graph(graph, fault):
    found = graph_faults(graph, {"weights": fault}, 500, 0).weights
    for read, projection in zip(found, graph.projections, strict=True):
        if projection.weight is None:
            assert read is None
            continue
        change = read - projection.weight
        assert change.any()
        if isinstance(fault, GainNoise):
            assert (change / projection.weight).std() == pytest.approx(0.2, rel=0.1)
        elif isinstance(fault, SignFlip):
            assert set(np.unique(np.sign(read / projection.weight))) == {-1.0, 1.0}
        else:
            step = np.abs(projection.weight).max() / 7
            np.testing.assert_allclose(change / step, np.round(change / step), atol=1e-9)


VALUES = {
    "weight-bits": "4", "adc-bits": "5,adc_range=0.5", "levels": "8", "drift": "100,nu=0.1",
    "pcm": "3600,compensated=1", "ir-drop": "1e-3,rows=4", "bit-flip": "0.01,bits=6",
    "core-death": "0.3,core_size=3", "stuck-cells": "0.1,high=0.2",
}  # fmt: skip


@pytest.mark.parametrize("name", CHIP_FAULTS)
@pytest.mark.parametrize("some_steps", [False, True])
def test_every_fault_of_the_catalogue_is_drawn(name, some_steps, make_net, randn):
    rng = np.random.Generator(np.random.Philox(key=1))
    space = FaultSpace(make_net((4, 6, 5, 3), "relu"), randn(4, 4), NeuronCrash(0.1))
    chip: Chip = chip_of(space, 20)[0]
    if name == "leak-variation":
        assert chip.network is not None
        chip = convert(chip.network, rng.normal(size=(50, 4)), 20, neuron="lif")
    field = CHIP_FAULTS[name].windows
    if some_steps and not field:
        pytest.skip("this fault lasts")
    breaks = parse_chip_fault(f"{name}={VALUES.get(name, '0.3')}{',window=5-9' * some_steps}")
    found = breaks(chip, 7, 0)
    assert (found.window, found.synapse_window) == (
        (5, 9) if some_steps and field == "window" else None,
        (5, 9) if some_steps and field == "synapse_window" else None,
    )
    assert found.count == 7
    assert not found.empty
    found.check(chip)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("melting=1", "choose among dead-neuron"),
        ("drift=1,mu=3", "'mu' is no number of drift; it takes nu, spread, start, compensated"),
        ("mismatch=0.1,bits=3", "'bits' is no number of mismatch"),
        ("levels=2.5", "levels=2.5: give a whole number"),
        ("bit-flip=0.1,bits=x", "give bits=NUMBER"),
        ("mismatch", "give mismatch=NUMBER"),
        ("mismatch=0.1,window=1-2", "'window' is no number of mismatch"),
        ("dead-neuron=0.1,window=5", "give START-STOP in steps"),
        ("dead-neuron=0.1,window=5-5", "give START-STOP in steps"),
        ("dead-neuron=0.1,rate=1", "'rate' is no number of dead-neuron; it takes window"),
    ],
)
def test_specs_that_say_nothing(spec, told):
    with pytest.raises(ArgumentError, match=told):
        parse_chip_fault(spec)
