"""How many multiply-accumulates each neuron site's values take, as its copies would take again."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from crashsim.injection.flops import Operations
from crashsim.model.inputs import Inputs
from crashsim.model.sites.layer_kinds import is_affine


def macs_by_site(model: nn.Module, example: Inputs, sites: dict[str, str]) -> dict[str, float]:
    """Multiply-accumulates of an example, by site; ``"all"`` has those of the whole model.

    Those of linear and convolutional layers count for the site that comes next, as its values are
    computed from theirs.

    Args:
        model: a twin, of which a copy runs.
        example: one example.
        sites: the module of each site, by the site's name.
    """
    own = deepcopy(model)
    left, by_module = 0.0, dict.fromkeys(sites.values(), 0.0)

    def affine(layer: nn.Module, args: Any, output: Any) -> None:
        nonlocal left
        left += _macs(layer, output)

    def site(path: str) -> Any:
        def ends(layer: nn.Module, args: Any, output: Any) -> None:
            nonlocal left
            by_module[path] += left
            left = 0.0

        return ends

    modules = dict(own.named_modules())
    hooks = [m.register_forward_hook(affine) for m in modules.values() if is_affine(m)]
    hooks += [modules[p].register_forward_hook(site(p)) for p in by_module if p in modules]
    with torch.no_grad(), Operations() as counted:
        example.call(own)
    found = {name: by_module[module] for name, module in sites.items()}
    return {**found, "all": max(counted.total / 2, sum(by_module.values()), 1.0)}


def _macs(layer: nn.Module, output: Any) -> float:
    if not isinstance(output, torch.Tensor) or not isinstance(
        weight := getattr(layer, "weight", None), torch.Tensor
    ):
        return 0.0
    return float(output.numel() * math.prod(weight.shape[1:]))
