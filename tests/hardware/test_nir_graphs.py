"""Graphs with branches, loops, delays and subgraphs, against recursions written out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from crashsim_hardware import (
    ChipFaults,
    HardwareError,
    HardwareWarning,
    crash_statistics,
    read_nir,
    run,
    sample_dead,
)

nir = pytest.importorskip("nir")

STEPS = 30
ENGINES = ("numpy", "brian2", "brian2-synapses")


def lif(n, tau=1e-3, threshold=1.0, **more):
    one = np.ones(n)
    return nir.LIF(10 * tau * one, 10 * one, 0 * one, threshold * one, **more)


def ends(n_in, n_out):
    return nir.Input({"input": np.atleast_1d(n_in)}), nir.Output({"output": np.atleast_1d(n_out)})


def graph_of(nodes, edges):
    return nir.NIRGraph(nodes, edges, type_check=False)


def pairs(*names):
    return [*itertools.pairwise(names)]


def counts(chip, x, engine="numpy", faults=None):
    return [c[:, :, :] for c in run(chip, x, faults, engine=engine, record=True).counts]


class Leaky:
    """LIF by hand: 1 % leak a step, a tenth of the current."""

    def __init__(self, shape):
        self.v = np.zeros(shape)

    def __call__(self, current):
        self.v = self.v + 0.01 * (10 * current - self.v)
        spikes = (self.v >= 1 - 1e-9).astype(float)
        self.v[spikes > 0] = 0
        return spikes


@pytest.fixture
def weights(rng):
    return {
        "in": rng.normal(1.5, 1.5, (6, 4)),
        "rec": rng.normal(-0.3, 1.0, (6, 6)),
        "bias": rng.normal(0.0, 0.3, 6),
        "out": rng.normal(1.0, 2.0, (3, 6)),
        "skip": rng.normal(1.0, 2.0, (3, 4)),
    }


def recurrent(weights, delay=None):
    first, last = ends(4, 3)
    nodes = {
        "i": first, "in": nir.Linear(weights["in"]), "a": lif(6),
        "rec": nir.Affine(weights["rec"], weights["bias"]), "out": nir.Linear(weights["out"]),
        "b": lif(3), "o": last,
    }  # fmt: skip
    edges = [*pairs("i", "in", "a", "out", "b", "o"), ("rec", "a")]
    if delay is None:
        return graph_of(nodes, [*edges, ("a", "rec")])
    nodes["wait"] = nir.Delay(delay)
    return graph_of(nodes, [*edges, ("a", "wait"), ("wait", "rec")])


def by_hand(weights, x, delays=1, dead=None):
    """Spikes of both layers: those of the loop arrive `delays` (a number or (6,)) steps later."""
    a, b = Leaky((len(x), 6)), Leaky((len(x), 3))
    past, totals = [np.zeros((len(x), 6))] * 40, [0.0, 0.0]
    for _ in range(STEPS):
        each = np.broadcast_to(delays, 6)
        late = np.stack([past[-steps][:, n] for n, steps in enumerate(each)], axis=1)
        spikes = a(x @ weights["in"].T + late @ weights["rec"].T + weights["bias"])
        spikes = spikes if dead is None else spikes * ~dead
        past.append(spikes)
        out = b(spikes @ weights["out"].T)
        totals = [totals[0] + spikes, totals[1] + out]
    return totals


@pytest.mark.parametrize("engine", ENGINES)
def test_spikes_in_a_loop_arrive_in_the_next_step(weights, rng, engine):
    x = rng.random((5, 4))
    chip = read_nir(recurrent(weights), steps=STEPS, reset="zero")
    wanted = by_hand(weights, x)
    without = by_hand(weights | {"rec": 0 * weights["rec"]}, x)
    assert wanted[1].sum() > 10
    assert not np.array_equal(wanted[1], without[1])
    for found, one in zip(counts(chip, x, engine), wanted, strict=True):
        assert np.array_equal(found[0], one)


@pytest.mark.parametrize("engine", ENGINES)
def test_dead_neurons_of_a_loop(weights, rng, engine):
    x, masks = rng.random((2, 4)), 12
    chip = read_nir(recurrent(weights), steps=STEPS, reset="zero")
    dead = sample_dead(chip, 0.3, masks, 1, layers=[0])
    found = counts(chip, x, engine, dead)[1]
    wanted = np.stack([by_hand(weights, x, dead=mask)[1] for mask in dead.dead[0]])
    assert wanted.std(axis=0).any()
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [[3] * 6, [0, 1, 2, 3, 4, 7]], ids=str)
def test_delays_of_each_neuron(weights, rng, engine, steps):
    x = rng.random((5, 4))
    chip = read_nir(recurrent(weights, np.array(steps) * 1e-4), steps=STEPS, reset="zero")
    wanted = by_hand(weights, x, np.array(steps) + 1)
    assert not np.array_equal(wanted[0], by_hand(weights, x)[0])
    for found, one in zip(counts(chip, x, engine), wanted, strict=True):
        assert np.array_equal(found[0], one)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wait", [0, 4])
def test_a_branch_past_a_layer(weights, rng, engine, wait):
    """The inputs reach the last layer through the hidden one, and straight, `wait` steps late."""
    first, last = ends(4, 3)
    nodes = {
        "i": first, "in": nir.Linear(weights["in"]), "a": lif(6), "out": nir.Linear(weights["out"]),
        "late": nir.Delay(np.full(4, wait * 1e-4)), "skip": nir.Linear(weights["skip"]),
        "b": lif(3), "o": last,
    }  # fmt: skip
    edges = pairs("i", "in", "a", "out", "b", "o") + pairs("i", "late", "skip", "b")
    x = rng.random((5, 4))
    chip = read_nir(graph_of(nodes, edges), steps=STEPS, reset="zero")
    a, b, wanted = Leaky((5, 6)), Leaky((5, 3)), 0.0
    for now in range(STEPS):
        straight = x @ weights["skip"].T if now >= wait else 0.0
        wanted = wanted + b(a(x @ weights["in"].T) @ weights["out"].T + straight)
    assert wanted.sum() > 10
    assert np.array_equal(counts(chip, x, engine)[1][0], wanted)


def test_a_loop_over_two_layers(weights, rng):
    first, last = ends(4, 3)
    back = rng.normal(1.0, 2.0, (6, 3))
    nodes = {
        "i": first, "in": nir.Linear(weights["in"]), "a": lif(6), "out": nir.Linear(weights["out"]),
        "b": lif(3), "back": nir.Linear(back), "o": last,
    }  # fmt: skip
    edges = pairs("i", "in", "a", "out", "b", "o") + pairs("b", "back", "a")
    x = rng.random((5, 4))
    chip = read_nir(graph_of(nodes, edges), steps=STEPS, reset="zero")
    a, b, fed, wanted = Leaky((5, 6)), Leaky((5, 3)), np.zeros((5, 3)), 0.0
    for _ in range(STEPS):
        fed = b(a(x @ weights["in"].T + fed @ back.T) @ weights["out"].T)
        wanted = wanted + fed
    assert wanted.sum() > 10
    assert np.array_equal(counts(chip, x)[1][0], wanted)
    with pytest.raises(HardwareError, match="engine='numpy'"):
        run(chip, x, engine="brian2")


def test_a_bias_that_ways_share_counts_once(weights, rng):
    """Two ways into one Affine: their sum meets its bias once."""
    first, last = ends(4, 3)
    nodes = {
        "i": first, "one": nir.Linear(weights["in"]), "two": nir.Linear(weights["in"]),
        "a": lif(6), "c": lif(6), "sum": nir.Affine(weights["out"], np.full(3, 3.0)), "b": lif(3),
        "o": last,
    }  # fmt: skip
    edges = pairs("i", "one", "a", "sum", "b", "o") + pairs("i", "two", "c", "sum")
    x = rng.random((5, 4))
    chip = read_nir(graph_of(nodes, edges), steps=STEPS, reset="zero")
    a, b, wanted = Leaky((5, 6)), Leaky((5, 3)), 0.0
    for _ in range(STEPS):
        wanted = wanted + b(2 * a(x @ weights["in"].T) @ weights["out"].T + 3.0)
    assert wanted.sum() > 10
    assert np.array_equal(counts(chip, x)[-1][0], wanted)


def test_a_subgraph_is_what_is_in_it(weights, rng):
    first, last = ends(6, 6)
    inner = nir.NIRGraph(
        {"input": first, "lif": lif(6), "rec": nir.Affine(weights["rec"], weights["bias"]),
         "output": last},
        [("input", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "output")],
    )  # fmt: skip
    first, last = ends(4, 3)
    nodes = {
        "i": first, "in": nir.Linear(weights["in"]), "cell": inner,
        "out": nir.Linear(weights["out"]), "b": lif(3), "o": last,
    }  # fmt: skip
    chip = read_nir(
        graph_of(nodes, pairs("i", "in", "cell", "out", "b", "o")), steps=STEPS, reset="zero"
    )
    assert [layer.name for layer in chip.hidden] == ["cell.lif", "b"]
    x = rng.random((5, 4))
    for found, one in zip(counts(chip, x), by_hand(weights, x), strict=True):
        assert np.array_equal(found[0], one)


@pytest.mark.parametrize("engine", ENGINES)
def test_potentials_and_thresholds_of_each_neuron(rng, engine):
    """v_leak, v_reset, tau, r and the threshold differ from neuron to neuron."""
    n, x = 8, rng.random((4, 8)) * 2
    tau, r = rng.uniform(3e-4, 2e-3, n), rng.uniform(0.8, 2.0, n)
    leak, threshold = rng.uniform(0.0, 0.6, n), rng.uniform(0.5, 1.2, n)
    back = rng.uniform(-0.3, 0.2, n)
    first, last = ends(n, n)
    nodes = {"i": first, "n": nir.LIF(tau, r, leak, threshold, v_reset=back), "o": last}
    chip = read_nir(graph_of(nodes, pairs("i", "n", "o")), steps=STEPS, reset="zero")
    v, wanted = np.zeros((4, n)), 0.0
    for _ in range(STEPS):
        v = v + 1e-4 / tau * (leak - v + r * x)
        spikes = v >= threshold * (1 - 1e-9)
        v = np.where(spikes, back, v)
        wanted = wanted + spikes
    assert wanted.std(axis=1).any()
    assert np.array_equal(counts(chip, x, engine)[0][0], wanted)
    with pytest.raises(HardwareError, match="node 'n' resets to a potential"):
        read_nir(graph_of(nodes, pairs("i", "n", "o")), reset="subtract")


def test_thresholds_fire_where_the_current_is_above(rng):
    first, last = ends(5, 5)
    nodes = {"i": first, "t": nir.Threshold(np.full(5, 0.5)), "o": last}
    x = np.array([[0.2, 0.5, 0.51, 0.9, -1.0]])
    chip = read_nir(graph_of(nodes, pairs("i", "t", "o")), steps=7)
    assert counts(chip, x)[0][0, 0].tolist() == [0, 0, 7, 7, 0]


def test_one_dimensional_convolutions(rng):
    weight, bias = rng.normal(0.5, 1.0, (3, 2, 3)), rng.normal(size=3)
    first, last = ends((2, 9), (3, 5))
    nodes = {"i": first, "c": nir.Conv1d(9, weight, 2, 1, 1, 1, bias), "n": lif((3, 5)), "o": last}
    chip = read_nir(graph_of(nodes, pairs("i", "c", "n", "o")), steps=STEPS, reset="zero")
    x = rng.random((2, 2, 9)) * 3
    padded, current = np.pad(x, [(0, 0), (0, 0), (1, 1)]), np.zeros((2, 3, 5))
    for b, c, at in itertools.product(range(2), range(3), range(5)):
        current[b, c, at] = (padded[b, :, 2 * at : 2 * at + 3] * weight[c]).sum() + bias[c]
    neurons, wanted = Leaky((2, 3, 5)), 0.0
    for _ in range(STEPS):
        wanted = wanted + neurons(current)
    assert wanted.sum() > 10
    assert np.array_equal(counts(chip, x)[0][0], wanted.reshape(2, -1))


def test_a_batch_axis_of_one_is_none(weights, rng):
    first, last = ends((1, 4), (1, 6))
    nodes = {"i": first, "in": nir.Linear(weights["in"]), "a": lif(6), "o": last}
    chip = read_nir(graph_of(nodes, pairs("i", "in", "a", "o")), steps=STEPS, reset="zero")
    assert chip.input_shape == (4,)


@pytest.mark.parametrize(
    ("r", "dt", "told"),
    [
        (1.0, 1.0, "no node has a time constant"),
        (0.25, 1.0, "no node has a time constant"),
        (1e4, 1e-4, "1 / r"),
        (1e3, 1e-3, "1 / r"),
    ],
)
def test_the_step_of_integrators(r, dt, told):
    """r counts per step, or per second: a current of 1/8 fires every eighth step where it is 1."""
    first, last = ends(2, 2)
    nodes = {"i": first, "n": nir.IF(np.full(2, r), np.ones(2)), "o": last}
    chip = read_nir(graph_of(nodes, pairs("i", "n", "o")), steps=80, reset="subtract")
    assert chip.physics.dt == pytest.approx(dt)
    assert told in chip.convention
    gain = r if r < 100 else 1.0
    x = np.array([[0.125, 0.25]])
    assert counts(chip, x)[0][0, 0].tolist() == [10 * gain // 1, 20 * gain // 1]
    given = read_nir(graph_of(nodes, pairs("i", "n", "o")), dt=0.5 * dt, reset="subtract")
    assert given.physics.dt == 0.5 * dt


def test_integrators_of_several_speeds_need_a_step():
    first, last = ends(2, 2)
    nodes = {"i": first, "n": nir.IF(np.array([1.0, 1e4]), np.ones(2)), "o": last}
    with pytest.raises(HardwareError, match="nothing says how long a step is; give dt"):
        read_nir(graph_of(nodes, pairs("i", "n", "o")), reset="zero")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"exporter": "nobody"}, "exporter must be one of nir, snntorch"),
        ({"exporter": 3}, "exporter must be one of"),
        ({"reset": "never"}, "reset must be one of"),
        ({"start": "one"}, "start must be"),
        ({"dt": 0.0}, "dt must be a positive time"),
        ({"dt": float("nan")}, "dt must be a positive time"),
        ({"dt": 1.0}, "node 'n': dt / tau of the membrane must be from 0 to 1, got 100 to 100"),
        ({}, 'pass reset="zero"'),
    ],
)
def test_what_nobody_can_run_is_told(options, told):
    first, last = ends(2, 2)
    nodes = {"i": first, "n": lif(2), "o": last}
    options = {"reset": "zero"} | options if options else options
    with pytest.raises(HardwareError, match=told):
        read_nir(graph_of(nodes, pairs("i", "n", "o")), **options)


def test_a_graph_has_no_spiking_noise(weights, rng):
    chip = read_nir(recurrent(weights), steps=STEPS, reset="zero")
    x = rng.random((2, 4))
    dead = sample_dead(chip, 0.2, 200, 3, layers=[0])
    found = crash_statistics(chip, x, dead, engine="numpy")
    rates = np.stack([by_hand(weights, x, dead=mask)[1] for mask in dead.dead[0]]) / STEPS
    assert not found.noise.any()
    assert rates.var() > 0
    np.testing.assert_allclose(found.variance.value, rates.var(axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(
        found.mean.value, rates.mean(axis=0) - by_hand(weights, x)[1] / STEPS, atol=1e-12
    )


def test_dead_synapses_of_a_loop_are_those_of_its_wire(weights, rng):
    chip = read_nir(recurrent(weights), steps=STEPS, reset="zero")
    lost = rng.random((3, 6, 6)) < 0.4
    faults = ChipFaults(dead_synapses=[None, None, None, lost])
    x = rng.random((2, 4))
    found = counts(chip, x, faults=faults)[1]
    wanted = [by_hand(weights | {"rec": weights["rec"] * ~mask}, x)[1] for mask in lost]
    assert not np.array_equal(wanted[0], by_hand(weights, x)[1])
    assert np.array_equal(found, np.stack(wanted))


@pytest.mark.parametrize(
    ("engine", "exporter", "most"),
    [("numpy", None, 1.0), ("brian2", None, 1.0), ("numpy", "sinabs", 3.0)],
)
def test_neurons_that_are_the_outputs_are_counted_as_they_fire(engine, exporter, most):
    """No synapse lies behind them that could lose their spikes, nor a column with a converter."""
    nodes = {
        "input": nir.Input({"input": np.array([1])}), "a": nir.Linear(np.ones((1, 1))),
        "i": nir.IF(np.ones(1), np.ones(1)), "output": nir.Output({"output": np.array([1])}),
    }  # fmt: skip
    graph = nir.NIRGraph(nodes, [*itertools.pairwise(nodes)])
    chip = read_nir(graph, reset="subtract", steps=20, exporter=exporter)
    for faults in ({"release_failure": 0.3}, {"adc_bits": 4, "adc_range": 0.5}):
        found = run(chip, [[0.5], [3.0]], ChipFaults(masks=2, **faults), engine=engine).outputs
        assert np.array_equal(found[:, :, 0], [[0.5, most]] * 2)


def test_a_converter_that_cuts_off_several_spikes_a_step_says_so():
    nodes = {
        "input": nir.Input({"input": np.array([1])}), "a": nir.Linear(np.ones((1, 1))),
        "i": nir.IF(np.ones(1), np.ones(1)), "b": nir.Linear(np.ones((1, 1))),
        "o": nir.IF(np.ones(1), np.ones(1)), "output": nir.Output({"output": np.array([1])}),
    }  # fmt: skip
    graph = nir.NIRGraph(nodes, [*itertools.pairwise(nodes)])
    chip = read_nir(graph, reset="subtract", steps=20, exporter="sinabs")
    with pytest.warns(HardwareWarning, match="adc_bits: .* larger adc_range"):
        cut = run(chip, [[3.0]], ChipFaults(adc_bits=4)).outputs
    assert np.array_equal(cut, [[[1.0]]])
    wide = run(chip, [[3.0]], ChipFaults(adc_bits=8, adc_range=4.0)).outputs
    assert wide == pytest.approx(3.0, rel=0.02)
