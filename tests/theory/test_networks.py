"""Networks as plain arrays against direct loops, and their crash faults."""

import crashsim_theory as ct
import numpy as np
import pytest
from scipy.signal import correlate


def test_dense_network_and_crashes():
    rng = np.random.default_rng(0)
    w, b, v = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=(2, 4))
    net = ct.Network([ct.Linear(w, b), "tanh", ct.Linear(v)], (3,))
    x = rng.normal(size=3)
    hidden = np.tanh(w @ x + b)
    np.testing.assert_allclose(net(x)[0], v @ hidden)
    faults = ct.neuron_crashes(net, {1: 0.1, "input": 0.2})
    np.testing.assert_array_equal(faults.p, [0.1] * 4 + [0.2] * 3)
    crashed = np.array([[1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]])
    found = net(x, faults, crashed)
    expected = v @ (np.tanh(w @ (x * [1, 1, 0]) + b) * [0, 1, 1, 1])
    np.testing.assert_allclose(found, [expected, v @ hidden])


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
def test_convolution(stride, padding):
    rng = np.random.default_rng(1)
    x, w, b = rng.normal(size=(3, 6, 7)), rng.normal(size=(2, 3, 3, 2)), rng.normal(size=2)
    net = ct.Network([ct.Conv2d(w, b, stride=stride, padding=padding)], x.shape)
    padded = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2))
    expected = [correlate(padded, w[k], "valid")[0] + b[k] for k in range(2)]
    expected = np.array(expected)[:, :: stride[0], :: stride[1]]
    assert net.nodes[-1].shape == expected.shape
    np.testing.assert_allclose(net(x)[0], expected.reshape(-1))


def test_grouped_and_dilated_convolution():
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(4, 6, 6)), rng.normal(size=(2, 2, 2, 2))
    net = ct.Network([ct.Conv2d(w, groups=2, dilation=(2, 2))], x.shape)
    wide = np.zeros((2, 2, 3, 3))
    wide[:, :, ::2, ::2] = w
    expected = np.array([correlate(x[2 * k : 2 * k + 2], wide[k], "valid")[0] for k in range(2)])
    np.testing.assert_allclose(net(x)[0], expected.reshape(-1))


def test_pools_affine_and_residual():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 4, 4))
    blocks = x.reshape(2, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(2, 2, 2, 4)
    for layer, expected in (
        (ct.AvgPool2d((2, 2)), blocks.mean(-1)),
        (ct.MaxPool2d((2, 2)), blocks.max(-1)),
    ):
        np.testing.assert_allclose(ct.Network([layer], x.shape)(x)[0], expected.reshape(-1))
    padded = ct.Network([ct.MaxPool2d((3, 3), (2, 2), (1, 1))], (1, 3, 3))
    np.testing.assert_allclose(padded(-np.arange(9.0).reshape(1, 3, 3))[0], [0, -1, -3, -4])
    scale, shift = np.array([2.0, -1.0]), np.array([0.5, 0.0])
    w = rng.normal(size=(32, 32))
    net = ct.Network(
        [ct.ChannelScale(scale, shift), ct.Flatten(), ct.Residual([ct.Linear(w), "relu"])], x.shape
    )
    y = (x * scale[:, None, None] + shift[:, None, None]).reshape(-1)
    np.testing.assert_allclose(net(x)[0], y + np.maximum(w @ y, 0))
    assert {(2, 0), (2, 1), 2} <= set(net.sites)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ct.Network([ct.Linear(np.ones((2, 3)))], (4,)), "does not fit input shape"),
        (lambda: ct.Network([ct.MaxPool2d((5, 5))], (1, 3, 3)), "does not fit"),
        (lambda: ct.Network(["swoosh"], (4,)), "choose one of"),
        (lambda: ct.Network([ct.Residual([ct.Linear(np.ones((2, 3)))])], (3,)), "branch gives"),
        (lambda: ct.neuron_crashes(ct.Network(["relu"], (4,)), {7: 0.1}), "choose one of"),
        (lambda: ct.neuron_crashes(ct.Network(["relu"], (4,)), {}), "at least one"),
        (lambda: ct.CrashFaults(0.1, {"input": [0, 1]}), "integers below 1"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ct.TheoryError, match=words):
        call()
