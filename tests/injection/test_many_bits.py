"""Bits of large parameters: what each adds is looked up, not written out."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import BitFlip, FaultSpace
from crashsim.coordinates.drawing import sample_points
from crashsim.coordinates.points import Points
from crashsim.faults.words.formats import IntegerFormat
from crashsim.faults.words.word_fault import BitSteps
from crashsim.injection.faulty_model import FaultyModel
from crashsim.injection.few_words import FewWords
from crashsim.injection.site_changes import LOOKED_UP
from crashsim.injection.weights.patched import PatchedWeights
from crashsim.scoring.planning.plan import plan

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


class Steps(torch.autograd.Function):
    """Spikes with a surrogate gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient / (1 + x.abs()) ** 2


class InLine(nn.Module):
    """What it computes between two layers is no module."""

    def __init__(self, between, hidden):
        super().__init__()
        self.first, self.last = nn.Linear(10, hidden), nn.Linear(hidden, 3)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.first(x)))


class Detached(InLine):
    """One that torch takes no derivatives of: it overwrites what they need."""

    def forward(self, x):
        y = self.first(x).exp()
        z = y * y
        y.zero_()
        return self.last(z)


NETS = {
    "smooth": lambda hidden: InLine(torch.tanh, hidden),
    "spikes": lambda hidden: InLine(Steps.apply, hidden),
    "overwritten": lambda hidden: Detached(torch.exp, hidden),
}


@pytest.mark.parametrize("fault", [BitFlip(1e-3, format="int8"), BitFlip(1e-3, bits="mantissa")])
@pytest.mark.parametrize("net", NETS)
def test_few_words_say_of_derivatives_what_all_would(net, fault, seeded, randn, monkeypatch):
    def asked():
        space = FaultSpace(seeded(lambda: NETS[net](30)), randn(3, 10), fault, "first.weight")
        return space.has_derivatives, space.why_no_derivatives

    every = asked()
    monkeypatch.setattr("crashsim.injection.few_words.MANY", 0)
    few = asked()
    assert few[0] == every[0] == (net == "smooth")
    assert few[0] or few[1] == every[1]


def test_the_steepest_of_few_words_are_those_of_all(seeded, randn):
    """Against a backward pass by every coordinate."""
    net, x = seeded(lambda: InLine(torch.tanh, 30)), randn(1, 10)
    for fault in (BitFlip(1e-3, format="int8"), BitFlip(1e-3, bits="mantissa", format="float32")):
        space = FaultSpace(net, x, fault, "weights")
        ((_, gradients),) = space.gradients(np.zeros(space.N))
        every = np.abs(gradients[0].sum(0))
        looked = FewWords(space.faulty_model)
        columns, sizes = looked.steepest(space.examples, 8)
        wanted = np.sort(every)[::-1][:8]
        np.testing.assert_allclose(sizes[:8], wanted, rtol=1e-4)
        np.testing.assert_allclose(every[columns], sizes, rtol=1e-4, atol=1e-7)
        at = np.zeros(space.N)
        at[columns[0]] = 0.5
        moved = looked.moved(space.examples, int(columns[0]), 0.5)
        np.testing.assert_allclose(moved, space.outputs(Points.at(at))[0, 0], atol=1e-6)
        assert np.abs(moved - looked.clean(space.examples)).max() > 1e-4


def test_a_plan_of_many_bits_displaces_few_of_them(layer, randn, monkeypatch):
    displaced = []
    change = IntegerFormat.change

    def counted(self, old, new, step):
        displaced.append(torch.broadcast_shapes(old.shape, new.shape).numel())
        return change(self, old, new, step)

    monkeypatch.setattr(IntegerFormat, "change", counted)
    space = FaultSpace(layer, randn(2, INPUTS), BitFlip(1e-6, format="int8"), "weights")
    found = plan(space, None, 10_000, None)
    assert "mean-point-taylor" in found.methods  # it has derivatives
    assert 0 < sum(displaced) < space.N / 100


def test_patched_weights_are_set_up_once_for_all_parts_of_a_run(layer, randn, monkeypatch):
    made = []
    set_up = PatchedWeights.__init__

    def counted(self, *arguments):
        made.append(arguments)
        set_up(self, *arguments)

    monkeypatch.setattr(PatchedWeights, "__init__", counted)
    x = randn(500, INPUTS)
    space = FaultSpace(layer, x, BitFlip(3e-5, bits=8), "weights")
    assert "patched" in space.plan()[0]
    points = sample_points(space.placements, 3, 6)
    parts = [space.outputs(points.part(low, low + 2)) for low in (0, 2, 4)]
    assert len(made) == 1
    anew = FaultSpace(layer, x, BitFlip(3e-5, bits=8), "weights")
    assert (np.concatenate(parts) == anew.outputs(points)).all()  # to the last bit
    at = np.zeros(space.N)
    assert (space.outputs(Points.one_at_a_time(at, *one(5)))[0] != space.clean()).any()
    # Another base is another point, also if the same array is written to.
    at[7] = at[900_007] = 1.0
    there = space.outputs(Points.one_at_a_time(at, *one(5)))
    plain = space.faulty_model.outputs(space.examples, Points.one_at_a_time(at, *one(5)))
    np.testing.assert_allclose(there, plain, atol=1e-6)
    assert np.abs(there[0] - parts[0][0]).max() > 1e-3


def one(column):
    """Two points: one coordinate struck, and not."""
    return np.array([column, column + 8]), np.array([1.0, 0.0])


def test_a_sample_that_an_interrupt_left_in_the_weights_is_not_kept(layer, randn, monkeypatch):
    space = FaultSpace(layer, randn(500, INPUTS), BitFlip(1e-4, bits=8), "weights")
    points = sample_points(space.placements, 3, 4)
    wanted = space.outputs(points)
    with monkeypatch.context() as patch:
        patch.setattr(FaultyModel, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            space.outputs(points)
    assert (space.outputs(points) == wanted).all()


def interrupted(*_):
    raise KeyboardInterrupt
