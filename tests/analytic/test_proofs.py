"""Proofs against the enumeration of every fault pattern: never violated."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import crashsim.analytic.proofs
from crashsim import FaultSpace, GainNoise, NeuronCrash, WeightCrash, score
from crashsim.analytic.layer_bounds import NotApplicableError
from crashsim.analytic.proofs import certificates, certify, provable
from crashsim.sampling.enumeration import enumerate_space

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky": lambda: nn.LeakyReLU(0.3),
}


def draw_net(sizes, activation, seed, scale=1.0):
    layers = []
    with torch.random.fork_rng(devices=[]):
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), ACTIVATIONS[activation]()]
    net = nn.Sequential(*layers[:-1]).double().eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.from_numpy(scale * rng.normal(size=p.shape)))
    return net, torch.from_numpy(rng.normal(size=(1, sizes[0])))


def levels(law, output):
    """Values of epsilon around the outcomes of one output, and ones in the far tail."""
    size = np.abs(law.deltas[:, 0, output])
    found = {float(np.quantile(size, q)) for q in (0.5, 0.9, 1.0)}
    return sorted(e for e in found if e > 1e-9)


def check(space, epsilons=None):
    """The certificates are no lower than the truth; returns both, class changes left out."""
    law, proof = enumerate_space(space), provable(space)
    output = int(law.variance[0].argmax())
    pairs = []
    for epsilon in epsilons or levels(law, output):
        found = certificates(certify(space, proof, epsilon, output, [0]), epsilon, output)
        by_name = {e.quantity: e.value for e in found if e.input == 0}
        # Outcomes closer to epsilon than rounding may fall on either side.
        truth = law.tail(epsilon * (1 + 1e-9))[0, output]
        assert truth <= by_name["tail"] * (1 + 1e-12)
        pairs.append((truth, by_name["tail"]))
        if space.K > 1:
            assert law.class_change[0] <= by_name["class-change"] + 1e-12
    return pairs


@settings(max_examples=14, deadline=None, derandomize=True)
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    p=st.sampled_from([1e-3, 0.05, 0.3, 1.0]),
    sites=st.sampled_from(["hidden", "input", "*"]),
    seed=st.integers(0, 10_000),
)
def test_certificates_hold_on_random_nets(activation, hidden, p, sites, seed):
    net, x = draw_net((2, *hidden, 3), activation, seed)
    check(FaultSpace(net, x, NeuronCrash(p), sites))


def test_certificates_are_not_vacuous():
    bounded = []
    for seed in range(4):
        net, x = draw_net((3, 8, 4, 2), "sigmoid", seed)
        space = FaultSpace(net, x, NeuronCrash(1e-3))
        bounded += [(t, b) for t, b in check(space, [0.6 * abs(reach(space))]) if t > 0]
    assert bounded
    assert max(b / t for t, b in bounded) < 1e3
    assert max(b for _, b in bounded) < 0.1


def reach(space):
    """How far single crashes move the output that varies most."""
    law = enumerate_space(space)
    output = int(law.variance[0].argmax())
    return np.abs(law.deltas[2 ** np.arange(space.N), 0, output]).max()


def test_certificates_on_a_residual_net_with_groups(residual_net, randn):
    net, x = residual_net.double(), randn(1, 1, 4, 4).double()
    for faults in (
        {"relu#0": NeuronCrash(0.05, group=8), "relu#1": NeuronCrash(0.02, group="channel")},
        {"input": NeuronCrash(0.02, group=3), "pool": NeuronCrash(0.03)},
    ):
        assert check(FaultSpace(net, x, faults))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    activation=st.sampled_from(["tanh", "sigmoid"]),
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    p=st.sampled_from([1e-3, 0.1, 0.5]),
    seed=st.integers(0, 10_000),
)
def test_remainders_hold(activation, hidden, p, seed):
    net, x = draw_net((2, *hidden, 2), activation, seed)
    space = FaultSpace(net, x, NeuronCrash(p), "*")
    law = enumerate_space(space)
    for methods in (["remainder"], ["mean-point-single", "remainder"]):
        found = score(net, x, NeuronCrash(p), "*", methods=methods)
        for k in range(2):
            mean, variance = (found.find("remainder", q, 0, k) for q in ("mean", "variance"))
            assert mean.kind == variance.kind == "proof"
            assert mean.low - 1e-12 <= law.mean[0, k] <= mean.high + 1e-12
            assert variance.low - 1e-12 <= law.variance[0, k] <= variance.high + 1e-12


def test_remainders_shrink_with_p():
    net, x = draw_net((3, 5, 2), "tanh", 0)
    widths = []
    for p in (1e-2, 1e-3):
        e = score(net, x, NeuronCrash(p), "*", methods=["remainder"]).find(
            "remainder", "mean", 0, 0
        )
        widths.append(e.high - e.low)
    assert 0 < widths[1] < widths[0] / 8


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    activation=st.sampled_from(["relu", "tanh"]),
    n=st.integers(1, 8),
    p=st.sampled_from([1e-3, 0.05, 0.5]),
    group=st.sampled_from(["unit", 2]),
    seed=st.integers(0, 10_000),
)
def test_linear_brackets_hold(activation, n, p, group, seed):
    net, x = draw_net((3, n, 2), activation, seed)
    space = FaultSpace(net, x, NeuronCrash(p, group=group))
    law = enumerate_space(space)
    output = int(law.variance[0].argmax())
    for epsilon in levels(law, output):
        found = score(
            net, x, NeuronCrash(p, group=group), epsilon=epsilon, methods=["linear-exact"]
        ).find("linear-exact", "tail", 0, output)
        assert found.kind == "proof"
        assert found.low <= law.tail(epsilon * (1 - 1e-7))[0, output] * (1 + 1e-12)
        assert law.tail(epsilon * (1 + 1e-7))[0, output] <= found.high * (1 + 1e-12)
        assert found.low <= found.value <= found.high


def test_linear_brackets_are_tight():
    net, x = draw_net((3, 12, 1), "sigmoid", 0)
    space = FaultSpace(net, x, NeuronCrash(1e-3))
    epsilon = 1.7 * reach(space)
    truth = enumerate_space(space).tail(epsilon)[0, 0]
    assert 0 < truth < 1e-4
    found = score(net, x, NeuronCrash(1e-3), epsilon=epsilon, methods=["linear-exact"])
    bracket = found.find("linear-exact", "tail", 0, 0)
    assert bracket.high / bracket.low < 1.05
    assert bracket.low <= truth <= bracket.high


def test_what_is_skipped_says_why(make_net, seeded, randn):
    net, x = make_net((4, 5, 3), "relu"), randn(2, 4)
    odd = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 3)))
    for model, faults, told in (
        (net, {"weights": WeightCrash(0.1)}, "weight-crash"),
        (net, {"act1": GainNoise(0.1)}, "gain-noise"),
        (odd, {"*": NeuronCrash(0.1)}, "PReLU"),
    ):
        skipped = score(model, x, faults, methods=["certificate"]).skipped
        assert told in skipped["certificate"]
    methods = ["certificate", "remainder", "linear-exact"]
    proved = score(net, x, NeuronCrash(0.1), "input", epsilon=0.1, methods=methods)
    assert "second derivative" in proved.skipped["remainder"]
    assert "not linear" in proved.skipped["linear-exact"]
    assert proved.find("certificate", "tail", 0, leading(proved)) is not None


def leading(found):
    return next(e.output for e in found.estimates if e.method == "certificate")


def test_proofs_in_a_score(make_net, randn):
    net, x = make_net((4, 6, 3), "tanh"), randn(6, 4)
    default = score(net, x, NeuronCrash(0.01), epsilon=0.2, samples=2000)
    assert "--proofs" in default.skipped["certificate"]
    found = score(net, x, NeuronCrash(0.01), epsilon=0.2, samples=2000, proofs=True)
    methods = {e.method for e in found.estimates}
    assert {"certificate", "linear-exact", "remainder", "monte-carlo"} <= methods
    certified = [e for e in found.estimates if e.method == "certificate"]
    assert {e.kind for e in certified} == {"proof"}
    assert {e.input for e in certified} == {0, 1, 2, 3, "all"}
    assert all(e.low == 0 and e.value == e.high <= 1 for e in certified)
    added = score(net, x, NeuronCrash(0.01), epsilon=0.2, samples=2000, methods=["+certificate"])
    assert {e.method for e in added.estimates} - {"certificate"} == {
        e.method for e in default.estimates
    }
    assert [e for e in added.estimates if e.method == "certificate"] == certified


def test_proofs_without_epsilon_say_so(make_net, randn):
    found = score(make_net((4, 6, 1), "tanh"), randn(2, 4), NeuronCrash(0.01), proofs=True)
    assert "epsilon" in found.skipped["linear-exact"]
    assert "epsilon" in found.skipped["certificate"]


def test_a_model_that_is_read_wrongly_is_not_proved(make_net, randn, monkeypatch):
    real = crashsim.analytic.proofs._layer
    changed = crashsim.analytic.proofs.theory.Linear
    monkeypatch.setattr(
        crashsim.analytic.proofs,
        "_layer",
        lambda o: changed(1.1 * o.weight, o.bias) if hasattr(o, "weight") else real(o),
    )
    with pytest.raises(NotApplicableError, match="other outputs"):
        provable(FaultSpace(make_net((4, 6, 3)), randn(2, 4), NeuronCrash(0.01)))


def test_inputs_of_one_site_twice_are_not_proved(make_net, randn):
    net = make_net((4, 6, 3))
    with pytest.raises(NotApplicableError, match="act1"):
        provable(FaultSpace(net, randn(2, 4), {"act1": NeuronCrash(0.1), "act*": NeuronCrash(0.2)}))


def test_a_network_with_large_outputs_in_single_precision_is_read(make_net, randn):
    """Its own rounding is no other network: neither that of the offset nor what cancels."""
    net, x = make_net((3, 4, 2)), randn(3, 3)
    with torch.no_grad():
        net.linear2.bias.copy_(torch.tensor([1e6, 0.0]))
    assert provable(FaultSpace(net, x, NeuronCrash(0.01)))
    bracket = score(
        net.double(), x.double(), NeuronCrash(0.01), epsilon=0.3, methods=["linear-exact"]
    )
    tails = [e for e in bracket.estimates if e.input == "all"]
    assert all(e.low <= e.value <= e.high for e in tails)
    assert tails
