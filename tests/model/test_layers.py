"""A torch model as plain layers: what they compute is what torch computes."""

from copy import deepcopy
from typing import get_args

import crashsim_hardware
import crashsim_theory
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crashsim import FaultSpace, NeuronCrash
from crashsim.analytic.proofs import provable
from crashsim.chip.conversion import chip_network
from crashsim.model.layers import (
    Activation,
    Operation,
    Residual,
    UnsupportedLayerError,
    layers_of,
)


class Between(nn.Module):
    """A convolution, what is given, and a linear layer."""

    def __init__(self, middle, channels=4):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.middle = middle
        self.head = nn.LazyLinear(3)

    def forward(self, x):
        return self.head(torch.flatten(self.middle(torch.relu(self.stem(x))), 1))


class Nested(nn.Module):
    """A residual block inside a residual block, with a projection as the outer shortcut."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.shortcut = nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        h = torch.tanh(self.outer(x))
        h = h + self.norm(self.inner(torch.sigmoid(h)))
        return torch.relu(torch.add(self.shortcut(x), h))


def crossed(x):
    h = torch.sigmoid(x)
    return (x + h) + torch.tanh(h)


def mixed_chain():
    return nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.2), nn.Dropout(0.5), nn.Linear(6, 4),
        nn.ELU(), nn.Linear(4, 4), nn.GELU(approximate="tanh"), nn.Linear(4, 4), nn.Softplus(),
        nn.Linear(4, 4), nn.SiLU(), nn.Identity(), nn.Linear(4, 3, bias=False), nn.GELU(),
    )  # fmt: skip


IMAGES = {
    "nothing": nn.Identity(),
    "strides": nn.Conv2d(4, 4, 3, stride=2, padding=2, dilation=2, groups=2, bias=False),
    "average": nn.AvgPool2d(2),
    "average, padded": nn.AvgPool2d(3, stride=2, padding=1),
    "maximum": nn.MaxPool2d(3, 2, 1),
    "adaptive": nn.AdaptiveAvgPool2d((2, 1)),
    "normalised": nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True)),
    "average function": lambda x: F.avg_pool2d(x, 2, stride=1),
    "maximum function": lambda x: F.max_pool2d(x, kernel_size=2),
    "adaptive function": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "mean, kept": lambda x: torch.mean(x, dim=[-1, -2], keepdim=True),
    "view": lambda x: x.view(-1, 64),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "functions": lambda x: F.leaky_relu(F.elu(x, 1.0), 0.3),
    "residual": lambda x: x + torch.tanh(x),
    "nested": Nested(),
}


def settled(net, x):
    """The net in eval mode and double precision; its batch norms have seen something."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        net(x)
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
                module.bias.normal_()
    return net.double().eval()


def space_of(net, x):
    return FaultSpace(net, x.double(), NeuronCrash(0.1), "*")


def check_theory(space):
    found = provable(space)
    np.testing.assert_allclose(found.network(found.inputs), space.clean(), atol=1e-10)


def check_chip(space):
    network, _ = chip_network(space)
    np.testing.assert_allclose(
        network.forward(space.inputs.numpy()).outputs, space.clean(), atol=1e-10
    )


@pytest.mark.parametrize("name", IMAGES)
def test_images_in_theory(name, randn, seeded):
    x = randn(3, 1, 4, 4)
    check_theory(space_of(settled(seeded(lambda: Between(deepcopy(IMAGES[name]))), x), x))


@pytest.mark.parametrize(
    "name",
    ["nothing", "strides", "average", "average, padded", "adaptive", "normalised",
     "average function", "adaptive function", "mean", "mean, kept", "view"],
)  # fmt: skip
def test_images_on_the_chip(name, randn, seeded):
    x = randn(3, 1, 4, 4)
    check_chip(space_of(settled(seeded(lambda: Between(deepcopy(IMAGES[name]))), x), x))


def test_a_chain_of_everything(randn, seeded):
    x = randn(6, 5)
    space = space_of(settled(seeded(mixed_chain), x), x)
    check_theory(space)
    names = [
        (la.operation.name, la.operation.parameter)
        for la in layers_of(space.model, space.inputs)
        if isinstance(la.operation, Activation)
    ]
    assert names == [
        ("leaky_relu", 0.2), ("elu", 1.0), ("gelu-tanh", None), ("softplus", None),
        ("silu", None), ("gelu", None),
    ]  # fmt: skip


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_plain_nets_on_the_chip(activation, make_net, randn):
    check_chip(space_of(make_net((5, 6, 4, 3), activation).double(), randn(3, 5)))


def test_every_layer_remembers_its_site(residual_net, randn):
    space = space_of(residual_net.double(), randn(2, 1, 4, 4))
    found = layers_of(space.model, space.inputs)
    sites = {site.key for site in space.available_sites}
    inside = [la for f in found if isinstance(f.operation, Residual) for la in f.operation.branch]
    kept = {la.site for la in [*found, *inside]}
    assert {("relu", None, 0), ("relu", None, 1), ("conv", None, 0)} <= kept
    assert kept - {None} <= sites  # additions and shapes are nobody's output
    assert [la.weight for la in found if la.weight] == [
        "stem.weight", "norm.weight", "head.weight",
    ]  # fmt: skip
    check_theory(space)


def test_a_layer_has_one_name_in_the_three_packages():
    names = {kind.__name__ for kind in get_args(Operation)}
    assert names == {
        "Linear", "Conv2d", "AvgPool2d", "MaxPool2d", "ChannelScale", "Activation", "Flatten",
        "Residual",
    }  # fmt: skip
    assert all(isinstance(getattr(crashsim_theory, name), type) for name in names)
    on_the_chip = {"Linear", "Conv2d", "AvgPool2d", "MaxPool2d", "Flatten"}
    assert {name for name in names if hasattr(crashsim_hardware, name)} == on_the_chip
    for package in (crashsim_theory, crashsim_hardware):
        assert not {"Affine", "Dense", "Layer"} & set(package.__all__)  # found with a warning


UNSUPPORTED = {
    "add": lambda x: x + 1,
    "twice": lambda x: x + x,
    "alpha": lambda x: torch.add(x, torch.tanh(x), alpha=2),
    "product": lambda x: x * torch.sigmoid(x),
    "PReLU": nn.PReLU(),
    "Hardtanh": nn.Hardtanh(-2, 2),
    "Softplus": nn.Softplus(beta=2),
    "softplus": lambda x: F.softplus(x, threshold=1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "cat": lambda x: torch.cat([x, x], 1),
    "paths cross": crossed,
    "MaxPool2d": nn.MaxPool2d(3, 2, ceil_mode=True),
    "AvgPool2d": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max_pool2d()": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "mean": lambda x: x.mean((1, 2)),
    "mean()": lambda x: x.mean(dim=1),
    "Conv2d": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d(3),
    "Linear": nn.Linear(4, 2),
    "values": lambda x: x if x.sum() > 0 else -x,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_known_is_named(name, randn, seeded):
    x = randn(2, 1, 4, 4)
    space = space_of(settled(seeded(lambda: Between(deepcopy(UNSUPPORTED[name]))), x), x)
    told = {"twice": "add", "alpha": "add", "product": "mul", "values": "trace"}.get(name, name)
    with pytest.raises(UnsupportedLayerError, match=told.replace("(", r"\(").replace(")", r"\)")):
        layers_of(space.model, space.inputs)


def test_the_model_is_left_alone(residual_net, watch, randn):
    space = FaultSpace(watch(residual_net), randn(2, 1, 4, 4), NeuronCrash(0.1))
    layers_of(space.model, space.inputs)
