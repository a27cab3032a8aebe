"""Gradient checkpointing changes no gradient, whatever strikes faults meanwhile.

The reference is the same training without checkpointing, where backward computes nothing again.
"""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from crashsim import (
    AdditiveNoise,
    CrashTraining,
    CrashVariance,
    FaultSpace,
    GainNoise,
    NeuronCrash,
    WeightCrash,
    score,
)
from crashsim.errors import ModelError

WAYS = {"reentrant": {"use_reentrant": True}, "not reentrant": {"use_reentrant": False}}
FAULTS = {
    "weights": (WeightCrash(0.3), "weights"),
    "one weight": (WeightCrash(0.3), "a.weight"),
    "neurons": (NeuronCrash(0.4), "hidden"),
    "noise": (GainNoise(0.5), "hidden"),
    "input": (AdditiveNoise(0.5), "input"),
    "a bias": (AdditiveNoise(0.5), "b.bias"),
}


class Net(nn.Module):
    """Modules, functions and a plain parameter, in a segment that runs twice and a nested one."""

    def __init__(self, way, nested=False):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.tanh, self.drop = nn.Tanh(), nn.Dropout(0.3)
        self.own = nn.Parameter(torch.randn(7, 7) / 3)
        self.way, self.nested = way, nested

    def run(self, segment, *args):
        return segment(*args) if self.way is None else checkpoint(segment, *args, **self.way)

    def first(self, x):
        return self.tanh(self.a(x))

    def inner(self, h):
        return torch.sigmoid(self.b(h))

    def twice(self, h):
        inner = self.run(self.inner, h) if self.nested else self.inner(h)
        return F.relu(self.drop(inner) @ self.own) + h

    def forward(self, x):
        x = x + 0 * self.c.bias.sum()  # reentrant segments need an input with a gradient
        h = self.run(self.first, x)
        h = self.run(self.twice, self.run(self.twice, h))
        return self.c(F.gelu(h))


def batch(seed):
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))


def loss_of(output):
    return F.cross_entropy(output, torch.arange(len(output)) % 3)


def gradients(way, fault, sites, steps, nested=False, make=CrashTraining, **options):
    torch.manual_seed(0)
    net = Net(way, nested).train()
    attached = make(net, fault, sites, seed=5, **options)
    try:
        steps(net, attached)
    finally:
        attached.remove()
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def one_step(net, attached):
    loss_of(net(batch(0))).backward()


def accumulate(net, attached):
    """Several passes before one backward, an evaluation and a failing pass among them."""
    total = 0
    for seed in range(3):
        total = total + loss_of(net(batch(0))) * (1 + seed)  # the same inputs, other faults
        net.eval()
        net(batch(9))
        net.train()
        with pytest.raises(RuntimeError):
            net(batch(0)[:, :2])
    total.backward()


def in_another_order(net, attached):
    first, second = loss_of(net(batch(0))), loss_of(net(batch(1)))
    first.backward(retain_graph=True)
    second.backward()
    first.backward()  # once more, which computes everything once more


def after_removal(net, attached):
    loss = loss_of(net(batch(0)))
    attached.remove()
    loss.backward()


def to_the_end(net, attached):
    with set_checkpoint_early_stop(False):
        loss = loss_of(net(batch(0)))
    loss.backward()


STEPS = [one_step, accumulate, in_another_order, after_removal, to_the_end]


def differ(found, wanted):
    return any((a is None) != (b is None) or (a is not None and not torch.allclose(a, b, atol=1e-6))
               for a, b in zip(found, wanted, strict=True))  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_crash_training_gets_the_gradient_without_checkpointing(way, faults, nested):
    for steps in STEPS:
        if steps is in_another_order and way == "reentrant":
            continue  # torch frees what reentrant segments need for a second backward
        wanted = gradients(None, *FAULTS[faults], steps)
        assert not differ(gradients(WAYS[way], *FAULTS[faults], steps, nested), wanted), steps


def test_the_faults_matter_to_the_gradients():
    clean = gradients(None, NeuronCrash(0.0), "hidden", one_step)
    for fault, sites in FAULTS.values():
        assert differ(gradients(None, fault, sites, one_step), clean)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_one_segment(way):
    def steps(net, attached):
        x = batch(0).requires_grad_()
        run = net.way
        net.way = None
        output = net(x) if run is None else checkpoint(net, x, **run)
        loss_of(output).backward()

    for fault, sites in FAULTS.values():
        wanted = gradients(None, fault, sites, steps)
        assert not differ(gradients(WAYS[way], fault, sites, steps), wanted)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [{}, {"exact": True}, {"at": "mean"}], ids=str)
@pytest.mark.parametrize("faults", ["neurons", "weights", "noise", "input"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_crash_variance_gets_the_gradient_without_checkpointing(way, options, faults, nested):
    found = []

    def steps(net, penalty):
        net.drop.p = 0.0  # so that another run of the pass has no other random state to find
        for seed in range(2):
            output = net(batch(seed))
            value = penalty(output)
            found.append(float(value.detach()))
            (loss_of(output) + 50 * value).backward()

    def penalised(*args, **kwargs):
        return CrashVariance(*args, strength=1.0, **kwargs)

    wanted = gradients(None, *FAULTS[faults], steps, make=penalised, **options)
    clean = gradients(None, NeuronCrash(0.0), "hidden", steps, make=penalised)
    got = gradients(WAYS[way], *FAULTS[faults], steps, nested, make=penalised, **options)
    assert found[:2] == pytest.approx(found[4:], rel=1e-4)
    assert min(found[:2]) > 0
    assert not differ(got, wanted)
    assert differ(wanted, clean)


def test_torch_is_left_as_it_was():
    names = ("CheckpointFunction", "_checkpoint_without_reentrant_generator")
    before = [getattr(torch_checkpoint, name) for name in names]
    net = Net({"use_reentrant": False})
    with CrashTraining(net, NeuronCrash(0.1)), CrashTraining(net, WeightCrash(0.1)):
        assert [getattr(torch_checkpoint, name) for name in names] != before
    attached = CrashTraining(net, NeuronCrash(0.1))
    attached.remove()
    attached.remove()
    del attached
    lost = CrashVariance(net, NeuronCrash(0.1))
    lost_in_a_cycle = [lost]
    lost_in_a_cycle.append(lost_in_a_cycle)
    del lost, lost_in_a_cycle
    gc.collect()
    assert [getattr(torch_checkpoint, name) for name in names] == before


def test_what_is_gone_before_backward_is_told():
    net = Net({"use_reentrant": False}).train()
    attached = CrashTraining(net, NeuronCrash(0.5))
    loss = loss_of(net(batch(0)))
    del attached
    gc.collect()
    with pytest.raises(ModelError, match="keep it until backward"):
        loss.backward()


@pytest.mark.parametrize("way", WAYS)
def test_other_models_under_checkpointing_are_left_alone(way):
    grads = []
    for attach in (False, True):
        torch.manual_seed(0)
        net, other = Net(WAYS[way]), Net(None)
        if attach:
            attached = CrashTraining(other, NeuronCrash(0.5))
        loss_of(net(batch(0))).backward()
        grads.append([p.grad for p in net.parameters()])
    attached.remove()
    assert not differ(*grads)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("faults", ["weights", "neurons", "noise"])
def test_scores_of_a_model_that_checkpoints_itself(way, faults):
    found = []
    for run in (None, WAYS[way]):
        torch.manual_seed(0)
        net, (fault, sites) = Net(run).eval(), FAULTS[faults]
        result = score(net, batch(0), fault, sites, methods=["taylor", "mean-point-taylor"])
        found.append([e.value for e in result.estimates])
        assert FaultSpace(net, batch(0), fault, sites).has_derivatives
    assert max(found[0]) > 0
    assert found[1] == pytest.approx(found[0], rel=1e-6)
