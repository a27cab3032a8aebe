"""The linear maps and the reference forward pass."""

from __future__ import annotations

import numpy as np
import pytest
from crashsim_hardware import (
    AvgPool2d,
    Conv2d,
    Flatten,
    HardwareError,
    Linear,
    Network,
    NeuronLayer,
    Scale,
    SumPool2d,
)
from crashsim_hardware.transforms import chain, output_shape
from hypothesis import given, settings
from hypothesis import strategies as st


def slow_convolution(x, weight, stride, padding, dilation, groups):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    outputs, inputs, kh, kw = weight.shape
    height = (x.shape[1] - dilation * (kh - 1) - 1) // stride + 1
    width = (x.shape[2] - dilation * (kw - 1) - 1) // stride + 1
    y = np.zeros((outputs, height, width))
    for o in range(outputs):
        first = o // (outputs // groups) * inputs
        for i, j, c, a, b in np.ndindex(height, width, inputs, kh, kw):
            row, column = i * stride + a * dilation, j * stride + b * dilation
            y[o, i, j] += weight[o, c, a, b] * x[first + c, row, column]
    return y


@settings(max_examples=25, deadline=None)
@given(
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 1000),
)
def test_convolution_is_the_sum_it_says(stride, padding, dilation, groups, kernel, seed):
    rng = np.random.Generator(np.random.Philox(key=seed))
    x = rng.normal(size=(4, 7, 6))
    weight = rng.normal(size=(6, 4 // groups, *kernel))
    conv = Conv2d(weight, None, stride, padding, dilation, groups)
    expected = slow_convolution(x, weight, stride, padding, dilation, groups)
    got = chain((conv,), x.reshape(1, 1, -1), (4, 7, 6))
    assert output_shape(conv, (4, 7, 6)) == expected.shape
    np.testing.assert_allclose(got[0, 0], expected.ravel(), atol=1e-12)


def test_every_mask_meets_its_own_weights(rng):
    shape = (2, 5, 5)
    conv = Conv2d(rng.normal(size=(4, 1, 3, 3)), groups=2)
    weights = rng.normal(size=(3, 4, 1, 3, 3))
    for copies in (1, 3):  # inputs shared by the masks, and inputs of each mask
        x = rng.normal(size=(copies, 2, 50))
        got = chain((conv,), x, shape, weights)
        assert got.shape == (3, 2, 36)
        for mask in range(3):
            alone = chain((conv,), x[min(mask, copies - 1)], shape, weights[mask])
            np.testing.assert_allclose(got[mask], alone, atol=1e-12)


def test_pooling_and_flattening(rng):
    x = rng.normal(size=(2, 3 * 4 * 4))
    sums = chain((SumPool2d(2),), x, (3, 4, 4))
    means = chain((AvgPool2d(2), Flatten()), x, (3, 4, 4))
    np.testing.assert_allclose(sums, 4 * means)
    np.testing.assert_allclose(means[0, 0], x[0].reshape(3, 4, 4)[0, :2, :2].mean())
    padded = chain((AvgPool2d(2, padding=1),), np.ones((1, 48)), (3, 4, 4)).reshape(3, 3, 3)
    assert padded[0, 0, 0] == 0.25  # a corner sees three zeros


def test_dead_neurons_are_zeros(tiny, rng):
    network = tiny("tanh")
    x = rng.normal(size=(4, 5))
    dead = [rng.random((7, size)) < 0.3 for size in network.sizes]
    faulty = network.forward(x, dead)
    assert faulty.outputs.shape == (7, 4, 3)
    first, second, last = (layer.transforms[0] for layer in network.layers)
    for mask in range(7):
        h = np.tanh(x @ first.weight.T + first.bias) * ~dead[0][mask]
        h = np.tanh(h @ second.weight.T + second.bias) * ~dead[1][mask]
        np.testing.assert_allclose(faulty.outputs[mask], h @ last.weight.T + last.bias)
    clean = network.forward(x)
    assert clean.outputs.shape == (4, 3)
    assert not np.allclose(clean.outputs, faulty.outputs)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Network([], (3,)), "at least a readout"),
        (
            lambda: Network([NeuronLayer(Linear(np.ones((2, 4))))], (3,)),
            r"layer 0: Linear expects \(4,\)",
        ),
        (
            lambda: Network([NeuronLayer(Conv2d(np.ones((2, 1, 9, 9))))], (1, 5, 5)),
            "larger than its padded",
        ),
        (lambda: NeuronLayer(Flatten(), "softmax"), "'softmax'"),
        (lambda: Linear(np.full((2, 2), np.nan)), "NaN"),
        (lambda: Linear(np.ones((2, 2)), np.ones(3)), "one entry per output"),
        (lambda: Conv2d(np.ones((3, 1, 2, 2)), groups=2), "divide the 3 output"),
        (lambda: SumPool2d(0), "SumPool2d.kernel"),
        (lambda: Network([NeuronLayer(Scale(np.ones(4)))], (3,)), "does not fit"),
        (
            lambda: Network([NeuronLayer(Linear(np.ones((1, 2))), "linear")], (2,)).forward(
                np.ones(2)
            ),
            "shape",
        ),
    ],
)
def test_wrong_layers_are_named(build, message):
    with pytest.raises(HardwareError, match=message):
        build()
