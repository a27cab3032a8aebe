"""The oracle against a plain loop over masks, written without torch."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import (
    BitFlip,
    CrashsimWarning,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    SignFlip,
    StuckAt,
    WeightCrash,
    enumerate_exact,
)
from crashsim.errors import ArgumentError
from crashsim.sampling.enumeration import can_enumerate, enumerate_space

ACT = {
    "tanh": math.tanh,
    "relu": lambda z: max(z, 0.0),
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "linear": lambda z: z,
}


def forward(layers, x, masks, act):
    """Plain Python: ``masks[i]`` multiplies the activations of hidden layer i."""
    a = list(x)
    for i, (w, b) in enumerate(layers):
        a = [sum(wij * aj for wij, aj in zip(row, a, strict=True)) + bi for row, bi in
             zip(w, b, strict=True)]  # fmt: skip
        if i < len(layers) - 1:
            a = [act(z) * m for z, m in zip(a, masks[i], strict=True)]
    return a


def layers_of(net):
    p = [q.detach().double().tolist() for q in net.parameters()]
    return list(zip(p[::2], p[1::2], strict=True))


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "linear"])
def test_against_a_loop_over_masks(activation, make_net, watch, randn):
    net = watch(make_net((2, 3, 2, 3), activation, seed=3, scale=2.0))
    x = randn(2, 2)
    p = (0.2, 0.35)
    names = ("linear1", "linear2") if activation == "linear" else ("act1", "act2")
    faults = {name: NeuronCrash(q) for name, q in zip(names, p, strict=True)}
    epsilon = 0.3
    law = enumerate_exact(net, x, faults)
    layers, act = layers_of(net), ACT[activation]
    for b, row in enumerate(x.double().tolist()):
        clean = forward(layers, row, [[1] * 3, [1] * 2], act)
        outcomes = []
        for alive in itertools.product([0, 1], repeat=5):
            weight = math.prod(
                1 - q if m else q for m, q in zip(alive, [p[0]] * 3 + [p[1]] * 2, strict=True)
            )
            outcomes.append((weight, forward(layers, row, [alive[:3], alive[3:]], act)))
        delta = [(w, [f - c for f, c in zip(out, clean, strict=True)]) for w, out in outcomes]
        mean = [sum(w * d[k] for w, d in delta) for k in range(3)]
        covariance = [
            [sum(w * (d[k] - mean[k]) * (d[j] - mean[j]) for w, d in delta) for j in range(3)]
            for k in range(3)
        ]
        np.testing.assert_allclose(law.mean[b], mean, atol=1e-12)
        np.testing.assert_allclose(law.covariance[b], covariance, atol=1e-12)
        np.testing.assert_allclose(law.variance[b], np.diag(covariance), atol=1e-12)
        tail = [sum(w for w, d in delta if abs(d[k]) >= epsilon) for k in range(3)]
        np.testing.assert_allclose(law.tail(epsilon)[b], tail, atol=1e-12)
        either = sum(w for w, d in delta if max(map(abs, d)) >= epsilon)
        assert law.any_tail(epsilon)[b] == pytest.approx(either)
        changed = sum(w for w, out in outcomes if out.index(max(out)) != clean.index(max(clean)))
        assert law.class_change[b] == pytest.approx(changed)
    assert law.variance.min() > 1e-4
    assert law.probabilities.sum() == pytest.approx(1)


def test_a_linear_net_in_closed_form(make_net, randn):
    net, x, p = make_net((4, 2)), randn(3, 4), 0.3
    law = enumerate_exact(net, x, NeuronCrash(p), "input")
    w = net.linear1.weight.detach().double().numpy()
    terms = w * x.double().numpy()[:, None]  # (B, K, N)
    np.testing.assert_allclose(law.mean, -p * terms.sum(2), atol=1e-12)
    covariance = p * (1 - p) * np.einsum("bkn,bln->bkl", terms, terms)
    np.testing.assert_allclose(law.covariance, covariance, atol=1e-12)


def test_other_faults_in_closed_form(make_net, randn):
    net, x, p = make_net((3, 1)), randn(2, 3), 0.3
    w, a = net.linear1.weight.detach().double().numpy()[0], x.double().numpy()
    for fault, v in ((SignFlip(p), -2 * a), (StuckAt(p, 0.7), 0.7 - a)):
        law = enumerate_exact(net, x, fault, "input")
        np.testing.assert_allclose(law.mean[:, 0], p * (v @ w), atol=1e-12)
        np.testing.assert_allclose(law.variance[:, 0], p * (1 - p) * (v**2 @ w**2), atol=1e-12)
    law = enumerate_exact(net, x, WeightCrash(p))
    np.testing.assert_allclose(law.variance[:, 0], p * (1 - p) * (a**2 @ w**2), atol=1e-12)
    fault = BitFlip(p, bits=3)
    step = fault.displacement(net.linear1.weight.detach().double())[0].numpy()
    law = enumerate_exact(net, x, fault)
    np.testing.assert_allclose(law.mean[:, 0], p * (a @ step.sum(1)), atol=1e-12)
    variance = p * (1 - p) * (a**2 @ (step**2).sum(1))
    np.testing.assert_allclose(law.variance[:, 0], variance, atol=1e-12)


def test_pattern_j_crashes_the_set_bits_of_j(make_net, randn):
    net = make_net((3, 4, 2))
    law = enumerate_exact(net, randn(1, 3), NeuronCrash(0.1))
    assert law.probabilities[0b0110] == pytest.approx(0.1**2 * 0.9**2)
    assert (law.deltas[0] == 0).all()
    bias = net.linear2.bias.detach().double().numpy()
    np.testing.assert_allclose(law.clean[0] + law.deltas[15, 0], bias, atol=1e-12)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_faults(p, make_net, randn):
    law = enumerate_exact(make_net((3, 4, 2)), randn(2, 3), NeuronCrash(p))
    assert (law.variance == 0).all()
    np.testing.assert_allclose(law.mean, law.deltas[-1] * p, atol=0)


def test_groups_and_mixed_faults(residual_net, randn):
    faults = {"relu#0": NeuronCrash(0.2, group="channel"), "relu#1": NeuronCrash(0.3, group=11)}
    law = enumerate_exact(residual_net, randn(2, 1, 4, 4), faults)
    assert len(law.probabilities) == 2 ** (2 + 3)
    assert law.variance.min() > 0


def test_estimates_pool_over_inputs(make_net, randn):
    law = enumerate_exact(make_net((3, 4, 2), scale=2), randn(3, 3), NeuronCrash(0.2))
    found = {(e.quantity, e.input, e.output): e for e in law.estimates(0.2)}
    assert {e.kind for e in found.values()} == {"exact"}
    assert found["mean", "all", 1].value == pytest.approx(law.mean[:, 1].mean())
    assert found["variance", "all", "all"].value == pytest.approx(law.variance.sum(1).mean())
    assert found["tail", "all", "all"].value == pytest.approx(law.any_tail(0.2).mean())
    assert found["class-change", 2, "all"].value == pytest.approx(law.class_change[2])


WEIGHTS = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.7, 0.01]


def summing_net(offset, dtype=torch.float64):
    """Hidden neurons of activity 1, whose weights add up to the output."""
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(1.0)
        net[2].weight.copy_(torch.tensor([WEIGHTS, [w / 8 for w in WEIGHTS]], dtype=dtype))
        net[2].bias.copy_(torch.tensor([offset, 0.0]))
    return net.to(dtype), torch.zeros(1, 4, dtype=dtype)


def rational_tail(weights, p, epsilon):
    total = Fraction(0)
    for dead in itertools.product((0, 1), repeat=len(weights)):
        moved = sum(w for w, d in zip(weights, dead, strict=True) if d)
        chance = math.prod(Fraction(p) if d else 1 - Fraction(p) for d in dead)
        total += chance * (moved >= epsilon)
    return float(total)


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e8])
@pytest.mark.parametrize("epsilon", [0.7, 0.3, 0.1 + 0.2, 0.4])
def test_an_outcome_at_epsilon_reaches_it(offset, epsilon):
    """Whatever the offset rounds away: decimal numbers that are equal count as equal."""
    net, x = summing_net(offset)
    law = enumerate_exact(net, x, NeuronCrash(0.05), "1")
    decimals = [Fraction(str(w)) for w in WEIGHTS]
    wanted = rational_tail(decimals, 0.05, Fraction(str(round(epsilon, 9))))
    assert law.tail(epsilon)[0, 0] == pytest.approx(wanted, rel=1e-12)
    without = rational_tail(decimals, 0.05, Fraction(str(round(epsilon, 9))) + Fraction(1, 1000))
    assert without < 0.9 * wanted
    with pytest.warns(CrashsimWarning, match=r"within rounding of epsilon"):
        found = law.estimates(epsilon)
    for where in ((0, 0), ("all", 0)):
        (tail,) = [e for e in found if (e.quantity, e.input, e.output) == ("tail", *where)]
        assert tail.kind == "exact"
        assert tail.low == pytest.approx(without, rel=1e-12)
        assert tail.value == tail.high == pytest.approx(wanted, rel=1e-12)


def test_weights_in_single_precision_stand_for_decimals():
    net, x = summing_net(0.0, torch.float32)
    wanted = rational_tail([Fraction(str(w)) for w in WEIGHTS], 0.05, Fraction("0.7"))
    stored = [Fraction(w) for w in net[2].weight[0].detach().double().tolist()]
    assert rational_tail(stored, 0.05, Fraction(0.7)) < 0.5 * wanted
    for model, given in ((net, x), (net.double(), x.double())):
        law = enumerate_exact(model, given, NeuronCrash(0.05), "1")
        assert law.tail(0.7)[0, 0] == pytest.approx(wanted, rel=1e-12)


def test_large_numbers_that_cancel_inside_leave_their_rounding():
    """The output is small, but its rounding is that of what cancels."""
    net, x = summing_net(0.0)
    weight = net[2].weight.detach()
    big = torch.tensor([[2.0**30], [0.0]], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        net[0], net[2] = nn.Linear(4, 10).double(), nn.Linear(10, 2).double()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(1.0)
        net[2].weight.copy_(torch.cat([big, weight, -big], dim=1))
        net[2].bias.zero_()
    law = enumerate_exact(net, x, NeuronCrash(0.05), "1")
    assert law.rounding[0, 0] > 1e-8
    assert law.rounding[0, 1] < 1e-13


def test_classes_that_tie_change_or_not(make_net, randn):
    """Where all neurons die, equal biases tie: that outcome counts for the upper end alone."""
    net, x, p = make_net((3, 4, 2), "sigmoid", scale=0.1), randn(1, 3), 0.3
    with torch.no_grad():
        net.linear2.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [-1.0, -1, -1, -1]]))
        net.linear2.bias.fill_(0.5)
    law = enumerate_exact(net, x, NeuronCrash(p))
    (change,) = [e for e in law.estimates() if (e.quantity, e.input) == ("class-change", 0)]
    assert (change.value, change.low) == (0, 0)
    assert change.high == pytest.approx(p**4)
    net = net.double()
    with torch.no_grad():
        net.linear2.bias[1] -= 1e-15
    near = enumerate_exact(net, x.double(), NeuronCrash(p))
    with pytest.warns(CrashsimWarning, match="two classes lie within rounding"):
        near.estimates()


def test_between_outcomes_nothing_is_said(make_net, randn):
    law = enumerate_exact(make_net((3, 4, 2), scale=2), randn(2, 3), NeuronCrash(0.2))
    sizes = np.unique(np.abs(law.deltas))
    gap = int(np.argmax(np.diff(sizes)))
    epsilon = float(sizes[gap : gap + 2].mean())
    tails = [e for e in law.estimates(epsilon) if e.quantity == "tail"]
    assert {(e.low, e.high) for e in tails} == {(None, None)}
    assert max(e.value for e in tails) > 0


def test_what_cannot_be_enumerated(make_net, randn):
    with pytest.raises(ArgumentError, match="continuum"):
        enumerate_exact(make_net((3, 4, 2)), randn(1, 3), GainNoise(0.1))
    with pytest.raises(ArgumentError, match=r"21 fault coordinates .* 2\^21 patterns"):
        enumerate_exact(make_net((3, 21, 2)), randn(1, 3), NeuronCrash(0.1))
    many = FaultSpace(make_net((3, 18, 2)), randn(1, 3).repeat(3000, 1), NeuronCrash(0.1))
    assert not can_enumerate(many)
    with pytest.raises(ArgumentError, match="3000 inputs"):
        enumerate_space(many)
