"""Gradients of many outputs by few coordinates, against a pass for each output."""

import numpy as np
import pytest
import torch
from torch import nn

from crashsim import FaultSpace, GainNoise, NeuronCrash


class Hiding(torch.autograd.Function):
    """tanh, whose backward pass leaves no trace of how it came about."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grad.detach().numpy() * (1 - np.tanh(x.detach().numpy()) ** 2))


class Once(Hiding):
    """The same, and says that it cannot be differentiated twice."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - torch.tanh(x) ** 2)


class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def network(activation):
    return nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7), activation, nn.Linear(7, 60)
    ).eval()


@pytest.mark.parametrize("activation", [nn.Tanh(), Own(Hiding), Own(Once)])
@pytest.mark.parametrize("fault", [NeuronCrash(0.1), GainNoise(0.1)])
def test_they_are_those_of_each_output(activation, fault, seeded, randn):
    space = FaultSpace(seeded(lambda: network(activation)), randn(4, 3), fault, "1")
    assert space.N * 3 < space.K
    at = np.linspace(0.1, 0.4, space.N)
    found = np.concatenate([part for _, part in space.gradients(at)])
    rows = np.concatenate([part for _, part in space.gradients(at, np.eye(space.K))])
    assert found.shape == (4, 60, 5)
    assert np.abs(rows).max() > 0.01
    np.testing.assert_allclose(found, rows, rtol=1e-5, atol=1e-7)


def test_a_backward_pass_that_cannot_be_followed_is_left_alone(monkeypatch, seeded, randn):
    from crashsim.injection import derivatives

    tried = []

    def by_columns(e, out, real=derivatives.by_columns):
        tried.append(real(e, out))
        return tried[-1]

    monkeypatch.setattr(derivatives, "by_columns", by_columns)
    for activation in (nn.Tanh(), Own(Hiding), Own(Once)):
        net = seeded(lambda activation=activation: network(activation))
        space = FaultSpace(net, randn(4, 3), NeuronCrash(0.1), "1")
        list(space.gradients(np.zeros(space.N)))
    assert [part is None for part in tried] == [False, True, True]
