"""Certificates are proofs: never below the truth by enumeration, on thousands of small nets."""

import itertools

import crashsim_theory as ct
import numpy as np
import pytest

ACTIVATIONS = ["relu", "sigmoid", "tanh", "gelu", "silu", "softplus", "elu", "sine", "gelu-tanh"]


def truth_and_certificates(rng, network, x, faults, passes, count=2):
    """Yields (P(|Delta| >= eps) by enumeration, certificate) at thresholds on and between atoms."""
    coordinates = len(faults.p)
    masks = np.array(list(itertools.product((0, 1), repeat=coordinates)))
    probabilities = np.prod(np.where(masks == 1, faults.p, 1 - faults.p), 1)
    readout = rng.normal(size=network.output_size)
    outputs = network(x, faults, masks) @ readout
    delta = outputs - outputs[0]
    if not np.any(delta):
        return
    for eps in np.abs(delta[rng.integers(len(delta), size=count)]) * rng.choice([0.7, 1 - 1e-9]):
        if eps > 1e-6:
            truth = probabilities[np.abs(delta) >= eps * (1 + 1e-8)].sum()
            certificate = ct.certify(
                network, x, faults, float(eps), readout, passes=passes, rounds=1, cells=500
            )
            yield truth, certificate


def random_dense(rng):
    activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    sizes = [*rng.integers(1, 5, size=rng.integers(2, 5)).tolist(), 2]
    layers = []
    for fan_in, out in itertools.pairwise(sizes):
        scale = rng.choice([0.5, 1.0, 3.0])
        layers += [
            ct.Linear(scale * rng.normal(size=(out, fan_in)), rng.normal(size=out)),
            activation,
        ]
    network = ct.Network(layers[:-1], (sizes[0],))
    sites = {2 * k + 1: float(rng.choice([1e-3, 0.03, 0.3])) for k in range(len(sizes) - 2)}
    if rng.random() < 0.5:
        sites["input"] = 0.01
    return network, rng.normal(size=sizes[0]), sites


def shared(rng, faults):
    """Some neurons crash together, some never, across layers."""
    ids = rng.integers(-1, 4, size=len(faults.p))
    members = {site: ids[own] for site, own in faults.members.items()}
    return ct.CrashFaults(rng.choice([1e-3, 0.05, 0.4], 4), members)


@pytest.mark.parametrize("seed", range(20))
def test_never_violated_on_dense_nets(seed):
    rng = np.random.default_rng(seed)
    checked, ratios = 0, []
    while checked < 25:
        network, x, sites = random_dense(rng)
        faults = ct.neuron_crashes(network, sites)
        if len(faults.p) > 10:
            continue
        if rng.random() < 0.3:
            faults = shared(rng, faults)
        passes = int(rng.integers(1, 4))
        for truth, certificate in truth_and_certificates(rng, network, x, faults, passes):
            assert certificate.probability >= truth * (1 - 1e-9)
            ratios.append(certificate.probability / max(truth, 1e-300))
            checked += 1
    assert np.median(ratios) < 50  # not vacuous


def random_image_net(rng):
    weight = rng.normal(size=(2, 1, 2, 2))
    affine = ct.ChannelScale(rng.normal(size=2), rng.normal(size=2))
    pool = [ct.MaxPool2d((2, 2), (1, 1)), ct.AvgPool2d((2, 2), (1, 1))][rng.integers(2)]
    branch = [ct.Linear(rng.normal(size=(2, 2))), "tanh", ct.Linear(rng.normal(size=(2, 2)))]
    layers = [
        ct.Conv2d(weight, rng.normal(size=2)),
        affine,
        ["relu", "sigmoid", ct.leaky_relu(0.2)][rng.integers(3)],
        pool,
        ct.Flatten(),
        ct.Linear(rng.normal(size=(2, 2))),
        ct.Residual(branch),
        "relu",
        ct.Linear(rng.normal(size=(2, 2))),
    ]
    network = ct.Network(layers, (1, 3, 3))
    sites = [{2: 0.05, (6, 1): 0.1}, {"input": 0.02}, {3: 0.1, 6: 0.1, 7: 0.1}, {0: 0.01, 4: 0.2}]
    return network, rng.normal(size=(1, 3, 3)), sites[rng.integers(4)]


@pytest.mark.parametrize("seed", range(15))
def test_never_violated_on_convolutions_pools_and_residuals(seed):
    rng = np.random.default_rng(seed)
    for _ in range(4):
        network, x, sites = random_image_net(rng)
        faults = ct.neuron_crashes(network, sites)
        if rng.random() < 0.3:
            faults = shared(rng, faults)
        for truth, certificate in truth_and_certificates(rng, network, x, faults, 2):
            assert certificate.probability >= truth * (1 - 1e-9)


def test_crashes_of_the_last_hidden_layer_are_all_but_exact():
    rng = np.random.default_rng(0)
    layers = [ct.Linear(rng.normal(size=(12, 3))), "tanh", ct.Linear(rng.normal(size=(1, 12)))]
    network, x = ct.Network(layers, (3,)), rng.normal(size=3)
    faults = ct.neuron_crashes(network, {1: 0.05})
    for truth, certificate in truth_and_certificates(rng, network, x, faults, 1, count=5):
        assert truth * (1 - 1e-9) <= certificate.probability
        assert certificate.envelopes[0].exceptions == 0


def test_class_change():
    rng = np.random.default_rng(1)
    for _ in range(20):
        network, x, sites = random_dense(rng)
        faults = ct.neuron_crashes(network, sites)
        if len(faults.p) > 10:
            continue
        masks = np.array(list(itertools.product((0, 1), repeat=len(faults.p))))
        probabilities = np.prod(np.where(masks == 1, faults.p, 1 - faults.p), 1)
        classes = network(x, faults, masks).argmax(1)
        truth = probabilities[classes != classes[0]].sum()
        assert ct.certify_class(network, x, faults).probability >= truth * (1 - 1e-9)


def wide_net(activation, rng):
    sizes = (20, 300, 60, 1)
    layers = []
    for fan_in, out in itertools.pairwise(sizes):
        layers += [ct.Linear(rng.normal(size=(out, fan_in)) / np.sqrt(fan_in)), activation]
    return ct.Network(layers[:-1], (20,)), rng.normal(size=20)


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh"])
def test_tight_on_a_wide_net(activation):
    """Above what sampling finds, and within a factor 30 of it."""
    rng = np.random.default_rng(2)
    network, x = wide_net(activation, rng)
    faults = ct.neuron_crashes(network, {1: 2e-3, 3: 2e-3})
    crashed = rng.random((40_000, len(faults.p))) < 2e-3
    delta = network(x, faults, crashed) - network(x)
    eps = float(np.quantile(delta, 1 - 2e-3))
    certificate = ct.certify(network, x, faults, eps, side="upper")
    assert certificate.probability > 1.5e-3
    assert certificate.probability < 6e-2


def test_more_passes_tighten():
    rng = np.random.default_rng(3)
    network, x = wide_net("relu", rng)
    faults = ct.neuron_crashes(network, {1: 1e-3, 3: 1e-3})
    once = ct.certify(network, x, faults, 0.5, passes=1).probability
    thrice = ct.certify(network, x, faults, 0.5, passes=3).probability
    assert thrice < once < 1


def test_refusals_and_the_trivial_question():
    network = ct.Network([ct.Linear(np.ones((2, 3)))], (3,))
    faults = ct.neuron_crashes(network, {"input": 0.1})
    assert ct.certify(network, np.ones(3), faults, 0.0).probability == 1
    for call, words in (
        (lambda: ct.certify(network, np.ones(4), faults, 1.0), "one input"),
        (lambda: ct.certify(network, np.ones(3), faults, 1.0, readout=2), "outputs are 0 to 1"),
        (
            lambda: ct.certify(network, np.ones(3), faults, 1.0, readout=np.ones(3)),
            "one coefficient",
        ),
        (lambda: ct.certify(network, np.ones(3), faults, 1.0, side="left"), "choose"),
    ):
        with pytest.raises(ct.TheoryError, match=words):
            call()
