"""Transforms of the chip's as torch modules."""

from __future__ import annotations

import crashsim_hardware as chips
import numpy as np
import torch
from torch import Tensor, nn

from crashsim.arrays import Floats
from crashsim.errors import ArgumentError

__all__ = ["Scale", "module_of"]


class Scale(nn.Module):
    """y = scale * x, with a scale broadcast against one example."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Buffer(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def module_of(transform: object) -> nn.Module:
    """The torch module, in double precision, that computes a transform of the chip's."""
    if isinstance(transform, chips.Linear):
        out, fan_in = transform.weight.shape
        has_bias = transform.bias is not None
        linear = nn.Linear(fan_in, out, has_bias, device="meta")  # draws nothing
        return _filled(linear, transform.weight, transform.bias)
    if isinstance(transform, chips.Conv2d):
        out, per_group, *kernel = transform.weight.shape
        conv = nn.Conv2d(
            per_group * transform.groups, out, (kernel[0], kernel[1]), transform.stride,
            transform.padding, transform.dilation, transform.groups, transform.bias is not None,
            device="meta",
        )  # fmt: skip
        return _filled(conv, transform.weight, transform.bias)
    if isinstance(transform, chips.Conv1d):
        out, per_group, length = transform.weight.shape
        line = nn.Conv1d(
            per_group * transform.groups, out, length, transform.stride,
            transform.padding, transform.dilation, transform.groups, transform.bias is not None,
            device="meta",
        )  # fmt: skip
        return _filled(line, transform.weight, transform.bias)
    if isinstance(transform, chips.SumPool2d):
        pool = nn.AvgPool2d(transform.kernel, transform.stride, transform.padding)
        if not isinstance(transform, chips.AvgPool2d):
            pool.divisor_override = 1
        return pool
    if isinstance(transform, chips.Flatten):
        return nn.Flatten()
    if isinstance(transform, chips.Scale):
        return Scale(torch.from_numpy(np.array(transform.scale)))
    raise ArgumentError(f"model: {type(transform).__name__} has no torch counterpart")


def _filled(
    module: nn.Linear | nn.Conv1d | nn.Conv2d, weight: Floats, bias: Floats | None
) -> nn.Module:
    """The module with these weights."""
    module.weight = nn.Parameter(torch.from_numpy(np.array(weight, dtype=np.float64)))
    if bias is not None:
        module.bias = nn.Parameter(torch.from_numpy(np.array(bias, dtype=np.float64)))
    return module
