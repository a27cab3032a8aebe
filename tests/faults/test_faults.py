"""Faults: displacements against hand computations, groups, validation."""

import math

import numpy as np
import pytest
import torch

import crashsim
from crashsim.errors import ArgumentError
from crashsim.faults import (
    FAULTS,
    AdditiveNoise,
    BitFlip,
    GainNoise,
    NeuronCrash,
    SignFlip,
    StuckAt,
    WeightCrash,
)


@pytest.mark.parametrize(
    ("fault", "value", "e", "faulty"),
    [
        (NeuronCrash(0.1), 1.7, 1.0, 0.0),
        (NeuronCrash(0.1), 1.7, 0.0, 1.7),
        (WeightCrash(0.1), -2.5, 1.0, 0.0),
        (StuckAt(0.1, 3.0), -2.5, 1.0, 3.0),
        (StuckAt(0.1), 1.5, 1.0, 0.0),
        (SignFlip(0.1), -2.5, 1.0, 2.5),
        (GainNoise(0.1), -2.0, 0.25, -2.5),
        (AdditiveNoise(0.1), -2.0, 0.25, -1.75),
    ],
)
def test_displacement(fault, value, e, faulty):
    shape = (2, 3)
    a = torch.full((5, *shape), value, dtype=torch.float64)
    got = fault.perturb(a, torch.full((1, 6), e, dtype=torch.float64), shape)
    assert got.shape == a.shape
    np.testing.assert_allclose(got.numpy(), faulty)
    np.testing.assert_allclose((a + e * fault.displacement(a)).numpy(), faulty)


def test_only_the_struck_coordinate_changes():
    a = torch.arange(1.0, 7.0).reshape(1, 2, 3)
    e = torch.zeros(1, 6)
    e[0, 4] = 1
    np.testing.assert_array_equal(NeuronCrash(0.1).perturb(a, e, (2, 3)), [[[1, 2, 3], [4, 0, 6]]])


def _integer(word, bits):
    """What a two's complement word means."""
    return word - (1 << bits) if word >> (bits - 1) else word


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16, 32])
def test_bit_flips_against_integer_arithmetic(bits, randn):
    weights = torch.cat([randn(9, dtype=torch.float64), torch.tensor([0.0, 1.0, -1.0])])
    fault = BitFlip(0.1, bits=bits)
    top = 2 ** (bits - 1) - 1
    scale = weights.abs().max().item() / top
    displacement = fault.displacement(weights)
    assert displacement.shape == (12, bits)
    for i, w in enumerate(weights.tolist()):
        stored = round(w / scale)
        word = stored % (1 << bits)
        for j in range(bits):
            change = _integer(word ^ (1 << j), bits) - stored
            assert displacement[i, j].item() == pytest.approx(change * scale, rel=1e-12)
    # Several flips of one word at once: the changes add up.
    word = round(weights[0].item() / scale) % (1 << bits)
    mask = (1 << bits) - 1
    e = torch.zeros(12 * bits, dtype=torch.float64)
    e[:bits] = 1
    got = fault.perturb(weights, e, (12,))[0].item() - weights[0].item()
    change = _integer(word ^ mask, bits) - _integer(word, bits)
    assert got == pytest.approx(change * scale)


def test_bit_flips_of_zero_weights_and_single_precision():
    fault = BitFlip(0.1, bits=4)
    assert torch.equal(fault.displacement(torch.zeros(2, 2)), torch.zeros(2, 2, 4))
    assert fault.displacement(torch.ones(3)).dtype == torch.float32
    assert fault.coordinate_count((2, 3)) == 24


@pytest.mark.parametrize(
    ("group", "shape", "count"),
    [
        ("unit", (2, 2, 3), 12),
        ("channel", (2, 2, 3), 2),
        ("channel", (7,), 7),
        (5, (2, 2, 3), 3),
        (4, (2, 2, 3), 3),
        (100, (2, 2, 3), 1),
        (1, (5,), 5),
    ],
)
def test_groups_crash_together(group, shape, count):
    fault = NeuronCrash(0.1, group=group)
    assert fault.coordinate_count(shape) == count
    size = math.prod(shape)
    a = torch.arange(1.0, size + 1).reshape(1, *shape)
    width = {"unit": 1, "channel": math.prod(shape[1:])}.get(group, group)
    for i in range(count):
        e = torch.zeros(1, count)
        e[0, i] = 1
        dead = (fault.perturb(a, e, shape) == 0).flatten().nonzero().flatten().tolist()
        assert dead == list(range(i * width, min((i + 1) * width, size)))


@pytest.mark.parametrize(
    "cls", [NeuronCrash, WeightCrash, StuckAt, SignFlip, BitFlip], ids=lambda c: c.name
)
@pytest.mark.parametrize("p", [-1e-9, 1.0000001, 2, math.nan, math.inf, "0.1", None, True, 1j])
def test_bad_probabilities(cls, p):
    with pytest.raises(ArgumentError, match="p=") as raised:
        cls(p)
    assert repr(p) in str(raised.value)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("cls", [GainNoise, AdditiveNoise])
@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf, "1", None, False])
def test_bad_deviations(cls, std):
    with pytest.raises(ArgumentError, match="std=") as raised:
        cls(std)
    assert repr(std) in str(raised.value)


@pytest.mark.parametrize("group", ["row", 0, -1, 1.5, None, True, ""])
def test_bad_groups(group):
    with pytest.raises(ArgumentError, match="group="):
        NeuronCrash(0.1, group=group)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "1", None])
def test_bad_stuck_values(value):
    with pytest.raises(ArgumentError, match="value="):
        StuckAt(0.1, value)


@pytest.mark.parametrize("bits", [1, 33, 8.0, "8", [], [-1], [64], ["a"], True])
def test_bad_bits(bits):
    with pytest.raises(ArgumentError, match="bits="):
        BitFlip(0.1, bits=bits)


def test_numbers_of_numpy_are_numbers(make_net, randn):
    fault = NeuronCrash(np.float32(0.5))
    assert fault.rate == 0.5
    result = crashsim.score(make_net((3, 4, 2)), randn(1, 3), fault, methods="exact")
    assert result.to_dict()["faults"][0]["p"] == 0.5


def test_faults_are_values():
    assert NeuronCrash(0.1) == NeuronCrash(p=0.1)
    assert len({NeuronCrash(0.1), NeuronCrash(0.1), WeightCrash(0.1)}) == 2
    with pytest.raises(AttributeError):
        NeuronCrash(0.1).p = 0.2
    assert StuckAt(0.1, 2.0).to_dict() == {"fault": "stuck-at", "p": 0.1, "value": 2.0}
    assert GainNoise(0.2).rate == 0.2


def test_every_fault_has_a_name_of_its_own():
    assert len(FAULTS) == 8
    for name, cls in FAULTS.items():
        assert cls.name == name
