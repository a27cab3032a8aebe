"""Architecture specs."""

import pytest
import torch
from torch import nn

from crashsim.errors import ArgumentError
from crashsim.files.architectures import (
    ACTIVATIONS,
    Architecture,
    is_architecture,
    parse_architecture,
)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_round_trip_and_build(activation):
    architecture = parse_architecture(f"3-5-4-2:{activation}")
    assert (
        parse_architecture(str(architecture))
        == architecture
        == Architecture((3, 5, 4, 2), activation)
    )
    net = architecture.build(3)
    linears = [net.linear1, net.linear2, net.linear3]
    assert [(m.in_features, m.out_features) for m in linears] == [(3, 5), (5, 4), (4, 2)]
    assert len(net) == (3 if activation == "linear" else 5)
    assert not net.training
    assert isinstance(net[-1], nn.Linear)
    again, other = architecture.build(3), architecture.build(4)
    assert torch.equal(net.linear1.weight, again.linear1.weight)
    assert not torch.equal(net.linear1.weight, other.linear1.weight)


def test_the_default_is_relu():
    assert parse_architecture("64-10") == Architecture((64, 10), "relu")


@pytest.mark.parametrize("spec", ["", "64", "64-", "-64-10", "64-0-10", "64-10:swish", "a-b",
                                  "64-10:relu:tanh", "64,10", "64-10 :relu"])  # fmt: skip
def test_bad_specs(spec):
    with pytest.raises(ArgumentError) as raised:
        parse_architecture(spec)
    assert repr(spec) in str(raised.value)


@pytest.mark.parametrize("seed", [-1, 2**64, "0", 1.5])
def test_bad_seeds(seed):
    with pytest.raises(ArgumentError, match="seed="):
        parse_architecture("3-2").build(seed)


def test_what_looks_like_an_architecture():
    assert is_architecture("64-10:nonsense")
    assert not is_architecture("model")
    assert not is_architecture("nets.py:build")
