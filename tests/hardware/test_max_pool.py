"""Max pooling on the chip: a window sends as many spikes as the neuron in it that fires most."""

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
    MaxPool2d,
    Network,
    NeuronLayer,
    convert,
    reference,
    run,
    sample_dead,
    sample_dead_synapses,
    spiking_gap,
)


@pytest.fixture
def network(rng):
    return Network(
        [
            NeuronLayer(Conv2d(rng.normal(0, 0.5, (3, 1, 3, 3)), rng.normal(0, 0.1, 3)), "relu"),
            NeuronLayer(
                (MaxPool2d(2), Conv2d(rng.normal(0, 0.4, (4, 3, 2, 2)), rng.normal(0, 0.1, 4))),
                "relu",
            ),
            NeuronLayer(
                (MaxPool2d(2, padding=1), Flatten(), Linear(rng.normal(0, 0.4, (3, 16)))), "linear"
            ),
        ],
        (1, 8, 8),
    )


def test_the_network_agrees_with_torch(network, rng):
    torch = pytest.importorskip("torch")
    first, second, third = network.layers
    x = rng.normal(size=(5, 1, 8, 8))
    to = torch.from_numpy
    a = torch.relu(
        torch.conv2d(to(x), to(first.transforms[0].weight), to(first.transforms[0].bias))
    )
    a = torch.max_pool2d(a, 2)
    a = torch.relu(torch.conv2d(a, to(second.transforms[1].weight), to(second.transforms[1].bias)))
    a = torch.max_pool2d(a, 2, padding=1).flatten(1) @ to(third.transforms[2].weight).T
    np.testing.assert_allclose(network.forward(x).outputs, a.numpy(), atol=1e-12)


def test_a_spike_whenever_the_largest_count_rises(rng):
    """Four integrators into one maximum, by hand."""
    weight = np.ones((1, 1, 1, 1))
    net = Network(
        [
            NeuronLayer(Conv2d(weight), "relu"),
            NeuronLayer((MaxPool2d(2), Conv2d(weight)), "relu"),
            NeuronLayer((Flatten(), Linear(np.ones((1, 1)))), "linear"),
        ],
        (1, 2, 2),
    )
    chip = convert(net, np.ones((1, 1, 2, 2)), steps=40, headroom=1.0, normalisation="layer")
    x = rng.random((6, 1, 2, 2))
    found = run(chip, x, record=True, phases="zero").counts[1][0, :, 0]
    for example, count in zip(x.reshape(6, 4), found, strict=True):
        drive = np.round(example * 2**13) / 2**13  # the chip's grid
        v, fired, target, right = np.zeros(4), np.zeros(4), 0.0, 0
        for _ in range(40):
            v += drive
            spikes = (v >= 1 - 1e-6).astype(float)
            v -= spikes
            before, fired = fired.max(), fired + spikes
            target += fired.max() - before
            if target >= 1 - 1e-6:
                target, right = target - 1, right + 1
        assert count == right
        assert abs(count / 40 - example.max()) <= 2 / 40


def test_engines_agree_and_the_chip_does_what_the_network_does(network, rng):
    x = rng.normal(0.5, 1.0, (3, 1, 8, 8))
    chip = convert(network, rng.normal(0.5, 1.0, (50, 1, 8, 8)), steps=200)
    faults = sample_dead(chip, 0.1, 300, 0)
    gap = spiking_gap(chip, x, faults)
    assert gap.variance_ratio == pytest.approx(1.0, abs=0.05)
    assert gap.slope == pytest.approx(1.0, abs=0.05)
    assert gap.correlation > 0.99
    few = sample_dead(chip, 0.1, 4, 1)
    oracle, other = (run(chip, x, few, engine=e, record=True) for e in ("numpy", "brian2"))
    for ours, theirs in zip(other.counts, oracle.counts, strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(run(chip, x, few, copies=1, record=True).counts[1], oracle.counts[1])


def test_what_passes_a_maximum_is_lost_at_synapses(network, rng):
    x = rng.normal(0.5, 1.0, (2, 1, 8, 8))
    chip = convert(network, rng.normal(0.5, 1.0, (50, 1, 8, 8)), steps=200)
    faults = ChipFaults(release_failure=0.3, masks=200)
    found = run(chip, x, faults).outputs
    exact = reference(chip, x, faults).outputs[0]  # 0.7 of each weight
    clean = network.forward(x).outputs
    assert np.abs(found.mean(0) - exact).max() < 0.1 * np.abs(clean - exact).max()
    few = ChipFaults(release_failure=0.3, masks=3)
    oracle, other = (run(chip, x, few, engine=e, record=True) for e in ("numpy", "brian2"))
    assert np.array_equal(other.counts[1], oracle.counts[1])
    np.testing.assert_allclose(other.outputs, oracle.outputs, atol=1e-12)


def test_synapses_behind_a_maximum_fail_for_some_steps(network, rng):
    """The counts that the maximum is of go on; all steps are as no window."""
    x = rng.normal(0.5, 1.0, (2, 1, 8, 8))
    chip = convert(network, rng.normal(0.5, 1.0, (50, 1, 8, 8)), steps=50)
    faults = sample_dead_synapses(chip, 0.3, 3, 0)
    found = {}
    for window in (None, (0, 50), (10, 30)):
        struck = replace(faults, synapse_window=window)
        one, two = (run(chip, x, struck, engine=e, record=True) for e in ("numpy", "brian2"))
        assert all(map(np.array_equal, one.counts, two.counts))
        np.testing.assert_allclose(one.outputs, two.outputs, rtol=1e-12)
        found[window] = one
    assert all(map(np.array_equal, found[None].counts, found[0, 50].counts))
    np.testing.assert_allclose(found[None].outputs, found[0, 50].outputs, rtol=1e-9, atol=1e-12)
    clean = run(chip, x).outputs
    assert np.abs(found[10, 30].outputs - found[None].outputs).max() > 0.01
    assert np.abs(found[10, 30].outputs - clean).max() > 0.01


def test_where_no_maximum_can_be(network, rng):
    chip = convert(network, rng.normal(size=(9, 1, 8, 8)))
    with pytest.raises(HardwareError, match="no set of Synapses"):
        run(chip, rng.normal(size=(1, 1, 8, 8)), engine="brian2-synapses")
    with pytest.raises(HardwareError, match="max pooling"):
        chip.to_brian2(rng.normal(size=(1, 8, 8)))
    behind = Network(
        [
            NeuronLayer((Conv2d(np.ones((1, 1, 1, 1))), MaxPool2d(2)), "relu"),
            NeuronLayer((Flatten(), Linear(np.ones((1, 1)))), "linear"),
        ],
        (1, 2, 2),
    )
    with pytest.raises(HardwareError, match="right behind an activation"):
        convert(behind, np.ones((1, 1, 2, 2)))
