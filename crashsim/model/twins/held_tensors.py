"""Tensors beside a model's parameters that faults are to strike: threshold, leak, gain of neurons.

Spiking layers keep them in buffers or plain attributes. A twin holds those that are asked for as
parameters of the same name, ``lif1.beta``, so that faults reach them like any other weight. One
number for a whole layer is one coordinate.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn


def hold_tensors(twin: nn.Module, patterns: Collection[str]) -> list[str]:
    """Has a twin hold tensors as parameters, where a name or glob is theirs and no parameter's.

    Args:
        twin: changed in place, before it or a copy of it runs.
        patterns: names and globs of sites.

    Returns:
        the names of the tensors.
    """
    parameters = {name for name, _ in twin.named_parameters()}
    modules = {path for path, _ in twin.named_modules()}
    held = []
    for pattern in patterns:
        known = any(fnmatchcase(name, pattern) for name in parameters | modules)
        if "." not in pattern or known:
            continue
        for path, module in twin.named_modules():
            for name, tensor in (*module._buffers.items(), *vars(module).items()):
                full = f"{path}.{name}" if path else name
                if _is_plain(tensor) and fnmatchcase(full, pattern):
                    module._buffers.pop(name, None)
                    vars(module).pop(name, None)
                    value = tensor.detach().clone()
                    module.register_parameter(name, nn.Parameter(value, requires_grad=False))
                    held.append(full)
    return held


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and type(value) is torch.Tensor


def numbers_named(model: nn.Module, patterns: Collection[str]) -> list[str]:
    """Which of these names are plain numbers in attributes, which no fault can strike."""
    found = []
    for pattern in patterns:
        path, _, name = pattern.rpartition(".")
        try:
            value = getattr(model.get_submodule(path), name, None)
        except AttributeError:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append(pattern)
    return found
