"""The clean chip against its network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import (
    AvgPool2d,
    Flatten,
    HardwareError,
    Linear,
    Network,
    NeuronLayer,
    convert,
    run,
)


def error_and_agreement(net, **options):
    chip = convert(net.network, net.train, **options)
    spiking = run(chip, net.test, engine="numpy").outputs[0]
    exact = net.network.forward(net.test).outputs
    rmse = np.sqrt(((spiking - exact) ** 2).mean() / (exact**2).mean())
    return rmse, (spiking.argmax(1) == exact.argmax(1)).mean()


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_clean_read(digits, activation):
    """T = 100, two hidden layers: relative RMSE at most 1.5%, predictions agree to 99.5%."""
    rmse, agreement = error_and_agreement(digits(activation))
    assert rmse <= 0.015
    assert agreement >= 0.995


def test_error_falls_as_one_over_t(digits):
    errors = [error_and_agreement(digits("relu"), steps=steps)[0] for steps in (25, 100, 400)]
    slopes = np.diff(np.log(errors)) / np.log(4.0)
    assert np.all((slopes > -1.25) & (slopes < -0.8)), slopes


def test_normalising_by_neuron_halves_the_error(digits):
    by_neuron, _ = error_and_agreement(digits("relu"))
    by_layer, _ = error_and_agreement(digits("relu"), normalisation="layer")
    assert by_neuron < 0.85 * by_layer


def test_a_refractory_period_costs_resolution_only(digits):
    rmse, agreement = error_and_agreement(digits("relu"), refractory=1e-3, steps=200)
    assert rmse <= 0.015
    assert agreement >= 0.99


def test_rheobase_correction(digits):
    """A leaky membrane loses leak / 2 per step; without the correction the bias does not fade."""
    net = digits("relu")
    rmse, _ = error_and_agreement(net, neuron="lif", steps=400)
    assert rmse <= 0.02
    chip = convert(net.network, net.train, 400, neuron="lif")
    hidden = tuple(_shifted(layer, -layer.neuron.leak / 2.0) for layer in chip.hidden)
    uncorrected = replace(chip, hidden=hidden)
    exact = net.network.forward(net.test).outputs
    spiking = run(uncorrected, net.test, engine="numpy").outputs[0]
    assert np.sqrt(((spiking - exact) ** 2).mean() / (exact**2).mean()) > 3 * rmse


def _shifted(layer, shift):
    projection = replace(layer.projection, bias=layer.projection.bias + shift)
    return replace(layer, projection=projection)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_convolutions_convert(conv, rng, activation):
    network = conv(activation)
    x = rng.random((30, 1, 8, 8))
    chip = convert(network, x, 400, tau_syn=0.01)
    exact = network.forward(x)
    result = run(chip, x, engine="numpy", record=True)
    for rates, activations in zip(result.rates, exact.hidden, strict=True):
        scale = np.abs(activations).max()
        assert np.abs(rates[0] - activations).max() < 0.03 * scale
    spread = exact.outputs.std()
    assert np.sqrt(((result.outputs[0] - exact.outputs) ** 2).mean()) < 0.02 * spread


def test_pooling_alone_can_feed_neurons(rng):
    """Average pooling with neurons behind it: the synapse's weight is the pool's 1 / area."""
    network = Network(
        [
            NeuronLayer(AvgPool2d(2)),
            NeuronLayer(AvgPool2d(2)),
            NeuronLayer((Flatten(), Linear(np.ones((1, 2)))), "linear"),
        ],
        (2, 4, 4),
    )
    x = rng.random((5, 2, 4, 4))
    outputs = run(convert(network, x, 500), x, engine="numpy").outputs[0]
    np.testing.assert_allclose(outputs, network.forward(x).outputs, atol=0.01)


def test_latency_costs_nothing(tiny, rng):
    """Windows start one step later per layer: no (T - 1) / T bias of a constant rate."""
    network = Network(
        [
            NeuronLayer(Linear(np.eye(1))),
            NeuronLayer(Linear(np.eye(1))),
            NeuronLayer(Linear(np.eye(1)), "linear"),
        ],
        (1,),
    )
    chip = convert(network, np.ones((1, 1)), 10, headroom=1.0)
    for engine in ("numpy", "brian2"):
        assert run(chip, np.ones((1, 1)), engine=engine).outputs.item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([NeuronLayer(Linear(np.eye(2)), "linear")], {}, "no hidden layer"),
        (
            [NeuronLayer(Linear(np.eye(2))), NeuronLayer(Linear(np.eye(2)))],
            {},
            'must be a "linear" readout',
        ),
        (
            [NeuronLayer(Linear(np.eye(2)), "linear"), NeuronLayer(Linear(np.eye(2)), "linear")],
            {},
            "layer 0 is hidden but linear",
        ),
        (
            [
                NeuronLayer((Linear(np.eye(2)), Linear(np.eye(2)))),
                NeuronLayer(Linear(np.eye(2)), "linear"),
            ],
            {},
            "2 weighted transforms",
        ),
        (
            [NeuronLayer(Linear(-np.eye(2))), NeuronLayer(Linear(np.eye(2)), "linear")],
            {},
            "never activates",
        ),
        (None, {"headroom": 0.5}, "headroom"),
        (None, {"steps": 0}, "steps"),
        (None, {"refractory": -1.0}, "refractory"),
        (None, {"neuron": "izhikevich"}, "izhikevich"),
        (None, {"normalisation": "batch"}, "batch"),
    ],
)
def test_what_cannot_be_converted_is_named(layers, options, message):
    layers = layers or [NeuronLayer(Linear(np.eye(2))), NeuronLayer(Linear(np.eye(2)), "linear")]
    with pytest.raises(HardwareError, match=message):
        convert(Network(layers, (2,)), np.ones((3, 2)), **options)
