"""Remainders are never below the truth by enumeration, and shrink with the width as derived."""

import itertools

import crashsim_theory as ct
import numpy as np
import pytest
import sympy as sp

SMOOTH = ["sigmoid", "tanh", "softplus", "gelu", "silu", "elu", "sine", "gelu-tanh"]


def enumerate_outputs(network, x, faults):
    masks = np.array(list(itertools.product((0, 1), repeat=len(faults.p))))
    probabilities = np.prod(np.where(masks == 1, faults.p, 1 - faults.p), 1)
    return network(x, faults, masks), probabilities


def mean_point(network, x, faults):
    """F(m), dF(m) by central differences, and F(m, e_i = 1) - F(m, e_i = 0)."""
    m, c = faults.p, len(faults.p)
    step = 1e-5
    rows = [m]
    for i in range(c):
        for value in (m[i] + step, m[i] - step, 1.0, 0.0):
            row = m.copy()
            row[i] = value
            rows.append(row)
    values = network(x, faults, np.array(rows))
    rest = values[1:].reshape(c, 4, -1)
    return values[0], (rest[:, 0] - rest[:, 1]).T / (2 * step), (rest[:, 2] - rest[:, 3]).T


def random_net(rng):
    activation = SMOOTH[rng.integers(len(SMOOTH))]
    sizes = [*rng.integers(1, 5, size=rng.integers(2, 5)).tolist(), 2]
    layers = []
    for fan_in, out in itertools.pairwise(sizes):
        w = rng.choice([0.3, 1.0, 2.0]) * rng.normal(size=(out, fan_in))
        layers += [ct.Linear(w, rng.normal(size=out)), activation]
    if rng.random() < 0.3:
        layers.insert(2, ct.Residual([ct.Linear(rng.normal(size=(sizes[1],) * 2)), activation]))
        network = ct.Network(layers[:-1], (sizes[0],))
        return network, rng.normal(size=sizes[0]), {1: 0.1, (2, 1): 0.2}
    sites = {2 * k + 1: float(rng.choice([0.01, 0.3])) for k in range(len(sizes) - 2)}
    if rng.random() < 0.3:
        sites["input"] = 0.1
    return ct.Network(layers[:-1], (sizes[0],)), rng.normal(size=sizes[0]), sites


@pytest.mark.parametrize("seed", range(20))
def test_never_below_the_truth(seed):
    rng = np.random.default_rng(seed)
    checked = 0
    while checked < 50:
        network, x, sites = random_net(rng)
        faults = ct.neuron_crashes(network, sites)
        if len(faults.p) > 9:
            continue
        if rng.random() < 0.3:
            ids = rng.integers(-1, 4, size=len(faults.p))
            members = {site: ids[own] for site, own in faults.members.items()}
            faults = ct.CrashFaults(rng.choice([0.05, 0.4], 4), members)
        checked += 1
        outputs, probabilities = enumerate_outputs(network, x, faults)
        mean = probabilities @ outputs
        std = np.sqrt(np.maximum(probabilities @ outputs**2 - mean**2, 0))
        centre, derivatives, differences = mean_point(network, x, faults)
        for name, gains in (("derivatives", derivatives), ("differences", differences)):
            bound = ct.remainder(network, x, faults, name)
            assert np.all(np.abs(mean - centre) <= bound.mean + 1e-12)
            low, high = bound.std_interval(np.sqrt(gains**2 @ (faults.p * (1 - faults.p))))
            assert np.all(low <= std + 1e-7)
            assert np.all(std <= high + 1e-7)


def test_shrinks_with_the_width():
    """Crashes of a first layer of n neurons with weights of order 1 / n: both remainders fall."""
    means, gains = [], []
    for n in (400, 800, 1600):
        rng = np.random.default_rng(0)
        layers = [
            ct.Linear(rng.normal(size=(n, 5))),
            "sigmoid",
            ct.Linear(rng.normal(size=(30, n)) / n),
            "sigmoid",
            ct.Linear(rng.normal(size=(1, 30)) / 30),
        ]
        network = ct.Network(layers, (5,))
        found = ct.remainder(network, rng.normal(size=5), ct.neuron_crashes(network, {1: 0.05}))
        means.append(found.mean[0])
        gains.append(found.gains[0])
    slope = np.polyfit(np.log([400, 800, 1600]), np.log(np.array([means, gains]).T), 1)[0]
    assert slope[0] == pytest.approx(-1, abs=0.15)
    assert slope[1] == pytest.approx(-1.5, abs=0.15)


def test_symbolic_remainder():
    expression, meaning = ct.symbolic_remainder(layers=1)
    p, n, h, l1, l2, w1, w2 = sp.symbols("p n h L1 L2 w_1 w_2", positive=True)
    assert sp.simplify(expression - p * (1 - p) * w2 * l2 * (w1 * h) ** 2 / (2 * n)) == 0
    assert set(map(str, expression.free_symbols)) <= set(meaning)
    deeper, _ = ct.symbolic_remainder(layers=3)
    assert ct.doubling_ratio(deeper) == sp.Rational(1, 2)
    assert l1 in deeper.free_symbols


def test_symbols_bound_the_numeric_recursion():
    rng = np.random.default_rng(4)
    n, w_1, w_2 = 40, rng.uniform(-1, 1, size=(10, 40)), rng.normal(size=(1, 10))
    network = ct.Network(
        [ct.Linear(rng.normal(size=(n, 3))), "tanh", ct.Linear(w_1), "tanh", ct.Linear(w_2)], (3,)
    )
    found = ct.remainder(network, rng.normal(size=3), ct.neuron_crashes(network, {1: 0.02}))
    expression, _ = ct.symbolic_remainder(layers=1)
    values = {
        "p": 0.02,
        "n": n,
        "h": 1,
        "L1": 1,
        "L2": ct.activation("tanh").supremum(2),
        "w_1": n * np.abs(w_1).max(),
        "w_2": np.abs(w_2).sum(),
    }
    symbolic = expression.subs({s: values[str(s)] for s in expression.free_symbols})
    assert 0 < found.mean[0] <= float(symbolic)


def test_refusals():
    network = ct.Network([ct.Linear(np.ones((2, 2))), "relu", ct.Linear(np.ones((1, 2)))], (2,))
    faults = ct.neuron_crashes(network, {"input": 0.1})
    with pytest.raises(ct.TheoryError, match="use certify"):
        ct.remainder(network, np.ones(2), faults)
    with pytest.raises(ct.TheoryError, match="choose"):
        ct.remainder(network, np.ones(2), faults, "secants")
    with pytest.raises(ct.TheoryError, match="at least one"):
        ct.symbolic_remainder(0)
    with pytest.raises(ct.TheoryError, match="choose one of"):
        ct.doubling_ratio(ct.symbolic_remainder()[0], "z")
