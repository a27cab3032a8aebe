"""Activation functions: torch's modules where it has them, which are sites of neurons."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crashsim.files.onnx_graphs.network import whole
from crashsim.files.onnx_graphs.node import Constant, Made, Node
from crashsim.files.onnx_graphs.operators import arithmetic

_SIXTH = 1 / 6


def _module(kind: Callable[[], nn.Module], node: Node) -> Made:
    return Made(kind(), node.inputs[:1])


def _scaled(kind: Callable[[float], nn.Module], default: float, node: Node) -> Made:
    return Made(kind(float(node.attribute("alpha", default))), node.inputs[:1])


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


class HardSigmoid(nn.Module):
    """max(0, min(1, alpha x + beta))."""

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        return hard_sigmoid(x, self.alpha, self.beta)


class ThresholdedRelu(nn.Module):
    """x where it is above alpha, else 0."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.threshold(x, self.alpha, 0.0)


@whole
def shrink(x: Tensor, bias: float, limit: float) -> Tensor:
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))


@whole
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


@whole
def flat_softmax(x: Tensor, axis: int, log: bool) -> Tensor:
    """Over all axes from ``axis`` on, as one: opset 12 and older."""
    flat = x.reshape(*x.shape[:axis], -1)
    return (F.log_softmax if log else F.softmax)(flat, -1).reshape(x.shape)


@whole
def hardmax(x: Tensor, axis: int, flat: bool) -> Tensor:
    """One at the first of the largest, zero elsewhere."""
    y = x.reshape(*x.shape[:axis], -1) if flat else x.movedim(axis, -1)
    best = torch.zeros_like(y).scatter(-1, y.argmax(-1, keepdim=True), 1)
    return best.reshape(x.shape) if flat else best.movedim(-1, axis)


def _hard_sigmoid(node: Node) -> Made:
    alpha, beta = float(node.attribute("alpha", 0.2)), float(node.attribute("beta", 0.5))
    if abs(alpha - _SIXTH) < 1e-7 and beta == 0.5:
        return Made(nn.Hardsigmoid(), node.inputs[:1])
    return Made(HardSigmoid(alpha, beta), node.inputs[:1])


def _prelu(node: Node) -> Made:
    slope = node.needed(1)
    sizes, held = node.sizes(), isinstance(slope, Constant)
    if held and sizes is not None and len(sizes) >= 2:
        assert isinstance(slope, Constant)
        shape = tuple(slope.tensor.shape)
        per_channel = len(shape) == len(sizes) - 1 and set(shape[1:]) <= {1}
        if slope.tensor.numel() == 1 or (per_channel and shape[0] == sizes[1]):
            module = nn.PReLU(slope.tensor.numel())
            module.weight = nn.Parameter(slope.tensor.reshape(-1).clone())
            return Made(module, node.inputs[:1])
    return node.call(prelu, *node.inputs)


def _gelu(node: Node) -> Made:
    return Made(nn.GELU(node.attribute("approximate", "none")), node.inputs[:1])


def _swish(node: Node) -> Made:
    alpha = float(node.attribute("alpha", 1.0))
    if alpha == 1:
        return Made(nn.SiLU(), node.inputs[:1])
    return node.call(_swish_of, *node.inputs[:1], alpha=alpha)


def _swish_of(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _selu(node: Node) -> Made:
    alpha = float(node.attribute("alpha", 1.67326319217681884765625))
    gamma = float(node.attribute("gamma", 1.05070102214813232421875))
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.0507010) < 1e-6:
        return Made(nn.SELU(), node.inputs[:1])
    return node.call(_selu_of, *node.inputs[:1], alpha=alpha, gamma=gamma)


def _selu_of(x: Tensor, alpha: float, gamma: float) -> Any:
    return gamma * F.elu(x, alpha)


def _softmax(node: Node, *, log: bool = False) -> Made:
    old = node.version < 13
    axis = int(node.attribute("axis", 1 if old else -1))
    if not old or axis == -1 or (axis >= 0 and axis == node.rank() - 1):
        return Made((nn.LogSoftmax if log else nn.Softmax)(axis), node.inputs[:1])
    axis = axis if axis >= 0 else axis + node.rank()
    return node.call(flat_softmax, *node.inputs[:1], axis=axis, log=log)


def _hardmax(node: Node) -> Made:
    old = node.version < 13
    axis = int(node.attribute("axis", 1 if old else -1))
    axis = axis if axis >= 0 else axis + node.rank()
    return node.call(hardmax, *node.inputs[:1], axis=axis, flat=old)


def _shrink(node: Node) -> Made:
    bias, limit = float(node.attribute("bias", 0.0)), float(node.attribute("lambd", 0.5))
    return node.call(shrink, *node.inputs[:1], bias=bias, limit=limit)


def _thresholded(node: Node) -> Made:
    return Made(ThresholdedRelu(float(node.attribute("alpha", 1.0))), node.inputs[:1])


def _limits(node: Node) -> Made:
    """A clip between known numbers is an activation; ReLU6 is often written so."""
    if node.version < 11:
        low, high = node.attribute("min"), node.attribute("max")
    else:
        limits = [node.input(1), node.input(2)]
        if any(v is not None and not isinstance(v, Constant) for v in limits):
            return arithmetic.OPERATORS["Clip"](node)
        low, high = (float(v.tensor) if isinstance(v, Constant) else None for v in limits)
    kind = node.dtype()
    if kind is None or not kind.is_floating_point:
        return arithmetic.OPERATORS["Clip"](node)
    if low == 0 and (high is None or high > 1e30):
        return Made(nn.ReLU(), node.inputs[:1])
    if low == 0 and high == 6:
        return Made(nn.ReLU6(), node.inputs[:1])
    if low is not None and high is not None and low < high:
        return Made(nn.Hardtanh(low, high), node.inputs[:1])
    return arithmetic.OPERATORS["Clip"](node)


OPERATORS: dict[str, Callable[[Node], Made]] = {
    "Celu": partial(_scaled, nn.CELU, 1.0),
    "Clip": _limits,
    "Elu": partial(_scaled, nn.ELU, 1.0),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": partial(_module, nn.Hardswish),
    "Hardmax": _hardmax,
    "LeakyRelu": partial(_scaled, nn.LeakyReLU, 0.01),
    "LogSoftmax": partial(_softmax, log=True),
    "Mish": partial(_module, nn.Mish),
    "PRelu": _prelu,
    "Relu": partial(_module, nn.ReLU),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": partial(_module, nn.Sigmoid),
    "Softmax": _softmax,
    "Softplus": partial(_module, nn.Softplus),
    "Softsign": partial(_module, nn.Softsign),
    "Swish": _swish,
    "Tanh": partial(_module, nn.Tanh),
    "ThresholdedRelu": _thresholded,
}
