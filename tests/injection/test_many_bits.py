"""Bits of large parameters: what each adds is looked up, not written out."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, FaultSpace
from crashsim.coordinates.drawing import sample_points
from crashsim.faults.words.word_fault import BitSteps
from crashsim.injection.site_changes import LOOKED_UP

INPUTS, OUTPUTS = 400, 350


@pytest.fixture
def layer(seeded):
    return seeded(lambda: nn.Linear(INPUTS, OUTPUTS)).eval()


def struck_by_hand(weight, columns, bits):
    """The weight (numpy) after some bits of its two's complement flipped."""
    scale = np.abs(weight).max() / (2 ** (bits - 1) - 1)
    stored = np.clip(np.round(weight / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    struck = stored.astype(np.int64) % 2**bits
    np.bitwise_xor.at(struck.reshape(-1), columns // bits, 1 << (columns % bits))
    meant = np.where(struck >= 2 ** (bits - 1), struck - 2**bits, struck)
    return weight + (meant - stored) * scale


def test_samples_of_many_bits_are_those_of_an_injector_by_hand(layer, randn):
    x = randn(2, INPUTS)
    bits = 8
    space = FaultSpace(layer, x, BitFlip(3e-5, bits=bits), "weights")
    assert space.N > LOOKED_UP
    points = sample_points(space.placements, 3, 40)
    found = space.outputs(points)
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    struck = 0
    for s in range(points.count):
        columns = points.columns[points.rows == s]
        struck += len(columns)
        faulty = struck_by_hand(weight, columns, bits)
        wanted = x.double().numpy() @ faulty.T + bias
        np.testing.assert_allclose(found[s], wanted, rtol=1e-5, atol=1e-5)
    assert struck > 500
    assert np.abs(found - space.clean()).max() > 0.1


def test_what_bits_add_is_looked_up_as_it_would_be_written_out(randn):
    for fault in (
        BitFlip(0.1, bits=8),
        BitFlip(0.1, format="int8", scale="channel"),
        BitFlip(0.1, bits="mantissa", format="float32"),
    ):
        value = randn(30, 7)
        written = fault.displacement(value).reshape(-1)
        steps = BitSteps.of(fault, value)
        columns = torch.arange(len(written)).flip(0)
        torch.testing.assert_close(steps.index_select(0, columns), written.flip(0))
        assert written.unique().numel() >= 16


def test_a_point_of_many_bits_is_that_of_its_parts(layer):
    fault, weight = BitFlip(0.1, bits=8), layer.weight.detach()
    e = (torch.rand(8 * weight.numel(), generator=torch.Generator().manual_seed(1)) < 0.1).byte()
    whole = fault.perturb(weight, e, tuple(weight.shape))
    change = (e.view(*weight.shape, 8) * fault.displacement(weight)).sum(-1)
    torch.testing.assert_close(whole, weight + change)
    assert (whole != weight).float().mean() > 0.5
