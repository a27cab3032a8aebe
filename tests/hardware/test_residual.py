"""Residual connections on the chip: two ways into one layer of neurons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import (
    Conv2d,
    Flatten,
    HardwareError,
    Linear,
    Network,
    NeuronLayer,
    Skip,
    convert,
    nir_graph,
    reference,
    run,
    sample_dead,
    sample_dead_synapses,
    spiking_gap,
)
from crashsim_hardware.engines.brian2_loading import brian2_at_rest


@pytest.fixture
def network(rng):
    """Two blocks: an identity, and a projection; and a way from the inputs."""

    def conv(out, fan_in, size, **more):
        scale = 0.6 / np.sqrt(fan_in * size)
        weight = rng.normal(0, scale, (out, fan_in, size, size))
        return Conv2d(weight, rng.normal(0, 0.1, out), **more)

    return Network(
        [
            NeuronLayer(conv(3, 1, 3, padding=1), "relu"),
            NeuronLayer(conv(3, 3, 3, padding=1), "relu"),
            NeuronLayer(conv(3, 3, 3, padding=1), "relu", (Skip(0),)),
            NeuronLayer(conv(4, 3, 3, padding=1, stride=2), "relu"),
            NeuronLayer(
                conv(4, 4, 3, padding=1), "relu",
                (Skip(2, (conv(4, 3, 1, stride=2),)), Skip(-1, (conv(4, 1, 1, stride=2),))),
            ),
            NeuronLayer((Flatten(), Linear(rng.normal(0, 0.4, (3, 36)))), "linear"),
        ],
        (1, 6, 6),
    )  # fmt: skip


def by_hand(network, x, dead):
    """The network in numpy's own loops, for one input; dead by layer (n,)."""

    def conv(c, s):
        weight, bias = c.weight, c.bias
        pad = np.pad(s, ((0, 0), (c.padding[0],) * 2, (c.padding[1],) * 2))
        size = (pad.shape[1] - weight.shape[2]) // c.stride[0] + 1
        out = np.zeros((len(weight), size, size))
        for o in range(len(weight)):
            for i in range(size):
                for j in range(size):
                    k, step = weight.shape[2], c.stride[0]
                    part = pad[:, i * step : i * step + k, j * step : j * step + k]
                    out[o, i, j] = (part * weight[o]).sum() + bias[o]
        return out

    def relu(z, index):
        return np.where(dead[index].reshape(z.shape), 0.0, np.maximum(z, 0.0))

    layers = network.layers
    first = relu(conv(layers[0].transforms[0], x), 0)
    second = relu(conv(layers[1].transforms[0], first), 1)
    third = relu(conv(layers[2].transforms[0], second) + first, 2)
    fourth = relu(conv(layers[3].transforms[0], third), 3)
    sums = conv(layers[4].transforms[0], fourth)
    sums += conv(layers[4].skips[0].transforms[0], third)
    sums += conv(layers[4].skips[1].transforms[0], x)
    return layers[5].transforms[1].weight @ relu(sums, 4).reshape(-1)


def test_the_network_is_what_a_loop_computes(network, rng):
    x = rng.normal(size=(2, 1, 6, 6))
    dead = [rng.random((3, n)) < 0.3 for n in network.sizes]
    found = network.forward(x, dead).outputs
    for mask in range(3):
        for example in range(2):
            right = by_hand(network, x[example], [d[mask] for d in dead])
            np.testing.assert_allclose(found[mask, example], right, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"neuron": "lif", "tau_mem": 0.5}])
def test_the_chip_does_what_the_network_does(network, rng, options):
    x = rng.normal(0.5, 1.0, (2, 1, 6, 6))
    chip = convert(network, rng.normal(0.5, 1.0, (40, 1, 6, 6)), steps=300, **options)
    clean = run(chip, x).outputs[0]
    exact = network.forward(x).outputs
    assert np.abs(clean - exact).max() < 0.1 * np.abs(exact).max()
    gap = spiking_gap(chip, x, sample_dead(chip, 0.1, 300, 0))
    assert gap.variance_ratio == pytest.approx(1.0, abs=0.06)
    assert gap.slope == pytest.approx(1.0, abs=0.06)


def test_engines_agree_and_every_way_can_fail(network, rng):
    x = rng.normal(0.5, 1.0, (2, 1, 6, 6))
    chip = convert(network, rng.normal(0.5, 1.0, (40, 1, 6, 6)), steps=60)
    assert len(chip.wires) == 3
    faults = sample_dead_synapses(chip, 0.2, 4, 0)
    assert len(faults.dead_synapses) == 9
    faults = replace(faults, dead=sample_dead(chip, 0.1, 4, 1).dead)
    oracle = run(chip, x, faults, record=True)
    for engine in ("brian2", "brian2-synapses"):
        found = run(chip, x, faults, engine=engine, record=True)
        for ours, theirs in zip(found.counts, oracle.counts, strict=True):
            assert np.array_equal(ours, theirs), engine
    exact = reference(chip, x, faults).outputs
    assert np.abs(oracle.outputs - exact).max() < 0.15 * np.abs(exact).max()
    inner = Network(network.layers[:4] + network.layers[5:], (1, 6, 6))  # no way from the inputs
    alone = convert(inner, rng.normal(0.5, 1.0, (40, 1, 6, 6)), steps=60)
    with brian2_at_rest():
        handed = alone.to_brian2(x[0]).run()
    for ours, theirs in zip(handed, run(alone, x, record=True).counts, strict=True):
        assert np.array_equal(ours, theirs[0, 0])
    # the ways around alone
    shape = chip.wires[1].projection.weight.shape
    cut = [None] * 7 + [np.ones((1, *shape), dtype=bool)]
    assert not np.allclose(reference(chip, x).outputs, reference(chip, x, replace(
        faults, dead=None, dead_synapses=cut, masks=None)).outputs)  # fmt: skip


def test_skips_that_fit_nowhere(rng):
    layer = NeuronLayer(Linear(np.eye(3)), "relu")
    last = NeuronLayer(Linear(np.eye(3)), "linear")

    def with_skip(skip):
        return [layer, layer, NeuronLayer(Linear(np.eye(3)), "relu", (skip,)), last]

    Network(with_skip(Skip(0)), (3,))
    Network(with_skip(Skip(1)), (3,))
    for skip in (Skip(2), Skip(-2)):
        with pytest.raises(HardwareError, match="has a skip from"):
            Network(with_skip(skip), (3,))
    with pytest.raises(HardwareError, match="does not fit"):
        Network(with_skip(Skip(0, (Linear(np.ones((2, 3))),))), (3,))
    chip = convert(Network(with_skip(Skip(0)), (3,)), np.ones((2, 3)))
    pytest.importorskip("nir")
    with pytest.raises(HardwareError, match="residual"):
        nir_graph(chip)
