"""NIR graphs without a rate network: faults by site, moments against a recursion by hand."""

from __future__ import annotations

import itertools
import math

import crashsim_hardware as chips
import numpy as np
import pytest

from crashsim import GainNoise, NeuronCrash, StuckAt, WeightCrash
from crashsim.chip.chip_faults import parse_chip_fault
from crashsim.chip.graph_runs import graph_faults, run_graph
from crashsim.chip.nir import read_graph
from crashsim.chip.plan import plan_run
from crashsim.errors import ArgumentError, FileError

nir = pytest.importorskip("nir")

STEPS, DECAY = 25, 0.2
VARIANCE = ("variance", "all", "all")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def weights(rng):
    return rng.normal(0.3, 0.5, (10, 6)), rng.normal(0.3, 0.6, (3, 10))


@pytest.fixture
def path(weights, tmp_path):
    first, last = weights

    def lif(n):
        one = np.ones(n)
        return nir.LIF(one * 1e-4 / DECAY, one / DECAY, 0 * one, one)

    nodes = {
        "input": nir.Input({"input": np.array([6])}), "a": nir.Linear(first), "hid": lif(10),
        "b": nir.Linear(last), "out": lif(3), "output": nir.Output({"output": np.array([3])}),
    }  # fmt: skip
    names = list(nodes)
    nir.write(tmp_path / "g.nir", nir.NIRGraph(nodes, [*itertools.pairwise(names)]))
    return tmp_path / "g.nir"


def by_hand(weights, x, alive):
    """Spikes a step of the last layer, (B, 3), with reset to zero."""
    v, total = [np.zeros((len(x), n)) for n in (10, 3)], 0.0
    for _ in range(STEPS):
        current = x
        for index, weight in enumerate(weights):
            v[index] = (1 - DECAY) * v[index] + current @ weight.T
            current = (v[index] >= 1 - 1e-9).astype(float)
            v[index][current > 0] = 0
            current = current * alive if index == 0 else current
        total = total + current / STEPS
    return total


def test_deaths_have_the_moments_of_the_recursion(path, weights, rng):
    chip, x = read_graph(path, "zero", steps=STEPS), rng.random((4, 6))
    run = run_graph(chip, x, {"hidden": NeuronCrash(0.2)}, masks=300, seed=5, engine="numpy")
    broken = graph_faults(chip, {"hidden": NeuronCrash(0.2)}, 300, 5)
    assert broken.dead[1] is None
    assert 0.15 < broken.dead[0].mean() < 0.25
    clean = by_hand(weights, x, np.ones(10))
    delta = np.stack([by_hand(weights, x, ~mask) for mask in broken.dead[0]]) - clean
    assert delta.var() > 1e-4
    total = next(
        e for e in run.estimates if (e.quantity, e.input, e.output) == ("variance", "all", "all")
    )
    assert total.value == pytest.approx(delta.var(axis=0, ddof=1).mean(0).sum(), rel=1e-9)
    one = next(e for e in run.estimates if (e.quantity, e.input, e.output) == ("mean", 0, 1))
    assert one.value == pytest.approx(delta.mean(0)[0, 1], abs=1e-12)
    assert not run.warnings
    assert "reset zero; membranes start at zero" in run.facts["convention"]
    assert run.facts["slope"] is None


def test_faults_by_site(path):
    chip = read_graph(path, "zero", steps=STEPS)
    many = {"input": NeuronCrash(0.5), "o*": NeuronCrash(0.5), "weights": WeightCrash(0.5)}
    broken = graph_faults(chip, many, 200, 0)
    assert broken.dead[0] is None
    assert broken.dead[1].shape == (200, 3)
    assert broken.dead_inputs.shape == (200, 6)
    assert [array.shape for array in broken.dead_synapses if array is not None] == [
        (200, 10, 6), (200, 3, 10),
    ]  # fmt: skip
    for array in (broken.dead[1], broken.dead_inputs, broken.dead_synapses[0]):
        assert 0.4 < array.mean() < 0.6
    both = graph_faults(chip, {"hid": NeuronCrash(0.5), "h*": NeuronCrash(0.5)}, 200, 0)
    assert both.dead[0].any()


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ({"nowhere": NeuronCrash(0.1)}, "there are hidden, input, weights, hid, out"),
        ({"input": GainNoise(0.1)}, "cannot have GainNoise"),
        ({"hidden": StuckAt(0.1, value=7.0, window=(0, 5))}, "leave the window out"),
        ({"hidden": GainNoise(0.1, window=(0, 5))}, "leave the window out"),
        ({"hidden": NeuronCrash(count=2)}, "cannot have NeuronCrash"),
        ({"hidden": NeuronCrash(0.1, duration="transient")}, "cannot have NeuronCrash"),
        ({"hidden": NeuronCrash([0.1] * 9)}, "do not fit"),
        ({"a": WeightCrash(0.1)}, "give 'weights'"),
    ],
)
def test_what_a_graph_cannot_have(path, faults, told):
    chip = read_graph(path, "zero")
    with pytest.raises(ArgumentError, match=told):
        run_graph(chip, np.ones((1, 6)), faults, masks=4, engine="numpy")


def test_inputs_that_do_not_fit(path, rng):
    chip = read_graph(path, "zero", steps=STEPS)
    with pytest.raises(ArgumentError, match=r"the graph takes \(6,\)"):
        run_graph(chip, np.ones((2, 5)), {"hidden": NeuronCrash(0.1)}, masks=4, engine="numpy")


def test_silent_layers_lead_the_warnings(path):
    chip = read_graph(path, "zero", steps=STEPS, dt=1e-9)
    x = np.ones((1, 6))
    run = run_graph(chip, x, {"hidden": NeuronCrash(0.1)}, masks=10, engine="numpy")
    assert "layer 'hid' never fires" in run.warnings[0]
    assert "layer 'out' never fires" in run.warnings[1]


def test_the_chips_own_faults(path, rng):
    chip, x = read_graph(path, "zero", steps=STEPS), rng.random((2, 6))
    for spec in ("stuck-firing=0.2", "mismatch=0.2", "core-death=0.5", "release-failure=0.2"):
        run = run_graph(chip, x, {}, masks=60, engine="numpy", breaks=parse_chip_fault(spec))
        total = next(e for e in run.estimates if e.quantity == "variance" and e.output == "all")
        assert total.value > 1e-5, spec
        assert math.isfinite(total.high)


def test_a_file_that_does_not_say_its_reset(path):
    with pytest.raises(FileError, match="pass reset"):
        read_graph(path)


def test_trains_windows_and_readouts(path, weights, rng):
    chip, train = read_graph(path, "zero", steps=STEPS), rng.random((2, STEPS, 6))
    faults = {"hidden": NeuronCrash(0.5, window=(5, 15))}
    told = []
    run = run_graph(
        chip, train, faults, masks=200, readout="membrane",
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    assert run.facts["readout"] == "membrane"
    assert len(told) >= 10
    assert told[-1][1] == told[-1][2]
    broken = graph_faults(chip, faults, 200, 0)
    assert broken.window == (5, 15)
    found = np.empty((200, 2, 3))
    for mask, dead in enumerate(broken.dead[0]):
        v = [np.zeros((2, n)) for n in (10, 3)]
        for t in range(STEPS):
            v[0] = (1 - DECAY) * v[0] + train[:, t] @ weights[0].T
            sent = (v[0] >= 1).astype(float)
            v[0][sent > 0] = 0
            sent = sent * ~dead if 5 <= t < 15 else sent
            v[1] = (1 - DECAY) * v[1] + sent @ weights[1].T
            v[1][v[1] >= 1] = 0
        found[mask] = v[1]
    total = next(
        e for e in run.estimates if (e.quantity, e.input, e.output) == ("variance", "all", "all")
    )
    assert total.value == pytest.approx(found.var(axis=0, ddof=1).mean(0).sum(), rel=1e-9)
    assert total.value > 1e-3


def test_faults_of_different_windows(path):
    chip = read_graph(path, "zero", steps=STEPS)
    many = {"hid": NeuronCrash(0.5, window=(0, 5)), "out": NeuronCrash(0.5)}
    with pytest.raises(ArgumentError, match="not in 2 different ones"):
        graph_faults(chip, many, 4, 0)
    with pytest.raises(ArgumentError, match="leave the window out"):
        graph_faults(chip, {"input": NeuronCrash(0.5, window=(0, 5))}, 4, 0)


def test_activity_is_counted_spike_by_spike(path, weights, rng):
    chip, x = read_graph(path, "zero", steps=STEPS), rng.random((3, 6))
    run = run_graph(chip, x, {"hidden": NeuronCrash(0.5)}, masks=10)
    v, spikes, operations = [np.zeros((3, n)) for n in (10, 3)], 0.0, 0.0
    for _ in range(STEPS):
        v[0] = (1 - DECAY) * v[0] + x @ weights[0].T
        sent = (v[0] >= 1).astype(float)
        v[0][sent > 0] = 0
        v[1] = (1 - DECAY) * v[1] + sent @ weights[1].T
        out = (v[1] >= 1).astype(float)
        v[1][out > 0] = 0
        spikes += (sent.sum() + out.sum()) / 3
        operations += (sent @ (weights[1] != 0).T).sum() / 3 + out.sum() / 3
    activity = run.facts["activity"]
    assert activity["spikes"] == pytest.approx(spikes)
    assert activity["operations"] == pytest.approx(operations)
    assert 0 < activity["operations_broken"] < operations


def test_a_budget_leaves_out_masks_then_inputs(path, rng):
    chip, x = read_graph(path, "zero", steps=STEPS), rng.random((8, 6))
    faults = {"hidden": NeuronCrash(0.2)}
    whole = run_graph(chip, x, faults)
    assert whole.facts["masks"] == 400
    assert not any("fault patterns" in warning for warning in whole.warnings)
    each = plan_run(chip, 8, None).operations
    few = run_graph(chip, x, faults, budget=8 * 150 * each)
    assert (few.facts["masks"], few.facts["inputs"]) == (150, 8)
    assert "150 of 400 fault patterns on the first 8 of 8 inputs" in few.warnings[0]
    fewer = plan_run(chip, 8, None, budget=5 * 100 * each)
    assert (fewer.masks, fewer.inputs) == (100, 5)
    least = plan_run(chip, 8, None, budget=1.0)
    assert (least.masks, least.inputs) == (30, 1)
    assert "beyond the budget" in least.note()
    asked = plan_run(chip, 8, 1000, budget=4000 * each)
    assert (asked.masks, asked.inputs) == (1000, 4)


def test_sampling_stops_at_a_width(path, rng):
    chip, x = read_graph(path, "zero", steps=STEPS), rng.random((4, 6))
    faults = {"hidden": NeuronCrash(0.2)}
    run = run_graph(chip, x, faults, masks=2000, rel_width=0.3)
    masks = run.facts["masks"]
    assert 64 <= masks < 2000
    direct = run_graph(chip, x, faults, masks=masks)
    for stopped, once in zip(run.estimates, direct.estimates, strict=True):
        assert stopped.value == once.value  # the same masks
    total = next(e for e in run.estimates if (e.quantity, e.output) == ("variance", "all"))
    one = next(e for e in direct.estimates if (e.quantity, e.output) == ("variance", "all"))
    assert total.confidence > one.confidence == 0.95  # several looks
    assert total.high - total.low > one.high - one.low
    with pytest.raises(ArgumentError, match="rel_width=0"):
        run_graph(chip, x, faults, rel_width=0)


def test_neurons_behind_which_weights_lie_are_hidden(rng):
    """The last layer is an output only where nothing lies between it and the outputs."""
    network = chips.Network(
        [
            chips.NeuronLayer(chips.Linear(rng.normal(0.3, 0.5, (7, 6))), "relu"),
            chips.NeuronLayer(chips.Linear(rng.normal(0.3, 0.5, (5, 7))), "relu"),
            chips.NeuronLayer(chips.Linear(rng.normal(size=(2, 5))), "linear"),
        ],
        (6,),
    )
    chip = chips.convert(network, rng.random((20, 6)), STEPS)
    train, faults = 2 * rng.random((2, STEPS, 6)), {"hidden": NeuronCrash(0.3)}
    run = run_graph(chip, train, faults, masks=60)
    dead = graph_faults(chip, faults, 60, 0).dead
    assert all(0.2 < mask.mean() < 0.4 for mask in dead)
    outputs = chips.run(chip, train, list(dead)).outputs
    total = next(e for e in run.estimates if (e.quantity, e.input, e.output) == VARIANCE)
    assert total.value == pytest.approx(outputs.var(axis=0, ddof=1).sum(-1).mean(), rel=0.15)
    alone = graph_faults(chip, {"relu2": NeuronCrash(0.3)}, 60, 0).dead
    assert alone[0] is None
    assert np.array_equal(alone[1], dead[1])


def test_two_faults_of_one_layer_strike_apart(path):
    chip = read_graph(path, "zero", steps=STEPS)
    both = {"hidden": NeuronCrash(p=0.1), "hid": NeuronCrash(p=0.2)}
    dead = graph_faults(chip, both, 20_000, seed=0).dead[0]
    assert abs(dead.mean() - (1 - 0.9 * 0.8)) < 4 * math.sqrt(0.28 * 0.72 / dead.size)
    alone = graph_faults(chip, {"hid": NeuronCrash(p=0.2)}, 50, seed=0).dead[0]
    assert np.array_equal(alone, chips.sample_dead(chip, 0.2, 50, 0).dead[0])


def test_weights_fail_for_the_whole_run(path):
    chip = read_graph(path, "zero", steps=STEPS)
    with pytest.raises(ArgumentError, match="weights fail for the whole pass"):
        graph_faults(chip, {"weights": WeightCrash(p=0.1, window=(5, 10))}, 3, seed=0)
