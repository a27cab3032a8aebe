"""Graphs of leaky neurons as torch models: the chip's own spikes, and their score."""

from __future__ import annotations

import itertools

import crashsim_hardware as chips
import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, NeuronCrash, StuckAt, find_sites, score
from crashsim.chip.nir import read_chip, write_chip
from crashsim.chip.spiking_model import SpikingModel, can_be_stepped
from crashsim.coordinates.drawing import sample_points
from crashsim.errors import ArgumentError, CrashsimWarning

nir = pytest.importorskip("nir")

STEPS = 25


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def chain(rng, neurons):
    """6 inputs, 8 neurons, 3 neurons, and a way around the first layer with a delay."""
    nodes = {
        "input": nir.Input({"input": np.array([6])}),
        "a": nir.Affine(rng.normal(0.3, 0.5, (8, 6)), rng.normal(0, 0.05, 8)), "hid": neurons(8),
        "b": nir.Linear(rng.normal(0.3, 0.6, (3, 8))), "out": neurons(3),
        "output": nir.Output({"output": np.array([3])}),
    }  # fmt: skip
    edges = [*itertools.pairwise(nodes)]
    nodes["skip"], nodes["late"] = (
        nir.Linear(rng.normal(0, 0.2, (3, 6))),
        nir.Delay(np.full(3, 2e-4)),
    )
    edges += [("input", "skip"), ("skip", "late"), ("late", "out")]
    return nir.NIRGraph(nodes, edges)


def lif(rng):
    def made(n):
        decay = rng.uniform(0.05, 0.4, n)
        return nir.LIF(1e-4 / decay, 1 / decay, 0.1 * np.ones(n), np.ones(n), np.zeros(n))

    return made


def cuba(rng):
    def made(n):
        one, decay = np.ones(n), rng.uniform(0.1, 0.5, n)
        return nir.CubaLIF(
            tau_syn=1e-4 / decay, tau_mem=3e-4 * one, r=4 * one, v_leak=0 * one,
            v_threshold=one, w_in=one, v_reset=0 * one,
        )  # fmt: skip

    return made


@pytest.mark.parametrize("neurons", [lif, cuba])
@pytest.mark.parametrize(
    "options",
    [
        {"reset": "subtract"},
        {"reset": "zero", "start": "half"},
        {"reset": "late-subtract"},
        {"exporter": "snntorch", "reset": "subtract"},
        {"exporter": "norse", "dt": 1e-4},
        {"exporter": "sinabs-bounded", "dt": 1e-4},
        {"exporter": "spikingjelly"},
    ],
)
def test_the_model_gives_the_chips_spikes(rng, neurons, options):
    chip = chips.read_nir(chain(rng, neurons(rng)), steps=STEPS, **options)
    x = rng.random((5, 6))
    right = chips.run(chip, x).outputs[0]
    assert 0 < right.mean() < 1
    found = SpikingModel(chip).eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, right, atol=1e-12)


def test_deaths_of_the_model_are_deaths_on_the_chip(rng):
    chip = chips.read_nir(chain(rng, lif(rng)), steps=STEPS, reset="subtract")
    model, x = SpikingModel(chip).eval(), torch.from_numpy(rng.random((4, 6)))
    space = FaultSpace(model, x, {"relu1": NeuronCrash(0.3)})
    points = sample_points(space.placements, 0, 50)
    dead = points.dense() != 0
    assert dead.shape == (50, 8)  # one coordinate for all steps
    right = chips.run(chip, x.numpy(), [dead]).outputs
    assert right.var(axis=0).max() > 1e-4
    np.testing.assert_allclose(space.outputs(points), right, atol=1e-12)


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        (NeuronCrash(0.3, window=(5, 15)), "dead"),
        (StuckAt(0.3, value=1.0, window=(5, 15)), "stuck"),
    ],
)
def test_windows_of_the_model_are_windows_on_the_chip(rng, fault, field):
    chip = chips.read_nir(chain(rng, lif(rng)), steps=STEPS, reset="subtract")
    x = rng.random((4, 6))
    space = FaultSpace(SpikingModel(chip).eval(), torch.from_numpy(x), {"relu1": fault})
    points = sample_points(space.placements, 0, 50)
    struck = chips.ChipFaults(**{field: [points.dense() != 0]}, window=(5, 15))
    right = chips.run(chip, x, struck).outputs
    assert right.var(axis=0).max() > 1e-3
    np.testing.assert_allclose(space.outputs(points), right, atol=1e-12)


def test_trains_are_inputs_of_the_model_too(rng):
    chip = chips.read_nir(chain(rng, lif(rng)), steps=STEPS, reset="subtract")
    model, train = SpikingModel(chip).eval(), 2 * rng.random((4, STEPS, 6))
    right = chips.run(chip, train).outputs[0]
    x = torch.from_numpy(train)
    np.testing.assert_allclose(model(x).numpy(), right, atol=1e-12)
    assert not np.allclose(chips.run(chip, train.mean(1)).outputs[0], right)
    for site, units in (("relu1", 8), ("input", 6)):  # a dead line is dead in all steps
        space = FaultSpace(model, x, {site: NeuronCrash(0.3)})
        points = sample_points(space.placements, 0, 50)
        e = points.dense() != 0
        assert e.shape == (50, units)
        struck = [e] if site == "relu1" else chips.ChipFaults(dead_inputs=e)
        on_chip = chips.run(chip, train, struck).outputs
        assert on_chip.var(axis=0).max() > 1e-4
        np.testing.assert_allclose(space.outputs(points), on_chip, atol=1e-12)
    with pytest.raises(ArgumentError, match=r"trains of 9 steps.*runs 25"):
        FaultSpace(model, x[:, :9], {"relu1": NeuronCrash(0.3)})


def test_the_score_of_a_leaky_graph_is_the_networks_own(rng, tmp_path):
    first, last = rng.normal(0.1, 0.25, (20, 6)), rng.normal(0.1, 0.3, (4, 20))
    beta, p, one = 0.9, 0.1, np.ones
    nodes = {"input": nir.Input({"input": np.array([6])})}
    for name, weight in (("1", first), ("2", last)):
        n = len(weight)
        nodes["w" + name] = nir.Linear(weight)
        nodes["s" + name] = nir.LIF(1e-4 / 0.1 * one(n), 10 * one(n), 0 * one(n), one(n))
    nodes["output"] = nir.Output({"output": np.array([4])})
    nir.write(tmp_path / "net.nir", nir.NIRGraph(nodes, [*itertools.pairwise(nodes)]))
    x = rng.random((3, 6))
    alive = np.random.default_rng(1).random((4000, 1, 20)) >= p
    v, w, total = np.zeros((4000, 3, 20)), np.zeros((4000, 3, 4)), 0.0
    for _ in range(STEPS):
        v = beta * v + x @ first.T
        sent = (v >= 1).astype(float)
        v -= sent
        w = beta * w + (sent * alive) @ last.T
        out = (w >= 1).astype(float)
        w -= out
        total = total + out / STEPS
    own = total.var(axis=0).sum(-1).mean()
    assert own > 1e-3
    with pytest.warns(CrashsimWarning, match="the chip itself, step by step"):
        _, model = read_chip(tmp_path / "net.nir", "subtract", steps=STEPS)
    inputs = torch.from_numpy(x)
    assert "relu1" in [site.name for site in find_sites(model, inputs)]
    found = score(
        model, inputs, {"relu1": NeuronCrash(p)}, methods=["monte-carlo"], samples=4000
    ).find("monte-carlo", "variance")
    assert abs(found.value / own - 1) < 0.1
    assert found.low < 1.02 * own
    assert found.high > 0.98 * own


def test_leaky_chips_that_crashsim_wrote(make_net, randn, tmp_path):
    net, x = make_net((6, 8, 3), "relu").double(), randn(20, 6).double()
    layers = [
        chips.NeuronLayer(chips.Linear(m.weight.detach().numpy(), m.bias.detach().numpy()), kind)
        for m, kind in zip(
            (m for m in net.modules() if isinstance(m, nn.Linear)), ("relu", "linear"), strict=True
        )
    ]
    chip = chips.convert(chips.Network(layers, (6,)), x.numpy(), 40, neuron="lif", tau_mem=0.02)
    write_chip(chip, tmp_path / "chip.nir")
    with pytest.warns(CrashsimWarning, match="step by step"):
        again, model = read_chip(tmp_path / "chip.nir", steps=40)
    right = chips.run(again, x.numpy()).outputs[0]
    assert right.std() > 0.01
    np.testing.assert_allclose(model(x).detach().numpy(), right, atol=1e-9)


def test_what_cannot_be_stepped(rng, tmp_path):
    graph = chain(rng, lif(rng))
    graph.nodes["back"] = nir.Linear(rng.normal(0, 0.2, (8, 8)))
    looped = nir.NIRGraph(graph.nodes, [*graph.edges, ("hid", "back"), ("back", "hid")])
    nir.write(tmp_path / "loop.nir", looped)
    with pytest.raises(ArgumentError, match=r"loops.*`crashsim hardware` runs the chip itself"):
        read_chip(tmp_path / "loop.nir", "zero")
    network = chips.Network(
        [
            chips.NeuronLayer(chips.Linear(np.eye(3)), "sigmoid"),
            chips.NeuronLayer(chips.Linear(np.ones((1, 3))), "linear"),
        ],
        (3,),
    )
    assert "sigmoid" in can_be_stepped(chips.convert(network, np.ones((2, 3))))
    pooled = chips.Network(
        [
            chips.NeuronLayer(chips.Conv2d(np.ones((1, 1, 1, 1))), "relu"),
            chips.NeuronLayer((chips.MaxPool2d(2), chips.Flatten()), "linear"),
        ],
        (1, 2, 2),
    )
    assert "maxima" in can_be_stepped(chips.convert(pooled, np.ones((2, 1, 2, 2))))


@pytest.mark.filterwarnings("ignore::crashsim.errors.CrashsimWarning")
@pytest.mark.parametrize(("scale", "exporter"), [(0.2, None), (3.0, None), (3.0, "sinabs")])
def test_rates_that_neurons_cannot_fire_at_are_told(rng, tmp_path, scale, exporter):
    """The score of integrators is of ReLUs, which go on where a neuron fires in every step."""
    nodes = {
        "input": nir.Input({"input": np.array([3])}), "a": nir.Linear(np.full((4, 3), 0.5)),
        "hid": nir.IF(np.ones(4), np.ones(4)), "b": nir.Linear(np.full((2, 4), 0.3)),
        "out": nir.IF(np.ones(2), np.ones(2)), "output": nir.Output({"output": np.array([2])}),
    }  # fmt: skip
    nir.write(tmp_path / "if.nir", nir.NIRGraph(nodes, [*itertools.pairwise(nodes)]))
    chip, model = read_chip(tmp_path / "if.nir", "subtract", steps=200, exporter=exporter)
    x = scale * rng.uniform(0.5, 1.0, (5, 3))
    found = score(model, torch.tensor(x), NeuronCrash(p=0.1), chip=chip, samples=100)
    told = [w for w in found.warnings if "fire no faster" in w]
    saturates = exporter is None and scale == 3.0
    assert len(told) == (2 if saturates else 0)
    rates = model(torch.tensor(x)).detach().numpy()
    apart = np.abs(chips.run(chip, x).outputs[0] - rates).max()
    assert apart > 0.5 if saturates else apart < 0.02
